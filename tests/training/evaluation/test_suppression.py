"""OKS suppression and the scores of people: they equal plain loops, and refuse bad input in one line."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.evaluation.results import COCO_SIGMAS, perfect
from vitpose_fast.keypoints import KEYPOINT_SETS
from vitpose_fast.rows import read_json
from vitpose_training.evaluation.coco_ap import evaluate_coco
from vitpose_training.evaluation.suppression import oks_nms, rescore, suppress

COCO = KEYPOINT_SETS["coco"]
NAN = float("nan")


def test_suppression_of_near_copies():
    points = np.zeros((3, 17, 2)) + np.array([10, 10, 100])[:, None, None]
    given = (points, [0.9, 0.4, 0.7], [100] * 3, COCO_SIGMAS, 0.9)
    assert oks_nms(*given) == [0, 2]
    assert oks_nms(*given, soft=True) == [0, 2, 1]
    assert oks_nms(points[:0], [], [], COCO_SIGMAS, 0.9) == [] == oks_nms([], [], [], COCO_SIGMAS, 0.9)
    ones = np.stack([np.ones((17, 3)), np.ones((17, 3)), np.zeros((17, 3))])
    assert oks_nms(ones, [3, 2, 1], [1] * 3, [1] * 17, 1 - 1e-9) == [0, 2]  # equal poses have OKS 1
    assert oks_nms(ones[:, :, :2], [3, 2, 1], [1] * 3, COCO_SIGMAS, 0.01) == [0, 2]  # different ones below 0.01


def test_among_equal_scores_the_later_person_ranks_higher():
    """As in the code behind the published numbers. The other order changes the AP of the shifted poses by 0.002."""
    points = np.zeros((4, 17, 2)) + np.array([10, 10, 500, 900])[:, None, None]
    for soft, expected in ((False, [3, 2, 1]), (True, [3, 2, 1, 0])):
        assert oks_nms(points, [0.5] * 4, [100] * 4, COCO_SIGMAS, 0.9, soft=soft) == expected


@pytest.mark.parametrize("soft", [False, True])
def test_a_pose_with_nan_suppresses_no_other_pose(samples, soft):
    """It is kept, so that the evaluation reports it. Otherwise it would silently suppress all other people."""
    points = np.arange(4.0)[:, None, None] * 1000 + np.zeros((4, 17, 3))
    points[1] = NAN
    assert sorted(oks_nms(points, [1, 3, NAN, 2], [100] * 4, COCO_SIGMAS, 0.9, soft=soft)) == [0, 1, 2, 3]
    assert oks_nms(points, [1, 3, NAN, 2], [100] * 4, COCO_SIGMAS, 0.9, soft=soft)[-1] == 2
    truth = read_json(samples / "coco/test_coco.json")
    results = [{**r, "area": 1e4} for r in perfect(truth)]
    results[0] |= {"keypoints": [NAN] * 51, "score": 2.0}
    kept = suppress(results, COCO, soft=soft)
    assert len(kept) == len(results)
    with pytest.raises(ValueError, match="holds NaN or infinite numbers"):
        evaluate_coco(truth, kept, COCO)


@pytest.mark.parametrize(
    "change", [dict(scores=[1, 2]), dict(areas=[1, 2, 3, 4]), dict(sigmas=[0.1]), dict(keypoints=[[1, 2]] * 3)]
)
def test_shapes_that_do_not_match_are_refused(change):
    given = dict(keypoints=np.zeros((3, 17, 3)), scores=[1, 2, 3], areas=[1, 2, 3], sigmas=COCO_SIGMAS, threshold=0.9)
    assert len(oks_nms(**given)) == 1
    with pytest.raises(
        ValueError, match=r"keypoints, scores, areas, sigmas have shapes .*, expected \[P, K, 2\], \[P\]"
    ):
        oks_nms(**(given | change))
    with pytest.raises(ValueError, match=r"expected \[P, K, 3\], \[P\], \[P\], \[K\]"):
        oks_nms(**(given | dict(keypoints=np.zeros((3, 17, 2)), visible_threshold=0.2)))


def test_soft_suppression_keeps_twenty():
    points = np.arange(30.0)[:, None, None] * 1000 + np.zeros((30, 17, 2))
    kept = oks_nms(points, np.arange(30), [100] * 30, COCO_SIGMAS, 0.9, soft=True)
    assert kept == list(range(29, 9, -1)) and len(oks_nms(points, np.arange(30), [100] * 30, COCO_SIGMAS, 0.9)) == 30


def test_suppression_by_visible_keypoints():
    """Two poses that are equal in half of their keypoints and far apart in the others."""
    points = np.zeros((2, 4, 3))
    points[1, 2:, :2] = 1000
    points[:, :, 2] = [[0.9, 0.9, 0.9, 0.1], [0.9, 0.3, 0.1, 0.9]]
    given = (points, [2, 1], [100] * 2, [0.05] * 4)
    assert oks_nms(*given, 0.6) == [0, 1]  # half of the keypoints are equal
    assert oks_nms(*given, 0.4) == [0]
    assert oks_nms(*given, 0.8, visible_threshold=0.2) == [0]  # only the first keypoint is visible in both
    assert oks_nms(*given, 0.6, visible_threshold=0.05) == [0, 1]
    assert oks_nms(*given, 0.6, visible_threshold=0.95) == [0, 1]  # no keypoint is visible in both


def oks_loop(a, b, area, sigmas):
    out = 0.0
    for (xa, ya), (xb, yb), sigma in zip(a, b, sigmas):
        out += math.exp(-((xa - xb) ** 2 + (ya - yb) ** 2) / (2 * sigma) ** 2 / area / 2)
    return out / len(sigmas)


@given(
    seed=st.integers(0, 2**32 - 1),
    people=st.integers(0, 12),
    threshold=st.sampled_from([0.3, 0.6, 0.9]),
    soft=st.booleans(),
)
def test_suppression_equals_a_greedy_loop(seed, people, threshold, soft):
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 20, (people, 1, 2)) + rng.uniform(0, 8, (people, 5, 2))
    scores, areas, sigmas = rng.random(people), rng.uniform(500, 4000, people), rng.uniform(0.03, 0.1, 5)
    now, expected = dict(enumerate(scores.tolist())), []
    while now:
        best = max(now, key=now.get)
        del now[best]
        expected.append(best)
        for i in list(now):
            oks = oks_loop(points[best], points[i], (areas[best] + areas[i]) / 2, sigmas)
            if soft:
                now[i] *= math.exp(-(oks**2) / threshold)
            elif oks > threshold:
                del now[i]
    assert oks_nms(points, scores, areas, sigmas, threshold, soft=soft) == expected


@given(seed=st.integers(0, 2**32 - 1), people=st.integers(0, 24), threshold=st.sampled_from([0.3, 0.6, 0.9]))
def test_soft_suppression_by_visible_keypoints_equals_a_loop(seed, people, threshold):
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 20, (people, 1, 2)) + rng.uniform(0, 8, (people, 5, 2))
    points = np.concatenate([points, rng.random((people, 5, 1))], -1)
    scores, areas, sigmas = rng.random(people), rng.uniform(500, 4000, people), rng.uniform(0.03, 0.1, 5)
    left, expected = dict(enumerate(scores.tolist())), []
    while left and len(expected) < 20:
        best = max(left, key=left.get)
        expected.append(best)
        del left[best]
        for i in left:
            both = [k for k in range(5) if points[best, k, 2] > 0.4 and points[i, k, 2] > 0.4]
            shared = [points[j][both][:, :2] for j in (best, i)]
            oks = oks_loop(*shared, (areas[best] + areas[i]) / 2, sigmas[both]) if both else 0.0
            left[i] *= math.exp(-(oks**2) / threshold)
    assert oks_nms(points, scores, areas, sigmas, threshold, visible_threshold=0.4, soft=True) == expected


def test_suppression_stays_within_an_image_and_keeps_the_better(samples):
    truth = read_json(samples / "coco/test_coco.json")
    twice = [{**r, "area": 1e4, "score": s} for r in perfect(truth) for s in (0.5, 0.9)]
    kept = suppress(twice, COCO)
    assert len(kept) == len(perfect(truth)) and {r["score"] for r in kept} == {0.9}
    assert evaluate_coco(truth, kept, COCO)["AP"] == 1.0
    apart = [{**twice[1], "image_id": i, "category_id": 1} for i in range(4)]
    assert suppress(apart, COCO) == apart


def test_scores_of_people():
    points = [[0.1, 0.2, 0.5, 0.7], [0.1, 0.2, 0.0, 0.0]]
    assert rescore([0.5, 0.9], points).tolist() == [0.5 * (0.5 + 0.7) / 2, 0.0]
    assert rescore([0.5, 0.9], points, threshold=0.05).tolist() == pytest.approx([0.5 * 1.5 / 4, 0.9 * 0.3 / 2])
    assert rescore([0.5, 0.9], points, "bbox").tolist() == [0.5, 0.9]
    assert rescore([0.5, 0.9], points, "bbox_rle").tolist() == pytest.approx([0.5 + 0.375 + 0.7, 0.9 + 0.075 + 0.2])
    with pytest.raises(ValueError, match="got mode='best', expected 'bbox', 'bbox_keypoint' or 'bbox_rle'"):
        rescore([1], [[1]], "best")
    for boxes, keypoints in (([1, 2], points[:1]), ([1], points), (1.0, points), ([0.5, 0.9], points[0])):
        with pytest.raises(ValueError, match=r"scores of boxes and keypoints have shapes .*, expected \[P\], \[P, K\]"):
            rescore(boxes, keypoints)


def test_equal_people_have_equal_scores():
    """Even if different keypoints count. AP ranks equal scores in the order of images, so rounding must not matter."""
    rng = np.random.default_rng(0)
    points = np.full((50, 133), 0.8)
    points[rng.random(points.shape) < 0.5] = 0
    points[:, 0] = 0.8
    counts = (points > 0).sum(1)
    for count in set(counts.tolist()):
        assert len(set(rescore([1.0] * 50, points)[counts == count].tolist())) == 1


@pytest.mark.parametrize(("elsewhere", "kept"), [(1, 1), (2, 2)])
def test_results_are_suppressed_above_an_oks_of_nine_tenths(elsewhere, kept):
    """Of 17 keypoints one is elsewhere (OKS 16/17, between 0.9 and 0.95), or two are (15/17, between 0.85 and 0.9)."""
    points = np.ones((2, 17, 3))
    points[1, :elsewhere, :2] = 1e5
    rows = [{"image_id": 1, "keypoints": p.flatten().tolist(), "score": 1.0, "area": 1e4} for p in points]
    assert len(suppress(rows, COCO)) == kept


def test_a_person_is_scored_by_the_keypoints_above_a_fifth():
    """0.25 and 0.9 count, 0.15 does not."""
    assert rescore([0.5], [[0.25, 0.9, 0.15]]).tolist() == pytest.approx([0.5 * (0.25 + 0.9) / 2])
