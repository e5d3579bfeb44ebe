"""COCO-WholeBody's annotation files: 133 keypoints of a person in five lists (SPEC 7.3)."""

from __future__ import annotations

from pathlib import Path

from vitpose_fast.coco import check_annotations
from vitpose_fast.problems import shown
from vitpose_fast.rows import Row, field_of, is_number, read_json
from vitpose_training.data.coco import coco_labels
from vitpose_training.data.people import DataSet, Labels, Layout

BODY = 17
"""WholeBody's first keypoints: only these decide whether a person is used, and are counted in `num_keypoints`."""
# field, number of keypoints, field that says whether the part is labelled; in the order of the 133 channels
_PARTS: tuple[tuple[str, int, str | None], ...] = (
    ("keypoints", BODY, None),
    ("foot_kpts", 6, "foot_valid"),
    ("face_kpts", 68, "face_valid"),
    ("lefthand_kpts", 21, "lefthand_valid"),
    ("righthand_kpts", 21, "righthand_valid"),
)
_ALL_PARTS = sum(count for _, count, _ in _PARTS)


def read_wholebody(data_set: DataSet, file: Path, folder: Path) -> Labels:
    """People of a COCO-WholeBody annotation file.

    The third number of a keypoint is how sure its annotators' model was: every labelled keypoint counts fully.

    Raises:
        ValueError: a file of no use.
    """
    truth, problems = check_annotations(read_json(file), data_set.keypoint_set, str(file), wholebody_keypoints)
    for row in truth["annotations"]:
        row["num_keypoints"] = sum(v > 0 for v in row["keypoints"][2 : 3 * BODY : 3])
    return coco_labels(data_set, truth, problems, str(file), folder, weighted=False)


def wholebody_keypoints(row: Row) -> list[float]:
    """The 133 keypoints x, y, v of a COCO-WholeBody annotation, from its five lists or from one of all 133.

    A part that is not `.._valid` is not labelled: its v are 0.

    Raises:
        ValueError: a missing or damaged field.
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
    flat = field_of(row, key)
    if not isinstance(flat, list) or not all(map(is_number, flat)):
        raise ValueError(f"{key} is {shown(flat)}, expected a flat list of finite numbers x, y, v")
    if len(flat) != 3 * count:
        raise ValueError(f"{key} holds {len(flat)} numbers, expected {3 * count}")
    if min(flat[2::3]) < 0:
        raise ValueError(f"{key} has visibility {min(flat[2::3])}, expected at least 0")
    return flat


WHOLEBODY_LAYOUT = Layout(read_wholebody, boxes_lose_a_pixel=True)
