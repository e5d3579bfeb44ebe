"""OKS suppression and AP against the published expectations of the sample data."""

from __future__ import annotations

import copy
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


@pytest.mark.parametrize(
    ("file", "name", "medium"),
    [
        ("ap10k/test_ap10k", "ap10k", -1.0),  # one animal each of categories 26 and 22
        ("aic/test_aic", "aic", -1.0),  # without areas
        ("crowdpose/test_crowdpose", "crowdpose", -1.0),  # without areas
        ("ochuman/test_ochuman", "ochuman", -1.0),
        ("coco-wholebody/test_keypoint_partition_metric", "wholebody", 1.0),
    ],
)
def test_ground_truth_as_prediction_on_other_data_sets(samples, file, name, medium):
    truth = read(samples / f"{file}.json")
    before = copy.deepcopy(truth)
    metrics = coco_keypoint_ap(truth, perfect(truth), KEYPOINT_SETS[name])
    assert metrics == {k: medium if k in ("APM", "ARM") else 1.0 for k in STATS}
    assert truth == before
    nothing = coco_keypoint_ap(truth, [], KEYPOINT_SETS[name])
    assert nothing == {k: min(medium, 0.0) if k in ("APM", "ARM") else 0.0 for k in STATS}


def test_ids_do_not_matter(samples):
    truth, found = (read(samples / "coco" / f"fce_keypoints_{k}.json") for k in ("gt", "dt"))
    expected = coco_keypoint_ap(truth, found, COCO)
    for i, row in enumerate([*truth["annotations"], *found]):
        row.update(category_id=i, image_id="139099")
    for i, row in enumerate(truth["annotations"]):
        row["id"] = i  # pycocotools takes a match with id 0 for none
    truth["images"][0]["id"] = "139099"
    truth["images"].append({**truth["images"][0], "id": 7})
    del truth["categories"]
    assert coco_keypoint_ap(truth, found, COCO) == expected


def test_equal_to_pycocotools_as_it_comes(samples):
    from pycocotools.coco import COCO as Truth
    from pycocotools.cocoeval import COCOeval

    file = samples / "coco" / "person_keypoints_val2017_538img.json"
    rng = np.random.default_rng(0)
    found = perfect(read(file))
    for result in found:  # many equal scores: their order is that of the images
        result["keypoints"] = (np.array(result["keypoints"]) + rng.normal(0, 4, 51)).tolist()
        result["score"] = round(rng.random(), 1)
    truth = Truth(str(file))
    evaluation = COCOeval(truth, truth.loadRes([dict(r) for r in found]), "keypoints")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert list(coco_keypoint_ap(read(file), found, COCO).values()) == evaluation.stats.tolist()


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(keypoints=[float("nan")] * 51), r"result 1 \(image 40083\) holds NaN"),
        (dict(score=None), r"result 1 \(image 40083\) holds NaN"),
        (dict(score=float("inf")), r"result 1 \(image 40083\) holds NaN"),
        (dict(keypoints=[1, 2, 3]), "result 1 .*: expected a list of 51 keypoint numbers"),
        (dict(keypoints=None), "result 1 .*: expected a list of 51 keypoint numbers"),
        (dict(image_id=99), "result 1 is for image 99, which is not in the annotations"),
        (dict(image_id=[]), r"result 1 is for image \[\], which is not in the annotations"),
    ],
)
def test_broken_results_are_refused(samples, change, message):
    truth = read(samples / "coco" / "test_coco.json")
    results = perfect(truth)
    results[1] = {**results[1], **change}
    with pytest.raises(ValueError, match=message):
        coco_keypoint_ap(truth, results, COCO)


def test_broken_truth_is_refused(samples):
    truth = read(samples / "coco" / "test_coco.json")
    truth["annotations"][3]["keypoints"][0] = float("nan")
    with pytest.raises(ValueError, match=r"ground truth: annotation 3 \(id \d+\): keypoints .* \(1 damaged in all\)"):
        coco_keypoint_ap(truth, [], COCO)
    with pytest.raises(ValueError, match="interhand has no OKS sigmas"):
        coco_keypoint_ap(truth, [], KEYPOINT_SETS["interhand"])
