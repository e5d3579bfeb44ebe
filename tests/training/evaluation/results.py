"""Results that several tests of the metrics start from: annotated poses, as they are or moved."""

from __future__ import annotations

import numpy as np

from vitpose_training.evaluation.suppression import rescore

WHOLE_BODY_KEYS = ("keypoints", "foot_kpts", "face_kpts", "lefthand_kpts", "righthand_kpts")


def perfect(truth):
    """The labelled people as results."""
    keys = ("image_id", "category_id", "keypoints")
    return [{k: a[k] for k in keys} | {"score": 1.0} for a in truth["annotations"] if any(a["keypoints"][2::3])]


def merged(truth):
    """COCO-WholeBody annotations with all 133 keypoints in one list."""
    for row in truth["annotations"]:
        row["keypoints"] = [v for key in WHOLE_BODY_KEYS for v in row[key]]
        row["num_keypoints"] = sum(v > 0 for v in row["keypoints"][2::3])
    return truth


def person(row, factors, box_score, mode="bbox_keypoint"):
    """A result: the annotated keypoints times factors for x, y, v, in float32 as networks give them."""
    keypoints = np.array(row["keypoints"], np.float32).reshape(-1, 3) * np.array(factors, np.float32)
    score = float(rescore([box_score], keypoints[None, :, 2], mode)[0])
    area = 1.25 * row["bbox"][2] * 1.25 * row["bbox"][3]
    own = {"image_id": row["image_id"], "category_id": 1, "keypoints": keypoints.flatten().tolist()}
    return own | {"score": score, "area": area}
