"""The options of a run reach its samples and evaluations, and the model with the best score is kept."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import vitpose_fast as vp
from vitpose_training.distributed import World
from vitpose_training.evaluation.validate import evaluate_labels
from vitpose_training.run.checkpoint import States
from vitpose_training.run.config import TrainConfig
from vitpose_training.run.inputs import read_inputs
from vitpose_training.run.optim import OptimizerConfig, ScheduleConfig
from vitpose_training.run.presets import PRESETS
from vitpose_training.run.train import train

CPU = World(torch.device("cpu"))


@pytest.fixture
def small(data, tmp_path) -> TrainConfig:
    files = dict.fromkeys(("train", "val"), (data / "annotations.json",))
    folders = dict.fromkeys(("train_images", "val_images"), (data / "images",))
    sizes = dict(model="vitpose-tiny", image_size=(64, 48), batch_size=6, epochs=2, workers=0, device="cpu")
    return TrainConfig(out=tmp_path / "run", **files, **folders, **sizes)


def test_evaluations_in_training_use_the_flip_test(small, monkeypatch):
    """It is the default, as in the paper, and it reaches the predictor."""
    assert small.flip_test and all(c.flip_test for name, (_, c) in PRESETS.items() if name != "overfit")
    seen = []

    class Seen(vp.PosePredictor):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            seen.append(self.flip_test)

    monkeypatch.setattr("vitpose_training.evaluation.validate.PosePredictor", Seen)
    for flip_test in (True, False):
        train(replace(small, dry_run=True, flip_test=flip_test))
    assert seen == [True, False]


def test_boxes_and_blur_reach_the_evaluations_of_a_run(small, tmp_path, monkeypatch):
    seen = []

    def spy(model, labels, **options):
        seen.append((options["detections"], options["flip_test"], options["blur_kernel"]))
        return evaluate_labels(model, labels, **options)

    monkeypatch.setattr("vitpose_training.run.loop.evaluate_labels", spy)
    train(replace(small, dry_run=True))
    boxes = tmp_path / "boxes.json"
    found = json.loads(small.val[0].read_text())["annotations"]
    boxes.write_text(json.dumps([{"image_id": a["image_id"], "bbox": a["bbox"], "score": 0.5} for a in found]))
    train(replace(small, dry_run=True, boxes=boxes, blur_kernel=5))
    assert seen == [(None, True, 11), (boxes, True, 5)]


def test_samples_vary_unless_told_otherwise(small):
    def widths(config):
        samples = read_inputs(config, CPU).samples
        return {float(samples[epoch, 0, 0].view["scale"][0]) for epoch in range(8)}

    assert len(widths(small)) > 4 and len(widths(replace(small, augment=False))) == 1


def test_boxes_of_training_and_evaluation_lose_a_pixel_unless_told_otherwise(small):
    usual, whole = (read_inputs(replace(small, official_boxes=official), CPU) for official in (True, False))
    assert read_inputs(small, CPU).labels[0].people[0].box == usual.labels[0].people[0].box
    for a, b in ((usual.labels, whole.labels), (usual.val, whole.val)):
        sizes = [np.array([p.box[2:] for p in labels[0].people]) for labels in (a, b)]
        np.testing.assert_allclose(sizes[1] - sizes[0], 1)
    annotated = json.loads(small.val[0].read_text())["annotations"][0]["bbox"]
    assert usual.val[0].people[0].box[2] <= annotated[2] - 1 + 1e-6


@pytest.mark.parametrize(("scores", "last_is_best"), [((0.2, 0.1), False), ((0.1, 0.2), True)])
def test_the_best_model_is_the_one_with_the_best_score(small, monkeypatch, scores, last_is_best):
    left = list(scores)
    monkeypatch.setattr("vitpose_training.run.loop.evaluate_labels", lambda *_, **__: ({"AP": left.pop(0)}, [], []))
    train(replace(small, eval_every=1))
    assert left == []
    best, last = (vp.load_model(small.out / name).state_dict() for name in ("best", "model"))
    name = "backbone.blocks.0.attn.qkv.weight"
    assert torch.equal(best[name], last[name]) == last_is_best


def test_the_averaged_weights_are_evaluated_and_saved(small, monkeypatch):
    name, left, seen = "backbone.blocks.0.attn.qkv.weight", [0.2, 0.1], []

    def spy(model, *_, **__):
        seen.append(model.state_dict()[name].clone())
        return {"AP": left.pop(0)}, [], []

    monkeypatch.setattr("vitpose_training.run.loop.evaluate_labels", spy)
    train(replace(small, eval_every=1, ema=0.5, save_every=1, keep=9))
    states = [torch.load(path) for path in States(small.out / "states").files()]
    averages = {state["step"]: state["ema"]["average"][name] for state in states}
    steps = sorted(averages)
    first, last = averages[steps[len(steps) // 2 - 1]], averages[steps[-1]]  # after one epoch and after two
    assert not any(torch.equal(state["ema"]["average"][name], state["model"][name]) for state in states)
    assert torch.equal(seen[0], first) and torch.equal(seen[1], last)
    for folder, expected in (("best", first), ("model", last)):
        assert torch.equal(vp.load_model(small.out / folder).state_dict()[name], expected)


def test_every_optimizer_step_uses_the_scheduled_learning_rate(small):
    """12 people in batches of 6, twice: a warm-up of two updates, then a tenth of the rate from half of the run on."""
    config = replace(small, optimizer=OptimizerConfig(lr=1e-3), schedule=ScheduleConfig((0.5,), warmup=2))
    train(replace(config, log_every=1, val=(), val_images=()))
    rows = [json.loads(line) for line in (small.out / "metrics.jsonl").read_text().splitlines()]
    assert [row["lr"] for row in rows] == pytest.approx([1e-6, 5.005e-4, 1e-4, 1e-4])
