"""The metrics of all data sets by name (SPEC 7); each group has a file of its own.

Keypoints are [N, K, 2] in pixels: arrays, tensors of any device and precision, or nested lists.
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
