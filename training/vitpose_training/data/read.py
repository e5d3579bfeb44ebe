"""Read the annotation files of any supported data set, in their original formats (docs/numerics.md 7.3)."""

from __future__ import annotations

from pathlib import Path

from vitpose_fast.problems import first_of
from vitpose_training.data.catalog import DataSet
from vitpose_training.data.catalog import data_set as as_data_set
from vitpose_training.data.people import Labels


def read_labels(data_set: DataSet | str, annotations: Path, images: Path) -> Labels:
    """Read and check an annotation file in the layout of its data set.

    Every damaged row is left out and listed in `Labels.problems`. `Labels.truth` is the checked COCO dict, in which
    every image has the additional field `path`; it is None for MPII and InterHand. `Person.box` is the box of the
    official loaders (docs/numerics.md 3.1). Except for MPII and InterHand it is clipped to the image and one pixel
    smaller than the annotated box, which `truth` keeps.

    AI Challenger's original files do not state image sizes. For these files `Person.image_size` is None, image sizes in
    `truth` are `UNKNOWN_SIZE`, and boxes are in effect only clipped at 0.

    Args:
        data_set: A data set or its name, or the path of a user's keypoint set (.json), whose annotations are then in
            COCO format.
        annotations: The annotation file. For InterHand it is `X_data.json`, and its companions `X_camera.json` and
            `X_joint_3d.json` are in the same folder.
        images: The folder that image names are relative to. It need not exist.

    Raises:
        FileNotFoundError: If `data_set` is the path of a .json file that does not exist.
        ValueError: If `data_set` is unknown or invalid, if the annotation file is missing or unusable, or if it has no
            person to train on (with labeled keypoints, and not a crowd). The message is one line.
    """
    data_set, annotations = as_data_set(data_set), Path(annotations)
    labels = data_set.layout.read(data_set, annotations, Path(images))
    if not labels.people:
        first = first_of(labels.problems, str(annotations))
        raise ValueError(f"{annotations}: no person with labeled {data_set.name} keypoints{first}")
    return labels
