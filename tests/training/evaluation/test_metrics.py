"""The metrics of all data sets: published numbers, pycocotools and plain loops as witnesses, refusals in one line."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import loadmat, savemat

from vitpose_fast.keypoints import KEYPOINT_SETS
from vitpose_fast.rows import read_json
from vitpose_training.evaluation import metrics
from vitpose_training.evaluation.coco_ap import PARTS
from vitpose_training.evaluation.metrics import (
    STATS,
    aic_score,
    auc,
    epe,
    evaluate_coco,
    evaluate_crowdpose,
    evaluate_wholebody,
    oks_nms,
    pck,
    pck_by_keypoint,
    pckh,
    pckh_mpii,
    rescore,
    suppress,
)

COCO = KEYPOINT_SETS["coco"]
NAN, INF = float("nan"), float("inf")
CROWDPOSE_STATS = ("AP", "AP50", "AP75", "AR", "AR50", "AR75", "APE", "APM", "APH")


def perfect(truth):
    """The labelled people as results."""
    keys = ("image_id", "category_id", "keypoints")
    return [{k: a[k] for k in keys} | {"score": 1.0} for a in truth["annotations"] if any(a["keypoints"][2::3])]


WHOLE_BODY_KEYS = ("keypoints", "foot_kpts", "face_kpts", "lefthand_kpts", "righthand_kpts")


def merged(truth):
    """COCO-WholeBody annotations with all 133 keypoints in one list."""
    for row in truth["annotations"]:
        row["keypoints"] = [v for key in WHOLE_BODY_KEYS for v in row[key]]
        row["num_keypoints"] = sum(v > 0 for v in row["keypoints"][2::3])
    return truth


def person(row, factors, box_score, mode="bbox_keypoint"):
    """A result: the annotated keypoints times factors for x, y, v, in float32 as networks give them."""
    keypoints = np.array(row["keypoints"], np.float32).reshape(-1, 3) * np.array(factors, np.float32)
    score = float(rescore([box_score], keypoints[None, :, 2], mode)[0])
    area = 1.25 * row["bbox"][2] * 1.25 * row["bbox"][3]
    own = {"image_id": row["image_id"], "category_id": 1, "keypoints": keypoints.flatten().tolist()}
    return own | {"score": score, "area": area}


@pytest.mark.parametrize(
    ("file", "name", "use_area", "medium"),
    [
        ("coco/test_coco", "coco", True, 1.0),
        ("coco/extra_ccby_val2017", "coco", True, 1.0),
        ("coco/extra_ccby_train2017", "coco", True, 1.0),  # with crowds, whose segmentations are run lengths
        ("coco/fce_keypoints_gt", "coco", True, 1.0),
        ("ochuman/test_ochuman", "ochuman", True, -1.0),  # nobody there is of medium size
        ("aic/test_aic", "aic", False, -1.0),
        ("ap10k/test_ap10k", "ap10k", True, -1.0),  # one animal each of categories 26 and 22
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
def test_ground_truth_is_perfect_however_it_is_scored_and_suppressed(samples, mode, nms):
    truth = read_json(samples / "coco/test_coco.json")
    results = [
        person(a, (1, 1, 1), 0.98, mode) | {"annotation_id": a["id"]}
        for a in truth["annotations"]
        if any(a["keypoints"])
    ]
    results += results[:3]  # the padding of a sampler
    if nms != "none":
        results = suppress(results, COCO, soft=nms == "soft")
    assert evaluate_coco(truth, results, COCO) == dict.fromkeys(STATS, 1.0)


def test_ground_truth_is_perfect_on_crowds_and_whole_bodies(samples):
    truth = read_json(samples / "crowdpose/test_crowdpose.json")
    assert evaluate_crowdpose(truth, perfect(truth)) == {
        k: -1.0 if k in ("APE", "APH") else 1.0 for k in CROWDPOSE_STATS
    }
    file = samples / "coco-wholebody/test_keypoint_partition_metric.json"
    found = evaluate_wholebody(file, perfect(read_json(file)))
    parts = [f"{part} {what}" for part in PARTS for what in ("AP", "AR")]
    assert found == dict.fromkeys([*STATS, *parts], 1.0) and list(found) == [*STATS, *parts]


@pytest.mark.parametrize("file", ["test_coco_wholebody", "example_gt"])
def test_ground_truth_is_perfect_on_whole_bodies_of_the_original_layout(samples, file):
    truth = merged(read_json(samples / f"coco-wholebody/{file}.json"))
    assert set(evaluate_wholebody(truth, perfect(truth)).values()) == {1.0}


def test_published_numbers_of_a_crowded_image(samples):
    expected = [
        0.5048844884488449, 0.7227722772277227, 0.6336633663366337, 0.46633663366336636, 0.7504950495049505,
        0.5181818181818182, 0.7272727272727273, 0.6363636363636364, 0.4666666666666666, 0.75,
    ]  # fmt: skip
    found = evaluate_coco(*(samples / f"coco/fce_keypoints_{k}.json" for k in ("gt", "dt")), "coco")
    assert list(found) == list(STATS)
    assert list(found.values()) == pytest.approx(expected, abs=1e-12)


def test_published_numbers_of_crowdpose(samples):
    found = evaluate_crowdpose(*(samples / f"crowdpose/example_crowdpose_{k}.json" for k in ("val", "preds")))
    exact = [0.7877215935879303, 0.9881188118811886, 0.7314356435643564, 0.8222222222222223, 1.0, 0.7777777777777778]
    assert list(found) == list(CROWDPOSE_STATS)
    assert list(found.values())[:6] == pytest.approx(exact, abs=1e-12)
    assert [round(found[k], 4) for k in ("APE", "APM", "APH")] == [1.0, 0.9802, 0.4116]


def test_crowd_levels_are_those_of_their_images_alone(samples):
    truth, results = (read_json(samples / f"crowdpose/example_crowdpose_{k}.json") for k in ("val", "preds"))
    for crowd, level in ((0, "APE"), (0.19, "APE"), (0.2, "APM"), (0.79, "APM"), (0.8, "APH"), (1, "APH")):
        for image in truth["images"]:
            image["crowdIndex"] = crowd
        found = evaluate_crowdpose(truth, results)
        others = {"APE", "APM", "APH"} - {level}
        assert found[level] == found["AP"] and all(found[k] == -1 for k in others)
    for image in truth["images"][:2]:
        image["crowdIndex"] = 0.1
    own = {image["id"] for image in truth["images"][:2]}
    some = {k: [r for r in truth[k] if r.get("image_id", r.get("id")) in own] for k in ("images", "annotations")}
    mine = [r for r in results if r["image_id"] in own]
    assert evaluate_crowdpose(truth, results)["APE"] == evaluate_coco(some, mine, "crowdpose", use_area=False)["AP"]


HARD = [.5833333333333333, .9166666666666666, .5833333333333334, .44, .6857142857142857]  # fmt: skip
ALIGNMENT = {  # mmpose's test of its COCO metric
    "bbox_keypoint": [
        .5287458745874587, .9042904290429042, .5009900990099009, .42475247524752474, .6219554455445544, *HARD
    ],
    "bbox_rle": [
        .5004950495049505, .8836633663366337, .4679867986798679, .42475247524752474, .5814108910891089, *HARD
    ],
}  # fmt: skip


@pytest.mark.parametrize("mode", ALIGNMENT)
def test_published_numbers_of_moved_people(samples, mode):
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


PART_NUMBERS = {
    "body": (0.749, 0.800), "foot": (0.840, 0.850), "face": (0.051, 0.050),
    "lefthand": (0.283, 0.300), "righthand": (0.383, 0.380), "whole": (0.284, 0.450),
}  # fmt: skip


def test_published_numbers_of_whole_body_parts(samples):
    """Results without a keypoint in a part that scores above 0 are left out of that part's evaluation.

    Nothing is rounded to whole numbers: every person of this file has fractions, so an array of one is floating point.
    """
    truth = read_json(samples / "coco-wholebody/test_keypoint_partition_metric.json")
    results = []
    for row in truth["annotations"]:
        keypoints = (np.array(row["keypoints"], float).reshape(-1, 3) * [0.99, 1.02, 0.8]).flatten().tolist()
        results.append({"image_id": row["image_id"], "category_id": 1, "score": 1.0, "keypoints": keypoints})
    found = evaluate_wholebody(truth, results)
    names = {part: (f"{part} AP", f"{part} AR") for part in PARTS}
    assert {part: (round(found[ap], 3), round(found[ar], 3)) for part, (ap, ar) in names.items()} == PART_NUMBERS
    assert (found["whole AP"], found["whole AR"]) == (found["AP"], found["AR"])
    for row in results:  # now everybody has all parts, most of them at (0, 0), as sure as the others
        row["keypoints"][2::3] = [0.8] * 133
    everybody = evaluate_wholebody(truth, results)
    assert all(everybody[ap] < found[ap] and everybody[ar] == found[ar] for ap, ar in (names["body"], names["foot"]))


WITNESS = {  # xtcocotools d74033f, whose code for whole bodies is that of COCO-WholeBody
    "AP": 0.6420759218779022, "AP50": 1.0, "AP75": 0.8410891089108912, "APM": 0.6764504307573613,
    "APL": 0.6303173394262502, "AR": 0.7041666666666666, "AR50": 1.0, "AR75": 0.875, "ARM": 0.7454545454545454,
    "ARL": 0.6692307692307693, "body AP": 0.5311208923090113, "body AR": 0.5541666666666667,
    "foot AP": 0.6604389010329603, "foot AR": 0.66875, "face AP": 0.5271098538425272, "face AR": 0.5461538461538462,
    "lefthand AP": 0.38778877887788776, "lefthand AR": 0.39166666666666666, "righthand AP": 0.4031117397454031,
    "righthand AR": 0.45384615384615384,
}  # fmt: skip


def test_equal_to_xtcocotools_on_whole_bodies(samples):
    """Real results, in which every third part has no keypoint that scores above 0; one score for all parts."""
    truth, found = (read_json(samples / f"coco-wholebody/example_{k}.json") for k in ("gt", "pred"))
    for i, row in enumerate(found):
        for part, key in enumerate(WHOLE_BODY_KEYS):
            if (i + part) % 3 == 0:
                row[key][2::3] = [0] * (len(row[key]) // 3)
    found = merged({"annotations": found})["annotations"]
    expected = WITNESS | {"whole AP": WITNESS["AP"], "whole AR": WITNESS["AR"]}
    assert evaluate_wholebody(merged(truth), found) == pytest.approx(expected, abs=1e-12)


def by_pycocotools(truth, results, folder):
    """What COCO's own code says about two files."""
    from pycocotools.coco import COCO as Truth
    from pycocotools.cocoeval import COCOeval

    files = folder / "truth.json", folder / "results.json"
    for file, content in zip(files, (truth, results)):
        file.write_text(json.dumps(content))
    with contextlib.redirect_stdout(io.StringIO()):
        own = Truth(str(files[0]))
        evaluation = COCOeval(own, own.loadRes(str(files[1])), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


def random_set(seed, images, categories, people, found):
    """COCO truth and results, ids from 1: crowds, people without labels or counted as such, equal scores, misses."""
    rng = np.random.default_rng(seed)
    truth = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in range(1, images + 1)],
        "annotations": [],
        "categories": [{"id": i, "name": str(i)} for i in range(1, categories + 1)],
    }
    for n in range(1, people + 1):
        x, y, w, h = rng.uniform(0, 300), rng.uniform(0, 200), rng.uniform(10, 300), rng.uniform(10, 250)
        kind = rng.choice(["seen", "seen", "seen", "crowd", "unlabelled", "uncounted"])
        points = np.stack([rng.uniform(x, x + w, 17), rng.uniform(y, y + h, 17), rng.integers(0, 3, 17)], 1).round(2)
        points[rng.integers(17), 2] = 2
        if kind == "unlabelled":
            points[:] = 0
        count = 0 if kind == "uncounted" else int((points[:, 2] > 0).sum())
        row = {"id": n, "image_id": int(rng.integers(1, images + 1)), "bbox": [x, y, w, h], "area": 0.6 * w * h}
        row |= {"category_id": int(rng.integers(1, categories + 1)), "iscrowd": int(kind == "crowd")}
        truth["annotations"].append(row | {"num_keypoints": count, "keypoints": points.flatten().tolist()})
    results = []
    for _ in range(found):
        like = truth["annotations"][rng.integers(people)]
        points = np.array(like["keypoints"]).reshape(17, 3)
        points[:, :2] += rng.normal(0, rng.choice([0, 3, 10, 200]), (17, 2))
        row = {"image_id": like["image_id"], "category_id": like["category_id"]}
        if rng.random() < 0.2:
            row = {"image_id": int(rng.integers(1, images + 1)), "category_id": int(rng.integers(1, categories + 1))}
        row |= {"keypoints": points.flatten().tolist(), "score": float(rng.choice([0.1, 0.5, 0.9, rng.random()]))}
        results.append(row)
    return truth, results


