"""Helpers of the metric tests: published constants, and results made from annotated poses, unchanged or shifted."""

from __future__ import annotations

import numpy as np

from vitpose_training.evaluation.suppression import rescore

# Written down here, so that no test expects what the code under test says they are.
STATS = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")  # in the order of COCOeval
PARTS = ("body", "foot", "face", "lefthand", "righthand", "whole")  # of COCO-WholeBody
COCO_SIGMAS = (  # pycocotools.cocoeval.Params.kpt_oks_sigmas
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089,
    0.089,
)  # fmt: skip
AIC_SIGMAS = (  # of AI Challenger's evaluation script
    0.01388152, 0.01515228, 0.01057665, 0.01417709, 0.01497891, 0.01402144, 0.03909642, 0.03686941, 0.01981803,
    0.03843971, 0.03412318, 0.02415081, 0.01291456, 0.01236173,
)  # fmt: skip
MPII_SIGMAS = (  # of mmpose's MPII data set
    0.089, 0.083, 0.107, 0.107, 0.083, 0.089, 0.026, 0.026, 0.026, 0.026, 0.062, 0.072, 0.179, 0.179, 0.072, 0.062,
)  # fmt: skip
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
