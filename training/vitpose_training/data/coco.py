"""Read COCO annotation files, and turn any annotations in COCO format into `Labels` (docs/numerics.md 3.1, 7.3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vitpose_fast.coco import check_annotations, clipped_box, is_training_person
from vitpose_fast.rows import LIMIT, Row, read_json
from vitpose_training.data.common import image_paths
from vitpose_training.data.people import DataSet, Labels, Layout, Person

UNKNOWN_SIZE = int(LIMIT)
"""Width and height of images whose size the annotation file does not state. It is so large (1,000,000 pixels) that
boxes are in effect only clipped at 0."""


def read_coco(data_set: DataSet, file: Path, folder: Path) -> Labels:
    """Read a COCO annotation file; `vitpose_fast.coco.check_annotations` describes its format.

    Args:
        data_set: The data set of the file.
        file: The annotation file.
        folder: The folder that image names are relative to.

    Raises:
        ValueError: If the file is missing, is not JSON, lacks the list `images` or `annotations`, has no undamaged
            image, or has annotations that are all damaged. An empty list of annotations is accepted.
    """
    truth, problems = check_annotations(read_json(file), data_set.keypoint_set, str(file))
    return coco_labels(data_set, truth, problems, str(file), folder)


def coco_labels(
    data_set: DataSet, truth: dict[str, Any], problems: list[str], name: str, folder: Path, weighted: bool = True
) -> Labels:
    """Turn checked COCO annotations into `Labels`.

    Annotations that are not crowds and have `num_keypoints` > 0 become people. Their boxes are clipped to the image and
    one pixel smaller than annotated.

    Args:
        data_set: The data set that the annotations belong to.
        truth: The annotations, as returned by `check_annotations`. This dict becomes `Labels.truth`; its images are
            replaced by copies with the additional field `path`.
        problems: The problems that `check_annotations` reported; they become `Labels.problems`.
        name: The name of the file, used in messages.
        folder: The folder that image names are relative to.
        weighted: If True, a keypoint with 0 < v < 1 has visibility v in `Person.visible`. Otherwise, every keypoint
            with v > 0 has visibility 1.
    """
    paths = image_paths(folder, [image["file_name"] for image in truth["images"]])
    truth["images"] = [{**image, "path": path} for image, path in zip(truth["images"], paths)]
    used = [row for row in truth["annotations"] if is_training_person(row)]
    crowd = sum(row["iscrowd"] for row in truth["annotations"])
    return Labels(
        data_set,
        _people(data_set, truth, used, name, weighted),
        truth,
        images=len(truth["images"]),
        unlabelled=len(truth["annotations"]) - len(used) - crowd,
        crowd=crowd,
        problems=problems,
    )


def _people(data_set: DataSet, truth: dict[str, Any], used: list[Row], name: str, weighted: bool) -> list[Person]:
    images = {image["id"]: image for image in truth["images"]}
    flat = np.array([row["keypoints"] for row in used], dtype=np.float32)
    triples = flat.reshape(len(used), data_set.keypoint_set.num_keypoints, 3)
    labeled = triples[..., 2] > 0
    points = np.where(labeled[..., None], triples[..., :2], 0)
    visible = np.minimum(triples[..., 2], 1) if weighted else labeled.astype(np.float32)
    people = []
    for row, keypoints, seen in zip(used, points, visible):
        image = images[row["image_id"]]
        width, height = image["width"], image["height"]
        box = clipped_box(row["bbox"], width, height)
        assert box is not None  # check_annotations refuses labeled people whose clipped box is empty
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


COCO_LAYOUT = Layout(read_coco, boxes_lose_a_pixel=True)
