"""Evaluation: damaged rows are reported and left out, several categories and files are supported, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitpose_fast as vp
from vitpose_fast.__main__ import main
from vitpose_training.data.read import read_labels
from vitpose_training.distributed import World
from vitpose_training.evaluation.validate import ValidateConfig, evaluate, evaluate_labels

COCO = vp.KEYPOINT_SETS["coco"]
NAN = float("nan")


def person(id, image_id, **changes):
    keypoints = [v for i in range(17) for v in (10 + 3 * i, 20 + 2 * i, 2)]
    row = {"id": id, "image_id": image_id, "category_id": 1, "bbox": [5, 5, 60, 50], "area": 2000.0}
    return {**row, "iscrowd": 0, "num_keypoints": 17, "keypoints": keypoints, **changes}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return vp.create_model("vitpose-tiny", image_size=(64, 48), depth=1)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Change to a directory with images/1.png to 3.png, 80 pixels wide and 60 high.

    The fixture is a function write(annotations, name="annotations.json", width=80, **more) that writes an annotation
    file and returns the sources for `evaluate`. `width` is the image width in the file, and `more` adds fields.
    """
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    for i in (1, 2, 3):
        pixels = np.random.default_rng(i).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"images/{i}.png")

    def write(annotations, name="annotations.json", width=80, **more):
        images = [{"id": i, "file_name": f"{i}.png", "width": width, "height": 60} for i in (1, 2, 3)]
        Path(name).write_text(json.dumps({"images": images, "annotations": annotations, **more}))
        return [(Path(name), Path("images"))]

    return write


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(["validate", "--weights", "weights", "--annotations", "annotations.json", "--images", "images", *args])
    return done.value.code


def test_results_carry_the_category_and_image_of_their_box(data, model):
    sources = data([person(1, 1, category_id=26), person(2, 1, category_id=22), person(3, 2, category_id=22)])
    _, results, problems = evaluate(model, sources)
    assert problems == []
    assert [(r["image_id"], r["category_id"]) for r in results] == [(1, 26), (1, 22), (2, 22)]


def test_damaged_ground_truth_is_reported_and_left_out(data, model):
    broken = person(2, 2)
    broken["keypoints"][0] = NAN
    good = [person(1, 1), person(3, 3)]
    metrics, results, problems = evaluate(model, data([good[0], broken, good[1]]))
    assert len(problems) == 1 and "annotations.json: annotation 1 (id 2): keypoints" in problems[0]
    assert [r["image_id"] for r in results] == [1, 3]
    assert (metrics, results, []) == evaluate(model, data(good))


def test_only_boxes_outside_the_image_are_left_out(data, model):
    rows = [person(1, 1), person(2, 1, bbox=[90, 5, 30, 30]), person(3, 2)]
    _, results, problems = evaluate(model, data(rows, width=200))  # the image on disk is 80 wide
    assert [r["image_id"] for r in results] == [1, 2]
    assert problems == ["images/1.png: box [90.0, 5.0, 29.0, 29.0] lies outside the 80x60 image"]
    found = [{"image_id": 1, "bbox": box, "score": 0.5} for box in ([5, 5, 60, 50], [5, 80, 9, 9])]
    _, results, problems = evaluate(model, data(rows[:1]), detections=found)
    assert [r["box"] for r in results] == [[5, 5, 60, 50]]
    assert problems == ["images/1.png: box [5, 80, 9, 9] lies outside the 80x60 image"]


def test_broken_images_count_as_missed(data, model):
    sources = data([person(1, 1), person(2, 2)])
    Path("images/1.png").write_bytes(b"broken")
    Path("images/3.png").write_bytes(b"broken, but nobody is on it")
    metrics, results, problems = evaluate(model, sources)
    assert [r["image_id"] for r in results] == [2] and metrics["AR"] <= 0.5
    assert len(problems) == 1 and "images/1.png: not an image" in problems[0]