def test_random_sets_hold_what_is_difficult():
    truth, results = random_set(0, 1, 2, 12, 60)
    rows = truth["annotations"]
    assert any(a["iscrowd"] for a in rows) and any(not any(a["keypoints"]) for a in rows)
    assert any(a["num_keypoints"] == 0 and any(a["keypoints"][2::3]) for a in rows)
    assert len({r["score"] for r in results}) < 40  # equal ones
    assert min(sum(r["category_id"] == c for r in results) for c in (1, 2)) > 20


@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 3),
    categories=st.integers(1, 3),
    people=st.integers(1, 12),
    found=st.sampled_from([1, 5, 30, 60]),
)
@settings(max_examples=60)
def test_equal_to_pycocotools_on_random_sets(tmp_path_factory, seed, images, categories, people, found):
    """Ours begin at 0, which pycocotools would take for no match."""
    truth, results = random_set(seed, images, categories, people, found)
    expected = by_pycocotools(truth, results, tmp_path_factory.mktemp("sets"))
    for row in (*truth["images"], *truth["annotations"], *truth["categories"], *results):
        row |= {key: row[key] - 1 for key in ("id", "image_id", "category_id") if key in row}
    seen = evaluate_coco(truth, results, COCO)
    assert list(seen.values()) == pytest.approx(expected, abs=1e-12)


