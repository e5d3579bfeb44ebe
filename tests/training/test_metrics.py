"""OKS suppression and AP against the published expectations of the sample data."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vitpose_fast.keypoints import KEYPOINT_SETS
from vitpose_fast.training.metrics import STATS, coco_keypoint_ap, oks_nms, suppress

COCO = KEYPOINT_SETS["coco"]


def read(path):
    return json.loads(path.read_text())


def perfect(truth):
    return [
        {"image_id": a["image_id"], "category_id": a["category_id"], "keypoints": a["keypoints"], "score": 1.0}
        for a in truth["annotations"]
        if any(a["keypoints"][2::3])
    ]


def test_ground_truth_as_prediction_is_perfect(samples):
    truth = read(samples / "coco" / "test_coco.json")
    metrics = coco_keypoint_ap(truth, perfect(truth), COCO)
    assert all(value == 1.0 for value in metrics.values())


def test_published_numbers_of_a_crowded_image(samples):
    truth, found = (read(samples / "coco" / f"fce_keypoints_{k}.json") for k in ("gt", "dt"))
    expected = [
        0.5048844884488449, 0.7227722772277227, 0.6336633663366337, 0.46633663366336636, 0.7504950495049505,
        0.5181818181818182, 0.7272727272727273, 0.6363636363636364, 0.4666666666666666, 0.75,
    ]  # fmt: skip
    metrics = coco_keypoint_ap(truth, found, COCO)
    assert [metrics[name] for name in STATS] == pytest.approx(expected, abs=1e-12)


def test_suppression_of_near_copies():
    points = np.zeros((3, 17, 2)) + np.array([10, 10, 100])[:, None, None]
    keep = oks_nms(points, np.array([0.9, 0.4, 0.7]), np.full(3, 100.0), np.array(COCO.sigmas))
    assert keep == [0, 2]


def test_suppression_stays_within_an_image_and_keeps_the_better(samples):
    truth = read(samples / "coco" / "test_coco.json")
    twice = [{**r, "area": 1e4, "score": s} for r in perfect(truth) for s in (0.5, 0.9)]
    kept = suppress(twice, COCO)
    assert len(kept) == len(perfect(truth)) and {r["score"] for r in kept} == {0.9}
    assert coco_keypoint_ap(truth, kept, COCO)["AP"] == 1.0


def test_broken_results_are_refused(samples):
    truth = read(samples / "coco" / "test_coco.json")
    results = perfect(truth)
    results[1]["keypoints"] = [float("nan")] * 51
    with pytest.raises(ValueError, match=r"result 1 .* holds NaN"):
        coco_keypoint_ap(truth, results, COCO)
    with pytest.raises(ValueError, match="result 0 is for image 99, which is not in the annotations"):
        coco_keypoint_ap(truth, [{**perfect(truth)[0], "image_id": 99}], COCO)
    with pytest.raises(ValueError, match="interhand has no OKS sigmas"):
        coco_keypoint_ap(truth, [], KEYPOINT_SETS["interhand"])
    assert coco_keypoint_ap(truth, [], COCO)["AP"] == 0
