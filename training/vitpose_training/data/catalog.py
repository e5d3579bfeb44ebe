"""The data sets of the paper: how each is laid out on disk, read, augmented and scored (SPEC 6.3, 7.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from vitpose_fast.keypoints import KEYPOINT_SETS, KeypointSet, keypoint_set

Split = tuple[str, str]  # annotation file, image folder


@dataclass(frozen=True)
class DataSet:
    """How one data set is laid out, read, augmented and scored. Its name is that of its keypoint set."""

    keypoints: KeypointSet
    layout: Literal["coco", "wholebody", "aic", "mpii", "interhand"] = "coco"
    """Format of the annotation files; "coco" holds for most."""
    folder: str = ""
    """Below the root of all data sets."""
    splits: Mapping[str, Split] = field(default_factory=dict)
    """Split ("train", "val", ...) -> annotation file and image folder below `folder`."""
    metric: Literal["coco", "crowdpose", "wholebody", "pckh", "hand"] = "coco"
    use_area: bool = True
    """OKS by the annotated area; else by 0.53 times that of the box (SPEC 7.1)."""
    evaluation_only: bool = False
    jitter: bool = True
    """Whether training moves the boxes' centres (SPEC 6.2, step 0)."""
    half_body_over: int | None = 8
    """Labelled keypoints that the half-body augmentation needs more than; None: it is not used."""
    scale_factor: float = 0.5
    rotation_degrees: float = 40.0

    @property
    def name(self) -> str:
        return self.keypoints.name

    def split(self, root: Path, name: str) -> tuple[Path, Path]:
        """(annotation file, image folder) of a split below the root of all data sets.

        Raises:
            ValueError: a split that this data set does not have (lists the valid ones).
        """
        if name not in self.splits:
            valid = ", ".join(self.splits) or "none: give its files by --train/--val and --train-images/--val-images"
            raise ValueError(f"data set {self.name!r} has no split {name!r}; valid: {valid}")
        annotations, images = self.splits[name]
        return root / self.folder / annotations, root / self.folder / images


def _coco_splits(pattern: str, images: str, *names: str) -> dict[str, Split]:
    return {name: (pattern.format(name), images.format(name)) for name in names}


_AIC_IMAGES = "ai_challenger_keypoint_{}/keypoint_{}_images_{}"
_HAND_IMAGES = "images/{}"
_ALL = (
    DataSet(
        KEYPOINT_SETS["coco"],
        folder="coco",
        splits=_coco_splits("annotations/person_keypoints_{}2017.json", "{}2017", "train", "val"),
    ),
    DataSet(
        KEYPOINT_SETS["aic"],
        layout="aic",
        folder="aic",
        splits={
            "train": ("annotations/aic_train.json", _AIC_IMAGES.format("train_20170902", "train", "20170902")),
            "val": ("annotations/aic_val.json", _AIC_IMAGES.format("validation_20170911", "validation", "20170911")),
        },
        use_area=False,
    ),
    DataSet(
        KEYPOINT_SETS["mpii"],
        layout="mpii",
        folder="mpii",
        splits=_coco_splits("annotations/mpii_{}.json", "images", "train", "val", "trainval"),
        metric="pckh",
        jitter=False,
        half_body_over=None,
    ),
    DataSet(
        KEYPOINT_SETS["ap10k"],
        folder="ap10k",
        splits=_coco_splits("annotations/ap10k-{}-split1.json", "data", "train", "val", "test"),
    ),
    DataSet(
        KEYPOINT_SETS["apt36k"],
        folder="apt36k",
        splits=_coco_splits("annotations/{}_annotations_1.json", ".", "train", "val"),
    ),
    DataSet(
        KEYPOINT_SETS["wholebody"],
        layout="wholebody",
        folder="coco",
        splits=_coco_splits("annotations/coco_wholebody_{}_v1.0.json", "{}2017", "train", "val"),
        metric="wholebody",
    ),
    DataSet(
        KEYPOINT_SETS["crowdpose"],
        folder="crowdpose",
        splits=_coco_splits("annotations/mmpose_crowdpose_{}.json", "images", "train", "val", "trainval", "test"),
        metric="crowdpose",
        use_area=False,
        half_body_over=6,
    ),
    DataSet(
        KEYPOINT_SETS["ochuman"],
        folder="ochuman",
        splits=_coco_splits("annotations/ochuman_coco_format_{}_range_0.00_1.00.json", "images", "val", "test"),
        evaluation_only=True,
    ),
    DataSet(
        KEYPOINT_SETS["interhand"],
        layout="interhand",
        folder="interhand2.6m",
        splits={
            "train": ("annotations/all/InterHand2.6M_train_data.json", _HAND_IMAGES.format("train")),
            "val": ("annotations/machine_annot/InterHand2.6M_val_data.json", _HAND_IMAGES.format("val")),
            "test": ("annotations/all/InterHand2.6M_test_data.json", _HAND_IMAGES.format("test")),
        },
        metric="hand",
        half_body_over=None,
        scale_factor=0.3,
        rotation_degrees=90.0,
    ),
)
DATA_SETS: Mapping[str, DataSet] = MappingProxyType({one.name: one for one in _ALL})


def data_set(spec: str | KeypointSet | DataSet) -> DataSet:
    """A data set of the paper by name; for a user's keypoint set (a .json file or a value) COCO-format files.

    Raises:
        ValueError: neither a data set nor a keypoint set (lists the valid names).
    """
    if isinstance(spec, DataSet):
        return spec
    if isinstance(spec, str) and spec in DATA_SETS:
        return DATA_SETS[spec]
    keypoints = keypoint_set(spec)
    known = DATA_SETS.get(keypoints.name)
    return DataSet(keypoints) if known is None else replace(known, keypoints=keypoints)