def noisy(truth, rng):
    results = perfect(truth)
    for result in results:  # many equal scores: their order is that of the images
        result["keypoints"] = (np.array(result["keypoints"]) + rng.normal(0, 4, 51)).tolist()
        result["score"] = round(rng.random(), 1)
    return results


def test_equal_to_pycocotools_and_faster_coco_eval_on_538_images(samples, tmp_path):
    from faster_coco_eval import COCO as Truth
    from faster_coco_eval import COCOeval_faster

    file = samples / "coco/person_keypoints_val2017_538img.json"
    truth = read_json(file)
    results = noisy(truth, np.random.default_rng(0))
    seen = list(evaluate_coco(truth, results, COCO).values())
    assert seen == by_pycocotools(truth, results, tmp_path)
    assert 0.2 < seen[0] < 0.9
    with contextlib.redirect_stdout(io.StringIO()):
        own = Truth(str(file))
        evaluation = COCOeval_faster(own, own.loadRes(results), "keypoints", kpt_oks_sigmas=list(COCO.sigmas))
        evaluation.run()
    assert seen == pytest.approx(evaluation.stats[:10].tolist(), abs=1e-12)


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
        del row["category_id"]  # there is but one
    assert evaluate_coco(truth, found, COCO) == expected


def test_categories_are_averaged(samples):
    """Whose category is wrong was not found."""
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
    assert evaluate_coco(truth, twice, COCO) != expected  # without names these are two people


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
        (dict(annotation_id=5), "results 0 and 1 have one id, 5, and differ: leave one of them out"),
    ],
)
def test_damaged_results_are_refused(samples, change, message):
    truth = read_json(samples / "coco/test_coco.json")
    results = [r for r in perfect(truth) if r["image_id"] == 40083]
    results = [{**results[0], "annotation_id": 5}, {**results[1], **change}]
    with pytest.raises(ValueError) as error:
        evaluate_coco(truth, results, COCO)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_results_that_are_none_are_refused(samples, tmp_path):
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
    with pytest.raises(ValueError, match=r"ground truth: annotation 3 \(id \d+\): keypoints .* \(1 damaged in all\)"):
        evaluate_coco(truth, [], COCO)
    for name in ("interhand", "mpii"):
        if KEYPOINT_SETS[name].sigmas is None:
            with pytest.raises(ValueError, match=f"{name} has no OKS sigmas"):
                evaluate_coco(truth, [], name)
    with pytest.raises(ValueError, match="interhand has no OKS sigmas: poses cannot be compared"):
        suppress([], KEYPOINT_SETS["interhand"])
    with pytest.raises(ValueError, match="unknown keypoint set 'nobody'"):
        evaluate_coco(truth, [], "nobody")