def test_only_detections_of_annotated_images_and_categories_count(data, model):
    sources = data([person(1, 1, category_id=4), person(2, 2, category_id=4)], categories=[{"id": 4}])
    box = [5, 5, 60, 50]
    found = [
        {"image_id": 1, "category_id": 4, "bbox": box, "score": 0.7},
        {"image_id": 1, "category_id": 9, "bbox": [40, 20, 30, 30], "score": 0.9},  # another category
        {"image_id": 77, "category_id": 4, "bbox": box},  # on an image without annotations
        {"image_id": 2, "bbox": box},
        {"image_id": 2, "bbox": box, "score": None},
        {"file_name": "3.png", "bbox": box, "score": 0.2},
    ]
    Path("boxes.json").write_text(json.dumps(found))
    _, results, problems = evaluate(model, sources, detections=Path("boxes.json"))
    assert [(r["image_id"], r["category_id"]) for r in results] == [(1, 4), (2, 4), (3, 4)]
    np.testing.assert_allclose([r["box_score"] for r in results], [0.7, 1.0, 0.2], rtol=1e-6)
    assert problems == ["boxes.json: detection 4: score is None, expected a finite number"]
    with pytest.raises(ValueError, match="none of the 1 detections is for one of the 3 annotated images"):
        evaluate(model, sources, detections=found[2:3])
    with pytest.raises(ValueError, match="got detections for 2 annotation files"):
        evaluate(model, sources * 2, detections=found)
    metrics, results, problems = evaluate(model, sources, detections=[])
    assert results == [] and problems == [] and metrics["AP"] == 0 and metrics["APL"] == -1


def test_several_files_are_one_data_set(data, model):
    first = data([person(1, 1), person("x", 2)], "first.json")
    second = data([person(1, 1), person(2, 3, bbox=None)], "second.json", categories=[{"id": 1}])
    _, results, problems = evaluate(model, first + second)
    assert len({r["image_id"] for r in results}) == 3 and len(results) == 3
    assert len(problems) == 1 and "second.json: annotation 1 (id 2)" in problems[0]


@pytest.mark.parametrize(
    ("file", "name", "images", "main_score"),
    [
        ("coco/test_coco", "coco", None, "AP"),
        ("coco-wholebody/test_coco_wholebody", "wholebody", "coco", "lefthand AP"),
        ("aic/test_aic", "aic", None, "AIC score"),
        ("crowdpose/test_crowdpose", "crowdpose", None, "APH"),
        ("ap10k/test_ap10k", "ap10k", None, "AP"),
        ("ochuman/test_ochuman", "ochuman", None, "AP"),
        ("mpii/test_mpii", "mpii", None, "PCKh"),
        ("interhand2.6m/test_interhand2.6m_data", "interhand", None, "AUC"),
    ],
)
def test_sample_data_sets_evaluate(samples, file, name, images, main_score):
    model = vp.create_model("vitpose-tiny", tasks=(name,), image_size=(64, 48), depth=1)
    folder = images or str(Path(file).parent)
    people = read_labels(name, samples / f"{file}.json", samples / folder).people
    metrics, results, problems = evaluate(model, [(samples / f"{file}.json", samples / folder)], flip_test=False)
    missing = {p.split(":")[0] for p in problems}
    found = [p for p in people if str(p.image) not in missing]
    assert sorted(str(r["annotation_id"]) for r in results) == sorted(str(p.annotation_id) for p in found)
    assert len(found) == len(people) and all(np.isfinite(value) for value in metrics.values())
    assert main_score in metrics


class Constant(torch.nn.Module):
    """A head that returns the same heatmaps [K, h, w] for every sample."""

    def __init__(self, maps):
        super().__init__()
        self.maps = maps

    def forward(self, features):
        return self.maps.expand(len(features), -1, -1, -1)


