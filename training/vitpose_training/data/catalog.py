"""The data sets of the ViTPose papers: files on disk, reader, augmentation and metric (docs/numerics.md 6.3, 7.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from vitpose_fast.keypoints import KEYPOINT_SETS, KeypointSet, keypoint_set
from vitpose_training.data.aic import AIC_LAYOUT
from vitpose_training.data.coco import COCO_LAYOUT
from vitpose_training.data.interhand import INTERHAND_LAYOUT
from vitpose_training.data.mpii import MPII_LAYOUT
from vitpose_training.data.people import DataSet, Split
from vitpose_training.data.wholebody import WHOLEBODY_LAYOUT
from vitpose_training.evaluation.aic import AIC_METRIC
from vitpose_training.evaluation.coco_ap import COCO_METRIC, CROWDPOSE_METRIC, WHOLEBODY_METRIC
from vitpose_training.evaluation.pck import HAND_METRIC
from vitpose_training.evaluation.pckh import PCKH_METRIC


def _coco_splits(pattern: str, images: str, *names: str) -> dict[str, Split]:
    """Return a dict with the splits `names`.

    The annotation file of a split is `pattern` and its image folder is `images`, each with {} replaced by the name.
    """
    return {name: (pattern.format(name), images.format(name)) for name in names}


_AIC_IMAGES = "ai_challenger_keypoint_{}/keypoint_{}_images_{}"
_HAND_IMAGES = "images/{}"
_ALL = (
    DataSet(
        KEYPOINT_SETS["coco"],
        COCO_LAYOUT,
        COCO_METRIC,
        folder="coco",
        splits=_coco_splits("annotations/person_keypoints_{}2017.json", "{}2017", "train", "val"),
    ),
    DataSet(
        KEYPOINT_SETS["aic"],
        AIC_LAYOUT,
        AIC_METRIC,
        folder="aic",
        splits={
            "train": ("annotations/aic_train.json", _AIC_IMAGES.format("train_20170902", "train", "20170902")),
            "val": ("annotations/aic_val.json", _AIC_IMAGES.format("validation_20170911", "validation", "20170911")),
        },
        use_area=False,
    ),
    DataSet(
        KEYPOINT_SETS["mpii"],
        MPII_LAYOUT,
        PCKH_METRIC,
        folder="mpii",
        splits=_coco_splits("annotations/mpii_{}.json", "images", "train", "val", "trainval"),
        jitter=False,
        half_body_over=None,
    ),
    DataSet(
        KEYPOINT_SETS["ap10k"],
        COCO_LAYOUT,
        COCO_METRIC,
        folder="ap10k",
        splits=_coco_splits("annotations/ap10k-{}-split1.json", "data", "train", "val", "test"),
    ),
    DataSet(
        KEYPOINT_SETS["apt36k"],
        COCO_LAYOUT,
        COCO_METRIC,
        folder="apt36k",
        splits=_coco_splits("annotations/{}_annotations_1.json", ".", "train", "val"),
    ),
    DataSet(
        KEYPOINT_SETS["wholebody"],
        WHOLEBODY_LAYOUT,
        WHOLEBODY_METRIC,
        folder="coco",
        splits=_coco_splits("annotations/coco_wholebody_{}_v1.0.json", "{}2017", "train", "val"),
    ),
    DataSet(
        KEYPOINT_SETS["crowdpose"],
        COCO_LAYOUT,
        CROWDPOSE_METRIC,
        folder="crowdpose",
        splits=_coco_splits("annotations/mmpose_crowdpose_{}.json", "images", "train", "val", "trainval", "test"),
        use_area=False,
        half_body_over=6,
    ),
    DataSet(
        KEYPOINT_SETS["ochuman"],
        COCO_LAYOUT,
        COCO_METRIC,
        folder="ochuman",
        splits=_coco_splits("annotations/ochuman_coco_format_{}_range_0.00_1.00.json", "images", "val", "test"),
        evaluation_only=True,
    ),
    DataSet(
        KEYPOINT_SETS["interhand"],
        INTERHAND_LAYOUT,
        HAND_METRIC,
        folder="interhand2.6m",
        splits={
            "train": ("annotations/all/InterHand2.6M_train_data.json", _HAND_IMAGES.format("train")),
            "val": ("annotations/machine_annot/InterHand2.6M_val_data.json", _HAND_IMAGES.format("val")),
            "test": ("annotations/all/InterHand2.6M_test_data.json", _HAND_IMAGES.format("test")),
        },
        half_body_over=None,
        scale_factor=0.3,
        rotation_degrees=90.0,
    ),
)
DATA_SETS: Mapping[str, DataSet] = MappingProxyType({one.name: one for one in _ALL})


def data_set(spec: str | KeypointSet | DataSet) -> DataSet:
    """Find a data set by name, or make one for a user's own keypoint set.

    Args:
        spec: One of the following. A data set is returned unchanged. The name of a data set in `DATA_SETS` gives that
            data set. A keypoint set, or the path of one (.json), gives the data set in `DATA_SETS` of the same name
            with this keypoint set instead of its own; if there is none, it gives a data set without splits whose
            annotation files are in COCO format and are scored like COCO.

    Raises:
        FileNotFoundError: If the .json file does not exist.
        ValueError: If `spec` is none of these (the message lists the built-in names), or the .json file is invalid.
    """
    if isinstance(spec, DataSet):
        return spec
    if isinstance(spec, str) and spec in DATA_SETS:
        return DATA_SETS[spec]
    found = keypoint_set(spec)
    known = DATA_SETS.get(found.name)
    return DataSet(found, COCO_LAYOUT, COCO_METRIC) if known is None else replace(known, keypoint_set=found)
