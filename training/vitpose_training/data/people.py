"""Data sets: how their files are read (`Layout`), what the files hold (`Labels`), how poses are scored (`Metric`).

A person here is one annotated instance: a person, an animal or a hand, depending on the data set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitpose_fast.keypoints import KeypointSet
from vitpose_fast.rows import Row

Split = tuple[str, str]  # annotation file, image folder


@dataclass(frozen=True)
class Layout:
    """A format of annotation files, and the function that reads it."""

    read: Callable[[DataSet, Path, Path], Labels]
    """Read an annotation file: (data set, annotation file, folder that image names are relative to) -> labels.

    It leaves out damaged rows and lists them in `Labels.problems`. It raises a one-line ValueError if the file is
    unusable."""
    boxes_lose_a_pixel: bool = False
    """Whether boxes are one pixel smaller than annotated, as in the official COCO loader (docs/numerics.md 3.1)."""


@dataclass(frozen=True)
class Metric:
    """A way to score poses."""

    score: Callable[[Sequence[Labels], list[Row]], dict[str, float]]
    """Score results: (files of one data set, results as returned by `evaluate_labels`) -> numbers by name.

    An empty list of results is scored like a model that finds no person. It raises a one-line ValueError if the files
    or the results cannot be scored."""
    headline: str
    """The name of the number that compares models. It is at least 0, and higher is better."""
    per_cent: bool = False
    """Whether the numbers are percentages. Otherwise they are fractions of 1."""
    pixels: tuple[str, ...] = ()
    """The names of the numbers that are distances in pixels."""
    by_oks: bool = True
    """Whether the metric compares poses by OKS. If so, OKS suppression runs before scoring: of similar poses in an
    image only the best one counts (docs/numerics.md 7.1)."""


@dataclass(frozen=True)
class DataSet:
    """A data set: its files, how they are read, how samples are augmented and how poses are scored.

    Its name is the name of its keypoint set.
    """

    keypoint_set: KeypointSet
    layout: Layout
    metric: Metric
    folder: str = ""
    """The folder of this data set below the root of all data sets."""
    splits: Mapping[str, Split] = field(default_factory=dict)
    """For each split ("train", "val", ...), its annotation file and its image folder below `folder`."""
    use_area: bool = True
    """Whether OKS uses the annotated area. Otherwise it uses 0.53 times the area of the box (docs/numerics.md 7.1)."""
    evaluation_only: bool = False
    jitter: bool = True
    """Whether training moves the centers of boxes (docs/numerics.md 6.2, step 0)."""
    half_body_over: int | None = 8
    """The half-body augmentation needs more labeled keypoints than this. None turns it off."""
    scale_factor: float = 0.5
    """See `Augmentation.scale_factor`."""
    rotation_degrees: float = 40.0
    """See `Augmentation.rotation_degrees`."""

    @property
    def name(self) -> str:
        return self.keypoint_set.name

    def split(self, root: Path, name: str) -> tuple[Path, Path]:
        """Return the annotation file and the image folder of a split, below the root of all data sets.

        Raises:
            ValueError: If the data set has no such split. The message lists the valid ones.
        """
        if name not in self.splits:
            valid = ", ".join(self.splits) or "none, pass its files with --train/--val and --train-images/--val-images"
            raise ValueError(f"data set {self.name!r} has no split {name!r}; valid: {valid}")
        annotations, images = self.splits[name]
        return root / self.folder / annotations, root / self.folder / images


@dataclass(frozen=True)
class Person:
    """One annotated person, animal or hand.

    The crop is the box enlarged by the factor `padding`. With `fix_aspect` one side of the box is first enlarged to the
    aspect ratio of the network's input. Without it the box is stretched to the input (MPII, docs/numerics.md 6.6).
    """

    image: Path
    image_id: int | str
    annotation_id: int | str
    category_id: int | str
    box: tuple[float, float, float, float]  # xywh in pixels
    keypoints: np.ndarray  # [K, 2] float32 in pixels, 0 where not visible
    visible: np.ndarray  # [K] float32, 1 for labeled keypoints (COCO's v = 1 and 2)
    source: str = ""  # annotation file, used in messages
    image_size: tuple[int, int] | None = None  # annotated (height, width); None if the file does not state it
    padding: float = 1.25
    fix_aspect: bool = True

    def __str__(self) -> str:
        return f"{self.source}: annotation {self.annotation_id} ({self.image})"


@dataclass
class Labels:
    """The checked content of one annotation file. Every entry counts once: as used, unlabeled, crowd or refused."""

    data_set: DataSet
    people: list[Person]
    """The people that training uses, and that evaluation with annotated boxes crops."""
    truth: Any
    """The ground truth of the metric, as a COCO dict. None if the metric needs no such dict (MPII, InterHand)."""
    images: int = 0
    """Number of images."""
    unlabelled: int = 0
    """Number of entries without a labeled keypoint."""
    crowd: int = 0
    """Number of crowd entries."""
    problems: list[str] = field(default_factory=list)
    """One line for each refused row, with file, row, field and what was expected."""

    @property
    def entries(self) -> int:
        """The number of entries: used, unlabeled, crowd and refused ones."""
        return len(self.people) + self.unlabelled + self.crowd + len(self.problems)

    def summary(self) -> str:
        """Return one line that says how many entries are used, and why the others are not."""
        return (
            f"{self.data_set.name}: {len(self.people)} used of {self.entries} entries on {self.images} images "
            f"({self.unlabelled} without keypoints, {self.crowd} crowds, {len(self.problems)} refused)"
        )


def adjusted(labels: Labels, official_boxes: bool = True, mpii_stretch: bool = True) -> Labels:
    """Undo peculiarities of the official loaders. By default the labels are returned unchanged.

    Args:
        labels: The labels.
        official_boxes: If False, boxes that are one pixel too small (`Layout.boxes_lose_a_pixel`) get the pixel back.
        mpii_stretch: If False, MPII's square boxes are enlarged to the aspect ratio of the network's input instead of
            being stretched to it (docs/numerics.md 6.6).
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
    """Group files by the name of their data set, in the order of first appearance."""
    out: dict[str, list[Labels]] = {}
    for one in labels:
        out.setdefault(one.data_set.name, []).append(one)
    return out


def points_of(result: Row) -> np.ndarray:
    """Return the coordinates [K, 2] in pixels of a COCO keypoint result."""
    return np.array(result["keypoints"]).reshape(-1, 3)[:, :2]


def all_people(labels: Iterable[Labels]) -> list[Person]:
    """Return the people of several files in one list."""
    return [person for one in labels for person in one.people]


def joined(labels: Sequence[Labels]) -> tuple[list[Person], Any]:
    """Join several files of one data set: return their people and their ground truth as if they were one file.

    The ids of one file are kept. If there are several files, images and annotations get new ids.
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
