"""Read COCO-WholeBody annotation files: 133 keypoints per person in five lists (docs/numerics.md 7.3)."""

from __future__ import annotations

from pathlib import Path

from vitpose_fast.coco import check_annotations
from vitpose_fast.problems import shown
from vitpose_fast.rows import Row, field_of, is_number, read_json
from vitpose_training.data.coco import coco_labels
from vitpose_training.data.people import DataSet, Labels, Layout

BODY = 17
"""Number of body keypoints, which come first among the 133. Only body keypoints count in `num_keypoints`, so a person
is used only if a body keypoint is labeled."""
# (field, number of keypoints, field that is false if the part is not labeled), in the order of the 133 keypoints
_PARTS: tuple[tuple[str, int, str | None], ...] = (
    ("keypoints", BODY, None),
    ("foot_kpts", 6, "foot_valid"),
    ("face_kpts", 68, "face_valid"),
    ("lefthand_kpts", 21, "lefthand_valid"),
    ("righthand_kpts", 21, "righthand_valid"),
)
_ALL_PARTS = sum(count for _, count, _ in _PARTS)


def read_wholebody(data_set: DataSet, file: Path, folder: Path) -> Labels:
    """Read a COCO-WholeBody annotation file.

    The third number of a keypoint is the confidence of the model that annotated it. A keypoint with confidence above 0
    is labeled and has visibility 1. `num_keypoints` becomes the number of labeled body keypoints, so a person without
    one counts as unlabeled.

    Args:
        data_set: The data set of the file.
        file: The annotation file.
        folder: The folder that image names are relative to.

    Raises:
        ValueError: As in `read_coco`.
    """
    truth, problems = check_annotations(read_json(file), data_set.keypoint_set, str(file), wholebody_keypoints)
    for row in truth["annotations"]:
        row["num_keypoints"] = sum(v > 0 for v in row["keypoints"][2 : 3 * BODY : 3])
    return coco_labels(data_set, truth, problems, str(file), folder, weighted=False)


def wholebody_keypoints(row: Row) -> list[float]:
    """Return the 133 keypoints of a COCO-WholeBody annotation as a flat list x, y, v, ... of 399 numbers.

    If `keypoints` has 399 items, it holds all of them. Otherwise the keypoints come from the five lists `keypoints`
    (body), `foot_kpts`, `face_kpts`, `lefthand_kpts` and `righthand_kpts`. If `foot_valid`, `face_valid`,
    `lefthand_valid` or `righthand_valid` is false or 0, v becomes 0 for the keypoints of this part. A missing field
    means true.

    Raises:
        ValueError: If a list is missing, has the wrong length, holds anything but finite numbers up to 1e6, or has a
            negative v; or if a `.._valid` field is not true, false, 0 or 1.
    """
    merged: list[float] = []
    whole = isinstance(row.get("keypoints"), list) and len(row["keypoints"]) == 3 * _ALL_PARTS
    if whole:
        merged = _flat(row, "keypoints", _ALL_PARTS)[:]
    else:
        for key, count, _ in _PARTS:
            merged += _flat(row, key, count)
    start = 0
    for _, count, flag in _PARTS:
        valid = True if flag is None else row.get(flag, True)
        if not isinstance(valid, (int, float)) or valid not in (0, 1):
            raise ValueError(f"{flag} is {shown(valid)}, expected true or false")
        if not valid:
            merged[3 * start + 2 : 3 * (start + count) : 3] = [0] * count
        start += count
    return merged


def _flat(row: Row, key: str, count: int) -> list[float]:
    """Return field `key`, a flat list x, y, v, ... of `count` keypoints.

    Raise ValueError if it is missing, is not a list of 3 * `count` finite numbers up to 1e6, or has a negative v.
    """
    flat = field_of(row, key)
    if not isinstance(flat, list) or not all(map(is_number, flat)):
        raise ValueError(f"{key} is {shown(flat)}, expected a flat list of finite numbers x, y, v")
    if len(flat) != 3 * count:
        raise ValueError(f"{key} holds {len(flat)} numbers, expected {3 * count}")
    if min(flat[2::3]) < 0:
        raise ValueError(f"{key} has visibility {min(flat[2::3])}, expected at least 0")
    return flat


WHOLEBODY_LAYOUT = Layout(read_wholebody, boxes_lose_a_pixel=True)
