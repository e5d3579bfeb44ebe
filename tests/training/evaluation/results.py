"""Helpers of the metric tests: results made from annotated poses, unchanged or shifted."""

from __future__ import annotations

import numpy as np

from vitpose_training.evaluation.suppression import rescore

WHOLE_BODY_KEYS = ("keypoints", "foot_kpts", "face_kpts", "lefthand_kpts", "righthand_kpts")


def perfect(truth):
    """Return results that equal the annotations of all people with labeled keypoints."""
    keys = ("image_id", "category_id", "keypoints")
    return [{k: a[k] for k in keys} | {"score": 1.0} for a in truth["annotations"] if any(a["keypoints"][2::3])]


def merged(truth):
    """Merge the five keypoint lists of each COCO-WholeBody annotation into one list of 133, in place."""
    for row in truth["annotations"]:
        row["keypoints"] = [v for key in WHOLE_BODY_KEYS for v in row[key]]
        row["num_keypoints"] = sum(v > 0 for v in row["keypoints"][2::3])
    return truth


def person(row, factors, box_score, mode="bbox_keypoint"):
    """Return a result for an annotation: keypoints times factors for x, y, v, in float32 like a network's output."""
    keypoints = np.array(row["keypoints"], np.float32).reshape(-1, 3) * np.array(factors, np.float32)
    score = float(rescore([box_score], keypoints[None, :, 2], mode)[0])
    area = 1.25 * row["bbox"][2] * 1.25 * row["bbox"][3]
    own = {"image_id": row["image_id"], "category_id": 1, "keypoints": keypoints.flatten().tolist()}
    return own | {"score": score, "area": area}
