"""Read AI Challenger (AIC) annotation files and convert them to COCO format (docs/numerics.md 7.3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitpose_fast.coco import check_annotations, clipped_box
from vitpose_fast.keypoints import KeypointSet
from vitpose_fast.problems import first_of, shown
from vitpose_fast.rows import Row, field_of, file_name_of, id_of, is_number, read_json
from vitpose_training.data.coco import UNKNOWN_SIZE, coco_labels
from vitpose_training.data.people import DataSet, Labels, Layout

_VISIBILITY: dict[float, int] = {1: 2, 2: 1, 3: 0}  # AIC's v -> COCO's v: visible, occluded, not labeled


def read_aic(data_set: DataSet, file: Path, folder: Path) -> Labels:
    """Read an AIC annotation file, either in its original format (a list) or converted to COCO format (a dict).

    Args:
        data_set: The data set of the file.
        file: The annotation file.
        folder: The folder that image names are relative to.

    Raises:
        ValueError: If the file is missing or is not JSON, or as in `aic_to_coco` (for a list) and `read_coco`.
    """
    data, name = read_json(file), str(file)
    converted: list[str] = []
    if isinstance(data, list):
        data, converted = aic_to_coco(data, data_set.keypoint_set, name)
    truth, problems = check_annotations(data, data_set.keypoint_set, name)
    return coco_labels(data_set, truth, converted + problems, name, folder)


def aic_to_coco(entries: list[Any], keypoint_set: KeypointSet, name: str) -> tuple[dict[str, Any], list[str]]:
    """Convert the original AIC list to a COCO dict whose annotations have neither `area` nor `iscrowd`.

    Each entry of the list describes one image. `image_id` is the name of the image file without ".jpg".
    `human_annotations` maps the name of each person to the corners x1, y1, x2, y2 of the box, and
    `keypoint_annotations` maps the name to a flat list x, y, v, ..., where v is 1 (visible), 2 (occluded) or 3 (not
    labeled).

    In the result v is COCO's (2 visible, 1 occluded, 0 not labeled), boxes are x, y, width, height, and the id of an
    annotation is "IMAGE_ID PERSON_NAME". The file does not state image sizes, so width and height of every image are
    `UNKNOWN_SIZE`.

    Args:
        entries: The content of the file.
        keypoint_set: The keypoints of a person.
        name: The name of the file, used in messages.

    Returns:
        The COCO dict, and one line for each damaged entry or person that was left out.

    Raises:
        ValueError: If no entry is usable, or if something was left out and no person remains. Entries without people
            are accepted.
    """
    images: dict[int | str, Row] = {}
    annotations: list[Row] = []
    problems: list[str] = []
    for index, entry in enumerate(entries):
        where = f"{name}: entry {index}"
        try:
            image, people = _entry(entry)
            where += f" (image_id {shown(image['id'])})"
            if image["id"] in images:
                raise ValueError("the image_id is already used by an earlier entry, expected a unique one")
        except ValueError as error:
            problems.append(f"{where}: {error}")
            continue
        images[image["id"]] = image
        for human in people:
            try:
                annotations.append(_person(entry, human, keypoint_set) | {"image_id": image["id"]})
            except ValueError as error:
                problems.append(f"{where}: {shown(human)}: {error}")
    if not images or (problems and not annotations):
        kind = "person" if images else "entry"
        raise ValueError(f"{name}: no usable {kind} among {len(entries)} entries{first_of(problems, name)}")
    categories = [{"id": 1, "name": "person"}]
    return {"images": list(images.values()), "annotations": annotations, "categories": categories}, problems


def _entry(entry: Any) -> tuple[Row, list[str]]:
    """Return the COCO image row of an entry, and the names of all people in either of its two mappings.

    Raise ValueError if the entry is not an object, its `image_id` is missing or cannot be a file name, or
    `human_annotations` or `keypoint_annotations` is not an object.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"is {shown(entry)}, expected a JSON object")
    image_id = id_of(entry, "image_id")
    file = file_name_of({"image_id": f"{image_id}.jpg"}, "image_id")
    people: dict[str, None] = {}
    for key in ("human_annotations", "keypoint_annotations"):
        humans = field_of(entry, key)
        if not isinstance(humans, dict):
            raise ValueError(f"{key} is {shown(humans)}, expected an object with a list for each person")
        people |= dict.fromkeys(humans)
    return {"id": image_id, "file_name": file, "width": UNKNOWN_SIZE, "height": UNKNOWN_SIZE}, list(people)


def _person(entry: Row, human: str, keypoint_set: KeypointSet) -> Row:
    """Return the COCO annotation of the person named `human`, without `image_id`.

    Raise ValueError if box or keypoints are missing or damaged (see `_numbers`), a v is not 1, 2 or 3, x2 < x1 or
    y2 < y1, or a person with labeled keypoints has an empty box after clipping.
    """
    count = 3 * keypoint_set.num_keypoints
    corners = _numbers(entry, "human_annotations", human, 4)
    flat = _numbers(entry, "keypoint_annotations", human, count)
    for v in flat[2::3]:
        if v not in _VISIBILITY:
            raise ValueError(f"keypoint_annotations has visibility {shown(v)}, expected 1, 2 or 3")
    x1, y1, x2, y2 = corners
    box = [x1, y1, x2 - x1, y2 - y1]
    keypoints = [_VISIBILITY[v] if i % 3 == 2 else v for i, v in enumerate(flat)]
    labeled = sum(v > 0 for v in keypoints[2::3])
    if min(box[2:]) < 0 or (labeled and clipped_box(box, UNKNOWN_SIZE, UNKNOWN_SIZE) is None):
        raise ValueError(f"human_annotations is {shown(corners)}, expected x1 < x2 and y1 < y2 inside the image")
    own = {"id": f"{entry['image_id']} {human}", "category_id": 1, "bbox": box}
    return own | {"keypoints": keypoints, "num_keypoints": labeled}


def _numbers(entry: Row, key: str, human: str, count: int) -> list[float]:
    """Return the list that field `key` of an entry holds for the person named `human`.

    Raise ValueError unless it is a list of `count` finite numbers up to 1e6.
    """
    if human not in entry[key]:
        raise ValueError(f"no {key}")
    flat = entry[key][human]
    if not isinstance(flat, list) or len(flat) != count or not all(map(is_number, flat)):
        raise ValueError(f"{key} is {shown(flat)}, expected {count} finite numbers")
    return flat


AIC_LAYOUT = Layout(read_aic, boxes_lose_a_pixel=True)