def test_suppression_of_near_copies():
    points = np.zeros((3, 17, 2)) + np.array([10, 10, 100])[:, None, None]
    given = (points, [0.9, 0.4, 0.7], [100] * 3, COCO.sigmas, 0.9)
    assert oks_nms(*given) == [0, 2]
    assert oks_nms(*given, soft=True) == [0, 2, 1]
    assert oks_nms(points[:0], [], [], COCO.sigmas, 0.9) == [] == oks_nms([], [], [], COCO.sigmas, 0.9)
    ones = np.stack([np.ones((17, 3)), np.ones((17, 3)), np.zeros((17, 3))])
    assert oks_nms(ones, [3, 2, 1], [1] * 3, [1] * 17, 1 - 1e-9) == [0, 2]  # equal people: OKS 1
    assert oks_nms(ones[:, :, :2], [3, 2, 1], [1] * 3, COCO.sigmas, 0.01) == [0, 2]  # others: below 0.01


def test_of_equal_scores_the_later_person_is_the_better_one():
    """As in the code behind the published numbers: the other order moves the AP of moved people by 0.002."""
    points = np.zeros((4, 17, 2)) + np.array([10, 10, 500, 900])[:, None, None]
    for soft, expected in ((False, [3, 2, 1]), (True, [3, 2, 1, 0])):
        assert oks_nms(points, [0.5] * 4, [100] * 4, COCO.sigmas, 0.9, soft=soft) == expected


