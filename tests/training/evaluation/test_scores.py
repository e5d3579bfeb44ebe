"""Scores of each data set: ground truth is perfect, and every missed person lowers the score."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from scipy.io import loadmat

from tests.training.evaluation.results import STATS
from vitpose_fast.keypoints import KEYPOINT_SETS
from vitpose_fast.rows import read_json
from vitpose_training.data.catalog import DATA_SETS
from vitpose_training.data.coco import COCO_LAYOUT
from vitpose_training.data.people import DataSet, Labels, joined
from vitpose_training.data.read import read_labels
from vitpose_training.evaluation.coco_ap import COCO_METRIC
from vitpose_training.evaluation.metrics import aic_score, evaluate_coco
from vitpose_training.evaluation.pck import HAND_METRIC
from vitpose_training.evaluation.pckh import PCKH_METRIC
from vitpose_training.evaluation.scores import check_can_evaluate, score, table

FILES = {
    "coco": ("coco", "coco/test_coco.json"),
    "aic": ("aic", "aic/test_aic.json"),
    "aic original": ("aic", "aic/aic_keypoint_annotations_example.json"),
    "mpii": ("mpii", "mpii/test_mpii.json"),
    "ap10k": ("ap10k", "ap10k/test_ap10k.json"),
    "apt36k": ("apt36k", "apt-36k/apt36k_wolf_reconstructed.json"),
    "wholebody": ("wholebody", "coco-wholebody/test_coco_wholebody.json"),
    "crowdpose": ("crowdpose", "crowdpose/test_crowdpose.json"),
    "ochuman": ("ochuman", "ochuman/test_ochuman.json"),
    "interhand": ("interhand", "interhand2.6m/test_interhand2.6m_data.json"),
}
MISSING = {  # numbers that are -1 because the sample has no person of this size or no image of this crowd level
    "aic": ["APM", "ARM"],
    "aic original": [],
    "ap10k": ["APM", "ARM"],
    "ochuman": ["APM", "ARM"],
    "crowdpose": ["APE", "APH"],
}


@pytest.fixture(scope="session")
def labels_of(samples):
    """labels_of(file) -> the `Labels` of a sample file, a key of `FILES`."""

    def read(file):
        name, path = FILES[file]
        return read_labels(name, samples / path, (samples / path).parent)

    return read


def results_of(people, move=(0, 0)):
    """Return the annotated poses, shifted by `move` (x, y) in pixels, in the form of results of `evaluate_labels`.

    Their coordinates count from 0, also for MPII.
    """
    out = []
    for person in people:
        points = np.concatenate([person.keypoints + np.float32(move), person.visible[:, None]], 1)
        ids = {"image_id": person.image_id, "category_id": person.category_id, "annotation_id": person.annotation_id}
        out.append({**ids, "keypoints": points.astype(float).flatten().tolist(), "score": 1.0, "area": 100.0})
    return out


def main_number(labels, metrics):
    return metrics[labels.data_set.metric.headline]


def test_every_data_set_is_scored_here():
    assert {name for name, _ in FILES.values()} == set(DATA_SETS)
    headlines = {name: own.metric.headline for name, own in DATA_SETS.items()}
    assert headlines == dict.fromkeys(DATA_SETS, "AP") | {"mpii": "PCKh", "interhand": "AUC"}


@pytest.mark.parametrize("file", [name for name, (own, _) in FILES.items() if own not in ("mpii", "interhand")])
def test_ground_truth_is_perfect(labels_of, file):
    labels = labels_of(file)
    metrics = score([labels], results_of(labels.people))
    lacking = {name for name, value in metrics.items() if value == -1}
    assert lacking == set(MISSING.get(file, []))
    for name, value in metrics.items():
        assert value == -1 or value == pytest.approx(1, abs=1e-12), name
    assert ("AIC score" in metrics) == file.startswith("aic")
    assert ("APH" in metrics) == (file == "crowdpose") and ("lefthand AR" in metrics) == (file == "wholebody")


def test_exact_mpii_poses_are_100(labels_of):
    labels = labels_of("mpii")
    metrics = score([labels], results_of(labels.people))
    for name in ("PCKh", "PCKh@0.1", "Head", "Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle"):
        assert metrics[name] == pytest.approx(100, abs=1e-9)
    assert score([labels], results_of(labels.people, (1000, 0)))["PCKh"] == 0


def test_mpii_ground_truth_is_1_based(samples, labels_of):
    """Errors half a pixel below and half a pixel above half the head size: an offset of one pixel would show."""
    labels, results = labels_of("mpii"), results_of(labels_of("mpii").people)
    boxes = loadmat(samples / "mpii/mpii_gt_val.mat")["headboxes_src"].astype(float)
    sizes = 0.6 * np.linalg.norm(boxes[1] - boxes[0], axis=0)
    for beyond, expected in ((-0.5, 100), (0.5, 0)):
        moved = copy.deepcopy(results)
        for row, size in zip(moved, sizes, strict=True):
            row["keypoints"][0::3] = [x - size / 2 - beyond for x in row["keypoints"][0::3]]
        assert score([labels], moved)["PCKh"] == pytest.approx(expected)


def test_exact_hands(labels_of):
    labels = labels_of("interhand")
    assert score([labels], results_of(labels.people)) == {"PCK": 1.0, "AUC": pytest.approx(0.95), "EPE": 0.0}
    metrics = score([labels], results_of(labels.people, (3, 4)))  # 5 pixels: within i / 20 * 30 from i = 4 on
    assert metrics == {"PCK": 1.0, "AUC": pytest.approx(16 / 20), "EPE": pytest.approx(5, abs=1e-4)}


def test_thresholds_of_the_auc_of_hands_go_up_to_30_pixels(labels_of):
    labels = labels_of("interhand")
    for away, share in ((5.95, 16 / 20), (6.05, 15 / 20)):  # the fifth threshold is 6 pixels
        assert score([labels], results_of(labels.people, (away, 0)))["AUC"] == pytest.approx(share)


def test_pck_of_hands_is_at_a_fifth_of_the_longer_side(labels_of):
    labels = labels_of("interhand")
    for share, expected in ((0.199, 1.0), (0.201, 0.0)):
        results = results_of(labels.people)
        for person, row in zip(labels.people, results, strict=True):
            row["keypoints"][0::3] = [x + share * max(person.box[2:]) for x in row["keypoints"][0::3]]
        assert score([labels], results)["PCK"] == expected


@pytest.mark.parametrize("file", FILES)
def test_one_missed_person_lowers_the_score(labels_of, file):
    labels = labels_of(file)
    results = results_of(labels.people)
    best = main_number(labels, score([labels], results))
    for i in {0, len(results) // 2, len(results) - 1}:
        metrics = score([labels], results[:i] + results[i + 1 :])
        assert 0 < main_number(labels, metrics) < best
        assert metrics.get("AIC score", 0.5) < 1 and metrics.get("EPE", 0) == 0  # EPE covers only hands that were found
    nothing = score([labels], [])
    assert main_number(labels, nothing) == 0 and nothing.get("EPE", -1) == -1  # nothing to measure
    assert nothing.get("AIC score", 0) == 0


@pytest.mark.parametrize("file", FILES)
def test_the_order_of_results_does_not_matter(labels_of, file):
    labels = labels_of(file)
    results = results_of(labels.people)[1:]
    for i, row in enumerate(results):
        row["score"] = 0.5 + i / 1e4
        row["keypoints"][0::3] = [x + i % 7 for x in row["keypoints"][0::3]]
    assert score([labels], results[::-1]) == score([labels], results)


def test_the_official_score_of_aic_survives_the_conversion_to_coco(samples, labels_of):
    """`score` converts the original file to COCO format and back, which must not change its official score."""
    labels = labels_of("aic original")
    rng = np.random.default_rng(0)
    results = results_of(labels.people)
    rows = {}
    for i, row in enumerate(results):
        row["keypoints"] = (np.array(row["keypoints"]) + rng.normal(0, 8, 42)).tolist()
        people = rows.setdefault(row["image_id"], {"image_id": row["image_id"], "keypoint_annotations": {}})
        people["keypoint_annotations"][str(i)] = row["keypoints"]
    expected = aic_score(samples / FILES["aic original"][1], list(rows.values()))
    assert 0.2 < expected < 0.9
    assert score([labels], results)["AIC score"] == pytest.approx(expected, abs=1e-12)


def test_use_area_is_a_property_of_the_data_set(labels_of):
    """AIC uses the area of the box, whatever area the file states. COCO uses the stated area."""
    labels = labels_of("aic")
    results = results_of(labels.people, (2, 0))
    before = score([labels], results)
    for row in labels.truth["annotations"]:
        row["area"] = 1.0
    assert score([labels], results) == before
    coco = labels_of("coco")
    results = results_of(coco.people, (2, 0))
    before = score([coco], results)
    for row in coco.truth["annotations"]:
        row["area"] *= 4
    assert score([coco], results)["AP"] > before["AP"]


def test_mpii_people_who_cannot_be_read_count_as_missed(samples, tmp_path, labels_of):
    """PCKh covers the whole file, and finds head boxes by the index in it."""
    data = read_json(samples / FILES["mpii"][1])
    data[1]["center"] = [-1, -1]
    (tmp_path / "x.json").write_text(json.dumps(data))
    shutil.copy(samples / "mpii/mpii_gt_val.mat", tmp_path)
    damaged, whole = read_labels("mpii", tmp_path / "x.json", tmp_path), labels_of("mpii")
    assert len(damaged.problems) == 1
    found = score([damaged], results_of(damaged.people))
    others = [p for p in whole.people if p.annotation_id != 1]
    assert found == score([whole], results_of(others)) and 0 < found["PCKh"] < 100


def both(labels_of, samples):
    coco = DATA_SETS["coco"]
    more = read_labels(coco, samples / "coco/extra_ccby_val2017.json", samples / "coco/extra_ccby")
    return labels_of("coco"), more


def test_several_files_count_as_one(samples, labels_of):
    """Scores equal those of one file with all people, although the two files share ids of images and annotations."""
    first, second = both(labels_of, samples)
    shift = {image["id"]: i for i, image in enumerate(second.truth["images"])}
    old = [image["id"] for image in first.truth["images"]]
    for image in second.truth["images"]:  # now four ids occur in the first file too
        image["id"] = old[shift[image["id"]]] if shift[image["id"]] < 4 else image["id"]
    for row in second.truth["annotations"]:
        row["image_id"] = old[shift[row["image_id"]]] if shift[row["image_id"]] < 4 else row["image_id"]
    for row, own in zip(second.truth["annotations"], first.truth["annotations"]):
        row["id"] = own["id"]
    second = read_labels_again(second, samples)
    people, truth = joined([first, second])
    assert len(people) == 25 and len({p.annotation_id for p in people}) == 25
    assert len({p.image_id for p in people}) == len({p.image for p in people})
    assert [p.image for p in people] == [p.image for one in (first, second) for p in one.people]
    for one in (truth["images"], truth["annotations"], truth["categories"]):
        assert len({row["id"] for row in one}) == len(one)
    assert len(truth["annotations"]) == len(first.truth["annotations"]) + len(second.truth["annotations"])
    results = results_of(people)
    assert score([first, second], results) == dict.fromkeys(STATS, 1.0)
    missed = score([first, second], results[1:])
    assert missed == evaluate_coco(truth, results[1:], "coco") and missed["AR"] == pytest.approx(24 / 25)


def read_labels_again(labels, samples):
    """Write `labels.truth`, which a test has changed, to a file and return the labels read from it."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.json"
        truth = {**labels.truth, "images": [{**i, "path": None} for i in labels.truth["images"]]}
        file.write_text(json.dumps(truth))
        return read_labels(labels.data_set, file, samples / "coco/extra_ccby")


