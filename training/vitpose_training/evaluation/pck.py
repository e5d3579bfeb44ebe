"""Percentage of correct keypoints (PCK), area under the PCK curve (AUC), end-point error (EPE), and the hand metric.

PCK and AUC are fractions of 1. Keypoints are [N, K, 2] in pixels, for N samples with K keypoints each, as arrays,
tensors on any device and of any precision, or nested lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vitpose_fast.rows import Row
from vitpose_training.data.people import Labels, Metric, joined, points_of
from vitpose_training.evaluation.arrays import as_array, check_shapes


def _distances(predicted: Any, truth: Any, mask: Any, normalizer: Any) -> np.ndarray:
    """Return the distances [N, K] of predicted and true keypoints, divided by `normalizer` in x and y.

    A distance is NaN if it does not count: the mask is false, or one of the two normalizers of the sample is not
    positive. A distance that counts is infinite if the prediction or the true keypoint is NaN. Arguments and errors are
    as in `pck_by_keypoint`.
    """
    predicted, truth, mask, size = as_array(predicted), as_array(truth), as_array(mask, bool), as_array(normalizer)
    fits = predicted.shape == truth.shape and truth.ndim == 3 and mask.shape == truth.shape[:2]
    check_shapes("predicted, truth and mask", (predicted, truth, mask), fits, "[N, K, 2] twice and [N, K]")
    whole = (len(truth), truth.shape[2])
    if size.ndim and (size.ndim != 2 or any(n not in (1, m) for n, m in zip(size.shape, whole))):
        raise ValueError(f"normalizer has shape {size.shape}, expected a number or {whole}, x and y for each sample")
    size = np.broadcast_to(size, whole)
    counts = mask & (size > 0).all(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.linalg.norm((predicted - truth) / size[:, None], axis=-1)
    distance[np.isnan(distance)] = np.inf  # so that a NaN prediction is never a hit
    return np.where(counts, distance, np.nan)


def _shares(distance: np.ndarray, threshold: float) -> np.ndarray:
    """Return for each keypoint the fraction [K] of distances strictly below the threshold; -1 if no distance counts.

    `distance` is the result of `_distances`; NaN does not count.
    """
    counted = ~np.isnan(distance)
    hits = (distance < threshold).sum(0)  # comparisons with NaN are false
    return np.where(counted.any(0), hits / np.maximum(counted.sum(0), 1), -1.0)


def _mean(shares: np.ndarray) -> float:
    """Return the mean of the fractions that are not -1, or 0 if all of them are -1."""
    return float(shares[shares >= 0].mean()) if (shares >= 0).any() else 0.0


def pck_by_keypoint(predicted: Any, truth: Any, mask: Any, threshold: float, normalizer: Any) -> tuple[np.ndarray, int]:
    """Compute for each keypoint the fraction of samples that are predicted within a normalized distance.

    Args:
        predicted: Predicted keypoints [N, K, 2] in pixels.
        truth: True keypoints [N, K, 2] in pixels.
        mask: Which keypoints are labeled, bool [N, K].
        threshold: A prediction is correct if its distance divided by the normalizer is strictly below this. A NaN
            prediction is not correct.
        normalizer: Lengths in pixels that divide the differences in x and y before the distance is computed: [N, 2], or
            one number for all. A sample whose normalizers are not both positive does not count.

    Returns:
        The fractions [K], and the number of keypoints for which a sample counts. The fraction of any other keypoint is
        -1.

    Raises:
        ValueError: If the shapes do not match.
    """
    accuracy = _shares(_distances(predicted, truth, mask, normalizer), threshold)
    return accuracy, int((accuracy >= 0).sum())


def pck(predicted: Any, truth: Any, mask: Any, threshold: float, normalizer: Any) -> float:
    """Compute PCK: the mean of `pck_by_keypoint` over the keypoints for which a sample counts, or 0 if there are none.

    Arguments and errors are as in `pck_by_keypoint`.
    """
    return _mean(_shares(_distances(predicted, truth, mask, normalizer), threshold))


def auc(predicted: Any, truth: Any, mask: Any, normalizer: Any, steps: int = 20) -> float:
    """Compute the area under the PCK curve: the mean PCK over thresholds i / steps for i = 0 .. steps - 1.

    No prediction is correct at the threshold 0, so perfect predictions have an AUC of 1 - 1 / steps.

    Args:
        predicted: As in `pck_by_keypoint`.
        truth: As in `pck_by_keypoint`.
        mask: As in `pck_by_keypoint`.
        normalizer: As in `pck_by_keypoint`. It is the error in pixels at which the thresholds end.
        steps: The number of thresholds.

    Raises:
        ValueError: If the shapes do not match, or `steps` is below 1.
    """
    if steps < 1:
        raise ValueError(f"got steps={steps}, expected 1 or more")
    distance = _distances(predicted, truth, mask, normalizer)
    return sum(_mean(_shares(distance, i / steps)) for i in range(steps)) / steps


def epe(predicted: Any, truth: Any, mask: Any) -> float:
    """Compute the end-point error: the mean distance in pixels over labeled keypoints, or 0 if there are none.

    It is infinite if a prediction of a labeled keypoint is NaN. Arguments and errors are as in `pck_by_keypoint`.
    """
    distance = _distances(predicted, truth, mask, 1.0)
    counted = distance[~np.isnan(distance)]
    return float(counted.mean()) if len(counted) else 0.0


def _score_hands(files: Sequence[Labels], results: list[Row]) -> dict[str, float]:
    """Score hands: PCK at 0.2 of the longer side of the box, AUC up to 30 pixels, and EPE in pixels.

    The `annotation_id` of a result tells its hand. A hand without a result is wrong at every threshold of PCK and AUC.
    EPE covers only hands with a result, and is -1 if there are none.
    """
    people, _ = joined(files)
    truth, mask = np.stack([p.keypoints for p in people]), np.stack([p.visible for p in people]) > 0
    points = np.full(truth.shape, np.nan)
    place = {p.annotation_id: i for i, p in enumerate(people)}
    for row in results:
        points[place[row["annotation_id"]]] = points_of(row)
    found = np.isfinite(points[:, 0, 0])
    size = np.array([max(p.box[2:]) for p in people])
    return {
        "PCK": pck(points, truth, mask, 0.2, np.stack([size, size], 1)),
        "AUC": auc(points, truth, mask, 30.0),
        "EPE": epe(points[found], truth[found], mask[found]) if found.any() else -1.0,
    }


HAND_METRIC = Metric(_score_hands, headline="AUC", pixels=("EPE",), by_oks=False)
