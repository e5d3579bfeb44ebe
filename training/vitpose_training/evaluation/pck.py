"""Share of correct keypoints (PCK), the area under its curve (AUC) and the end-point error (EPE): the metric of hands.

Keypoints are [N, K, 2] in pixels: arrays, tensors of any device and precision, or nested lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vitpose_fast.rows import Row
from vitpose_training.data.people import Labels, Metric, joined, points_of
from vitpose_training.evaluation.arrays import as_array, check_shapes


def _distances(predicted: Any, truth: Any, mask: Any, normalizer: Any) -> np.ndarray:
    """[N, K] normalised distances, NaN where they do not count: masked out, or no positive normalizer."""
    predicted, truth, mask, size = as_array(predicted), as_array(truth), as_array(mask, bool), as_array(normalizer)
    fits = predicted.shape == truth.shape and truth.ndim == 3 and mask.shape == truth.shape[:2]
    check_shapes("predicted, truth and mask", (predicted, truth, mask), fits, "[N, K, 2] twice and [N, K]")
    whole = (len(truth), truth.shape[2])
    if size.ndim and (size.ndim != 2 or any(n not in (1, m) for n, m in zip(size.shape, whole))):
        raise ValueError(f"normalizer has shape {size.shape}, expected a number or {whole}: in x and y of each sample")
    size = np.broadcast_to(size, whole)
    counts = mask & (size > 0).all(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.linalg.norm((predicted - truth) / size[:, None], axis=-1)
    distance[np.isnan(distance)] = np.inf  # a prediction that is not a number is no hit
    return np.where(counts, distance, np.nan)


def _shares(distance: np.ndarray, threshold: float) -> np.ndarray:
    """[K]: the share of the distances that count which are below the threshold, -1 where none counts."""
    counted = ~np.isnan(distance)
    hits = (distance < threshold).sum(0)  # NaN is not
    return np.where(counted.any(0), hits / np.maximum(counted.sum(0), 1), -1.0)


def _mean(shares: np.ndarray) -> float:
    return float(shares[shares >= 0].mean()) if (shares >= 0).any() else 0.0


def pck_by_keypoint(predicted: Any, truth: Any, mask: Any, threshold: float, normalizer: Any) -> tuple[np.ndarray, int]:
    """Share of samples within a distance, for each keypoint: (accuracies [K], -1 where nothing counts; how many count).

    Args:
        predicted, truth: [N, K, 2] px. mask: bool [N, K], which are labelled.
        threshold: a hit is nearer than this, strictly, after division by the normalizer.
        normalizer: [N, 2] px, in x and y, or one number; samples without positive ones do not count.

    Raises:
        ValueError: shapes that do not go together.
    """
    accuracy = _shares(_distances(predicted, truth, mask, normalizer), threshold)
    return accuracy, int((accuracy >= 0).sum())


def pck(predicted: Any, truth: Any, mask: Any, threshold: float, normalizer: Any) -> float:
    """Share of correct keypoints: the mean over keypoints that have a sample; see `pck_by_keypoint`."""
    return _mean(_shares(_distances(predicted, truth, mask, normalizer), threshold))


def auc(predicted: Any, truth: Any, mask: Any, normalizer: Any, steps: int = 20) -> float:
    """Area under the curve of PCK: the mean over thresholds i / steps, i = 0 .. steps - 1 (the first one adds 0).

    Args:
        normalizer: px that the threshold 1 stands for, a number or [N, 2]. Others and errors as in `pck_by_keypoint`.
    """
    if steps < 1:
        raise ValueError(f"got steps={steps}, expected 1 or more")
    distance = _distances(predicted, truth, mask, normalizer)
    return sum(_mean(_shares(distance, i / steps)) for i in range(steps)) / steps


def epe(predicted: Any, truth: Any, mask: Any) -> float:
    """End-point error: the mean distance in pixels over labelled keypoints, 0 if there are none."""
    distance = _distances(predicted, truth, mask, 1.0)
    counted = distance[~np.isnan(distance)]
    return float(counted.mean()) if len(counted) else 0.0


def _score_hands(files: Sequence[Labels], results: list[Row]) -> dict[str, float]:
    """PCK within 0.2 of the box, AUC up to 30 pixels, mean error in pixels of the keypoints that were found.

    Who was not found is missed: beyond every threshold.
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
