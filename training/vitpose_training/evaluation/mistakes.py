"""Classify the mistakes of a model for each keypoint.

The kinds follow Ronchi and Perona, "Benchmarking and Error Diagnosis in Multi-Instance Pose Estimation" (2017). The
similarity of a predicted and a true keypoint at distance d is exp(-d² / (2 area (2 sigma)²)), as in OKS, and they are
near each other if it is at least 0.5. The first kind that applies counts:

- good: the similarity to the true keypoint is at least 0.85
- jitter: near the true keypoint
- inversion: near the mirror keypoint of the same person
- swap: near the same keypoint or its mirror keypoint of another person
- miss: anything else
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitpose_fast.keypoints import DEFAULT_SIGMA, KeypointSet
from vitpose_fast.rows import Row
from vitpose_training.data.people import Labels, Person, points_of

KINDS = ("good", "jitter", "inversion", "swap", "miss")
_GOOD, _NEAR, _PAIRED = 0.85, 0.5, 0.1


@dataclass(frozen=True)
class Pair:
    """A person, the pose that was found for it, and their OKS."""

    person: Person
    result: Row
    oks: float


def similarity(predicted: np.ndarray, truth: np.ndarray, area: Any, sigmas: np.ndarray) -> np.ndarray:
    """Return the similarity exp(-d² / (2 area (2 sigma)²)) of each keypoint: [..., K].

    Args:
        predicted: Keypoints [..., K, 2] in pixels.
        truth: Keypoints [..., K, 2] in pixels.
        area: Areas [...] in px².
        sigmas: OKS sigmas [K].
    """
    distance = ((predicted - truth) ** 2).sum(-1)
    return np.exp(-distance / (2 * np.asarray(area, float)[..., None] * (2 * sigmas) ** 2))


def classify(
    predicted: np.ndarray,
    people: Sequence[np.ndarray],
    visible: Sequence[np.ndarray],
    areas: Sequence[float],
    own: int,
    keypoint_set: KeypointSet,
) -> np.ndarray:
    """Return the kind of each keypoint of a predicted pose: an index into `KINDS`, or -1 for an unlabeled keypoint.

    Args:
        predicted: The keypoints of the pose, [K, 2] in pixels.
        people: The true keypoints of all P people in the image, each [K, 2] in pixels.
        visible: The visibilities of all P people, each [K].
        areas: The areas of all P people in px².
        own: The index of the person that the pose belongs to.
        keypoint_set: The keypoint set, for sigmas and mirror keypoints.
    """
    sigmas, mirror = sigmas_of(keypoint_set), list(keypoint_set.flip_permutation)
    same = np.stack([similarity(predicted, p, a, sigmas) * (v > 0) for p, v, a in zip(people, visible, areas)])
    other = np.stack(
        [similarity(predicted, p[mirror], a, sigmas) * (v[mirror] > 0) for p, v, a in zip(people, visible, areas)]
    )
    near_anybody = (np.maximum(same, other) >= _NEAR).any(0)  # select takes the first match, so this means near others
    kind = np.select(
        [same[own] >= _GOOD, same[own] >= _NEAR, other[own] >= _NEAR, near_anybody], [0, 1, 2, 3], default=4
    )
    return np.where(visible[own] > 0, kind, -1)


def sigmas_of(keypoint_set: KeypointSet) -> np.ndarray:
    """Return the OKS sigmas [K] of a keypoint set, or the default sigma for every keypoint if it has none."""
    return np.array(keypoint_set.sigmas or [DEFAULT_SIGMA] * keypoint_set.num_keypoints)


def _areas(labels: Labels) -> Callable[[Person], float]:
    """Return a function from person to area in px²: as annotated, else 0.53 * box area (docs/numerics.md 7.1)."""
    known = {row["id"]: row["area"] for row in labels.truth["annotations"]} if labels.truth else {}
    return lambda person: known.get(person.annotation_id, 0.53 * person.box[2] * person.box[3])


def pair(labels: Labels, results: Sequence[Row]) -> list[Pair]:
    """Pair each pose with a person of its image; a person has at most one pose.

    A pose with an `annotation_id` belongs to that person. Any other pose, in order of falling score, gets the remaining
    person with the highest OKS, if that is at least 0.1. Poses without a person are left out.
    """
    area_of, sigmas = _areas(labels), sigmas_of(labels.data_set.keypoint_set)
    left: dict[Any, list[Person]] = defaultdict(list)
    for person in labels.people:
        left[person.image_id].append(person)
    out = []
    for result in sorted(results, key=lambda r: -r["score"]):
        points = points_of(result)
        best: Pair | None = None
        for person in left[result["image_id"]]:
            seen = person.visible > 0
            similar = similarity(points, person.keypoints, area_of(person), sigmas)[seen]
            oks = float(similar.mean()) if seen.any() else 0.0
            if "annotation_id" in result:
                if result["annotation_id"] == person.annotation_id:
                    best = Pair(person, result, oks)
            elif oks >= max(_PAIRED, best.oks if best else 0.0):
                best = Pair(person, result, oks)
        if best is not None:
            left[result["image_id"]] = [p for p in left[result["image_id"]] if p is not best.person]
            out.append(best)
    return out


def count(labels: Labels, pairs: Sequence[Pair]) -> np.ndarray:
    """Count the keypoints of each kind: [K, len(KINDS)]. Labeled keypoints of people without a pose are misses."""
    everybody: dict[Any, list[Person]] = defaultdict(list)
    for person in labels.people:
        everybody[person.image_id].append(person)
    area_of, keypoint_set = _areas(labels), labels.data_set.keypoint_set
    out = np.zeros((keypoint_set.num_keypoints, len(KINDS)), int)
    found = set()
    for one in pairs:
        here = everybody[one.person.image_id]
        own = next(i for i, person in enumerate(here) if person is one.person)
        sizes, points = [area_of(p) for p in here], points_of(one.result)
        kinds = classify(points, [p.keypoints for p in here], [p.visible for p in here], sizes, own, keypoint_set)
        for kind in range(len(KINDS)):
            out[:, kind] += kinds == kind
        found.add(id(one.person))
    for person in labels.people:
        if id(person) not in found:
            out[:, KINDS.index("miss")] += person.visible > 0
    return out


def breakdown(counts: np.ndarray, keypoint_set: KeypointSet) -> tuple[str, dict[str, dict[str, int]]]:
    """Return counts [K, len(KINDS)] as a table of percentages, and as a dict by keypoint name and kind.

    The table has one line for all keypoints together. If the set has at most 21 keypoints, it also has one for each.
    """
    by_name = {name: dict(zip(KINDS, row.tolist())) for name, row in zip(keypoint_set.names, counts)}
    shown = {"all keypoints": counts.sum(0)}
    if keypoint_set.num_keypoints <= 21:
        shown |= dict(zip(keypoint_set.names, counts))
    width = max(map(len, shown))
    lines = [" " * width + "".join(f"{kind:>11}" for kind in KINDS) + f"{'labeled':>11}"]
    for name, row in shown.items():
        cells = "".join(f"{100 * n / max(row.sum(), 1):>10.1f}%" for n in row)
        lines.append(f"{name:{width}}{cells}{row.sum():>11}")
    return "\n".join(lines), by_name
