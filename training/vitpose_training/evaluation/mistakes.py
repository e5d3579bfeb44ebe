"""Classify the mistakes of a model for each keypoint.

The kinds follow Ronchi and Perona, "Benchmarking and Error Diagnosis in Multi-Instance Pose Estimation" (2017). The
similarity of a predicted and a true keypoint is exp(-d² / (2 area (2 sigma)²)), as in OKS, where d is their distance in
pixels, `area` the area of the person in px², and sigma the OKS sigma of the keypoint. The two keypoints are near each
other if the similarity is at least 0.5 and the true keypoint is labeled. The mirror keypoint of left_eye, for example,
is right_eye. A predicted keypoint is of the first kind in this list that applies:

- good: the similarity to the true keypoint is at least 0.85
- jitter: near the true keypoint
- inversion: near the mirror keypoint of the same person
- swap: near the same keypoint, or its mirror keypoint, of another person
- miss: anything else, and labeled keypoints of people for whom no pose was found

In this module P is the number of people in an image, and K the number of keypoints.
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
_GOOD, _NEAR, _PAIRED = 0.85, 0.5, 0.1  # least similarity to be good, to be near; least OKS of a pose and its person


@dataclass(frozen=True)
class Pair:
    """An annotated person, the predicted pose of this person (a COCO keypoint result), and the OKS of the two.

    OKS is the mean similarity over the labeled keypoints of the person.
    """

    person: Person
    result: Row
    oks: float


def similarity(predicted: np.ndarray, truth: np.ndarray, area: Any, sigmas: np.ndarray) -> np.ndarray:
    """Return the similarity exp(-d² / (2 area (2 sigma)²)) of each keypoint: [..., K], where d is the distance.

    Args:
        predicted: Predicted keypoints [..., K, 2] in pixels.
        truth: True keypoints [..., K, 2] in pixels.
        area: Areas [...] of the people in px².
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
    """Return the kind of each keypoint of a predicted pose, [K].

    A kind is an index into `KINDS`, or -1 if the keypoint is not labeled for the person of the pose.

    Args:
        predicted: The keypoints of the pose, [K, 2] in pixels.
        people: The true keypoints of all P people in the image, each [K, 2] in pixels.
        visible: The visibilities of the keypoints of all P people, each [K]. A keypoint is labeled if this is above 0.
        areas: The areas of all P people in px².
        own: The index in `people` of the person that the pose belongs to.
        keypoint_set: The keypoint set, for sigmas and mirror keypoints (`flip_permutation`).
    """
    sigmas, mirror = sigmas_of(keypoint_set), list(keypoint_set.flip_permutation)
    same = np.stack([similarity(predicted, p, a, sigmas) * (v > 0) for p, v, a in zip(people, visible, areas)])
    other = np.stack(
        [similarity(predicted, p[mirror], a, sigmas) * (v[mirror] > 0) for p, v, a in zip(people, visible, areas)]
    )
    near_anybody = (np.maximum(same, other) >= _NEAR).any(0)  # select tests this last, so only other people are left
    kind = np.select(
        [same[own] >= _GOOD, same[own] >= _NEAR, other[own] >= _NEAR, near_anybody], [0, 1, 2, 3], default=4
    )
    return np.where(visible[own] > 0, kind, -1)


def sigmas_of(keypoint_set: KeypointSet) -> np.ndarray:
    """Return the OKS sigmas [K] of a keypoint set, or `DEFAULT_SIGMA` for every keypoint if the set has no sigmas."""
    return np.array(keypoint_set.sigmas or [DEFAULT_SIGMA] * keypoint_set.num_keypoints)


def _areas(labels: Labels) -> Callable[[Person], float]:
    """Return a function that maps a person to an area in px² (docs/numerics.md 7.1).

    It is the annotated area, or 0.53 times the area of the person's box if there is no annotated area.
    """
    known = {row["id"]: row["area"] for row in labels.truth["annotations"]} if labels.truth else {}
    return lambda person: known.get(person.annotation_id, 0.53 * person.box[2] * person.box[3])


def pair(labels: Labels, results: Sequence[Row]) -> list[Pair]:
    """Pair predicted poses with annotated people of the same image; a person gets at most one pose.

    Poses choose in descending order of their score. A pose with an `annotation_id` is paired with the person of this
    id. Any other pose is paired with the person of highest OKS among those without a pose, if this OKS is at least 0.1.
    A pose whose person already has a pose, or that finds no person, is left out.

    Args:
        labels: The labels of one annotation file.
        results: COCO keypoint results for these labels.

    Returns:
        The pairs, in descending order of the scores of the poses.
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
    """Count the labeled keypoints of each kind: int [K, len(KINDS)]. Keypoints of people without a pose are misses.

    `pairs` are the pairs that `pair` returned for `labels`.
    """
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
    """Return counts [K, len(KINDS)] as a printable table of percentages, and as a dict {keypoint: {kind: count}}.

    The table has one line for all keypoints together and, if the set has at most 21 keypoints, one line for each. The
    percentages are fractions of the labeled keypoints in the line, whose number is the last column.
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
