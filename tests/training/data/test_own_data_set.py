"""A user-defined data set with its own layout and metric is read, trained on and scored by the unchanged library.

To add it to the library would take a reader, a metric and a row of the catalog, in three files.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import vitpose_fast as vp
from vitpose_fast.codec import HeatmapCodec
from vitpose_training.data import catalog
from vitpose_training.data.batches import SampleSet, make_batch
from vitpose_training.data.coco import COCO_LAYOUT
from vitpose_training.data.people import DataSet, Labels, Layout, Metric, Person, adjusted, points_of
from vitpose_training.data.read import read_labels
from vitpose_training.evaluation.scores import check_can_evaluate, score, table
from vitpose_training.evaluation.validate import evaluate_labels
from vitpose_training.run.presets import PRESETS
from vitpose_training.run.train import train

PEN = vp.KeypointSet("pen", ("tip", "cap"), (), ((0, 1),), None, ())  # no sigmas, so OKS is not defined for it


def read_pens(data_set, file, folder):
    """Reader of a data set with one pen per line: image, then x and y of the tip and of the cap, in pixels.

    The box has a margin of 10 pixels around both. A line without four numbers is reported and skipped.
    """
    people, problems = [], []
    for number, line in enumerate(file.read_text().splitlines()):
        image, *values = line.split()
        if len(values) != 4:
            problems.append(f"{file}: line {number}: {len(values)} numbers, expected 4")
            continue
        points = np.array(values, np.float32).reshape(2, 2)
        (left, top), (right, bottom) = points.min(0) - 10, points.max(0) + 10
        box = (float(left), float(top), float(right - left), float(bottom - top))
        people.append(Person(folder / image, image, number, 1, box, points, np.ones(2, np.float32), str(file)))
    return Labels(data_set, people, None, len({p.image for p in people}), problems=problems)


def score_pens(files, results):
    """Metric: `tips`, the percentage of all tips found with an error below 3 pixels, and `worst`, the largest error.

    `worst` is in pixels, and -1 without results.
    """
    tips = {person.annotation_id: person.keypoints[0] for labels in files for person in labels.people}
    away = [float(np.linalg.norm(points_of(row)[0] - tips[row["annotation_id"]])) for row in results]
    return {"tips": 100 * sum(d < 3 for d in away) / len(tips), "worst": max(away, default=-1.0)}


PENS = DataSet(
    PEN,
    Layout(read_pens),
    Metric(score_pens, headline="tips", per_cent=True, pixels=("worst",), by_oks=False),
    folder="pens",
    splits={"train": ("train.txt", "images"), "val": ("val.txt", "images")},
    half_body_over=None,
)


@pytest.fixture
def pens(tmp_path):
    """Root folder of data sets that holds one data set of pens: three pens on two images, and a damaged line."""
    folder = tmp_path / "pens"
    (folder / "images").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        pixels = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name)
    text = "a.png 20 20 50 60\na.png 60 30 80\nb.png 30 40 70 45\nb.png 70 60 20 15\n"
    for split in ("train", "val"):
        (folder / f"{split}.txt").write_text(text)
    return tmp_path


def results_of(labels, move=0.0):
    out = []
    for person in labels.people:
        points = np.concatenate([person.keypoints + move, np.ones((2, 1))], 1).flatten().tolist()
        out.append({"image_id": person.image_id, "annotation_id": person.annotation_id, "keypoints": points})
    return out


def test_own_files_are_read(pens):
    file, images = PENS.split(pens, "val")
    labels = read_labels(PENS, file, images)
    assert labels.summary() == "pen: 3 used of 4 entries on 2 images (0 without keypoints, 0 crowds, 1 refused)"
    assert labels.problems == [f"{file}: line 1: 3 numbers, expected 4"]
    assert [p.image.name for p in labels.people] == ["a.png", "b.png", "b.png"]
    assert adjusted(labels, official_boxes=False).people[0].box == labels.people[0].box == (10, 10, 50, 60)
    smaller = replace(PENS, layout=replace(PENS.layout, boxes_lose_a_pixel=True))
    assert adjusted(read_labels(smaller, file, images), official_boxes=False).people[0].box == (10, 10, 51, 61)
    file.write_text("a.png 1 2 3\n")
    with pytest.raises(ValueError, match=r"val\.txt: no person with labeled pen keypoints; the first of 1 problems"):
        read_labels(PENS, file, images)


def test_own_people_become_batches(pens):
    labels = read_labels(PENS, *PENS.split(pens, "train"))
    samples = SampleSet([labels], (64, 48))
    batch = make_batch([samples[0, i, i] for i in range(3)], {"pen": HeatmapCodec(PEN, (64, 48), (16, 12))}, "cpu")
    assert batch.crops.shape == (3, 3, 64, 48) and batch.parts["pen"].keypoints.shape == (3, 2, 2)
    assert bool(batch.parts["pen"].visible.all())


def test_own_metric_scores_results(pens):
    labels = read_labels(PENS, *PENS.split(pens, "val"))
    check_can_evaluate([labels])
    assert score([labels], results_of(labels)) == {"tips": 100.0, "worst": 0.0}
    numbers = score([labels], results_of(labels, 2.0)[1:] + results_of(labels, 30.0)[:1])
    assert numbers == {"tips": pytest.approx(200 / 3), "worst": pytest.approx(30 * 2**0.5)}
    assert table(numbers, PENS.metric).split() == ["tips", "66.7", "worst", "42.43", "px"]


def test_a_model_is_evaluated_on_it(pens):
    """Without sigmas there is no OKS, so similar poses are not suppressed and all of them count."""
    torch.manual_seed(0)
    model = vp.create_model("vitpose-tiny", tasks=(PEN,), image_size=(64, 48), depth=1)
    labels = read_labels(PENS, *PENS.split(pens, "val"))
    metrics, results, problems = evaluate_labels(model, [labels], flip_test=False)
    assert set(metrics) == {"tips", "worst"} and metrics == score([labels], results)
    assert [row["annotation_id"] for row in results] == [0, 2, 3] and problems == []


def test_own_metric_keeps_equal_detections(pens, tmp_path):
    """Detections are possible with COCO files. If the metric does not use OKS, no detection is suppressed."""
    count_all = Metric(lambda files, results: {"found": float(len(results))}, headline="found", by_oks=False)
    row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 50, 60], "keypoints": [20, 20, 2, 50, 60, 2]}
    image = {"id": 1, "file_name": "a.png", "width": 100, "height": 80}
    (tmp_path / "pens.json").write_text(json.dumps({"images": [image], "annotations": [row]}))
    own = DataSet(PEN, COCO_LAYOUT, count_all)
    labels = read_labels(own, tmp_path / "pens.json", pens / "pens" / "images")
    model = vp.create_model("vitpose-tiny", tasks=(PEN,), image_size=(64, 48), depth=1)
    twice = [{"image_id": 1, "bbox": [10, 10, 50, 60]}] * 2
    metrics, results, problems = evaluate_labels(model, [labels], detections=twice, flip_test=False)
    assert metrics == {"found": 2.0} and len(results) == 2 and problems == []


def test_a_model_is_trained_on_it(pens, tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "DATA_SETS", {**catalog.DATA_SETS, "pen": PENS})  # a row of the catalog
    config = replace(
        PRESETS["tiny"][1], tasks=("pen",), data=pens, out=tmp_path / "run", image_size=(64, 48), batch_size=3,
        epochs=1, device="cpu",
    )  # fmt: skip
    metrics, problems = train(config)
    assert set(metrics) == {"tips", "worst"} and 0 <= metrics["tips"] <= 100
    assert [p.rpartition("/")[2] for p in problems] == [
        "train.txt: line 1: 3 numbers, expected 4",
        "val.txt: line 1: 3 numbers, expected 4",
    ]
    assert (tmp_path / "run" / "best").is_dir() and (tmp_path / "run" / "model").is_dir()