def test_several_files_of_hands(labels_of):
    """The files may share ids: every person still has a separate result."""
    labels = labels_of("interhand")
    people, truth = joined([labels, labels])
    assert truth is None and [p.image for p in people] == 2 * [p.image for p in labels.people]
    results = results_of(people)
    assert score([labels, labels], results) == {"PCK": 1.0, "AUC": pytest.approx(0.95), "EPE": 0.0}
    assert score([labels, labels], results[:6])["PCK"] == 0.5


def test_one_file_keeps_its_ids(labels_of):
    labels = labels_of("coco")
    people, truth = joined([labels])
    assert people == labels.people and truth is labels.truth


def test_all_sample_files_can_be_evaluated(labels_of):
    for file in FILES:
        check_can_evaluate([labels_of(file)])
    check_can_evaluate([labels_of(file) for file in FILES if file != "aic original"])


def test_data_that_cannot_be_evaluated_is_refused_before_training(samples, tmp_path, labels_of):
    coco, mpii = labels_of("coco"), labels_of("mpii")

    def refused(labels, message):
        with pytest.raises(ValueError) as error:
            check_can_evaluate(labels)
        assert message in str(error.value) and "\n" not in str(error.value)

    unlabeled = Labels(DATA_SETS["coco"], [], coco.truth, images=4, unlabelled=2)
    refused([unlabeled], "no people to evaluate on: coco: 0 used")
    refused([coco, Labels(DATA_SETS["ap10k"], [], None)], "no people to evaluate on: ap10k: 0 used of 0 entries")
    check_can_evaluate([coco, Labels(DATA_SETS["coco"], [], coco.truth)])  # the other file has people
    refused([mpii, mpii], "got 2 MPII files to evaluate on, expected one")
    shutil.copy(samples / FILES["mpii"][1], tmp_path / "mpii.json")
    alone = read_labels("mpii", tmp_path / "mpii.json", samples / "mpii")
    refused([alone], f"{tmp_path / 'mpii_gt_val.mat'}: no such file; PCKh needs MPII's head sizes")
    no_sigmas = DataSet(KEYPOINT_SETS["interhand"], COCO_LAYOUT, COCO_METRIC)
    refused([Labels(no_sigmas, labels_of("interhand").people, coco.truth)], "interhand has no OKS sigmas")
    crowd = labels_of("crowdpose")
    del crowd.truth["images"][0]["crowdIndex"]
    refused([crowd], "has crowdIndex None, expected a number")


