"""All metrics by name (docs/numerics.md 7). Each group of metrics is implemented in its own module.

PCK, AUC, EPE and PCKh take keypoints [N, K, 2] (N people, K keypoints) in pixels, as arrays, tensors on any device and
of any precision, or nested lists. The COCO, CrowdPose, COCO-WholeBody and AIC metrics take JSON files or their content.
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
