"""What kind of mistakes a model makes, keypoint by keypoint: after Ronchi and Perona, "Benchmarking and Error Diagnosis
in Multi-Instance Pose Estimation" (2017).

A keypoint is near a place if exp(-d² / (2 area (2 sigma)²)) is at least 0.5, as in OKS. One that is near its own place
is good (0.85) or jitter; else it is an inversion if near its mirror keypoint of the same person, a swap if near the
same or the mirror keypoint of somebody else, and otherwise a miss.
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
    """A person and the pose that was found for it."""

    person: Person
    result: Row
    oks: float


def similarity(predicted: np.ndarray, truth: np.ndarray, area: Any, sigmas: np.ndarray) -> np.ndarray:
    """exp(-d² / (2 area (2 sigma)²)) of keypoints [..., K, 2] in pixels: [..., K]; `area` [...] in px²."""
    distance = ((predicted - truth) ** 2).sum(-1)
    return np.exp(-distance / (2 * np.asarray(area, float)[..., None] * (2 * sigmas) ** 2))


def classify(
    predicted: np.ndarray, people: Sequence[np.ndarray], visible: Sequence[np.ndarray], areas: Sequence[float],
    own: int, keypoint_set: KeypointSet,
) -> np.ndarray:  # fmt: skip
    """Kind of each keypoint (index into `KINDS`, -1 where the truth has none) of one predicted pose.

    Args:
        predicted: [K, 2] px.
        people, visible, areas: keypoints [P][K, 2], labels [P][K] and areas [P] of everybody in the image.
        own: which of them the pose belongs to.
    """
    sigmas, mirror = sigmas_of(keypoint_set), list(keypoint_set.flip_permutation)
    same = np.stack([similarity(predicted, p, a, sigmas) * (v > 0) for p, v, a in zip(people, visible, areas)])
    other = np.stack(
        [similarity(predicted, p[mirror], a, sigmas) * (v[mirror] > 0) for p, v, a in zip(people, visible, areas)]
    )
    near_anybody = (np.maximum(same, other) >= _NEAR).any(0)  # the first that holds counts: only others are left then
    kind = np.select(
        [same[own] >= _GOOD, same[own] >= _NEAR, other[own] >= _NEAR, near_anybody], [0, 1, 2, 3], default=4
    )
    return np.where(visible[own] > 0, kind, -1)


def sigmas_of(keypoint_set: KeypointSet) -> np.ndarray:
    """The OKS sigmas [K], the usual one where a set has none."""
    return np.array(keypoint_set.sigmas or [DEFAULT_SIGMA] * keypoint_set.num_keypoints)


def _areas(labels: Labels) -> Callable[[Person], float]:
    """Person -> area in px²: the annotated one, else 0.53 times that of the box (SPEC 7.1)."""
    known = {row["id"]: row["area"] for row in labels.truth["annotations"]} if labels.truth else {}
    return lambda person: known.get(person.annotation_id, 0.53 * person.box[2] * person.box[3])


def pair(labels: Labels, results: Sequence[Row]) -> list[Pair]:
    """Each pose with its person: by `annotation_id`, else, the best first, the one of the highest OKS from 0.1 on."""
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
    """How many keypoints of each kind: [K, len(KINDS)]. Keypoints of people without a pose are misses."""
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
    """Counts [K, len(KINDS)] as lines of per cents (of large sets the sum only), and by the names of keypoints."""
    by_name = {name: dict(zip(KINDS, row.tolist())) for name, row in zip(keypoint_set.names, counts)}
    shown = {"all keypoints": counts.sum(0)}
    if keypoint_set.num_keypoints <= 21:
        shown |= dict(zip(keypoint_set.names, counts))
    width = max(map(len, shown))
    lines = [" " * width + "".join(f"{kind:>11}" for kind in KINDS) + f"{'labelled':>11}"]
    for name, row in shown.items():
        cells = "".join(f"{100 * n / max(row.sum(), 1):>10.1f}%" for n in row)
        lines.append(f"{name:{width}}{cells}{row.sum():>11}")
    return "\n".join(lines), by_name
