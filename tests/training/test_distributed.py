"""Several processes, started by torchrun, train as one process does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vitpose_fast as vp
from vitpose_fast.training.checkpoint import States
from vitpose_fast.training.synthetic import write_dataset

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("people")
    write_dataset(folder, images=8, seed=5, size=(120, 160))
    return folder


@pytest.fixture
def run(data, tmp_path, root):
    """run(processes, name, *options) -> the folder of a run on 12 people, 6 of them in an update."""

    def start(processes, name, *options, code=0):
        out = tmp_path / name
        files = ["--train", str(data / "annotations.json"), "--train-images", str(data / "images")]
        files += ["--val", str(data / "annotations.json"), "--val-images", str(data / "images")]
        usual = ["--image-size", "64", "48", "--device", "cpu", "--decoder", "simple", "--drop-path", "0.3"]
        usual += ["--batch-size", "6", "--log-every", "1", "--epochs", "3", "--out", str(out), "--no-flip-test"]
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        script = [str(root / "training" / "train.py"), "tiny", *files, *usual, *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *torchrun, *script], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == code, done.stderr[-3000:]
        start.said = done.stderr
        return out

    return start


def curve(out):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [r["loss"] for r in rows if "loss" in r], rows[-1]


def weights(out):
    return vp.load_model(out / "model").state_dict()


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_give_the_loss_curve_of_one(run, parallel):
    alone, last = curve(run(1, "alone"))
    shared, shared_last = curve(run(2, "shared", "--parallel", parallel, "--micro-batch", "2"))
    assert len(alone) == len(shared) == 6
    assert shared == pytest.approx(alone, rel=1e-5)
    assert alone[0] != pytest.approx(alone[3], rel=1e-3)  # it is a curve
    assert shared_last["AP"] == pytest.approx(last["AP"], abs=1e-6)


def test_a_run_goes_on_with_another_number_of_processes(run):
    whole = run(1, "whole")
    run(2, "parts", "--epochs", "3", "--parallel", "fsdp", "--save-every", "2", "--keep", "9")
    folder = whole.parent / "parts"
    for path in States(folder / "states").files():
        if int(path.name[5:13]) > 4:
            path.unlink()
    (folder / "quarantine.jsonl").unlink(missing_ok=True)
    run(1, "parts", "--resume")
    a, b = curve(whole)[0], curve(folder)[0]
    assert a == pytest.approx(b, rel=1e-5) and len(a) == 6
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(folder)[name], value, rtol=0, atol=1e-3)


def test_what_one_process_refuses_all_refuse_in_one_line(run):
    run(2, "small", "--batch-size", "1", code=1)
    assert "vitpose-fast: error: got batch_size=1 for 2 processes, expected one each" in run.said
    assert not (run(1, "other").parent / "small").exists()
