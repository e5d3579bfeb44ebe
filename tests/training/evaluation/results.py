"""Helpers of the metric tests: results made from annotated poses, unchanged or shifted."""

from __future__ import annotations

import numpy as np

from vitpose_training.evaluation.suppression import rescore

WHOLE_BODY_KEYS = ("keypoints", "foot_kpts", "face_kpts", "lefthand_kpts", "righthand_kpts")


def perfect(truth):
    """Return results with score 1 that equal the annotations, in COCO ground truth, of all people with keypoints."""
    keys = ("image_id", "category_id", "keypoints")
    return [{k: a[k] for k in keys} | {"score": 1.0} for a in truth["annotations"] if any(a["keypoints"][2::3])]


def merged(truth):
    """Merge the five keypoint lists of each COCO-WholeBody annotation into one `keypoints` of 133, and count them.

    This changes `truth` in place and returns it.
    """
    for row in truth["annotations"]:
        row["keypoints"] = [v for key in WHOLE_BODY_KEYS for v in row[key]]
        row["num_keypoints"] = sum(v > 0 for v in row["keypoints"][2::3])
    return truth


def person(row, factors, box_score, mode="bbox_keypoint"):
    """Return a result for an annotation: its keypoints times `factors` (x, y, v), in float32 like a network's output.

    The score is `rescore` of the box score and of the scaled v in this mode, and the area belongs to the padded box.
    """
    keypoints = np.array(row["keypoints"], np.float32).reshape(-1, 3) * np.array(factors, np.float32)
    score = float(rescore([box_score], keypoints[None, :, 2], mode)[0])
    area = 1.25 * row["bbox"][2] * 1.25 * row["bbox"][3]
    own = {"image_id": row["image_id"], "category_id": 1, "keypoints": keypoints.flatten().tolist()}
    return own | {"score": score, "area": area}
