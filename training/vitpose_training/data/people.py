"""Data sets: how their files are read (`Layout`), what the files hold (`Labels`), how poses are scored (`Metric`).

In this package a person is one annotated instance: a person, an animal or a hand, depending on the data set. K is the
number of keypoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitpose_fast.keypoints import KeypointSet
from vitpose_fast.rows import Row

Split = tuple[str, str]  # annotation file and image folder, relative to the folder of the data set


@dataclass(frozen=True)
class Layout:
    """A format of annotation files, and the function that reads it."""

    read: Callable[[DataSet, Path, Path], Labels]
    """Read an annotation file: (data set, annotation file, folder that image names are relative to) -> labels.

    The function leaves out damaged rows and lists them in `Labels.problems`. It raises a one-line ValueError if the
    file is unusable."""
    boxes_lose_a_pixel: bool = False
    """Whether `read` returns boxes that are one pixel smaller than annotated, as the official COCO loader does
    (docs/numerics.md 3.1)."""


@dataclass(frozen=True)
class Metric:
    """A way to score poses."""

    score: Callable[[Sequence[Labels], list[Row]], dict[str, float]]
    """Score results: (labels of one data set, results as returned by `evaluate_labels`) -> numbers by name.

    An empty list of results is scored like a model that finds no person. The function raises a one-line ValueError if
    the labels or the results cannot be scored."""
    headline: str
    """The name of the number that compares models. Higher is better. The number is at least 0 if the labels have people
    to evaluate on."""
    per_cent: bool = False
    """Whether the numbers are percentages. Otherwise they are fractions of 1, except the numbers in `pixels`."""
    pixels: tuple[str, ...] = ()
    """The names of the numbers that are distances in pixels."""
    by_oks: bool = True
    """Whether the metric compares poses by OKS. If so, `evaluate_labels` suppresses similar poses before scoring: a
    pose is left out if its OKS with a better pose in the same image is above 0.9 (docs/numerics.md 7.1)."""


@dataclass(frozen=True)
class DataSet:
    """A data set: its files, how they are read, how samples are augmented and how poses are scored.

    Its name is the name of its keypoint set.
    """

    keypoint_set: KeypointSet
    layout: Layout
    metric: Metric
    folder: str = ""
    """The folder of this data set, relative to the root folder of all data sets."""
    splits: Mapping[str, Split] = field(default_factory=dict)
    """For each split ("train", "val", ...), its annotation file and its image folder, relative to `folder`."""
    use_area: bool = True
    """Whether `score_coco` computes OKS with the annotated area. If False, or for an annotation without an area, it
    uses 0.53 times the area of the annotated box (docs/numerics.md 7.1)."""
    evaluation_only: bool = False
    """Whether training on this data set is refused."""
    jitter: bool = True
    """Whether training moves the centers of boxes by default (docs/numerics.md 6.2, step 0)."""
    half_body_over: int | None = 8
    """See `Augmentation.half_body_over`. None turns the half-body augmentation off by default."""
    scale_factor: float = 0.5
    """See `Augmentation.scale_factor`."""
    rotation_degrees: float = 40.0
    """See `Augmentation.rotation_degrees`."""

    @property
    def name(self) -> str:
        return self.keypoint_set.name

    def split(self, root: Path, name: str) -> tuple[Path, Path]:
        """Return the paths of the annotation file and the image folder of a split. They need not exist.

        Args:
            root: The root folder of all data sets.
            name: The name of the split.

        Raises:
            ValueError: If the data set has no split with this name. The message lists the valid names.
        """
        if name not in self.splits:
            valid = ", ".join(self.splits) or "none, pass its files with --train/--val and --train-images/--val-images"
            raise ValueError(f"data set {self.name!r} has no split {name!r}; valid: {valid}")
        annotations, images = self.splits[name]
        return root / self.folder / annotations, root / self.folder / images


@dataclass(frozen=True)
class Person:
    """One annotated person, animal or hand.

    The crop is the box enlarged by the factor `padding` around its center. With `fix_aspect`, the side of the box that
    is too short for the aspect ratio of the network's input is lengthened first. Without `fix_aspect` (MPII), the codec
    "udp" stretches the enlarged box to the input (docs/numerics.md 6.6), and "msra" uses only its width.
    """

    image: Path  # the image file, which need not exist
    image_id: int | str
    annotation_id: int | str
    category_id: int | str
    box: tuple[float, float, float, float]  # x, y, width, height in pixels of the image
    keypoints: np.ndarray  # [K, 2] float32 (x, y) in pixels of the image, 0 if not labeled
    visible: np.ndarray  # [K] float32: 0 if not labeled, 1 for COCO's v = 1 and 2; v itself if the file has 0 < v < 1
    source: str = ""  # annotation file, used in messages
    image_size: tuple[int, int] | None = None  # annotated (height, width); None if the file does not state it
    padding: float = 1.25
    fix_aspect: bool = True

    def __str__(self) -> str:
        return f"{self.source}: annotation {self.annotation_id} ({self.image})"


@dataclass
class Labels:
    """The checked content of one annotation file.

    Every annotated person counts as one entry: used, unlabeled, crowd or refused. A damaged row that is not a person
    (an image or a category) counts as a refused entry too.
    """

    data_set: DataSet
    people: list[Person]
    """The used entries: the people to train on, which evaluation with annotated boxes crops."""
    truth: Any
    """The ground truth of the metric, as a COCO dict, with unlabeled people and crowds. None for MPII and InterHand,
    whose metrics do not use it, and in a training run for the data to train on, to save memory."""
    images: int = 0
    """Number of undamaged images in the file. MPII: number of different images that undamaged entries name."""
    unlabelled: int = 0
    """Number of entries that are not used because `num_keypoints` is 0 or no keypoint is labeled. InterHand: number of
    hands without a valid root or with too few valid joints, and of annotations without a valid joint."""
    crowd: int = 0
    """Number of crowd entries."""
    problems: list[str] = field(default_factory=list)
    """One line for each refused entry, with file, row, field and what was expected."""

    @property
    def entries(self) -> int:
        """The number of all entries: used, unlabeled, crowd and refused."""
        return len(self.people) + self.unlabelled + self.crowd + len(self.problems)

    def summary(self) -> str:
        """Return one line that says how many entries are used, and how many are not for each reason."""
        return (
            f"{self.data_set.name}: {len(self.people)} used of {self.entries} entries on {self.images} images "
            f"({self.unlabelled} without keypoints, {self.crowd} crowds, {len(self.problems)} refused)"
        )


def adjusted(labels: Labels, official_boxes: bool = True, mpii_stretch: bool = True) -> Labels:
    """Return labels without some peculiarities of the official loaders. By default the labels are returned unchanged.

    Only `Labels.people` can differ. `Labels.truth` stays.

    Args:
        labels: The labels of one annotation file.
        official_boxes: If False, boxes that are one pixel too small (`Layout.boxes_lose_a_pixel`) become one pixel
            wider and higher.
        mpii_stretch: If False, `Person.fix_aspect` becomes True. It is False for MPII only, whose square boxes are then
            enlarged to the aspect ratio of the network's input instead of being stretched (docs/numerics.md 6.6).
    """
    if official_boxes and mpii_stretch:
        return labels

    def own(person: Person) -> Person:
        if not official_boxes and labels.data_set.layout.boxes_lose_a_pixel:
            x, y, w, h = person.box
            person = replace(person, box=(x, y, w + 1, h + 1))
        return person if mpii_stretch else replace(person, fix_aspect=True)

    return replace(labels, people=[own(person) for person in labels.people])


def by_data_set(labels: Iterable[Labels]) -> dict[str, list[Labels]]:
    """Group the labels of several annotation files by the name of their data set, in order of first appearance."""
    out: dict[str, list[Labels]] = {}
    for one in labels:
        out.setdefault(one.data_set.name, []).append(one)
    return out


def points_of(result: Row) -> np.ndarray:
    """Return the keypoints [K, 2] (x, y) of a COCO keypoint result, in pixels of the image."""
    return np.array(result["keypoints"]).reshape(-1, 3)[:, :2]


def all_people(labels: Iterable[Labels]) -> list[Person]:
    """Return the people of several annotation files in one list, in order."""
    return [person for one in labels for person in one.people]


def joined(labels: Sequence[Labels]) -> tuple[list[Person], Any]:
    """Return the people and the ground truth of several annotation files of one data set as if they were one file.

    A single file is returned unchanged. If there are several files, images and annotations get new ids from 1 on,
    consistently in people and ground truth, and equal category ids mean the same category. For data sets without ground
    truth (MPII, InterHand) the second item is None, annotations get new ids from 0 on, and image ids are kept.

    Args:
        labels: The labels of the files, at least one.
    """
    if len(labels) == 1:
        return labels[0].people, labels[0].truth
    if labels[0].truth is None:
        return [replace(p, annotation_id=n) for n, p in enumerate(all_people(labels))], None
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    people: list[Person] = []
    for one in labels:
        images = {image["id"]: n for n, image in enumerate(one.truth["images"], len(truth["images"]) + 1)}
        rows = {row["id"]: n for n, row in enumerate(one.truth["annotations"], len(truth["annotations"]) + 1)}
        truth["images"] += [{**image, "id": images[image["id"]]} for image in one.truth["images"]]
        truth["annotations"] += [
            {**row, "id": rows[row["id"]], "image_id": images[row["image_id"]]} for row in one.truth["annotations"]
        ]
        listed = {category["id"] for category in truth["categories"]}
        truth["categories"] += [c for c in one.truth["categories"] if c["id"] not in listed]
        people += [replace(p, image_id=images[p.image_id], annotation_id=rows[p.annotation_id]) for p in one.people]
    return people, truth