def test_crops_of_a_data_set_are_the_same_as_in_training(samples):
    """MPII's boxes are stretched and InterHand's padded by 1.5. A fixed heatmap peak shows where the crop lies."""
    for name, file in {"mpii": "mpii/test_mpii", "interhand": "interhand2.6m/test_interhand2.6m_data"}.items():
        model = vp.create_model("vitpose-tiny", (name,), "minimal", (64, 48), depth=1).eval()
        height, width = model.config.heatmap_size

        maps = torch.zeros(vp.KEYPOINT_SETS[name].num_keypoints, height, width)
        maps[:, height // 4, width // 4] = 1.0
        model.heads[name] = Constant(maps)
        labels = read_labels(name, samples / f"{file}.json", samples / Path(file).parent)
        _, results, _ = evaluate_labels(model, [labels], flip_test=False)
        by_id = {row["annotation_id"]: np.array(row["keypoints"])[:2] for row in results}
        for person in labels.people:
            x, y, w, h = person.box
            size = np.array([w, h]) * (1.0 if name == "mpii" else 1.5)
            if name == "interhand":
                size = np.array([max(size[0], size[1] * 0.75), max(size[1], size[0] / 0.75)])
            cells = np.array([width - 1, height - 1]) if name == "mpii" else np.array([width, height])
            place = np.array([width // 4, height // 4])
            expected = np.array([x + w / 2, y + h / 2]) - size / 2 + size * place / cells
            np.testing.assert_allclose(by_id[person.annotation_id], expected, atol=0.02 * size.max() + 1e-3)
            assert row_area(results, person) == pytest.approx(size.prod(), rel=1e-5)


def row_area(results, person):
    return next(row["area"] for row in results if row["annotation_id"] == person.annotation_id)


def test_mpii_is_not_evaluated_with_detections(data, samples):
    model = vp.create_model("vitpose-tiny", ("mpii",), image_size=(64, 48), depth=1)
    with pytest.raises(ValueError, match="mpii is evaluated with its annotated boxes, got detections"):
        evaluate(model, [(samples / "mpii/test_mpii.json", samples / "mpii")], detections=[])


def test_a_head_with_other_keypoints_is_refused(data, model):
    sources = data([person(1, 1)])
    with pytest.raises(ValueError, match="the head aic has 14 keypoints, but coco has 17 different ones"):
        other = vp.create_model("vitpose-tiny", ("aic",), image_size=(64, 48), depth=1)
        evaluate_labels(other, [read_labels("coco", *sources[0])])


def test_command_reports_each_problem_once_and_exits_with_1(data, model, capsys):
    vp.save_model(model, "weights")
    data([person(1, 1), person(2, 2)])
    assert run("--out", "results") == 0
    assert "skipped" not in capsys.readouterr().err
    assert [r["image_id"] for r in json.loads(Path("results/keypoints.json").read_text())] == [1, 2]
    written = json.loads(Path("results/results.json").read_text())
    assert written["metrics"]["AP"] >= 0 and sum(written["mistakes"]["nose"].values()) == 2
    with Image.open("results/worst.png") as picture:
        assert np.array(picture).std() > 10
    data([person(1, 1), *(person(i, 2, bbox=None) for i in range(10, 40))])
    assert run() == 1
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if "skipped: " in line]
    assert len(lines) == 21 and "annotation 1 (id 10)" in lines[0] and lines[-1].endswith("skipped: 10 more problems")
    assert "AP " in shown.out and "Traceback" not in shown.err


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({"annotations.json": "[]"}, (), "annotations.json: no list 'images'"),
        ({"annotations.json": "{"}, (), "annotations.json: not readable as JSON"),
        ({"boxes.json": "3"}, ("--boxes", "boxes.json"), "boxes.json: expected a JSON list of detections"),
        ({"boxes.json": "[3]"}, ("--boxes", "boxes.json"), "boxes.json: no usable detection among 1"),
        ({}, ("--boxes", "gone.json"), "gone.json: no such file"),
        ({}, ("--device", "gpu"), "device 'gpu' cannot be used"),
    ],
)
def test_failures_print_one_line(data, model, capsys, files, options, message):
    vp.save_model(model, "weights")
    data([person(1, 1)])
    for name, text in files.items():
        Path(name).write_text(text)
    assert run(*options) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]


def test_a_metric_that_fails_on_rank_0_fails_everywhere(data, model):
    """Else the other ranks would wait for numbers that never come."""

    class RankOne(World):
        def gather(self, value):
            heard.append(value)
            return ["rank 0 cannot score" if value is None else value, value]

    heard: list = []
    labels = [read_labels("coco", *data([person(1, 1)])[0])]
    with pytest.raises(ValueError, match="rank 0 cannot score"):
        evaluate_labels(model, labels, world=RankOne(torch.device("cpu"), rank=1, size=2))
    assert heard[-1] is None  # this rank did not fail itself


