"""Annotation files of every data set, in their original layouts, to people and ground truth (SPEC 7.3)."""

from __future__ import annotations

from pathlib import Path

from vitpose_fast.problems import first_of
from vitpose_training.data.catalog import DataSet
from vitpose_training.data.catalog import data_set as as_data_set
from vitpose_training.data.people import Labels


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
    data_set, annotations = as_data_set(data_set), Path(annotations)
    labels = data_set.layout.read(data_set, annotations, Path(images))
    if not labels.people:
        first = first_of(labels.problems, str(annotations))
        raise ValueError(f"{annotations}: no person with labelled {data_set.name} keypoints{first}")
    return labels