def test_another_head_box_file_is_refused_in_one_line(samples, tmp_path):
    shutil.copy(samples / FILES["mpii"][1], tmp_path / "mpii.json")
    shutil.copy(samples / "mpii/mpii_gt_val_with_tompson_preds.mat", tmp_path / "mpii_gt_val.mat")  # for 2,958 people
    labels = read_labels("mpii", tmp_path / "mpii.json", samples / "mpii")
    with pytest.raises(ValueError, match=r"got predictions of shape \(5, 16, 2\), expected \(2958, 16, 2\)"):
        score([labels], results_of(labels.people))
    with pytest.raises(ValueError, match=r"got predictions of shape \(5, 16, 2\), expected \(2958, 16, 2\)"):
        check_can_evaluate([labels])


def test_tables():
    text = table({"AP": 0.7512, "AR": 1.0, "APE": -1.0, "EPE": 3.456}, replace(COCO_METRIC, pixels=("EPE",)))
    assert text.split() == ["AP", "75.1", "AR", "100.0", "APE", "-1.0", "EPE", "3.46", "px"]
    assert table({"PCKh": 92.66, "PCKh@0.1": 0.5}, PCKH_METRIC) == "PCKh 92.7      PCKh@0.1 0.5"
    assert table({"AUC": 0.5, "EPE": -1.0}, HAND_METRIC).split() == ["AUC", "50.0", "EPE", "-1.00", "px"]
    lines = table(dict.fromkeys("abcdefghijklm", 0.5), COCO_METRIC).splitlines()
    assert [len(line.split()) // 2 for line in lines] == [6, 6, 1]