@pytest.mark.parametrize("soft", [False, True])
def test_a_pose_that_is_no_number_hides_nobody(samples, soft):
    """Whoever evaluates the rest then says so; without it everybody else would be gone in silence."""
    points = np.arange(4.0)[:, None, None] * 1000 + np.zeros((4, 17, 3))
    points[1] = NAN
    assert sorted(oks_nms(points, [1, 3, NAN, 2], [100] * 4, COCO.sigmas, 0.9, soft=soft)) == [0, 1, 2, 3]
    assert oks_nms(points, [1, 3, NAN, 2], [100] * 4, COCO.sigmas, 0.9, soft=soft)[-1] == 2
    truth = read_json(samples / "coco/test_coco.json")
    results = [{**r, "area": 1e4} for r in perfect(truth)]
    results[0] |= {"keypoints": [NAN] * 51, "score": 2.0}
    kept = suppress(results, COCO, soft=soft)
    assert len(kept) == len(results)
    with pytest.raises(ValueError, match="holds NaN or infinite numbers"):
        evaluate_coco(truth, kept, COCO)


@pytest.mark.filterwarnings("error")
def test_tensors_and_lists_are_as_good_as_arrays():
    generator = torch.Generator().manual_seed(0)
    found, truth = torch.rand(2, 6, 16, 2, generator=generator)
    mask, scores = torch.rand(6, 16, generator=generator) > 0.3, torch.rand(6, 16, generator=generator)
    given = {
        "list": lambda t: t.tolist(),
        "tensor": lambda t: t,
        "double": lambda t: t.double(),
        "gradient": lambda t: t.clone().requires_grad_() if t.is_floating_point() else t,
    }

    def everything(of):
        people = torch.cat([found, scores[..., None]], -1)
        size, areas = torch.full((6, 2), 0.5), torch.full((6,), 0.5)
        yield oks_nms(of(people), of(scores[:, 0]), of(areas), of(torch.full((16,), 0.3)), 0.6, 0.2)
        yield pck(of(found), of(truth), of(mask), 0.5, of(size))
        yield auc(of(found), of(truth), of(mask), of(size))
        yield epe(of(found), of(truth), of(mask))
        yield pckh(of(found), of(truth), of(mask), of(areas))

    expected = list(everything(lambda t: t.numpy()))
    assert 1 < len(expected[0]) < 6 and 0.1 < expected[1] < 0.9
    for of in given.values():
        assert list(everything(of)) == expected
    for of in (given["tensor"], given["gradient"]):
        assert rescore(of(scores[:, 0]), of(scores)).tolist() == rescore(scores[:, 0].numpy(), scores.numpy()).tolist()
    half = found.bfloat16()
    assert epe(half, truth, mask) == epe(half.float(), truth, mask)


@pytest.mark.parametrize(
    "change", [dict(scores=[1, 2]), dict(areas=[1, 2, 3, 4]), dict(sigmas=[0.1]), dict(keypoints=[[1, 2]] * 3)]
)
def test_people_that_do_not_go_together_are_not_suppressed(change):
    given = dict(keypoints=np.zeros((3, 17, 3)), scores=[1, 2, 3], areas=[1, 2, 3], sigmas=COCO.sigmas, threshold=0.9)
    assert len(oks_nms(**given)) == 1
    with pytest.raises(
        ValueError, match=r"keypoints, scores, areas, sigmas have shapes .*, expected \[P, K, 2\], \[P\]"
    ):
        oks_nms(**(given | change))
    with pytest.raises(ValueError, match=r"expected \[P, K, 3\], \[P\], \[P\], \[K\]"):
        oks_nms(**(given | dict(keypoints=np.zeros((3, 17, 2)), visible_threshold=0.2)))


def test_soft_suppression_keeps_twenty():
    points = np.arange(30.0)[:, None, None] * 1000 + np.zeros((30, 17, 2))
    kept = oks_nms(points, np.arange(30), [100] * 30, COCO.sigmas, 0.9, soft=True)
    assert kept == list(range(29, 9, -1)) and len(oks_nms(points, np.arange(30), [100] * 30, COCO.sigmas, 0.9)) == 30


