"""All metrics by name (docs/numerics.md 7). Each group of metrics is implemented in its own module.

Keypoints are [N, K, 2] in pixels, as arrays, tensors on any device and of any precision, or nested lists.
"""

from vitpose_training.evaluation.aic import aic_score
from vitpose_training.evaluation.coco_ap import STATS, evaluate_coco, evaluate_crowdpose, evaluate_wholebody
from vitpose_training.evaluation.pck import auc, epe, pck, pck_by_keypoint
from vitpose_training.evaluation.pckh import pckh, pckh_mpii
from vitpose_training.evaluation.suppression import oks_nms, rescore, suppress

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
