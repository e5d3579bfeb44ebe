"""AI Challenger's official score (docs/numerics.md 7.3), and the AIC metric, which adds it to the COCO numbers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitpose_fast.keypoints import KEYPOINT_SETS
from vitpose_fast.rows import Row, read_json
from vitpose_training.data.people import Labels, Metric, joined
from vitpose_training.evaluation.coco_ap import score_coco


def aic_score(annotations_json: Any, predictions_json: Any) -> float:
    """Compute AI Challenger's official score, between 0 and 1 (docs/numerics.md 7.3).

    For each OKS threshold 0.50, 0.55, ..., 0.95, count the predictions whose OKS with the most similar annotated person
    of the same image is above the threshold, and divide by the sum over images of max(number of annotated people,
    number of predictions). The score is the mean over the thresholds. OKS covers only keypoints that are annotated as
    visible (v = 1), and its area is w * h + 1 of the annotated box. Predictions for images without an entry in the
    ground truth do not count. The score is 0 if there are no people and no predictions.

    Args:
        annotations_json: Ground truth in AI Challenger's original format (see `aic_to_coco`), as a file or a list. The
            area of a person without a box in `human_annotations` is 1.
        predictions_json: Predictions in the same format, without `human_annotations`.

    Raises:
        ValueError: If a file is unreadable or the format is wrong. The message is one line that names the entry.
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
    """Read a file or list in AI Challenger's original format; `what` names a list in messages.

    Return for each image id, as a string, the keypoints (x, y, v) [P, 14, 3] and the boxes (x1, y1, x2, y2) [P, 4] of
    its P people. A missing box is 0, 0, 0, 0. Raise ValueError if a file is unreadable or an entry is damaged.
    """
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
                raise ValueError("the image_id is already used by an earlier entry")
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            raise ValueError(
                f"{name}: entry {index}: expected image_id and keypoint_annotations of 14 x, y, v each ({reason})"
            ) from None
    return out


def _score_aic(files: Sequence[Labels], results: list[Row]) -> dict[str, float]:
    """Return the ten COCO numbers (see `evaluate_coco`) and "AIC score" (see `aic_score`) by name."""
    _, truth = joined(files)
    return score_coco(files, results) | {"AIC score": aic_score(_original_truth(truth), _original_results(results))}


def _original_truth(truth: dict[str, Any]) -> list[Row]:
    """Convert a COCO dict back to entries in the original AIC format (see `aic_to_coco`), one for each image.

    The name of a person is "human" followed by the id of the annotation.
    """
    rows: dict[Any, Row] = {}
    for image in truth["images"]:
        rows[image["id"]] = {"image_id": str(image["id"]), "keypoint_annotations": {}, "human_annotations": {}}
    for annotation in truth["annotations"]:
        points = np.array(annotation["keypoints"], dtype=float).reshape(-1, 3)
        points[:, 2] = np.array([3, 2, 1])[points[:, 2].astype(int)]  # not labeled, occluded, visible
        x, y, w, h = annotation["bbox"]
        row, name = rows[annotation["image_id"]], f"human{annotation['id']}"
        row["keypoint_annotations"][name] = points.flatten().tolist()
        row["human_annotations"][name] = [x, y, x + w, y + h]
    return list(rows.values())


def _original_results(results: list[Row]) -> list[Row]:
    """Convert COCO keypoint results to entries in the original AIC format, one for each image that has a result.

    The third number of a keypoint remains its score, which `aic_score` does not use.
    """
    rows: dict[Any, Row] = {}
    for i, result in enumerate(results):
        row = rows.setdefault(result["image_id"], {"image_id": str(result["image_id"]), "keypoint_annotations": {}})
        row["keypoint_annotations"][f"human{i}"] = result["keypoints"]
    return list(rows.values())


AIC_METRIC = Metric(_score_aic, headline="AP")