def test_suppression_by_visible_keypoints():
    """Two people who share the keypoints that both see, and are far apart in the others."""
    points = np.zeros((2, 4, 3))
    points[1, 2:, :2] = 1000
    points[:, :, 2] = [[0.9, 0.9, 0.9, 0.1], [0.9, 0.3, 0.1, 0.9]]
    given = (points, [2, 1], [100] * 2, [0.05] * 4)
    assert oks_nms(*given, 0.6) == [0, 1]  # half of the keypoints are equal
    assert oks_nms(*given, 0.4) == [0]
    assert oks_nms(*given, 0.8, visible_threshold=0.2) == [0]  # both see the first alone
    assert oks_nms(*given, 0.6, visible_threshold=0.05) == [0, 1]
    assert oks_nms(*given, 0.6, visible_threshold=0.95) == [0, 1]  # no keypoint is seen by both: nothing in common


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
def test_suppression_is_the_greedy_loop(seed, people, threshold, soft):
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
def test_soft_suppression_by_visible_keypoints_is_a_loop(seed, people, threshold):
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
    """Whatever the other keypoints are that do not count: AP puts equal scores in the order of images."""
    rng = np.random.default_rng(0)
    points = np.full((50, 133), 0.8)
    points[rng.random(points.shape) < 0.5] = 0
    points[:, 0] = 0.8
    counts = (points > 0).sum(1)
    for count in set(counts.tolist()):
        assert len(set(rescore([1.0] * 50, points)[counts == count].tolist())) == 1


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
    """Not 1: nothing is nearer than the first threshold, 0."""
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


def test_what_is_no_number_is_no_hit():
    found = TRUTH.copy()
    found[0, 0] = NAN
    accuracy, _ = pck_by_keypoint(found, TRUTH, MASK, 0.5, [[10, 10]] * 2)
    assert accuracy.tolist() == [0.5, 1, -1, 1, 1] and epe(found, TRUTH, MASK) == INF


def test_shapes_that_do_not_go_together_are_refused():
    for shapes in ((FOUND[:1], TRUTH, MASK), (FOUND, TRUTH, MASK[:, :3]), (FOUND[0], TRUTH[0], MASK[0])):
        for call in (lambda g: pck(*g, 0.5, [[10, 10]] * 2), lambda g: auc(*g, 10), lambda g: epe(*g)):
            with pytest.raises(
                ValueError, match=r"predicted, truth and mask have shapes .*, expected \[N, K, 2\] twice"
            ):
                call(shapes)


@pytest.mark.parametrize("normalizer", [[10, 10], [[10, 10]] * 3, [[10, 10, 10]] * 2, [[[10]]]])
def test_a_normalizer_that_could_mean_two_things_is_refused(normalizer):
    """Two numbers for two people: theirs, or those of x and y?"""
    assert pck(FOUND, TRUTH, MASK, 0.5, 10) == pck(FOUND, TRUTH, MASK, 0.5, [[10, 10]] * 2) == 0.875
    for call in (lambda: pck(FOUND, TRUTH, MASK, 0.5, normalizer), lambda: auc(FOUND, TRUTH, MASK, normalizer)):
        with pytest.raises(ValueError, match=r"normalizer has shape .*, expected a number or \(2, 2\)"):
            call()
    with pytest.raises(ValueError, match="got steps=0, expected 1 or more"):
        auc(FOUND, TRUTH, MASK, 10, steps=0)


TOMPSON = "mpii/mpii_gt_val_with_tompson_preds.mat"
GROUPS = {
    "Head": [9], "Shoulder": [12, 13], "Elbow": [11, 14], "Wrist": [10, 15], "Hip": [2, 3], "Knee": [1, 4],
    "Ankle": [0, 5],
}  # fmt: skip


def test_exact_mpii_predictions_are_100(samples):
    truth = loadmat(samples / "mpii/mpii_gt_val.mat")["pos_gt_src"].transpose(2, 0, 1)
    found = pckh_mpii(truth, samples / "mpii/mpii_gt_val.mat")
    assert {k: v for k, v in found.items() if v != pytest.approx(100, abs=1e-12)} == {}
    assert {"PCKh", "PCKh@0.1", *GROUPS, *KEYPOINT_SETS["mpii"].names} == set(found)
    moved = pckh_mpii(truth - 1, samples / "mpii/mpii_gt_val.mat")  # those who forget that they begin at 1
    assert moved["PCKh"] == 100 and moved["PCKh@0.1"] == 100


