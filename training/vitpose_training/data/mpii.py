"""Read MPII annotation files. Their coordinates are 1-based, and people have a center and a scale instead of a box.

Source: docs/numerics.md 3.1, 7.3.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vitpose_fast.problems import first_of, shown
from vitpose_fast.rows import Row, check_rows, field_of, file_name_of, is_number, read_json
from vitpose_training.data.common import image_paths, numbers
from vitpose_training.data.people import DataSet, Labels, Layout, Person


def read_mpii(data_set: DataSet, file: Path, folder: Path) -> Labels:
    """Read an MPII annotation file: a list of people with `image`, `center`, `scale`, `joints` and `joints_vis`.

    `image` is a file name, `center` is [x, y], `joints` is 16 times [x, y], and `joints_vis` is 16 times 0 or 1.
    Coordinates are 1-based in the file and 0-based in the result. The box is computed as in the official loader: move
    the center down by 15 * scale pixels; the box is the square with side 200 * 1.25 * scale around that point. It is
    cropped with `padding` 1 and without `fix_aspect` (see `Person`).

    `annotation_id` is the index of the entry in the file, counted from 0, by which PCKh finds the head box. `image_id`
    is the file name. `image_size` is None because the file does not state it. Entries without a visible joint count as
    unlabeled; damaged entries are left out and listed in `Labels.problems`.

    Args:
        data_set: The data set of the file.
        file: The annotation file.
        folder: The folder of the images.

    Raises:
        ValueError: If the file is missing, is not JSON, is not a list, or has no undamaged entry.
    """
    data, name = read_json(file), str(file)
    if not isinstance(data, list):
        raise ValueError(f"{name}: is {shown(data)}, expected MPII's list of people")
    rows, problems = check_rows(data, "entry", name, lambda row: _entry(row, data_set), key="image")
    if not rows:
        raise ValueError(f"{name}: no usable entry among {len(data)}{first_of(problems, name)}")
    used = [row for row in rows if row["visible"].any()]
    paths = image_paths(folder, [row["image"] for row in used])
    people = [
        Person(
            image=path,
            image_id=row["image"],
            annotation_id=row["index"],
            category_id=1,
            box=row["box"],
            keypoints=row["keypoints"],
            visible=row["visible"],
            source=name,
            padding=1.0,
            fix_aspect=False,
        )
        for row, path in zip(used, paths)
    ]
    return Labels(
        data_set,
        people,
        truth=None,
        images=len({row["image"] for row in rows}),
        unlabelled=len(rows) - len(used),
        problems=problems,
    )


def _entry(row: Row, data_set: DataSet) -> Row:
    """Check an entry and convert its 1-based coordinates to 0-based pixels.

    Returns:
        A row with `image` (file name), `box` (x, y, side, side), `keypoints` [K, 2] float32, 0 if not visible, and
        `visible` [K] float32, 0 or 1. K is the number of keypoints of `data_set`.

    Raises:
        ValueError: If a field is missing or has the wrong type or shape, if a number is not finite or above 1e6, if the
            x of `center` is -1 (MPII's mark for a missing person), if `scale` <= 0, or if `joints_vis` is not 0 or 1.
    """
    image, count = file_name_of(row, "image"), data_set.keypoint_set.num_keypoints
    center = numbers(row, "center", (2,))
    if center[0] == -1:
        raise ValueError(f"center is {shown(row['center'])}, which marks a missing person, expected a position")
    scale = field_of(row, "scale")
    if not is_number(scale) or scale <= 0:
        raise ValueError(f"scale is {shown(scale)}, expected a number > 0: the person's height in units of 200 pixels")
    joints, visible = numbers(row, "joints", (count, 2)), numbers(row, "joints_vis", (count,))
    if not np.isin(visible, (0, 1)).all():
        raise ValueError(f"joints_vis is {shown(row['joints_vis'])}, expected 0 or 1 for every joint")
    side = 200 * 1.25 * float(scale)
    x, y = center + (0, 15 * float(scale)) - 1 - side / 2
    keypoints = np.where(visible[:, None] > 0, joints - 1, 0)
    return {
        "image": image,
        "box": (float(x), float(y), side, side),
        "keypoints": keypoints.astype(np.float32),
        "visible": visible.astype(np.float32),
    }


MPII_LAYOUT = Layout(read_mpii)
