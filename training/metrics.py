"""COCO keypoint metrics: OKS non-maximum suppression, and AP / AR by pycocotools (SPEC 7.1)."""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from typing import Any

import numpy as np

from vitpose_fast.keypoints import KeypointSet

STATS = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")


def oks_nms(keypoints: np.ndarray, scores: np.ndarray, areas: np.ndarray, sigmas: np.ndarray, threshold: float = 0.9):
    """Indices that stay, best first: one that has OKS > threshold with a better one is dropped.

    keypoints [P, K, 2], scores [P], areas [P] px² (of the padded boxes), sigmas [K].
    """
    order = np.argsort(-scores, kind="stable")
    distance = ((keypoints[:, None] - keypoints[None]) ** 2).sum(-1)  # [P, P, K]
    area = (areas[:, None] + areas[None]) / 2 + np.spacing(1)
    oks = np.exp(-distance / (2 * sigmas) ** 2 / area[..., None] / 2).mean(-1)
    keep: list[int] = []
    for i in order:
        if not keep or oks[i, keep].max() <= threshold:
            keep.append(int(i))
    return keep


def suppress(results: list[dict[str, Any]], keypoint_set: KeypointSet, threshold: float = 0.9) -> list[dict[str, Any]]:
    """`oks_nms` within each image, on results of `Poses.to_coco` that also carry `area`."""
    by_image = defaultdict(list)
    for result in results:
        by_image[result["image_id"]].append(result)
    kept = []
    for people in by_image.values():
        points = np.array([p["keypoints"] for p in people]).reshape(len(people), -1, 3)[..., :2]
        scores, areas = (np.array([p[k] for p in people]) for k in ("score", "area"))
        kept += [people[i] for i in oks_nms(points, scores, areas, np.array(keypoint_set.sigmas), threshold)]
    return kept


def coco_keypoint_ap(
    truth: dict[str, Any], results: list[dict[str, Any]], keypoint_set: KeypointSet
) -> dict[str, float]:
    """The ten COCO keypoint numbers (-1 where there is nothing to count).

    Args:
        truth: a COCO annotation file as a dict.
        results: COCO keypoint results.

    Raises:
        ValueError: a keypoint set without sigmas, results that are not finite, or that name unknown images.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if keypoint_set.sigmas is None:
        raise ValueError(f"{keypoint_set.name} has no OKS sigmas: AP is not defined for it")
    known = {image["id"] for image in truth["images"]}
    for i, result in enumerate(results):
        if not np.isfinite(result["keypoints"]).all() or not np.isfinite(result["score"]):
            raise ValueError(f"result {i} (image {result['image_id']}) holds NaN or infinite numbers")
        if result["image_id"] not in known:
            raise ValueError(f"result {i} is for image {result['image_id']}, which is not in the annotations")
    if not results:
        return dict.fromkeys(STATS, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        fields = ("image_id", "category_id", "keypoints", "score")
        evaluation = COCOeval(coco, coco.loadRes([{k: r[k] for k in fields} for r in results]), "keypoints")
        evaluation.params.kpt_oks_sigmas = np.array(keypoint_set.sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(value) for name, value in zip(STATS, evaluation.stats, strict=True)}
