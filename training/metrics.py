"""COCO keypoint metrics: OKS non-maximum suppression, and AP / AR by pycocotools (SPEC 7.1)."""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from typing import Any

import numpy as np

from vitpose_fast.coco import check_annotations, is_number
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
    """The ten COCO keypoint numbers; 0 where nothing was found, -1 where there is no ground truth of that size.

    All categories count as one. Ids matter only in that results and ground truth agree on those of the images.

    Args:
        truth: COCO annotations as a dict, see `vitpose_fast.coco.check_annotations`.
        results: COCO keypoint results: `image_id`, `keypoints`, `score`.

    Raises:
        ValueError: a keypoint set without sigmas, damaged ground truth, results that are not finite, or that name
            unknown images.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if keypoint_set.sigmas is None:
        raise ValueError(f"{keypoint_set.name} has no OKS sigmas: AP is not defined for it")
    truth, problems = check_annotations(truth, keypoint_set, "ground truth")
    if problems:
        raise ValueError(f"{problems[0]} ({len(problems)} damaged in all)")
    # pycocotools sorts by image (so equal scores count in the order of ids), and takes a match with id 0 for none
    ordered = sorted((image["id"] for image in truth["images"]), key=lambda i: (isinstance(i, str), i))
    number = {image_id: n for n, image_id in enumerate(ordered, 1)}
    found = [_found(i, result, number, keypoint_set.num_keypoints) for i, result in enumerate(results)]
    expected = [
        {**a, "id": n, "image_id": number[a["image_id"]], "category_id": 1}
        for n, a in enumerate(truth["annotations"], 1)
    ]
    images = [{"id": n} for n in number.values()]
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for annotations in (expected, found):
            sides.append(COCO())
            sides[-1].dataset = {"images": images, "annotations": annotations, "categories": [{"id": 1}]}
            sides[-1].createIndex()
        evaluation = COCOeval(*sides, "keypoints")
        evaluation.params.kpt_oks_sigmas = np.array(keypoint_set.sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(value) for name, value in zip(STATS, evaluation.stats, strict=True)}


def _found(index: int, result: dict[str, Any], number: dict[Any, int], num_keypoints: int) -> dict[str, Any]:
    """A result as `COCO.loadRes` makes it: its area and box are those of the keypoints."""
    image_id, triples, score = (result.get(key) for key in ("image_id", "keypoints", "score"))
    if not isinstance(image_id, (int, float, str)) or image_id not in number:
        raise ValueError(f"result {index} is for image {image_id}, which is not in the annotations")
    if not isinstance(triples, (list, tuple)) or len(triples) != 3 * num_keypoints:
        raise ValueError(f"result {index} (image {image_id}): expected a list of {3 * num_keypoints} keypoint numbers")
    if not all(is_number(v, float(np.finfo(np.float32).max)) for v in (score, *triples)):
        raise ValueError(f"result {index} (image {image_id}) holds NaN or infinite numbers")
    x, y = triples[0::3], triples[1::3]
    box = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
    own = {"id": index + 1, "image_id": number[image_id], "category_id": 1, "bbox": box, "area": box[2] * box[3]}
    return {**own, "keypoints": triples, "score": score}
