"""What an annotation file holds once it is read: people (animals, hands) and what their poses are scored against."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitpose_fast.rows import Row
from vitpose_training.data.catalog import DataSet


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
    """What the metric compares with: a COCO dict; for MPII and InterHand, whose people say everything, None."""
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
        official_boxes: False: boxes that lost a pixel of width and height (COCO's layouts, SPEC 3.1) get it back.
        mpii_stretch: False: MPII's square crops get the aspect of the input, and are not stretched to it (SPEC 6.6).
    """
    if official_boxes and mpii_stretch:
        return labels
    lost = labels.data_set.layout not in ("mpii", "interhand")

    def own(person: Person) -> Person:
        if not official_boxes and lost:
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
