"""Annotation files of every data set, in their original layouts, to people and ground truth (SPEC 7.3)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vitpose_fast.coco import check_annotations, clipped_box, is_training_person
from vitpose_fast.problems import first_of, shown
from vitpose_fast.rows import Row, field_of, is_number, read_json
from vitpose_training.data.aic import UNKNOWN_SIZE, aic_to_coco
from vitpose_training.data.catalog import DataSet
from vitpose_training.data.catalog import data_set as as_data_set
from vitpose_training.data.common import image_paths
from vitpose_training.data.interhand import read_interhand
from vitpose_training.data.mpii import read_mpii
from vitpose_training.data.people import Labels, Person

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


def read_labels(data_set: DataSet | str, annotations: Path, images: Path) -> Labels:
    """An annotation file in the layout of its data set, checked.

    Every damaged row is left out and named in `problems`. `truth` is the checked COCO dict, its images with their
    `path`; None for MPII and InterHand. Boxes are those of the official loaders (SPEC 3.1): COCO-like ones are clipped
    to the image and one pixel smaller than annotated. AI Challenger's original files state no image sizes: there
    `Person.image_size` is None, `truth` has `UNKNOWN_SIZE`, and boxes are clipped at 0 alone.

    Args:
        data_set: a data set or its name; a user's keypoint set (.json) stands for COCO files with such keypoints.
        annotations: the file; InterHand's is the `.._data.json`, its two companions lie beside it.
        images: the folder that image names are relative to; it need not exist.

    Raises:
        ValueError: a file of no use, or in which nobody is left, in one line.
    """
    data_set, annotations, images = as_data_set(data_set), Path(annotations), Path(images)
    data, name = read_json(annotations), str(annotations)
    if data_set.layout == "interhand":
        labels = read_interhand(data_set, data, annotations, images)
    elif data_set.layout == "mpii":
        labels = read_mpii(data_set, data, name, images)
    else:
        labels = _read_coco(data_set, data, name, images)
    if not labels.people:
        first = first_of(labels.problems, name)
        raise ValueError(f"{name}: no person with labelled {data_set.name} keypoints{first}")
    return labels


def _read_coco(data_set: DataSet, data: Any, name: str, folder: Path) -> Labels:
    """COCO files, and those that are made into COCO's form first."""
    keypoints_of: Callable[[Row], list[float]] | None = None
    converted: list[str] = []
    if data_set.layout == "aic" and isinstance(data, list):
        data, converted = aic_to_coco(data, data_set.keypoints, name)
    elif data_set.layout == "wholebody":
        keypoints_of = wholebody_keypoints
    truth, problems = check_annotations(data, data_set.keypoints, name, keypoints_of)
    if data_set.layout == "wholebody":
        for row in truth["annotations"]:
            row["num_keypoints"] = sum(v > 0 for v in row["keypoints"][2 : 3 * BODY : 3])
    paths = image_paths(folder, [image["file_name"] for image in truth["images"]])
    truth["images"] = [{**image, "path": path} for image, path in zip(truth["images"], paths)]
    used = [row for row in truth["annotations"] if is_training_person(row)]
    crowd = sum(row["iscrowd"] for row in truth["annotations"])
    return Labels(
        data_set,
        _people(data_set, truth, used, name),
        truth,
        images=len(truth["images"]),
        unlabelled=len(truth["annotations"]) - len(used) - crowd,
        crowd=crowd,
        problems=converted + problems,
    )


def _people(data_set: DataSet, truth: dict[str, Any], used: list[Row], name: str) -> list[Person]:
    images = {image["id"]: image for image in truth["images"]}
    flat = np.array([row["keypoints"] for row in used], dtype=np.float32)
    triples = flat.reshape(len(used), data_set.keypoints.num_keypoints, 3)
    labelled = triples[..., 2] > 0
    points = np.where(labelled[..., None], triples[..., :2], 0)
    # WholeBody's third number is how sure its annotators' model was, COCO's 2 is as good as 1
    visible = labelled.astype(np.float32) if data_set.layout == "wholebody" else np.minimum(triples[..., 2], 1)
    people = []
    for row, keypoints, seen in zip(used, points, visible):
        image = images[row["image_id"]]
        width, height = image["width"], image["height"]
        box = clipped_box(row["bbox"], width, height)
        assert box is not None  # checked by the reader
        people.append(
            Person(
                image=image["path"],
                image_id=image["id"],
                annotation_id=row["id"],
                category_id=row["category_id"],
                box=box,
                keypoints=keypoints,
                visible=seen,
                source=name,
                image_size=None if width == UNKNOWN_SIZE == height else (height, width),
            )
        )
    return people


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
