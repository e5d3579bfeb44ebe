"""metrics.jsonl, quarantine.jsonl and the experiment trackers."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from vitpose_training.run.config import TrainConfig
from vitpose_training.run.tracking import (
    Meter,
    MetricsFile,
    Quarantine,
    TensorBoard,
    Wandb,
    memory_in_use,
    start_records,
)


class FakeTracker:
    def __init__(self):
        self.rows, self.closed = [], False

    def write(self, step, values):
        self.rows.append((step, values))

    def close(self):
        self.closed = True


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_resumed_run_writes_no_row_twice(tmp_path):
    path, tracker = tmp_path / "metrics.jsonl", FakeTracker()
    file = MetricsFile(path, 0, [tracker])
    for step in (0, 20, 40):
        file.write({"step": step, "loss": 1.0 / (step + 1), "samples": ["a"]})
    file.write({"step": 30, "score": 0.5, "AP": 0.5})
    file.write({"step": 50, "score": 0.4, "AP": 0.4})
    assert file.best == 0.5 and tracker.rows[0] == (0, {"loss": 1.0})
    file.close()
    assert tracker.closed
    with path.open("a") as cut:
        cut.write('{"step": 60, "lo')  # the machine lost power here
    again = MetricsFile(path, 40)
    assert [r["step"] for r in rows(path)] == [0, 20, 30] and again.best == 0.5
    again.write({"step": 40, "loss": 0.1})
    assert rows(path)[-1] == {"step": 40, "loss": 0.1}
    again.close()
    MetricsFile(path, 0).close()
    assert rows(path) == []


def test_quarantine_names_each_image_once_and_has_a_limit(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    first = Quarantine(path, limit=2)
    first.add_images(3, [("a.jpg", "a.jpg: damaged"), ("a.jpg", "a.jpg: damaged")])
    first.add_step(4, ["f.json: annotation 7 (a.jpg)"], "loss nan")
    again = Quarantine(path, limit=2)  # the run was resumed
    again.add_images(9, [("a.jpg", "a.jpg: damaged"), ("b.jpg", "b.jpg: gone")])
    assert [r.get("image") for r in rows(path)] == ["a.jpg", None, "b.jpg"]
    assert rows(path)[1]["samples"] == ["f.json: annotation 7 (a.jpg)"]
    with pytest.raises(
        ValueError, match=r"3 images cannot be used, more than --max-bad-images 2; the last: c.jpg: gone"
    ):
        again.add_images(10, [("c.jpg", "c.jpg: gone")])


def test_the_meter_measures_since_the_last_row(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    meter = Meter(torch.device("cpu"), flops=2e9, peak=1e12)
    meter.images, now[0] = 50, 105.0
    row = meter.row(waited=1.0)
    assert (row["images_per_s"], row["data_wait"], row["mfu"]) == (10, 0.2, 0.02)
    meter.images, now[0] = 10, 106.0
    assert meter.row(waited=1.5)["data_wait"] == 0.5
    meter.images, now[0] = 30, 109.0  # three seconds, then an evaluation that takes a minute, and another three
    with meter.paused():
        now[0] = 169.0
    now[0] = 172.0
    row = meter.row(waited=4.5)
    assert (row["images_per_s"], row["data_wait"]) == (5, 0.5)
    assert "mfu" not in Meter(torch.device("cpu"), 1.0, None).row(0)
    assert memory_in_use(torch.device("cpu")) > 2**24  # Python and torch alone need more


def test_tensorboard_receives_the_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = TensorBoard(tmp_path, TrainConfig())
    tracker.write(20, {"loss": 0.5})
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(20, 0.5)]


@pytest.mark.parametrize(("kind", "module"), [(TensorBoard, "torch.utils.tensorboard"), (Wandb, "wandb")])
def test_a_missing_package_is_reported_in_one_line(tmp_path, monkeypatch, kind, module):
    monkeypatch.setitem(sys.modules, module, None)
    name = module.split(".")[-1]
    with pytest.raises(ImportError, match=f"--track {name} needs the package {name}: pip install {name}"):
        kind(tmp_path, TrainConfig())


def test_a_missing_tracker_leaves_the_earlier_run_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = TrainConfig(out=tmp_path, overwrite=True, track=("wandb",))
    (tmp_path / "states").mkdir()
    for file in ("states/state-4.pt", "quarantine.jsonl", "config.json", "metrics.jsonl"):
        (tmp_path / file).write_text("old")
    with pytest.raises(ImportError, match="pip install wandb"):
        start_records(config, 0)
    assert {p.read_text() for p in tmp_path.rglob("*") if p.is_file()} == {"old"}
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == 4
