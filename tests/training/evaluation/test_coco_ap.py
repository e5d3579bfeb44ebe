"""COCO's average precision: it gives published numbers for any kind of ids, and refuses bad input in one line."""

from __future__ import annotations

import copy
import sys

import pytest

from tests.training.evaluation.results import STATS, perfect, person
from vitpose_fast.keypoints import KEYPOINT_SETS
from vitpose_fast.rows import read_json
from vitpose_training.evaluation.coco_ap import evaluate_coco, evaluate_crowdpose
from vitpose_training.evaluation.suppression import suppress

COCO = KEYPOINT_SETS["coco"]
NAN, INF = float("nan"), float("inf")
HARD = [.5833333333333333, .9166666666666666, .5833333333333334, .44, .6857142857142857]  # fmt: skip
ALIGNMENT = {  # expected values in mmpose's test of its COCO metric
    "bbox_keypoint": [
        .5287458745874587, .9042904290429042, .5009900990099009, .42475247524752474, .6219554455445544, *HARD
    ],
    "bbox_rle": [
        .5004950495049505, .8836633663366337, .4679867986798679, .42475247524752474, .5814108910891089, *HARD
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("file", "name", "use_area", "medium"),
    [
        ("coco/test_coco", "coco", True, 1.0),
        ("coco/extra_ccby_val2017", "coco", True, 1.0),
        ("coco/extra_ccby_train2017", "coco", True, 1.0),  # with crowds, whose segmentations are run-length encoded
        ("coco/fce_keypoints_gt", "coco", True, 1.0),
        ("ochuman/test_ochuman", "ochuman", True, -1.0),  # no person of medium size
        ("aic/test_aic", "aic", False, -1.0),
        ("ap10k/test_ap10k", "ap10k", True, -1.0),  # one animal each in categories 26 and 22
        ("apt-36k/apt36k_wolf_reconstructed", "apt36k", True, 1.0),
        ("crowdpose/test_crowdpose", "crowdpose", False, -1.0),
        ("crowdpose/example_crowdpose_val", "crowdpose", False, 1.0),
        ("coco-wholebody/test_keypoint_partition_metric", "wholebody", True, 1.0),
    ],
)
def test_ground_truth_as_prediction_is_perfect(samples, file, name, use_area, medium):
    truth = read_json(samples / f"{file}.json")
    before = copy.deepcopy(truth)
    expected = {k: medium if k in ("APM", "ARM") else 1.0 for k in STATS}
    assert evaluate_coco(truth, perfect(truth), name, use_area) == pytest.approx(expected, abs=1e-12)
    assert truth == before
    nothing = {k: min(v, 0.0) for k, v in expected.items()}
    assert evaluate_coco(truth, [], KEYPOINT_SETS[name], use_area) == nothing
    assert evaluate_coco(samples / f"{file}.json", perfect(truth), name, use_area)["AP"] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("mode", ["bbox", "bbox_keypoint", "bbox_rle"])
@pytest.mark.parametrize("nms", ["none", "hard", "soft"])
def test_ground_truth_is_perfect_with_any_rescoring_and_suppression(samples, mode, nms):
    truth = read_json(samples / "coco/test_coco.json")
    results = [
        person(a, (1, 1, 1), 0.98, mode) | {"annotation_id": a["id"]}
        for a in truth["annotations"]
        if any(a["keypoints"])
    ]
    results += results[:3]  # repeated samples, as from a sampler that pads the last batch
    if nms != "none":
        results = suppress(results, COCO, soft=nms == "soft")
    assert evaluate_coco(truth, results, COCO) == dict.fromkeys(STATS, 1.0)


def test_published_numbers_of_a_crowded_image(samples):
    expected = [
        0.5048844884488449, 0.7227722772277227, 0.6336633663366337, 0.46633663366336636, 0.7504950495049505,
        0.5181818181818182, 0.7272727272727273, 0.6363636363636364, 0.4666666666666666, 0.75,
    ]  # fmt: skip
    found = evaluate_coco(*(samples / f"coco/fce_keypoints_{k}.json" for k in ("gt", "dt")), "coco")
    assert list(found) == list(STATS)
    assert list(found.values()) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("mode", ALIGNMENT)
def test_published_numbers_of_shifted_poses(samples, mode):
    truth = read_json(samples / "coco/test_coco.json")
    results = suppress([person(a, (0.98, 1.02, 0.8), 0.98, mode) for a in truth["annotations"]], COCO)
    assert list(evaluate_coco(truth, results, COCO).values()) == pytest.approx(ALIGNMENT[mode], abs=1e-12)


def test_published_numbers_of_soft_suppression(samples):
    truth = read_json(samples / "coco/test_coco.json")
    results = []
    for i, row in enumerate(truth["annotations"]):
        results.append(person(row, (1 - i / 100, 1 + i / 100, 1 - i / 100), 1.0))
        results.append(person(row, (1 + i / 100, 1 - i / 100, 1 - 2 * i / 100), 1 - 2 * i / 100))
    found = evaluate_coco(truth, suppress(results, COCO, soft=True), COCO)
    assert list(found.values()) == pytest.approx(
        [.17073707370737073, .25055005500550054, .10671067106710669, 0, .29315181518151806,
         .2416666666666666, .3333333333333333, .16666666666666666, 0, .41428571428571426],
        abs=1e-12,
    )  # fmt: skip


def test_ids_do_not_matter(samples):
    truth, found = (read_json(samples / f"coco/fce_keypoints_{k}.json") for k in ("gt", "dt"))
    expected = evaluate_coco(truth, found, COCO)
    for row in (*truth["annotations"], *found):
        row |= {"category_id": "somebody", "image_id": "139099"}
    for i, row in enumerate(truth["annotations"]):
        row["id"] = i
    truth["images"][0]["id"] = "139099"
    truth["images"].append({**truth["images"][0], "id": 7})
    truth["categories"] = []
    assert evaluate_coco(truth, found, COCO) == expected
    for row in found:
        del row["category_id"]  # not needed if there is only one category
    assert evaluate_coco(truth, found, COCO) == expected


def test_categories_are_averaged(samples):
    """An animal that was found with the wrong category counts as missed."""
    truth = read_json(samples / "ap10k/test_ap10k.json")
    results = perfect(truth)
    assert results[0]["category_id"] != results[1]["category_id"]
    assert evaluate_coco(truth, results[:1], "ap10k")["AP"] == pytest.approx(0.5)
    results[1] |= {"category_id": results[0]["category_id"], "score": 0.5}
    assert evaluate_coco(truth, results, "ap10k")["AP"] == pytest.approx(0.5)


def test_use_area(samples):
    truth = read_json(samples / "coco/test_coco.json")
    results = [person(a, (0.98, 1.02, 0.8), 0.98) for a in truth["annotations"]]
    boxes = copy.deepcopy(truth)
    for row in boxes["annotations"]:
        row["area"] = 0.53 * row["bbox"][2] * row["bbox"][3]
    by_box = evaluate_coco(truth, results, COCO, use_area=False)
    assert by_box == evaluate_coco(boxes, results, COCO) != evaluate_coco(truth, results, COCO)


def test_repeated_results_count_once(samples):
    truth, found = (read_json(samples / f"coco/fce_keypoints_{k}.json") for k in ("gt", "dt"))
    expected = evaluate_coco(truth, found, COCO)
    for key in ("annotation_id", "id"):
        named = [{**r, key: i} for i, r in enumerate(found)]
        assert evaluate_coco(truth, named + named[:40], COCO) == expected
    twice = [r for r in found for _ in range(2)]
    assert evaluate_coco(truth, twice, COCO) != expected  # without ids these are two people


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(keypoints=[NAN] * 51), "result 1 (image 40083) holds NaN or infinite numbers"),
        (dict(keypoints=[INF] + [1] * 50), "result 1 (image 40083) holds NaN or infinite numbers"),
        (dict(keypoints=[10**400] * 51), "result 1 (image 40083) holds NaN or infinite numbers"),
        (dict(score=None), "result 1 (image 40083) holds NaN or infinite numbers"),
        (dict(score=NAN), "result 1 (image 40083) holds NaN or infinite numbers"),
        (dict(score=INF), "result 1 (image 40083) holds NaN or infinite numbers"),
        (dict(keypoints=[1, 2, 3]), "result 1 (image 40083): expected a list of 51 keypoint numbers"),
        (dict(keypoints=None), "result 1 (image 40083): expected a list of 51 keypoint numbers"),
        (dict(image_id=99), "result 1 is for image 99, which is not in the annotations"),
        (dict(image_id=[]), "result 1 is for image [], which is not in the annotations"),
        (dict(image_id="a\nb"), r"result 1 is for image 'a\nb', which is not in the annotations"),
        (dict(category_id=2), "result 1 (image 40083) has category_id 2, expected one of 1"),
        (dict(category_id={}), "result 1 (image 40083) has category_id {}, expected one of 1"),
        (dict(category_id="a\nb"), r"result 1 (image 40083) has category_id 'a\nb', expected one of 1"),
        (dict(annotation_id=5), "results 0 and 1 have the same id, 5, but differ: remove one of them"),
    ],
)
def test_damaged_results_are_refused(samples, change, message):
    truth = read_json(samples / "coco/test_coco.json")
    results = [r for r in perfect(truth) if r["image_id"] == 40083]
    results = [{**results[0], "annotation_id": 5}, {**results[1], **change}]
    with pytest.raises(ValueError) as error:
        evaluate_coco(truth, results, COCO)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_files_and_values_that_are_no_results_are_refused(samples, tmp_path):
    truth = read_json(samples / "coco/test_coco.json")
    file = tmp_path / "results.json"
    file.write_text("{")
    for results, message in (
        ({}, "results are a dict, expected a list"),
        ([3], "result 0 is a int, expected a JSON object"),
        (file, "results.json: not readable as JSON"),
        (tmp_path / "none.json", "none.json: no such file"),
    ):
        with pytest.raises(ValueError) as error:
            evaluate_coco(truth, results, COCO)
        assert message in str(error.value) and "\n" not in str(error.value)