def test_pckh_is_a_loop(samples):
    """Predictions of Tompson et al. for all 2,958 people."""
    mat = loadmat(samples / TOMPSON)
    predicted, truth = (mat[k].transpose(2, 0, 1).tolist() for k in ("pos_pred_src", "pos_gt_src"))
    missing, boxes = mat["jnt_missing"].T.tolist(), mat["headboxes_src"].transpose(2, 0, 1).astype(float).tolist()
    hits, close, counts = [0] * 16, [0] * 16, [0] * 16
    for found, own, gone, ((x1, y1), (x2, y2)) in zip(predicted, truth, missing, boxes, strict=True):
        head = 0.6 * math.hypot(x2 - x1, y2 - y1)
        for joint in range(16):
            if not gone[joint]:
                error = math.dist(found[joint], own[joint]) / head
                counts[joint] += 1
                hits[joint] += error <= 0.5
                close[joint] += error <= 0.1
    seen = pckh_mpii(mat["pos_pred_src"].transpose(2, 0, 1), samples / TOMPSON)
    rest = [joint for joint in range(16) if joint not in (6, 7)]
    total = sum(counts[j] for j in rest)
    assert seen["PCKh"] == pytest.approx(100 * sum(hits[j] for j in rest) / total, abs=1e-9)
    assert seen["PCKh"] == pytest.approx(82.3367161072079, abs=1e-9)
    assert seen["PCKh@0.1"] == pytest.approx(100 * sum(close[j] for j in rest) / total, abs=1e-9)
    for group, joints in GROUPS.items():
        each = [100 * hits[j] / counts[j] for j in joints]
        assert seen[group] == pytest.approx(sum(each) / len(each), abs=1e-9)
        assert {round(v, 9) for v in each} == {round(seen[KEYPOINT_SETS["mpii"].names[j]], 9) for j in joints}


def test_pckh_counts_the_border_in_and_unlabelled_joints_out():
    truth = np.zeros((1, 16, 2))
    found = np.zeros((1, 16, 2))
    found[0, 0], found[0, 1], found[0, 2], found[0, 3] = (5, 0), (5.01, 0), (99, 0), (NAN, 0)
    visible = np.ones((1, 16), bool)
    visible[0, 2] = False
    seen = pckh(found, truth, visible, [10])
    names = KEYPOINT_SETS["mpii"].names
    assert [seen[names[j]] for j in range(5)] == [100, 0, 0, 0, 100]
    assert seen["PCKh"] == pytest.approx(100 * 11 / 13) and seen["PCKh@0.1"] == pytest.approx(100 * 10 / 13)
    assert set(pckh(found, truth, ~visible & False, [10]).values()) == {0.0}
    for sizes in ([0], [-1], [NAN]):
        with pytest.raises(ValueError, match=r"the smallest head size is .*, expected more than 0 pixels"):
            pckh(found, truth, visible, sizes)
    bodies = found[:, :14], truth[:, :14], visible[:, :14], [1]
    for people in ((found, truth, visible, [1, 2]), (found, truth, visible[:, :1], [1]), bodies):
        with pytest.raises(
            ValueError, match=r"predicted, truth, visible, head_sizes have shapes .*, expected \[N, 16, 2\]"
        ):
            pckh(*people)


