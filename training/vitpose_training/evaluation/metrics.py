"""The metrics of all data sets (SPEC 7): OKS suppression, PCK, AUC, EPE, PCKh, AIC's score; COCO's AP is in `coco_ap`.

Keypoints are [N, K, 2] in pixels: arrays, tensors of any device and precision, or nested lists.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from vitpose_fast.keypoints import KEYPOINT_SETS, KeypointSet
from vitpose_fast.rows import Row, read_json
from vitpose_training.evaluation.coco_ap import STATS, evaluate_coco, evaluate_crowdpose, evaluate_wholebody

__all__ = [
    "STATS",
    "aic_score",
    "auc",
    "epe",
    "evaluate_coco",
    "evaluate_crowdpose",
    "evaluate_wholebody",
    "oks_nms",
    "pck",
    "pck_by_keypoint",
    "pckh",
    "pckh_mpii",
    "rescore",
    "suppress",
]

_SOFT_MOST = 20  # people that the soft suppression keeps
_HEAD = 0.6  # MPII's head size is this share of the head box's diagonal


def _array(values: Any, dtype: Any = float) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()  # numpy has no bfloat16
    return np.asarray(values, dtype)


def _check_shapes(what: str, arrays: Sequence[np.ndarray], fits: bool, expected: str) -> None:
    if not fits:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise ValueError(f"{what} have shapes {shapes}, expected {expected}")


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
    points, left, area, sigma = (_array(v) for v in (keypoints, scores, areas, sigmas))
    if not len(points):
        return []
    given, least = (points, left, area, sigma), 2 if visible_threshold is None else 3
    fits = points.ndim == 3 and points.shape[2] in (least, 3) and sigma.shape == points.shape[1:2]
    fits = fits and left.shape == area.shape == (len(points),)
    _check_shapes("keypoints, scores, areas, sigmas", given, fits, f"[P, K, {least}], [P], [P], [K]")
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
    boxes, points = _array(box_scores), _array(keypoint_scores, None)  # float32 is compared with 0.2 as float32
    fits = points.ndim == 2 and boxes.shape == (len(points),)
    _check_shapes("scores of boxes and keypoints", (boxes, points), fits, "[P], [P, K]")
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


def _distances(predicted: Any, truth: Any, mask: Any, normalizer: Any) -> np.ndarray:
    """[N, K] normalised distances, NaN where they do not count: masked out, or no positive normalizer."""
    predicted, truth, mask, size = _array(predicted), _array(truth), _array(mask, bool), _array(normalizer)
    fits = predicted.shape == truth.shape and truth.ndim == 3 and mask.shape == truth.shape[:2]
    _check_shapes("predicted, truth and mask", (predicted, truth, mask), fits, "[N, K, 2] twice and [N, K]")
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


_MPII_GROUPS = {  # of the paper's table: mean of left and right
    "Head": ("head_top",),
    **{n: (f"left_{n.lower()}", f"right_{n.lower()}") for n in ("Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle")},
}


def pckh(predicted: Any, truth: Any, visible: Any, head_sizes: Any) -> dict[str, float]:
    """MPII's PCKh in per cent: hits within half a head size (SPEC 7.3).

    Args:
        predicted, truth: [N, 16, 2] px. visible: bool [N, 16]. head_sizes: [N] px.

    Returns:
        "PCKh" and "PCKh@0.1": means over the joints without pelvis and thorax, weighted by how often they are labelled;
        "Head", "Shoulder", ... of the paper's table; one value for each of the 16 joints. 0 where none is labelled.

    Raises:
        ValueError: shapes that do not go together, a head size that is not positive.
    """
    names = KEYPOINT_SETS["mpii"].names
    predicted, truth, visible, sizes = _array(predicted), _array(truth), _array(visible, bool), _array(head_sizes)
    joints = (*sizes.shape, len(names))
    fits = sizes.ndim == 1 and visible.shape == joints and predicted.shape == truth.shape == (*joints, 2)
    given = predicted, truth, visible, sizes
    _check_shapes("predicted, truth, visible, head_sizes", given, fits, "[N, 16, 2] twice, [N, 16], [N]")
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
    """`pckh` of predictions [N, 16, 2] in MPII's coordinates, which begin at 1, against its `mpii_gt_val.mat`.

    Raises:
        ValueError: another file, or another number of people; in one line.
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
    predicted = _array(predictions_one_based)
    if predicted.shape != (count, 16, 2):
        raise ValueError(
            f"got predictions of shape {predicted.shape}, expected {(count, 16, 2)}, one for each in {mat_path}"
        )
    sizes = _HEAD * np.linalg.norm(boxes[1].astype(float) - boxes[0].astype(float), axis=0)
    return pckh(predicted, truth.transpose(2, 0, 1), missing.T == 0, sizes)


def aic_score(annotations_json: Any, predictions_json: Any) -> float:
    """AI Challenger's official score, on files (or lists) in its original format (SPEC 7.3).

    The mean over OKS thresholds .50:.05:.95 of the predictions that match a person better than that, divided by the
    larger number of people and predictions of each image. Only visible keypoints (v = 1) count.

    Raises:
        ValueError: a file that does not have this format, in one line that names the entry.
    """
    truth, found = _aic_people(annotations_json, "annotations"), _aic_people(predictions_json, "predictions")
    sigmas = np.array(KEYPOINT_SETS["aic"].sigmas)
    thresholds = np.arange(0.5, 1.0, 0.05)
    matched, total = np.zeros(len(thresholds)), 0
    for image_id, (points, boxes) in truth.items():
        predicted = found[image_id][0] if image_id in found else np.zeros((0, 14, 3))
        total += max(len(points), len(predicted))
        if len(points) and len(predicted):
            counts = points[:, :, 2] == 1
            area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) + 1
            distance = ((points[:, None, :, :2] - predicted[None, :, :, :2]) ** 2).sum(-1)  # [truths, predictions, K]
            similar = np.exp(-distance / (2 * (2 * sigmas) ** 2) / area[:, None, None]) * counts[:, None]
            best = (similar.sum(-1) / np.maximum(counts.sum(-1), 1)[:, None]).max(0)
            matched += (best[:, None] > thresholds).sum(0)
    return float((matched / max(total, 1)).mean())


def _aic_people(given: Any, what: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """image id -> (keypoints [P, 14, 3], boxes x1, y1, x2, y2 [P, 4]; 0 where there are none)."""
    rows = read_json(Path(given)) if isinstance(given, (str, os.PathLike)) else given
    name = str(given) if isinstance(given, (str, os.PathLike)) else what
    if not isinstance(rows, list):
        raise ValueError(f"{name}: expected a list of images, AI Challenger's original format")
    out: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for index, row in enumerate(rows):
        try:
            people, boxes = row["keypoint_annotations"], row.get("human_annotations", {})
            points = np.array([flat for _, flat in people.items()], float).reshape(len(people), 14, 3)
            corners = np.array([boxes.get(human, (0, 0, 0, 0)) for human in people], float).reshape(len(people), 4)
            if not (np.isfinite(points).all() and np.isfinite(corners).all()):
                raise ValueError("a number is not finite")
            if out.setdefault(str(row["image_id"]), (points, corners))[0] is not points:
                raise ValueError("the image_id is that of an earlier entry")
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            raise ValueError(
                f"{name}: entry {index}: expected image_id and keypoint_annotations of 14 x, y, v each ({reason})"
            ) from None
    return out
