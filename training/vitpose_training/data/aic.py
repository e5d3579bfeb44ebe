"""AI Challenger's own annotation files, made into the COCO form (SPEC 7.3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitpose_fast.coco import check_annotations, clipped_box
from vitpose_fast.keypoints import KeypointSet
from vitpose_fast.problems import first_of, shown
from vitpose_fast.rows import Row, field_of, file_name_of, id_of, is_number, read_json
from vitpose_training.data.coco import UNKNOWN_SIZE, coco_labels
from vitpose_training.data.people import DataSet, Labels, Layout

_VISIBILITY: dict[float, int] = {1: 2, 2: 1, 3: 0}  # visible, occluded, not labelled: theirs -> COCO's


def read_aic(data_set: DataSet, file: Path, folder: Path) -> Labels:
    """People of AI Challenger's original list, or of its conversion to the COCO form.

    Raises:
        ValueError: a file of no use.
    """
    data, name = read_json(file), str(file)
    converted: list[str] = []
    if isinstance(data, list):
        data, converted = aic_to_coco(data, data_set.keypoint_set, name)
    truth, problems = check_annotations(data, data_set.keypoint_set, name)
    return coco_labels(data_set, truth, converted + problems, name, folder)


def aic_to_coco(entries: list[Any], keypoint_set: KeypointSet, name: str) -> tuple[dict[str, Any], list[str]]:
    """The original list as COCO annotations without `area` and `iscrowd`: (annotations, problems).

    An entry is an image: `image_id` (its file is called so, with .jpg), and by the names of its people
    `human_annotations` x1, y1, x2, y2 and `keypoint_annotations` x, y, v with v 1 visible, 2 occluded, 3 not labelled.
    The id of an annotation is "IMAGE_ID HUMAN". Image sizes are not in the file: they are `UNKNOWN_SIZE`.

    Raises:
        ValueError: no entry, or no person, is usable.
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
                raise ValueError("the image_id is that of an earlier entry, expected another")
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
    """(the row of its image, the names of its people)."""
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
    """A COCO annotation, but for `image_id`."""
    count = 3 * keypoint_set.num_keypoints
    corners = _numbers(entry, "human_annotations", human, 4)
    flat = _numbers(entry, "keypoint_annotations", human, count)
    for v in flat[2::3]:
        if v not in _VISIBILITY:
            raise ValueError(f"keypoint_annotations has visibility {shown(v)}, expected 1, 2 or 3")
    x1, y1, x2, y2 = corners
    box = [x1, y1, x2 - x1, y2 - y1]
    keypoints = [_VISIBILITY[v] if i % 3 == 2 else v for i, v in enumerate(flat)]
    labelled = sum(v > 0 for v in keypoints[2::3])
    if min(box[2:]) < 0 or (labelled and clipped_box(box, UNKNOWN_SIZE, UNKNOWN_SIZE) is None):
        raise ValueError(f"human_annotations is {shown(corners)}, expected x1 < x2 and y1 < y2 inside the image")
    own = {"id": f"{entry['image_id']} {human}", "category_id": 1, "bbox": box}
    return own | {"keypoints": keypoints, "num_keypoints": labelled}


def _numbers(entry: Row, key: str, human: str, count: int) -> list[float]:
    if human not in entry[key]:
        raise ValueError(f"no {key}")
    flat = entry[key][human]
    if not isinstance(flat, list) or len(flat) != count or not all(map(is_number, flat)):
        raise ValueError(f"{key} is {shown(flat)}, expected {count} finite numbers")
    return flat


AIC_LAYOUT = Layout(read_aic, boxes_lose_a_pixel=True)
