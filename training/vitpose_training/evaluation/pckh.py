"""MPII's PCKh: the percentage of joints whose error is at most half the head size (docs/numerics.md 7.3).

Joints (keypoints) are [N, 16, 2] in pixels for N people, as arrays, tensors on any device and of any precision, or
nested lists.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitpose_fast.keypoints import KEYPOINT_SETS
from vitpose_fast.rows import Row
from vitpose_training.data.people import Labels, Metric, points_of
from vitpose_training.evaluation.arrays import as_array, check_shapes

_HEAD = 0.6  # MPII's head size is this fraction of the head box's diagonal
_MPII_GROUPS = {  # joints of each column in the table of the paper; the column is the mean of its joints
    "Head": ("head_top",),
    **{n: (f"left_{n.lower()}", f"right_{n.lower()}") for n in ("Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle")},
}


def pckh(predicted: Any, truth: Any, visible: Any, head_sizes: Any) -> dict[str, float]:
    """Compute MPII's PCKh: the percentage of joints whose error is at most half the head size (docs/numerics.md 7.3).

    Args:
        predicted: Predicted joints [N, 16, 2] in pixels. NaN counts as wrong.
        truth: True joints [N, 16, 2] in pixels.
        visible: Which joints are labeled, bool [N, 16]. Other joints do not count.
        head_sizes: Head sizes [N] in pixels.

    Returns:
        Percentages by name. "PCKh" and "PCKh@0.1" are the percentages of correct joints among all labeled joints
        except pelvis and thorax; a joint is correct if its error is at most 0.5 (PCKh) or 0.1 head sizes. All others
        are at 0.5 head sizes: one for each of the 16 joints by its name in the keypoint set, and the columns of the
        paper's table, "Head" (the joint head_top), and "Shoulder", "Elbow", "Wrist", "Hip", "Knee" and "Ankle" (each
        the mean of left and right). The value of a joint that is never labeled is 0.

    Raises:
        ValueError: If the shapes do not match, or a head size is not positive.
    """
    names = KEYPOINT_SETS["mpii"].names
    predicted, truth, sizes = as_array(predicted), as_array(truth), as_array(head_sizes)
    visible = as_array(visible, bool)
    joints = (*sizes.shape, len(names))
    fits = sizes.ndim == 1 and visible.shape == joints and predicted.shape == truth.shape == (*joints, 2)
    given = predicted, truth, visible, sizes
    check_shapes("predicted, truth, visible, head_sizes", given, fits, "[N, 16, 2] twice, [N, 16], [N]")
    if not (sizes > 0).all():
        raise ValueError(f"the smallest head size is {sizes.min()}, expected more than 0 pixels")
    error = np.linalg.norm(predicted - truth, axis=-1)
    error = np.where(np.isnan(error), np.inf, error) / sizes[:, None]
    counts = visible.sum(0)

    def by_joint(threshold: float) -> np.ndarray:
        return 100.0 * ((error <= threshold) & visible).sum(0) / np.maximum(counts, 1)

    weights = np.array([0 if n in ("pelvis", "thorax") else c for n, c in zip(names, counts)], float)
    weights /= max(weights.sum(), 1)
    joint = dict(zip(names, by_joint(0.5)))
    out = {"PCKh": float((by_joint(0.5) * weights).sum()), "PCKh@0.1": float((by_joint(0.1) * weights).sum())}
    out |= {group: float(np.mean([joint[n] for n in own])) for group, own in _MPII_GROUPS.items()}
    return {**out, **{n: float(v) for n, v in joint.items()}}


def pckh_mpii(predictions_one_based: Any, mat_path: str | os.PathLike) -> dict[str, float]:
    """Compute `pckh` against MPII's ground truth file `mpii_gt_val.mat`.

    Args:
        predictions_one_based: Predicted joints [N, 16, 2] of all N people in the file, in the order of the file and in
            MPII's 1-based pixels.
        mat_path: The ground truth file. A person's head size is 0.6 times the diagonal of the head box in the file, and
            a joint is labeled if its `jnt_missing` is 0.

    Returns:
        As in `pckh`.

    Raises:
        ValueError: If the file is missing, is not MPII's ground truth, or holds another number of people than the
            predictions, or if the head size of a person is not positive. The message is one line.
    """
    from scipy.io import loadmat

    try:
        mat = loadmat(Path(mat_path))
        truth, missing, boxes = (mat[k] for k in ("pos_gt_src", "jnt_missing", "headboxes_src"))
    except FileNotFoundError:
        raise ValueError(f"{mat_path}: no such file, expected MPII's ground truth (mpii_gt_val.mat)") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{mat_path}: not MPII's ground truth ({type(error).__name__}: {reason})") from None
    count = truth.shape[-1]
    if truth.shape != (16, 2, count) or missing.shape != (16, count) or boxes.shape != (2, 2, count):
        raise ValueError(f"{mat_path}: pos_gt_src, jnt_missing, headboxes_src have other shapes than MPII's")
    predicted = as_array(predictions_one_based)
    if predicted.shape != (count, 16, 2):
        raise ValueError(
            f"got predictions of shape {predicted.shape}, expected {(count, 16, 2)}, one for each in {mat_path}"
        )
    sizes = _HEAD * np.linalg.norm(boxes[1].astype(float) - boxes[0].astype(float), axis=0)
    return pckh(predicted, truth.transpose(2, 0, 1), missing.T == 0, sizes)


def _score_mpii(files: Sequence[Labels], results: list[Row]) -> dict[str, float]:
    """Compute `pckh` over all entries of the single MPII annotation file.

    An entry without a result counts as missed at every joint that is labeled in mpii_gt_val.mat, whether the entry is
    damaged, its image is unreadable or it was not evaluated. Raise ValueError as in `_head_boxes` and `pckh_mpii`.
    """
    mat = _head_boxes(files)
    points = np.full((files[0].entries, 16, 2), np.nan)
    for row in results:
        points[int(row["annotation_id"])] = points_of(row) + 1
    return pckh_mpii(points, mat)


def _head_boxes(files: Sequence[Labels]) -> Path:
    """Return the path of mpii_gt_val.mat, which holds the head boxes, in the folder of the annotation file.

    Raise ValueError if there are several annotation files, or no people, or mpii_gt_val.mat does not exist.
    """
    if len(files) > 1:
        raise ValueError(f"got {len(files)} MPII files to evaluate on, expected one (with its mpii_gt_val.mat)")
    if not files[0].people:
        raise ValueError("no MPII person to evaluate on")
    mat = Path(files[0].people[0].source).parent / "mpii_gt_val.mat"
    if not mat.is_file():
        raise ValueError(f"{mat}: no such file; PCKh needs MPII's head sizes beside the annotations")
    return mat


PCKH_METRIC = Metric(_score_mpii, headline="PCKh", per_cent=True, by_oks=False)
