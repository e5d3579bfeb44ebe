"""Training in several processes, started by torchrun, gives the results of a single process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

import vitpose_fast as vp
from vitpose_training.run.checkpoint import States

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")


@pytest.fixture
def run(data, tmp_path, root):
    """run(processes, name, *options, code=0, restarts=0, **more): train with torchrun; return the folder of the run.

    It trains for 3 epochs on 12 people with batch size 6. `code` is the expected exit code, `restarts` the restarts
    that torchrun may do, and `more` are environment variables. The standard error is in `run.said`.
    """

    def start(processes, name, *options, code=0, restarts=0, **more):
        out = tmp_path / name
        files = ["--train", str(data / "annotations.json"), "--train-images", str(data / "images")]
        files += ["--val", str(data / "annotations.json"), "--val-images", str(data / "images")]
        usual = ["--image-size", "64", "48", "--device", "cpu", "--decoder", "simple", "--drop-path", "0.3"]
        usual += ["--batch-size", "6", "--log-every", "1", "--epochs", "3", "--out", str(out), "--no-flip-test"]
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        torchrun += ["--max-restarts", str(restarts)]
        script = [str(root / "training" / "train.py"), "tiny", *files, *usual, *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **more}
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


def norms(out):
    """Of the gradient of each update, before it is clipped; AdamW would forgive a wrong factor."""
    return [r["norm"] for line in (out / "metrics.jsonl").read_text().splitlines() if "norm" in (r := json.loads(line))]


def weights(out):
    return vp.load_model(out / "model").state_dict()


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_give_the_loss_curve_of_one(run, tmp_path, parallel):
    alone, last = curve(run(1, "alone"))
    shared, shared_last = curve(run(2, "shared", "--parallel", parallel, "--micro-batch", "2"))
    assert len(alone) == len(shared) == 6
    assert shared == pytest.approx(alone, rel=1e-5)
    assert alone[0] != pytest.approx(alone[3], rel=1e-3)  # the loss does change
    assert shared_last["AP"] == pytest.approx(last["AP"], abs=1e-6)
    assert norms(tmp_path / "shared") == pytest.approx(norms(tmp_path / "alone"), rel=1e-3)


def test_a_run_resumes_with_another_number_of_processes(run):
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


def test_bad_inputs_are_refused_in_one_line_by_all_processes(run):
    """Whether every process notices the error or only rank 0 does; and also when torchrun tries a second time."""
    run(2, "small", "--batch-size", "1", code=1)
    message = "got batch_size=1 for 2 processes, expected at least one sample per process"
    assert f"vitpose-fast: error: {message}" in run.said
    out = run(1, "taken", "--epochs", "1")
    before = (out / "metrics.jsonl").read_bytes()
    run(2, "taken", "--epochs", "1", code=1, restarts=1)
    assert run.said.count(f"vitpose-fast: error: {out}: already holds a run; pass --resume to continue it") >= 2
    assert 'train.py", line' not in run.said and (out / "metrics.jsonl").read_bytes() == before


def test_a_restart_by_torchrun_resumes_the_run(run, tmp_path, python_path):
    """One process is killed at the sixth step and torchrun ends the other; the restart resumes from the last state."""
    (tmp_path / "sitecustomize.py").write_text(KILLER)
    whole = run(2, "whole")
    environment = {"PYTHONPATH": python_path(tmp_path), "KILL_ONCE": str(tmp_path / "killed")}
    parts = run(2, "parts", "--save-every", "2", restarts=1, **environment)
    assert (tmp_path / "killed").exists()
    assert curve(whole)[0] == curve(parts)[0] and len(curve(parts)[0]) == 6
    assert all(torch.equal(v, weights(whole)[k]) for k, v in weights(parts).items())


KILLER = """
import os, signal, sys
victim = "train.py" in " ".join(sys.orig_argv) and os.environ.get("RANK") == "1"
if victim and not os.path.exists(os.environ["KILL_ONCE"]):
    import vitpose_training.run.step as step
    real = step.Updater.__call__
    def call(self, number, *args):
        if number == 5:
            open(os.environ["KILL_ONCE"], "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, number, *args)
    step.Updater.__call__ = call
"""


def test_bad_images_of_all_processes_are_named_in_one_file(run, data, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(data / "images", images)
    broken = sorted(images.iterdir())[:3]
    for path in broken:
        path.write_bytes(b"broken")
    out = run(2, "broken", "--train-images", str(images))  # exit code 0, because torchrun would restart on 1
    named = [json.loads(line)["image"] for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(named) == sorted(map(str, broken)) and run.said.count("skipped: ") == 3
    run(2, "strict", "--train-images", str(images), "--max-bad-images", "1", code=1)
    assert "images cannot be used, more than --max-bad-images 1" in run.said and 'train.py", line' not in run.said
