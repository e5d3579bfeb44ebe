"""Read COCO-WholeBody annotation files: 133 keypoints per person in five lists (docs/numerics.md 7.3)."""

from __future__ import annotations

from pathlib import Path

from vitpose_fast.coco import check_annotations
from vitpose_fast.problems import shown
from vitpose_fast.rows import Row, field_of, is_number, read_json
from vitpose_training.data.coco import coco_labels
from vitpose_training.data.people import DataSet, Labels, Layout

BODY = 17
"""Number of body keypoints, the first of the 133. Only they count in `num_keypoints` and decide if a person is used."""
# (field, number of keypoints, field that says whether the part is labeled), in the order of the 133 channels
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

    The third number of a keypoint is a confidence of the annotation model. Every keypoint for which it is above 0 is
    labeled and counts fully.

    Raises:
        ValueError: If the file is not readable or holds no usable image or annotation.
    """
    truth, problems = check_annotations(read_json(file), data_set.keypoint_set, str(file), wholebody_keypoints)
    for row in truth["annotations"]:
        row["num_keypoints"] = sum(v > 0 for v in row["keypoints"][2 : 3 * BODY : 3])
    return coco_labels(data_set, truth, problems, str(file), folder, weighted=False)


def wholebody_keypoints(row: Row) -> list[float]:
    """Return the 133 keypoints of a COCO-WholeBody annotation as a flat list of x, y, v.

    They come from its five lists, or from `keypoints` if that holds all 133. If a part's `.._valid` field is false, the
    part is not labeled and its v are 0.

    Raises:
        ValueError: If a field is missing or damaged.
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
    """Return a field that must hold `count` keypoints as a flat list; raise ValueError if it does not."""
    flat = field_of(row, key)
    if not isinstance(flat, list) or not all(map(is_number, flat)):
        raise ValueError(f"{key} is {shown(flat)}, expected a flat list of finite numbers x, y, v")
    if len(flat) != 3 * count:
        raise ValueError(f"{key} holds {len(flat)} numbers, expected {3 * count}")
    if min(flat[2::3]) < 0:
        raise ValueError(f"{key} has visibility {min(flat[2::3])}, expected at least 0")
    return flat


WHOLEBODY_LAYOUT = Layout(read_wholebody, boxes_lose_a_pixel=True)
