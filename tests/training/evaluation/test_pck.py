"""PCK, AUC and EPE: they give published numbers, equal plain loops, and refuse bad input in one line."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitpose_training.evaluation.pck import auc, epe, pck, pck_by_keypoint

NAN, INF = float("nan"), float("inf")
TRUTH = np.array([[[10, 0], [10, 10], [-1, 0], [30, 30], [0, 10]], np.zeros((5, 2))], float)
FOUND = np.array([[[10, 0], [20, 20], [0, 0], [30, 30], [0, 10]], np.zeros((5, 2))], float)
MASK = np.array([[True, True, False, True, True]] * 2)


@pytest.mark.parametrize(
    ("normalizer", "expected", "mean", "count"),
    [
        ([[10, 10], [10, 10]], [1, 0.5, -1, 1, 1], 0.875, 4),
        ([[0, 0], [0, 0]], [-1] * 5, 0, 0),
        ([[0, 0], [10, 10]], [1, 1, -1, 1, 1], 1, 4),
    ],
)
def test_published_numbers_of_pck(normalizer, expected, mean, count):
    accuracy, counted = pck_by_keypoint(FOUND, TRUTH, MASK, 0.5, normalizer)
    assert (accuracy.tolist(), counted) == (expected, count)
    assert pck(FOUND, TRUTH, MASK, 0.5, normalizer) == mean


def test_published_numbers_of_heatmap_accuracy():
    found, truth = np.zeros((1, 5, 2)), np.zeros((1, 5, 2))
    found[0, :2], truth[0, :2] = [[20, 20], [30, 30]], [[10, 10], [30, 30]]
    given = (found, truth, [[True, True, False, False, False]], 0.05, [[64, 64]])
    accuracy, count = pck_by_keypoint(*given)
    assert (accuracy.tolist(), count, pck(*given)) == ([0, 1, -1, -1, -1], 2, 0.5)


def test_published_numbers_of_auc_and_epe():
    truth = np.array([[[10, 0], [10, 10], [-1, 0], [30, 30], [0, 10]]], float)
    found = np.array([[[10, 4], [10, 18], [0, 0], [40, 40], [20, 10]]], float)
    assert auc(found, truth, MASK[:1], 20, steps=4) == 0.375
    assert epe(found, truth, MASK[:1]) == pytest.approx(11.5355339, abs=1e-7)


def test_exact_hands_have_an_auc_of_095():
    """Not 1, because no distance is below the first threshold, 0."""
    truth = np.random.default_rng(0).uniform(0, 100, (4, 21, 2))
    mask = np.ones((4, 21), bool)
    assert pck(truth, truth, mask, 0.2, np.full((4, 2), 50.0)) == 1
    assert auc(truth, truth, mask, 30.0) == pytest.approx(0.95, abs=1e-15)
    assert epe(truth, truth, mask) == 0
    assert epe(truth, truth, ~mask) == 0 and pck(truth, truth, ~mask, 0.2, np.full((4, 2), 50.0)) == 0


@given(seed=st.integers(0, 2**32 - 1), people=st.integers(1, 5), steps=st.integers(1, 6))
def test_pck_auc_and_epe_are_loops(seed, people, steps):
    rng = np.random.default_rng(seed)
    truth, found = rng.integers(0, 6, (2, people, 3, 2)).astype(float)
    mask, size = rng.random((people, 3)) < 0.7, rng.integers(0, 4, (people, 2)).astype(float)

    def share(threshold):
        by_keypoint = []
        for k in range(3):
            counts = [n for n in range(people) if mask[n, k] and size[n].min() > 0]
            hits = [math.hypot(*((found[n, k] - truth[n, k]) / size[n])) < threshold for n in counts]
            by_keypoint += [sum(hits) / len(hits)] if hits else []
        return sum(by_keypoint) / len(by_keypoint) if by_keypoint else 0.0

    assert pck(found, truth, mask, 0.7, size) == pytest.approx(share(0.7), abs=1e-12)
    mean = sum(share(i / steps) for i in range(steps)) / steps
    assert auc(found, truth, mask, size, steps) == pytest.approx(mean, abs=1e-12)
    every = [math.dist(found[n, k], truth[n, k]) for n, k in itertools.product(range(people), range(3)) if mask[n, k]]
    assert epe(found, truth, mask) == pytest.approx(sum(every) / len(every) if every else 0, abs=1e-12)


def test_nan_is_never_correct():
    found = TRUTH.copy()
    found[0, 0] = NAN
    accuracy, _ = pck_by_keypoint(found, TRUTH, MASK, 0.5, [[10, 10]] * 2)
    assert accuracy.tolist() == [0.5, 1, -1, 1, 1] and epe(found, TRUTH, MASK) == INF


def test_shapes_that_do_not_match_are_refused():
    for shapes in ((FOUND[:1], TRUTH, MASK), (FOUND, TRUTH, MASK[:, :3]), (FOUND[0], TRUTH[0], MASK[0])):
        for call in (lambda g: pck(*g, 0.5, [[10, 10]] * 2), lambda g: auc(*g, 10), lambda g: epe(*g)):
            with pytest.raises(
                ValueError, match=r"predicted, truth and mask have shapes .*, expected \[N, K, 2\] twice"
            ):
                call(shapes)


@pytest.mark.parametrize("normalizer", [[10, 10], [[10, 10]] * 3, [[10, 10, 10]] * 2, [[[10]]]])
def test_an_ambiguous_normalizer_is_refused(normalizer):
    """Two numbers for two people could be one per person, or one for x and one for y."""
    assert pck(FOUND, TRUTH, MASK, 0.5, 10) == pck(FOUND, TRUTH, MASK, 0.5, [[10, 10]] * 2) == 0.875
    for call in (lambda: pck(FOUND, TRUTH, MASK, 0.5, normalizer), lambda: auc(FOUND, TRUTH, MASK, normalizer)):
        with pytest.raises(ValueError, match=r"normalizer has shape .*, expected a number or \(2, 2\)"):
            call()
    with pytest.raises(ValueError, match="got steps=0, expected 1 or more"):
        auc(FOUND, TRUTH, MASK, 10, steps=0)