def test_damaged_truth_is_refused(samples, tmp_path):
    truth = read_json(samples / "coco/test_coco.json")
    animals = read_json(samples / "ap10k/test_ap10k.json")
    row = {k: v for k, v in perfect(animals)[0].items() if k != "category_id"}
    with pytest.raises(ValueError, match=r"result 0 \(image \d+\) has category_id None, expected one of "):
        evaluate_coco(animals, [row], "ap10k")
    crowd = read_json(samples / "crowdpose/test_crowdpose.json")
    crowd["images"][0]["crowdIndex"] = NAN
    with pytest.raises(ValueError, match=r"ground truth: image \d+ has crowdIndex nan, expected a number"):
        evaluate_crowdpose(crowd, [])
    truth["annotations"][3]["keypoints"][0] = NAN
    with pytest.raises(ValueError, match=r"ground truth: annotation 3 \(id \d+\): keypoints .* \(1 damaged in total\)"):
        evaluate_coco(truth, [], COCO)
    for name in ("interhand", "mpii"):
        if KEYPOINT_SETS[name].sigmas is None:
            with pytest.raises(ValueError, match=f"{name} has no OKS sigmas"):
                evaluate_coco(truth, [], name)
    with pytest.raises(ValueError, match="interhand has no OKS sigmas: poses cannot be compared"):
        suppress([], KEYPOINT_SETS["interhand"])
    with pytest.raises(ValueError, match="unknown keypoint set 'nobody'"):
        evaluate_coco(truth, [], "nobody")


def test_without_pycocotools_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    image = {"id": 1, "file_name": "1.jpg", "width": 9, "height": 9}
    truth = {"images": [image], "categories": [{"id": 1}], "annotations": []}
    with pytest.raises(ImportError, match="AP needs the package pycocotools: pip install pycocotools"):
        evaluate_coco(truth, [], "coco")