@pytest.fixture
def exact(data):
    """(model, people of `people_on`): a model that finds every keypoint of these people exactly, with a score of 1.

    Their box is 33x44 once it has lost its pixel, 41.25x55 with 1.25 of padding; the 17 keypoints lie on cell (3, 4) of
    the 12x16 heatmap, which is 3 * 41.25 / 11 and 4 * 55 / 15 from the corner of the crop.
    """
    model = vp.create_model("vitpose-tiny", decoder="minimal", image_size=(64, 48), depth=1).eval()
    maps = torch.zeros(17, 16, 12)
    maps[:, 4, 3] = 1.0
    model.heads["coco"] = Constant(maps)
    x, y = 26.5 - 41.25 / 2 + 3 * 41.25 / 11, 27 - 55 / 2 + 4 * 55 / 15

    def people_on(*images):
        changes = dict(bbox=[10, 5, 34, 45], keypoints=[x, y, 2] * 17)
        return data([person(i, image, **changes) for i, image in enumerate(images)])

    return model, people_on


def test_detections_that_find_a_person_twice_count_once(exact):
    model, people_on = exact
    sources, box = people_on(1, 2, 3), [10, 5, 33, 44]
    found = [{"image_id": i, "bbox": box, "score": score} for i, score in ((1, 0.9), (2, 0.7), (3, 0.5))]
    again = [{**row, "score": row["score"] - 0.1} for row in found]
    once, rows, _ = evaluate(model, sources, detections=found)
    assert once["AP"] == once["AR"] == pytest.approx(1)
    twice, kept, problems = evaluate(model, sources, detections=found + again)
    assert twice == once and kept == rows and problems == []


def test_annotated_people_in_one_place_count_once(exact):
    """One of their two equal poses is suppressed, so one of two people is missed; the results still hold both."""
    model, people_on = exact
    assert evaluate(model, people_on(1, 2))[0]["AR"] == pytest.approx(1)
    metrics, results, problems = evaluate(model, people_on(1, 1))
    assert metrics["AR"] == pytest.approx(0.5) and len(results) == 2 and problems == []


def test_an_evaluation_averages_with_the_mirror_image_and_blurs_by_11_unless_told_otherwise(data, model):
    sources = data([person(1, 1), person(2, 2)])
    for weight in model.heads.parameters():  # an untrained head is too flat to be blurred
        torch.nn.init.normal_(weight, std=0.2)
    usual = evaluate(model, sources)[1]
    assert usual == evaluate(model, sources, flip_test=True, blur_kernel=11)[1]
    assert usual != evaluate(model, sources, flip_test=False)[1] and usual != evaluate(model, sources, blur_kernel=9)[1]


@pytest.mark.parametrize(
    ("flags", "expected", "box"),
    [
        ((), (True, 64, 11), (5, 5, 59, 49)),
        (("--no-flip-test", "--batch-size", "7", "--blur-kernel", "5"), (False, 7, 5), (5, 5, 59, 49)),
        (("--no-official-boxes",), (True, 64, 11), (5, 5, 60, 50)),
    ],
)
def test_the_command_evaluates_as_the_paper_does_unless_told_otherwise(data, model, monkeypatch, flags, expected, box):
    seen = []

    def spy(model, labels, task, boxes, *options, progress):
        seen.append((options, labels[0].people[0].box))
        return evaluate_labels(model, labels, task, boxes, *options)

    monkeypatch.setattr("vitpose_training.evaluation.validate.evaluate_labels", spy)
    vp.save_model(model, "weights")
    data([person(1, 1)])
    assert run(*flags) == 0
    assert seen == [(expected, box)]


def test_options_of_the_command_are_those_of_the_released_evaluations():
    """A split of validation, all boxes a pixel smaller than annotated, MPII's crops stretched."""
    usual = ValidateConfig(weights="w")
    assert (usual.split, usual.official_boxes, usual.mpii_stretch, usual.boxes) == ("val", True, True, None)
