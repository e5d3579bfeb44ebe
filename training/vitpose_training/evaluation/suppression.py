"""OKS non-maximum suppression of similar poses, and the scores that rank poses (docs/numerics.md 7.1).

P is the number of people (poses), and K the number of keypoints.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Literal

import numpy as np

from vitpose_fast.keypoints import KeypointSet
from vitpose_fast.rows import Row
from vitpose_training.evaluation.arrays import as_array, check_shapes

_SOFT_LIMIT = 20  # most people that soft suppression keeps


def oks_nms(
    keypoints: Any,
    scores: Any,
    areas: Any,
    sigmas: Any,
    threshold: float,
    visible_threshold: float | None = None,
    soft: bool = False,
) -> list[int]:
    """Suppress people whose pose is similar to a pose with a higher score, among people of one image.

    Among equal scores the later person ranks higher, and NaN ranks last. A pose with a NaN coordinate has an OKS of 0
    with every other pose, so it is kept, and the evaluation can reject it. Source: docs/numerics.md 7.1.

    Args:
        keypoints: x and y in pixels and score, [P, K, 3]. [P, K, 2] is enough without `visible_threshold`.
        scores: Scores of the people, [P].
        areas: Areas of the padded crops of the people in px², [P].
        sigmas: OKS sigmas, [K].
        threshold: Drop a person whose OKS with a kept person that ranks higher is above this.
        visible_threshold: OKS covers only keypoints whose scores are above this in both poses, and is 0 if there are
            none. None means that it covers all keypoints.
        soft: Do not drop people for a high OKS. Instead, whenever the best remaining person is kept, multiply the score
            of every other remaining person by exp(-OKS² / threshold); stop after 20 people.

    Returns:
        The indices of the people that are kept, best first; with `soft` they are ranked by their reduced scores. An
        empty list for no people.

    Raises:
        ValueError: If P > 0 and the shapes do not match.
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
    while len(order) and not (soft and len(keep) >= _SOFT_LIMIT):
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
    """Return the indices that sort `scores` in descending order, NaN last.

    Among equal scores, the larger `number` (the index of the person) comes first. mmpose ranks equal scores in this
    way, and the AP that the tests of mmpose expect depends on it.
    """
    return np.lexsort((number, np.where(np.isnan(scores), -np.inf, scores)))[::-1]


def suppress(results: list[Row], keypoint_set: KeypointSet, threshold: float = 0.9, soft: bool = False) -> list[Row]:
    """Apply `oks_nms` to the results of each image and return the results that are kept, unchanged.

    They are grouped by image, in order of first appearance, and within an image the best comes first.

    Args:
        results: COCO keypoint results, each with the additional field `area`: the area of the padded crop in px².
        keypoint_set: The keypoint set, for its sigmas.
        threshold: As in `oks_nms`.
        soft: As in `oks_nms`. The scores in the results stay as they are.

    Raises:
        ValueError: If the keypoint set has no sigmas.
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
    """Compute the scores [P] of people from the scores of their boxes and keypoints.

    Args:
        box_scores: Scores of the boxes, [P].
        keypoint_scores: Scores of the keypoints, [P, K].
        mode: "bbox_keypoint" multiplies the box score by the mean of those keypoint scores that are above `threshold`,
            or by 0 if there are none (docs/numerics.md 7.1). "bbox_rle" adds the mean and the maximum of all keypoint
            scores to the box score. "bbox" returns the box score.
        threshold: Used only by "bbox_keypoint".

    Raises:
        ValueError: If the shapes do not match, or the mode is unknown.
    """
    boxes, points = (
        as_array(box_scores),
        as_array(keypoint_scores, None),
    )  # float32 stays float32 for the threshold
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
    """Sum over the last axis, adding the values one after the other from left to right.

    `np.sum` may round differently for two rows that are equal except for the positions of zeros. Then scores that
    should be equal differ in the last bit, which changes the ranking and thus AP.
    """
    return np.add.accumulate(values, -1)[..., -1]
