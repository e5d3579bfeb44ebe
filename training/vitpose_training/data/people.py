"""What a data set is: how its files are read (`Layout`), what they hold (`Labels`) and how poses are scored (`Metric`).

People are persons, animals or hands, whatever the data set annotates.
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
    """How annotation files are written, and with it how they are read."""

    read: Callable[[DataSet, Path, Path], Labels]
    """(data set, annotation file, folder that image names are relative to) -> what the file holds.

    Damaged rows are left out and named in `Labels.problems`; a file of no use is a ValueError of one line."""
    boxes_lose_a_pixel: bool = False
    """Whether boxes are one pixel smaller than annotated, as the official loader of COCO makes them (SPEC 3.1)."""


@dataclass(frozen=True)
class Metric:
    """How poses are scored."""

    score: Callable[[Sequence[Labels], list[Row]], dict[str, float]]
    """(the files of one data set, results as `evaluate_labels` makes them) -> numbers by name.

    Without any result it gives the numbers of a model that finds nobody; ValueError, in one line: files or results that
    cannot be scored."""
    headline: str
    """The number by which models are compared, at least 0: the best model has the highest."""
    per_cent: bool = False
    """Whether numbers are per cent already; else shares of 1."""
    pixels: tuple[str, ...] = ()
    """The numbers that are distances in pixels."""
    by_oks: bool = True
    """Whether poses are compared by OKS: then those that are much like a better one are suppressed (SPEC 7.1)."""


@dataclass(frozen=True)
class DataSet:
    """One data set: how it is laid out, read, augmented and scored. Its name is that of its keypoint set."""

    keypoint_set: KeypointSet
    layout: Layout
    metric: Metric
    folder: str = ""
    """Below the root of all data sets."""
    splits: Mapping[str, Split] = field(default_factory=dict)
    """Split ("train", "val", ...) -> annotation file and image folder below `folder`."""
    use_area: bool = True
    """OKS by the annotated area; else by 0.53 times that of the box (SPEC 7.1)."""
    evaluation_only: bool = False
    jitter: bool = True
    """Whether training moves the centers of boxes (SPEC 6.2, step 0)."""
    half_body_over: int | None = 8
    """Labelled keypoints that the half-body augmentation needs more than; None: it is not used."""
    scale_factor: float = 0.5
    rotation_degrees: float = 40.0

    @property
    def name(self) -> str:
        return self.keypoint_set.name

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


@dataclass(frozen=True)
class Person:
    """One annotated person, animal or hand.

    The crop is the box, enlarged by `padding`; with `fix_aspect` its shorter side is enlarged to the aspect of the
    network's input first, else the box is stretched to it (MPII, SPEC 6.6).
    """

    image: Path
    image_id: int | str
    annotation_id: int | str
    category_id: int | str
    box: tuple[float, float, float, float]  # xywh in pixels
    keypoints: np.ndarray  # [K, 2] float32 in pixels, 0 where not visible
    visible: np.ndarray  # [K] float32, 1 for labelled keypoints (COCO's 1 and 2)
    source: str = ""  # annotation file, for messages
    image_size: tuple[int, int] | None = None  # (height, width) that the annotations state; None: they do not
    padding: float = 1.25
    fix_aspect: bool = True

    def __str__(self) -> str:
        return f"{self.source}: annotation {self.annotation_id} ({self.image})"


@dataclass
class Labels:
    """One annotation file, checked. Every entry is counted once: used, unlabelled, crowd or refused."""

    data_set: DataSet
    people: list[Person]
    """Those that training uses and that are evaluated with annotated boxes."""
    truth: Any
    """What the metric compares with: a COCO dict; None where `people` say everything (MPII, InterHand)."""
    images: int = 0
    unlabelled: int = 0
    """Entries without a labelled keypoint."""
    crowd: int = 0
    problems: list[str] = field(default_factory=list)
    """A line for each refused row: file, row, field, what was expected."""

    @property
    def entries(self) -> int:
        """How many the file has."""
        return len(self.people) + self.unlabelled + self.crowd + len(self.problems)

    def summary(self) -> str:
        """One line: how many entries are used and why the others are not."""
        return (
            f"{self.data_set.name}: {len(self.people)} used of {self.entries} entries on {self.images} images "
            f"({self.unlabelled} without keypoints, {self.crowd} crowds, {len(self.problems)} refused)"
        )


def adjusted(labels: Labels, official_boxes: bool = True, mpii_stretch: bool = True) -> Labels:
    """Labels with oddities of the official loaders taken back.

    Args:
        official_boxes: False: boxes that lost a pixel of width and height (`Layout.boxes_lose_a_pixel`) get it back.
        mpii_stretch: False: MPII's square crops get the aspect of the input, and are not stretched to it (SPEC 6.6).
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
    """Files by the name of their data set, in the order in which these first come."""
    out: dict[str, list[Labels]] = {}
    for one in labels:
        out.setdefault(one.data_set.name, []).append(one)
    return out


def points_of(result: Row) -> np.ndarray:
    """[K, 2] in pixels of a COCO keypoint result."""
    return np.array(result["keypoints"]).reshape(-1, 3)[:, :2]


def all_people(labels: Iterable[Labels]) -> list[Person]:
    """The people of several files, one after another."""
    return [person for one in labels for person in one.people]


def joined(labels: Sequence[Labels]) -> tuple[list[Person], Any]:
    """(people, truth) of several files of one data set as one; images and annotations of several are numbered anew."""
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