def test_files_that_are_not_mpiis_are_refused(samples, tmp_path):
    zeros = np.zeros((5, 16, 2))
    (tmp_path / "text.mat").write_text("no\nmatlab file\n" * 20)
    (tmp_path / "empty.mat").write_bytes(b"")
    (tmp_path / "folder.mat").mkdir()
    savemat(tmp_path / "other.mat", {"x": np.zeros(3)})
    own = {k: v for k, v in loadmat(samples / "mpii/mpii_gt_val.mat").items() if not k.startswith("__")}
    savemat(tmp_path / "shape.mat", own | {"jnt_missing": np.zeros((16, 4))})
    whole = (samples / "mpii/mpii_gt_val.mat").read_bytes()
    (tmp_path / "cut.mat").write_bytes(whole[: len(whole) // 2])
    for name in ("text", "empty", "folder", "other", "cut", "shape", "none"):
        with pytest.raises(ValueError) as error:
            pckh_mpii(zeros, tmp_path / f"{name}.mat")
        text = str(error.value)
        assert text.startswith(f"{tmp_path / name}.mat: ") and "\n" not in text and "MPII" in text
    for shape in ((4, 16, 2), (5, 16, 3), (5, 14, 2)):
        with pytest.raises(ValueError, match=r"got predictions of shape .*, expected \(5, 16, 2\), one for each in "):
            pckh_mpii(np.zeros(shape), samples / "mpii/mpii_gt_val.mat")


AIC_FILES = [f"aic/aic_keypoint_{k}_example.json" for k in ("annotations", "predictions")]


def test_published_number_of_aic(samples):
    assert aic_score(*(samples / f for f in AIC_FILES)) == pytest.approx(0.99674031, abs=1e-8)
    truth = read_json(samples / AIC_FILES[0])
    assert aic_score(truth, truth) == 1 and aic_score(truth, []) == 0


def aic_loop(truth, found):
    """SPEC 7.3 in words."""
    sigmas, by_image = KEYPOINT_SETS["aic"].sigmas, {row["image_id"]: row["keypoint_annotations"] for row in found}
    thresholds = [0.5 + 0.05 * i for i in range(10)]
    hits, total = [0] * 10, 0
    for row in truth:
        people, predicted = row["keypoint_annotations"], by_image.get(row["image_id"], {})
        total += max(len(people), len(predicted))
        for one in predicted.values():
            best = 0.0
            for name, own in people.items():
                x1, y1, x2, y2 = row["human_annotations"][name]
                area, terms = (x2 - x1) * (y2 - y1) + 1, []
                for k in range(14):
                    if own[3 * k + 2] == 1:
                        squared = (own[3 * k] - one[3 * k]) ** 2 + (own[3 * k + 1] - one[3 * k + 1]) ** 2
                        terms.append(math.exp(-squared / (2 * (2 * sigmas[k]) ** 2) / area))
                best = max(best, sum(terms) / len(terms) if terms else 0.0)
            hits = [h + (best > t) for h, t in zip(hits, thresholds)]
    return sum(hits) / 10 / total


def test_aic_score_is_a_loop(samples):
    truth = read_json(samples / AIC_FILES[0])[:60]
    rng = np.random.default_rng(0)
    found = copy.deepcopy(truth[5:])
    for row in found:
        for name, flat in list(row["keypoint_annotations"].items()):
            row["keypoint_annotations"][name] = (np.array(flat) + rng.normal(0, rng.choice([1, 4]), 42)).tolist()
        row["keypoint_annotations"] |= {"one more": [0.0] * 42} if rng.random() < 0.3 else {}
        del row["human_annotations"]
    expected = aic_loop(truth, found)
    assert 0.2 < expected < 0.8 and aic_score(truth, found) == pytest.approx(expected, abs=1e-12)


def test_aic_counts_one_pixel_beside_the_box():
    """A person without a box is one square pixel large; OKS 0.77 is above six of the ten thresholds."""
    sigma = KEYPOINT_SETS["aic"].sigmas[0]
    away = math.sqrt(-math.log(0.77) * 2 * (2 * sigma) ** 2)
    truth = [{"image_id": "a", "keypoint_annotations": {"h": [0, 0, 1, *[0, 0, 2] * 13]}}]
    found = [{"image_id": "a", "keypoint_annotations": {"p": [away, 0, 1, *[99, 99, 1] * 13]}}]
    assert aic_score(truth, found) == pytest.approx(0.6)


GOOD = {"image_id": "a", "human_annotations": {"h": [0, 0, 9, 9]}, "keypoint_annotations": {"h": [1] * 42}}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({}, "expected a list of images"),
        (None, "expected a list of images"),
        ([GOOD, 3], "entry 1: expected image_id"),
        ([GOOD, None], "entry 1: expected image_id"),
        ([{k: v for k, v in GOOD.items() if k != "image_id"}], "entry 0: expected image_id"),
        ([{"image_id": "a"}], "entry 0: expected image_id and keypoint_annotations of 14 x, y, v each"),
        ([GOOD | {"keypoint_annotations": []}], "entry 0: "),
        ([GOOD | {"keypoint_annotations": [[1] * 42]}], "entry 0: "),
        ([GOOD | {"keypoint_annotations": {"h": [1] * 41}}], "entry 0: "),
        ([GOOD | {"keypoint_annotations": {"h": [1] * 42, "i": [1] * 40}}], "entry 0: "),
        ([GOOD | {"keypoint_annotations": {"h": [1] * 84}}], "entry 0: "),
        ([GOOD | {"keypoint_annotations": {"h": [1] * 41 + ["x"]}}], "entry 0: "),
        ([GOOD | {"keypoint_annotations": {"h": [1] * 41 + [NAN]}}], "entry 0: "),
        ([GOOD | {"keypoint_annotations": {"h": [1] * 41 + [10**400]}}], "entry 0: "),
        ([GOOD | {"human_annotations": {"h": [0, 0, 9]}}], "entry 0: "),
        ([GOOD | {"human_annotations": {"h": [0, 0, 9, INF]}}], "entry 0: "),
        ([GOOD | {"human_annotations": [1]}], "entry 0: "),
        ([GOOD, GOOD], "entry 1: "),
    ],
)
def test_files_that_are_not_aics_are_refused(bad, message):
    assert aic_score([GOOD], [GOOD]) == 1
    for call in (lambda: aic_score(bad, [GOOD]), lambda: aic_score([GOOD], bad)):
        with pytest.raises(ValueError) as error:
            call()
        text = str(error.value)
        assert message in text and "\n" not in text and text.startswith(("annotations: ", "predictions: "))


def test_every_public_name_is_there():
    assert all(hasattr(metrics, name) for name in metrics.__all__)
