"""OKS suppression: which of similar poses in an image stay, and the scores by which they compete (SPEC 7.1)."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Literal

import numpy as np

from vitpose_fast.keypoints import KeypointSet
from vitpose_fast.rows import Row
from vitpose_training.evaluation.arrays import as_array, check_shapes

_SOFT_MOST = 20  # people that the soft suppression keeps


def oks_nms(
    keypoints: Any,
    scores: Any,
    areas: Any,
    sigmas: Any,
    threshold: float,
    visible_threshold: float | None = None,
    soft: bool = False,
) -> list[int]:
    """Suppress people that are much like a better one (SPEC 7.1): indices of those that stay, in order.

    Of equal scores the later person is the better one. A pose that is not a number is like no other: it stays, for the
    evaluation to refuse.

    Args:
        keypoints: [P, K, 3] x, y in pixels and score, or [P, K, 2] without `visible_threshold`.
        scores: [P]. areas: [P] in px², of the padded boxes. sigmas: [K].
        threshold: one whose OKS with a better one is above it is dropped.
        visible_threshold: compare only keypoints that have a score above it in both; None: all.
        soft: lower the scores of similar people by exp(-OKS² / threshold) instead, and keep the best 20.

    Raises:
        ValueError: shapes that do not go together.
    """
    points, left, area, sigma = (as_array(v) for v in (keypoints, scores, areas, sigmas))
    if not len(points):
        return []
    given, least = (points, left, area, sigma), 2 if visible_threshold is None else 3
    fits = points.ndim == 3 and points.shape[2] in (least, 3) and sigma.shape == points.shape[1:2]
    fits = fits and left.shape == area.shape == (len(points),)
    check_shapes("keypoints, scores, areas, sigmas", given, fits, f"[P, K, {least}], [P], [P], [K]")
    variances = (2 * sigma) ** 2
    order = _best_first(left, np.arange(len(points)))
    left = left[order]
    keep: list[int] = []
    while len(order) and not (soft and len(keep) >= _SOFT_MOST):
        best, order, left = int(order[0]), order[1:], left[1:]
        keep.append(best)
        distance = ((points[best, :, :2] - points[order, :, :2]) ** 2).sum(-1)
        mean_area = (area[best] + area[order]) / 2 + np.spacing(1)
        similar = np.exp(-distance / variances / mean_area[:, None] / 2)
        if visible_threshold is None:
            oks = similar.mean(-1)
        else:
            both = (points[best, :, 2] > visible_threshold) & (points[order, :, 2] > visible_threshold)
            oks = (similar * both).sum(-1) / np.maximum(both.sum(-1), 1)
        oks[np.isnan(oks)] = 0
        if soft:
            left = left * np.exp(-(oks**2) / threshold)
            again = _best_first(left, order)
            order, left = order[again], left[again]
        else:
            order, left = order[oks <= threshold], left[oks <= threshold]
    return keep


def _best_first(scores: np.ndarray, number: np.ndarray) -> np.ndarray:
    """By falling score, NaN last; of equal ones the higher number first: the published AP of moved people needs it."""
    return np.lexsort((number, np.where(np.isnan(scores), -np.inf, scores)))[::-1]


def suppress(results: list[Row], keypoint_set: KeypointSet, threshold: float = 0.9, soft: bool = False) -> list[Row]:
    """`oks_nms` within each image, on COCO keypoint results that also carry `area`.

    Raises:
        ValueError: a keypoint set without sigmas.
    """
    if keypoint_set.sigmas is None:
        raise ValueError(f"{keypoint_set.name} has no OKS sigmas: poses cannot be compared")
    by_image = defaultdict(list)
    for result in results:
        by_image[result["image_id"]].append(result)
    kept = []
    for people in by_image.values():
        points = np.array([p["keypoints"] for p in people]).reshape(len(people), -1, 3)
        scores, areas = (np.array([p[k] for p in people]) for k in ("score", "area"))
        chosen = oks_nms(points, scores, areas, keypoint_set.sigmas, threshold, soft=soft)
        kept += [people[i] for i in chosen]
    return kept


def rescore(
    box_scores: Any,
    keypoint_scores: Any,
    mode: Literal["bbox", "bbox_keypoint", "bbox_rle"] = "bbox_keypoint",
    threshold: float = 0.2,
) -> np.ndarray:
    """Scores of people [P] from those of their boxes [P] and keypoints [P, K].

    "bbox_keypoint": box times the mean of the keypoints above `threshold`, 0 if none (SPEC 7.1); "bbox_rle": box plus
    mean plus maximum; "bbox": the box alone.
    """
    boxes, points = as_array(box_scores), as_array(keypoint_scores, None)  # float32 is compared with 0.2 as float32
    fits = points.ndim == 2 and boxes.shape == (len(points),)
    check_shapes("scores of boxes and keypoints", (boxes, points), fits, "[P], [P, K]")
    if mode == "bbox":
        return boxes
    if mode == "bbox_rle":
        return boxes + points.mean(-1) + points.max(-1)
    if mode != "bbox_keypoint":
        raise ValueError(f"got mode={mode!r}, expected 'bbox', 'bbox_keypoint' or 'bbox_rle'")
    counted = points > threshold
    return boxes * (_sum(points.astype(float) * counted) / np.maximum(counted.sum(-1), 1))


def _sum(values: np.ndarray) -> np.ndarray:
    """One after another: numpy's own sum rounds so that scores which are equal on paper are not, and AP sees that."""
    return np.add.accumulate(values, -1)[..., -1]
