"""Read COCO annotation and detection files; damaged rows are reported and skipped.

A row is damaged if a field is invalid, or if a field is missing that is not called optional below. Each damaged row
gives a problem, a message of one line: the file, the kind of row, its index and id, and the reason. If a list is not
empty but all its rows are damaged, the file is refused with a ValueError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vitpose_fast.keypoints import KeypointSet
from vitpose_fast.problems import first_of, shown
from vitpose_fast.rows import LIMIT, Row, check_rows, field_of, file_name_of, id_of, is_number, read_json


def read_annotations(path: Path, keypoint_set: KeypointSet) -> tuple[dict[str, Any], list[str]]:
    """Read a COCO annotation file and return (annotations, problems) as `check_annotations` does.

    Raises:
        ValueError: If the file is missing or not JSON, or as in `check_annotations`.
    """
    return check_annotations(read_json(path), keypoint_set, str(path))


def check_annotations(
    data: Any,
    keypoint_set: KeypointSet,
    name: str = "annotations",
    keypoints_of: Callable[[Row], Sequence[float]] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Check COCO annotations, skip damaged rows and fill in missing fields.

    These fields of an annotation are optional:

    - `area`: by default 0.53 * w * h of the `bbox` [x, y, w, h].
    - `iscrowd`: by default APT-36K's `is_crowd`, else 0.
    - `keypoints` (x, y, v of each keypoint; labeled if v > 0): may be missing if `num_keypoints` is missing or 0. No
      keypoint is labeled then.
    - `num_keypoints`: by default the number of labeled keypoints. It becomes 0 if no keypoint is labeled.

    An annotation with labeled keypoints that is not a crowd needs a positive area and a box that is not empty inside
    the image. Crowds and people without labeled keypoints are kept, since COCO ignores detections that match them.
    Categories that occur in annotations but not in `categories` are added, with the id as name. Rows keep their other
    fields.

    Args:
        data: the contents of a COCO file; not changed.
        keypoint_set: the K keypoints of a person.
        name: the file name in messages.
        keypoints_of: returns the flat list x, y, v, ... (3K numbers) of an annotation, for data sets that store part of
            it outside `keypoints`; raises ValueError if the row is damaged. Called for rows with the field `keypoints`
            or with `num_keypoints` > 0. Default: the list in `keypoints`.

    Returns:
        (annotations, problems): a dict with the checked lists `images`, `annotations` and `categories`, and a message
        for each damaged row.

    Raises:
        ValueError: If `images` or `annotations` is not a list, if no image is valid, or if there are annotations but
            none is valid.
    """
    for key in ("images", "annotations"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise ValueError(f"{name}: no list {key!r}, expected COCO keypoint annotations")
    images, problems = check_rows(data["images"], "image", name, image_row, unique=True)
    if not images:
        raise ValueError(f"{name}: no usable image among {len(data['images'])}{first_of(problems, name)}")
    by_id = {image["id"]: image for image in images}
    read = keypoints_of or (lambda row: _keypoints(row, keypoint_set))
    unlabeled = [0] * keypoint_set.num_keypoints * 3
    annotations, damaged = check_rows(
        data["annotations"], "annotation", name, lambda row: _annotation(row, by_id, read, unlabeled), unique=True
    )
    problems += damaged
    if data["annotations"] and not annotations:
        raise ValueError(f"{name}: no usable annotation among {len(data['annotations'])}{first_of(problems, name)}")
    listed = data.get("categories", [])
    if not isinstance(listed, list):
        problems.append(f"{name}: categories is {shown(listed)}, expected a list")
        listed = []
    categories, damaged = check_rows(listed, "category", name, lambda row: {**row, "id": id_of(row, "id")}, unique=True)
    known = {c["id"] for c in categories}
    found = dict.fromkeys(a["category_id"] for a in annotations)
    categories += [{"id": i, "name": str(i)} for i in found if i not in known]
    return {"images": images, "annotations": annotations, "categories": categories}, problems + damaged


def read_detections(source: Path | Sequence[Any]) -> tuple[list[Row], list[str]]:
    """Read detected boxes from a JSON file or a list; damaged rows are skipped.

    A row needs `bbox` [x, y, w, h] in pixels with w, h > 0, and `image_id` or `file_name`. `score` (default 1.0) and
    `category_id` are optional. A COCO annotation file is accepted too: its `annotations` are the detections. A
    detection without `file_name` gets the one of its image in `images`, if there is one.

    Returns:
        (detections, problems): dicts with the fields above, as far as the row has them, and with `index`, the position
        of the row in the list (from 0); and a message for each damaged row.

    Raises:
        ValueError: If the file is not readable as JSON, is neither a list nor a dict with the list `annotations`, or
            has rows but none is valid.
    """
    name = str(source) if isinstance(source, Path) else "detections"
    data = read_json(source) if isinstance(source, Path) else list(source)
    files: dict[Any, str] = {}
    problems: list[str] = []
    if isinstance(data, dict):
        images = data["images"] if isinstance(data.get("images"), list) else []
        named, problems = check_rows(
            images, "image", name, lambda r: {"id": id_of(r, "id"), "file_name": file_name_of(r)}, unique=True
        )
        files = {image["id"]: image["file_name"] for image in named}
        data = data.get("annotations")
    if not isinstance(data, list):
        raise ValueError(f"{name}: expected a JSON list of detections")
    rows, damaged = check_rows(data, "detection", name, _detection)
    problems += damaged
    if data and not rows:
        raise ValueError(f"{name}: no usable detection among {len(data)}{first_of(problems, name)}")
    for row in rows:
        if "file_name" not in row and row["image_id"] in files:
            row["file_name"] = files[row["image_id"]]
    return rows, problems


def clipped_box(box: Sequence[float], width: int, height: int) -> tuple[float, float, float, float] | None:
    """Clip a box (x, y, width, height) to an image of `width` x `height` pixels as the official loader does.

    The result (x, y, width, height) reaches from the first to the last pixel of the box, so it is one pixel smaller
    than the box even if nothing is clipped (docs/numerics.md 3.1). Returns None if its width or height is not positive.
    """
    x, y, w, h = map(float, box)
    x1, y1 = max(0.0, x), max(0.0, y)
    x2, y2 = min(width - 1.0, x1 + max(0.0, w - 1)), min(height - 1.0, y1 + max(0.0, h - 1))
    return (x1, y1, x2 - x1, y2 - y1) if x2 > x1 and y2 > y1 else None


def is_training_person(annotation: Row) -> bool:
    """Return whether an annotation returned by `check_annotations` is not a crowd and has `num_keypoints` > 0.

    The `num_keypoints` of the file decides, as in the official loader. In CrowdPose it is 0 for a person whose
    keypoints are all occluded.
    """
    return not annotation["iscrowd"] and annotation["num_keypoints"] > 0


def image_row(row: Row) -> Row:
    """Return a row of `images` with checked `id`, `file_name`, `width` and `height` and all its other fields.

    Raises:
        ValueError: If one of the four is missing or invalid; width and height must be whole numbers >= 1. The message
            names the field.
    """
    width, height = (field_of(row, key) for key in ("width", "height"))
    for key, value in (("width", width), ("height", height)):
        if not is_number(value) or value < 1 or value != int(value):
            raise ValueError(f"{key} is {shown(value)}, expected a whole number of pixels")
    return {**row, "id": id_of(row, "id"), "file_name": file_name_of(row), "width": int(width), "height": int(height)}


def _annotation(row: Row, images: dict[Any, Row], read: Callable[[Row], Sequence], unlabeled: Sequence) -> Row:
    """Return an annotation with all fields filled in as `check_annotations` describes.

    Args:
        row: the annotation.
        images: id -> the valid row of `images`.
        read: returns the flat list x, y, v, ... of a row.
        unlabeled: the flat list for a row without keypoints, all zeros.

    Raises:
        ValueError: If a field is missing or invalid, the image is not in `images`, or the annotation has labeled
            keypoints and is not a crowd, but its area or its box inside the image is empty.
    """
    own: Row = {key: id_of(row, key) for key in ("id", "image_id", "category_id")}
    image = images.get(own["image_id"])
    if image is None:
        raise ValueError(f"image_id {shown(own['image_id'])} is not in images, or that image is damaged")
    box, crowd_key = _box(row), "iscrowd" if "iscrowd" in row else "is_crowd"
    crowd = row.get(crowd_key, 0)
    if not isinstance(crowd, (int, float)) or crowd not in (0, 1):
        raise ValueError(f"{crowd_key} is {shown(crowd)}, expected 0 or 1")
    count = row.get("num_keypoints", 0)
    if not is_number(count) or count < 0:
        raise ValueError(f"num_keypoints is {shown(count)}, expected the number of labeled keypoints")
    keypoints = read(row) if "keypoints" in row or count else unlabeled
    labeled = sum(v > 0 for v in keypoints[2::3])
    area = row.get("area", 0.53 * box[2] * box[3])  # CrowdPose and AIC have no area (docs/numerics.md 7.1)
    if not is_number(area, LIMIT**2):
        raise ValueError(f"area is {shown(area)}, expected a finite number of square pixels")
    if labeled and not crowd and (area <= 0 or clipped_box(box, image["width"], image["height"]) is None):
        size = f"{image['width']}x{image['height']}"
        raise ValueError(f"box {shown(box)}, area {area}, is empty inside the {size} image")
    # Keep the count of the file if any keypoint is labeled: CrowdPose does not count head and neck, and COCO ignores a
    # person with count 0.
    count = 0 if not labeled else row.get("num_keypoints", labeled)
    own |= {"bbox": box, "keypoints": list(keypoints), "area": area, "iscrowd": int(crowd), "num_keypoints": count}
    return {**row, **own}


def _detection(row: Row) -> Row:
    """Return the fields of a detection that `read_detections` lists, with the default score filled in.

    Raises:
        ValueError: If a field is invalid, `bbox` is missing, or `image_id` and `file_name` are both missing.
    """
    own: Row = {"bbox": _box(row), "score": row.get("score", 1.0)}
    if min(own["bbox"][2:]) <= 0:
        raise ValueError(f"bbox is {shown(own['bbox'])}, expected width and height > 0")
    if not is_number(own["score"]):
        raise ValueError(f"score is {shown(own['score'])}, expected a finite number")
    if "image_id" not in row and "file_name" not in row:
        raise ValueError("neither image_id nor file_name, expected one of them")
    own |= {key: id_of(row, key) for key in ("image_id", "category_id") if key in row}
    return own | ({"file_name": file_name_of(row)} if "file_name" in row else {})


def _keypoints(row: Row, keypoint_set: KeypointSet) -> Sequence[float]:
    """Return the flat list x, y, v, ... in the `keypoints` of a row.

    Raises:
        ValueError: Unless it is a list of 3K finite numbers for the K keypoints of the set, with every v from 0 to 2.
    """
    flat, count = field_of(row, "keypoints"), 3 * keypoint_set.num_keypoints
    if not isinstance(flat, (list, tuple)) or not all(map(is_number, flat)):
        raise ValueError(f"keypoints is {shown(flat)}, expected a flat list of finite numbers x, y, v")
    if len(flat) != count:
        raise ValueError(f"keypoints has {len(flat)} numbers, expected {count} for {keypoint_set.name}")
    wrong = [v for v in flat[2::3] if not 0 <= v <= 2]
    if wrong:
        raise ValueError(f"a keypoint has visibility {shown(wrong[0])}, expected 0, 1 or 2")
    return flat


def _box(row: Row) -> list[float]:
    """Return the `bbox` [x, y, w, h] of a row. Raise ValueError unless it is four finite numbers with w, h >= 0."""
    box = field_of(row, "bbox")
    if not isinstance(box, (list, tuple)) or len(box) != 4 or not all(map(is_number, box)) or min(box[2:]) < 0:
        raise ValueError(f"bbox is {shown(box)}, expected four finite numbers x, y, width, height")
    return list(box)
