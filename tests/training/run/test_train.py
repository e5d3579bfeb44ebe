"""Whole training runs: they learn, resume exactly, report bad inputs, and write the documented files."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import vitpose_fast as vp
from vitpose_fast.__main__ import main as front_door
from vitpose_fast.checkpoints import save_official
from vitpose_training.data.batches import make_batch
from vitpose_training.data.catalog import DATA_SETS
from vitpose_training.demo.synthetic import write_dataset
from vitpose_training.evaluation.validate import evaluate
from vitpose_training.run.checkpoint import States
from vitpose_training.run.config import TrainConfig
from vitpose_training.run.optim import lr_factor
from vitpose_training.run.presets import PRESETS
from vitpose_training.run.starting_model import build_model
from vitpose_training.run.train import train


@pytest.fixture
def small(data, tmp_path) -> TrainConfig:
    return replace(
        PRESETS["tiny"][1],
        out=tmp_path / "run",
        train=(data / "annotations.json",),
        train_images=(data / "images",),
        val=(data / "annotations.json",),
        val_images=(data / "images",),
        image_size=(64, 48),
        batch_size=4,
        epochs=2,
        device="cpu",
        drop_path=0.2,
    )


def weights(run: Path) -> dict[str, torch.Tensor]:
    return vp.load_model(run / "model").state_dict()


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_writes_the_documented_files(small, capsys):
    metrics, problems = train(small)
    assert problems == []
    out = small.out
    assert {p.name for p in out.iterdir()} == {"best", "config.json", "states", "metrics.jsonl", "model"}
    assert json.loads((out / "config.json").read_text())["model"] == "vitpose-tiny"
    assert {"step", "loss", "norm", "lr", "images_per_s", "data_wait", "memory_mib", "seconds"} <= set(rows(out)[0])
    assert rows(out)[-1]["AP"] == rows(out)[-1]["score"] == metrics["AP"]
    model = vp.load_model(out / "model")
    sources = [(a, i) for _, a, i in small.sources("val")]
    assert evaluate(model, sources, flip_test=small.flip_test)[0] == metrics
    assert "coco: 12 used of 12 entries on 8 images" in capsys.readouterr().out


def test_a_dry_run_makes_two_steps_and_leaves_no_files(small, monkeypatch):
    steps = []
    monkeypatch.setattr("vitpose_training.run.loop.set_lr", lambda *args: steps.append(args))
    metrics, problems = train(replace(small, dry_run=True, epochs=500))
    assert len(steps) == 2 and "AP" in metrics and problems == []
    assert not small.out.exists() and list(small.out.parent.glob("dry-run*")) == []


def test_the_averaged_weights_are_evaluated_and_saved(small):
    config = replace(small, ema=0.9, epochs=4)
    metrics, _ = train(config)
    state = torch.load(States(small.out / "states").last())
    averaged, last = state["ema"]["average"], state["model"]
    saved = weights(small.out)
    name = "backbone.blocks.0.attn.qkv.weight"
    assert torch.equal(saved[name], averaged[name]) and not torch.equal(saved[name], last[name])
    model = vp.load_model(small.out / "model")
    assert evaluate(model, [(a, i) for _, a, i in small.sources("val")])[0] == metrics


def test_recomputation_changes_weights_only_by_rounding(small):
    """Recomputation watches the registered ops, while a plain run on a CPU computes without them (see `eager.py`)."""
    train(replace(small, epochs=1, val=(), out=small.out / "plain"))
    train(replace(small, epochs=1, val=(), out=small.out / "again", recompute="most", micro_batch=4))
    a, b = weights(small.out / "plain"), weights(small.out / "again")
    for k in a:
        torch.testing.assert_close(a[k], b[k], rtol=1e-4, atol=1e-6)


def test_a_compiled_run_differs_only_by_rounding(small):
    """The compiled graph contains the backbone, drop path and recomputation."""
    config = replace(small, epochs=1, val=(), recompute="norm", log_every=1, decoder="simple")
    train(replace(config, out=small.out / "plain"))
    train(replace(config, out=small.out / "compiled", compile=True))
    a, b = ([row["loss"] for row in rows(small.out / name)] for name in ("plain", "compiled"))
    assert a == pytest.approx(b, rel=1e-4) and len(a) == 3


def test_running_out_of_memory_says_what_to_lower(small, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")

    message = r"out of memory with 3 samples at once per process; lower --micro-batch, raise --recompute \(now norm\)"
    for place in ("torch.optim.AdamW.step", "vitpose_training.data.feeder.make_batch"):
        with monkeypatch.context() as patch:
            patch.setattr(place, fail)
            with pytest.raises(ValueError, match=message):
                train(replace(small, val=(), micro_batch=3, recompute="norm", overwrite=True))


def test_an_interrupted_evaluation_is_repeated_on_resume(small, monkeypatch):
    def kill(*_, **__):
        raise KeyboardInterrupt

    config = replace(small, epochs=3, eval_every=1)
    with monkeypatch.context() as patch:
        patch.setattr("vitpose_training.run.loop.evaluate_labels", kill)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert not any("score" in row for row in rows(small.out))
    train(replace(config, resume=True))
    assert [row["step"] for row in rows(small.out) if "score" in row] == [3, 6, 9]
    train(replace(config, resume=True))  # the run is already finished
    assert [row["step"] for row in rows(small.out) if "score" in row] == [3, 6, 9]


def test_sigterm_saves_and_stops(small, monkeypatch):
    whole = replace(small, out=small.out / "whole", val=(), epochs=4)
    train(whole)
    parts = replace(small, out=small.out / "parts", val=(), epochs=4)
    count = []

    def warn(*args):
        count.append(args)
        if len(count) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return lr_factor(*args)

    with monkeypatch.context() as patch:
        patch.setattr("vitpose_training.run.loop.lr_factor", warn)
        with pytest.raises(InterruptedError, match="stopped by a signal after step 5; pass --resume to continue"):
            train(parts)
    assert torch.load(States(parts.out / "states").last())["step"] == 5  # in the middle of the second epoch
    train(replace(parts, resume=True))
    a, b = weights(whole.out), weights(parts.out)
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    ("ending", "error"),
    [("nothing", None), ("sigterm", InterruptedError), ("interrupt", KeyboardInterrupt), ("failure", OSError)],
)
def test_whatever_ends_a_run_its_workers_end_with_it(small, monkeypatch, ending, error):
    seen = []

    def during_an_update(*args):
        seen.append(len(multiprocessing.active_children()))
        if ending == "sigterm":
            os.kill(os.getpid(), signal.SIGTERM)
        elif error is not None:
            raise error
        return lr_factor(*args)

    monkeypatch.setattr("vitpose_training.run.loop.lr_factor", during_an_update)
    config = replace(small, epochs=1, val=(), workers=2)
    held = None  # keep the error: its traceback keeps the frames of the run, and so its data loader, alive
    try:
        train(config)
    except (InterruptedError, KeyboardInterrupt, OSError) as raised:
        held = raised
    assert type(held) is (error or type(None))
    assert seen[0] == 2 and multiprocessing.active_children() == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_ten_interruptions_with_any_number_of_workers_change_no_bit(small, tmp_path):
    """A run is killed at random times and resumed with 0, 2 or 4 workers; it equals an uninterrupted run."""
    config = replace(small, val=(), epochs=12, save_every=2, log_every=1, ema=0.9, micro_batch=3)
    whole, parts = (replace(config, out=tmp_path / name) for name in ("whole", "parts"))
    train(whole)
    rng, killed = random.Random(1), 0
    finished = False
    while not finished:
        resume = bool(States(parts.out / "states").files())
        workers = (0, 2, 4)[killed % 3]
        child = os.fork()
        if child == 0:
            code = 1
            try:
                train(replace(parts, resume=resume, overwrite=not resume, workers=workers))
                code = 0
            finally:
                os._exit(code)
        if killed < 10:
            time.sleep(rng.uniform(0.3, 0.9))
            os.kill(child, signal.SIGKILL)
            killed += 1
        _, status = os.waitpid(child, 0)
        finished = status == 0
        assert finished or os.WIFSIGNALED(status)
    a, b = weights(whole.out), weights(parts.out)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert [(r["step"], r["loss"]) for r in rows(whole.out)] == [(r["step"], r["loss"]) for r in rows(parts.out)]


def test_a_run_is_not_replaced_or_continued_as_another(small):
    train(replace(small, epochs=1, val=()))
    before = (small.out / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match="already holds a run; pass --resume to continue it or --overwrite to replace"):
        train(small)
    with pytest.raises(ValueError, match=r"cannot resume with another optimizer.lr: it was 0.0015, it is now 0.1"):
        train(replace(small, epochs=1, val=(), resume=True, optimizer=replace(small.optimizer, lr=0.1)))
    assert (small.out / "metrics.jsonl").read_text() == before
    train(replace(small, epochs=1, val=(), overwrite=True))


def test_training_lowers_the_loss(small):
    train(replace(small, epochs=12, augment=False, val=(), drop_path=0.0, log_every=1))
    losses = [row["loss"] for row in rows(small.out)]
    assert losses[-1] < 0.9 * losses[0]


def test_mixed_precision_trains(small):
    train(replace(small, epochs=1, precision="bf16"))
    assert all(v.isfinite().all() and v.dtype in (torch.float32, torch.int64) for v in weights(small.out).values())


def test_init_starts_from_another_checkpoint(small, tmp_path):
    source = vp.create_model("vitpose-tiny", image_size=(64, 48))
    vp.save_model(source, tmp_path / "source")
    (tmp_path / "nose.json").write_text('{"name": "nose_and_tail", "names": ["tail", "nose"]}')
    model = build_model(replace(small, init=str(tmp_path / "source"), tasks=(str(tmp_path / "nose.json"),)))
    assert torch.equal(model.backbone.blocks[0].attn.qkv.weight, source.backbone.blocks[0].attn.qkv.weight)
    assert model.config.drop_path == 0.2 and model.tasks == ("nose_and_tail",)
    old, new = source.heads["coco"].final_layer, model.heads["nose_and_tail"].final_layer
    assert torch.equal(new.weight[1], old.weight[0]) and not torch.equal(new.weight[0], old.weight[1])
    with pytest.raises(ValueError, match=r"has width 192, vitpose-s has 384; choose --model"):
        build_model(replace(small, init=str(tmp_path / "source"), model="vitpose-s"))


def test_init_refuses_a_checkpoint_with_another_window(small, tmp_path):
    """Its weights would fit, and the run would train another model than it says."""
    windowed = dict(attention="window+shift", window=(2, 3))
    vp.save_model(vp.create_model("vitpose-tiny", image_size=(64, 48), **windowed), tmp_path / "source")
    run = replace(small, init=str(tmp_path / "source"), **windowed)
    assert build_model(run).config.window == (2, 3)
    with pytest.raises(ValueError, match=r"has window \(2, 3\), vitpose-tiny has \(4, 3\)"):
        build_model(replace(run, window=(4, 3)))


def test_data_sets_are_found_below_the_data_folder(small, data, tmp_path):
    """Two data sets in their original layouts; one has no validation files, which is reported."""
    for name, split in (("ap10k", "train"), ("crowdpose", "train"), ("crowdpose", "val")):
        root = tmp_path / "data" / name
        file = DATA_SETS[name].splits[split][0]
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        truth = json.loads((data / "annotations.json").read_text())
        count = DATA_SETS[name].keypoint_set.num_keypoints
        for image in truth["images"]:
            image["crowdIndex"] = 0.5
        for person in truth["annotations"]:
            person["keypoints"] = person["keypoints"][: 3 * count]
            person["num_keypoints"] = sum(v > 0 for v in person["keypoints"][2::3])
        (root / file).write_text(json.dumps(truth))
        images = root / DATA_SETS[name].splits[split][1]
        if not images.exists():
            shutil.copytree(data / "images", images)
    files = dict(train=(), train_images=(), val=(), val_images=(), data=tmp_path / "data")
    config = replace(small, **files, tasks=("ap10k", "crowdpose"), epochs=1)
    metrics, problems = train(config)
    assert "APM" in metrics and "APH" in metrics  # only CrowdPose is evaluated
    assert problems == [
        f"{tmp_path}/data/ap10k/annotations/ap10k-val-split1.json: no such file, so ap10k is not evaluated"
    ]
    assert tuple(vp.load_model(config.out / "best").heads) == ("ap10k", "crowdpose")
    with pytest.raises(ValueError, match=r"ap10k-val-split1\.json: no such file"):
        train(replace(config, val_tasks=("ap10k",), overwrite=True))


def test_experts_and_heads_are_taken_by_the_names_of_their_tasks(small, tmp_path, scramble):
    tasks = ("coco", "aic", "mpii", "ap10k")
    source = scramble(vp.create_model("vitpose++-tiny", tasks, image_size=(64, 48)))
    vp.save_model(source, tmp_path / "ours")
    save_official(source, tmp_path / "official.pth")
    for file in ("ours", "official.pth"):
        chosen = dict(tasks=("ap10k", "interhand", "coco"), train=(), val=())
        model = build_model(replace(small, init=str(tmp_path / file), model="vitpose++-tiny", **chosen))
        theirs, own = (m.backbone.blocks[1].mlp.expert_weight for m in (source, model))
        assert torch.equal(own[0], theirs[3]) and torch.equal(own[2], theirs[0])
        assert torch.equal(own[1], theirs[0])  # interhand is not in the checkpoint: a copy of the first expert
        for name in ("ap10k", "coco"):
            state = source.heads[name].state_dict()
            assert all(torch.equal(v, state[k]) for k, v in model.heads[name].state_dict().items())


def test_a_broken_image_is_named_and_replaced(small, data, tmp_path):
    copy = tmp_path / "images"
    shutil.copytree(data / "images", copy)
    broken, missing = sorted(copy.iterdir())[:2]
    broken.write_bytes(broken.read_bytes()[:100])
    missing.unlink()
    _, problems = train(replace(small, train_images=(copy,), epochs=2, val=()))
    named = [json.loads(line) for line in (small.out / "quarantine.jsonl").read_text().splitlines()]
    assert {Path(row["image"]).name for row in named} == {broken.name, missing.name} and len(named) == 2
    assert sorted(problems) == sorted(row["reason"] for row in named)
    _, _, failed = evaluate(vp.load_model(small.out / "model"), [(data / "annotations.json", copy)])
    assert len(failed) == 2 and broken.name in failed[0]
    with pytest.raises(ValueError, match=r"2 images cannot be used, more than --max-bad-images 1; the last: .*jpg"):
        train(replace(small, train_images=(copy,), val=(), max_bad_images=1, out=tmp_path / "strict"))
    for workers in (0, 2):
        with pytest.raises(ValueError, match="^20 images of coco in a row cannot be used; the first"):
            train(replace(small, train_images=(tmp_path,), val=(), out=tmp_path / f"nowhere{workers}", workers=workers))


def test_samples_that_are_not_finite_are_named_and_ten_in_a_row_stop_the_run(small, monkeypatch):
    real, bad_calls, calls = make_batch, set(range(2, 4)), itertools.count()

    def poisoned(samples, codecs, device):
        batch = real(samples, codecs, device)
        if next(calls) in bad_calls:
            batch.crops[1, 0, 0, 0] = float("nan")
        return batch

    monkeypatch.setattr("vitpose_training.data.feeder.make_batch", poisoned)
    train(replace(small, val=(), epochs=3, log_every=1, decoder="simple"))
    named = [json.loads(line) for line in (small.out / "quarantine.jsonl").read_text().splitlines()]
    assert [row["step"] for row in named] == [2, 3]
    assert all(len(row["samples"]) == 1 and "annotations.json: annotation" in row["samples"][0] for row in named)
    assert [r["step"] for r in rows(small.out) if r.get("skipped")] == [2, 3]
    assert all(v.isfinite().all() for v in weights(small.out).values())
    bad_calls.update(range(10**4))
    again = replace(small, val=(), epochs=30, out=small.out / "again", decoder="simple")
    with pytest.raises(
        ValueError, match="10 optimizer steps in a row were not finite.*lower --optimizer.lr, or check the samples"
    ):
        train(again)


def test_bad_runs_are_refused_in_one_line(small, tmp_path):
    with pytest.raises(ValueError, match=r"data/coco/annotations/person_keypoints_train2017\.json: no such file"):
        train(replace(small, train=(), train_images=()))
    with pytest.raises(ValueError, match="got 1 files in --train and 2 folders in --train-images"):
        replace(small, train_images=(tmp_path, tmp_path))
    with pytest.raises(ValueError, match=r"states: holds no state to resume from"):
        train(replace(small, resume=True))
    with pytest.raises(ValueError, match="unknown preset 'vitpose-x'; valid: vitpose-tiny"):
        train(replace(small, model="vitpose-x"))
    with pytest.raises(ValueError, match=r"none\.json"):
        train(replace(small, val=(tmp_path / "none.json",)))
    assert not small.out.exists()  # none of the above wrote anything
    for option, value in {"sigma": 0.0, "seed": -1, "max_seconds": 0.0, "epochs": 0}.items():
        with pytest.raises(ValueError, match=f"got {option}={value}, expected"):
            replace(small, **{option: value})
    with pytest.raises(ValueError, match="got optimizer.lr=-1.0, expected"):
        replace(small.optimizer, lr=-1.0)
    with pytest.raises(ValueError, match="got schedule.warmup=-5, expected"):
        replace(small.schedule, warmup=-5)
    with pytest.raises(ValueError, match=r"optimizer steps in a row were not finite .*lower --optimizer.lr"):
        steep = dict(optimizer=replace(small.optimizer, lr=1e30), schedule=replace(small.schedule, warmup=0))
        train(replace(small, **steep, epochs=20))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to folder"):
        train(replace(small, out=tmp_path / "file"))


def test_the_commands_train_and_validate(data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ["--image-size", "64", "48", "--device", "cpu", "--epochs", "1", "--out", "run"]
    files = ["--train", str(data / "annotations.json"), "--train-images", str(data / "images")]
    with pytest.raises(SystemExit) as done:
        front_door(["train", "tiny", *files, *common])
    assert done.value.code == 0 and "model in run/model" in capsys.readouterr().out
    options = ["--annotations", str(data / "annotations.json"), "--images", str(data / "images"), "--out", "found"]
    with pytest.raises(SystemExit) as done:
        front_door(["validate", "--weights", "run/model", *options])
    assert done.value.code == 0 and "AP 0." in capsys.readouterr().out
    assert json.loads(Path("found/keypoints.json").read_text())[0]["category_id"] == 1
    assert json.loads(Path("found/results.json").read_text())["metrics"]["AP"] >= 0
    with pytest.raises(SystemExit) as done:
        front_door(["train", "gigantic"])
    assert done.value.code == 2


@pytest.mark.slow
def test_overfits_the_sample_people(samples, tmp_path):
    """Train on 45 labeled people of 14 photos without augmentation: AP >= 0.90 on the same photos, in 2 minutes."""
    coco = samples / "coco"
    files = tuple(coco / n for n in ("test_coco.json", "extra_ccby_val2017.json", "extra_ccby_train2017.json"))
    folders = (coco, coco / "extra_ccby", coco / "extra_ccby")
    config = replace(
        PRESETS["overfit"][1], out=tmp_path / "run", train=files, train_images=folders, val=files, val_images=folders
    )
    assert train(config)[0]["AP"] >= 0.9


@pytest.mark.cuda
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kernels_and_references_train_a_vitpose_s_equally_well(small, tmp_path, monkeypatch, precision):
    """On a GPU, at least 300 steps on rendered people: the loss curves differ by less than 5 % on average."""
    write_dataset(tmp_path / "people", images=200, seed=7, size=(240, 320))
    files = dict(train=(tmp_path / "people/annotations.json",), train_images=(tmp_path / "people/images",), val=())
    base = replace(small, **files, model="vitpose-s", image_size=(256, 192), device="cuda", precision=precision)
    base = replace(base, batch_size=32, epochs=40, log_every=10)
    base = replace(base, optimizer=replace(base.optimizer, lr=5e-4))
    curves = {}
    for impl in ("triton", "reference"):
        with monkeypatch.context() as patch:
            patch.setattr(
                "vitpose_training.run.state.build_model", lambda c, impl=impl: vp.use_impl(build_model(c), impl)
            )
            config = replace(base, out=tmp_path / impl)
            train(config)
        curves[impl] = np.array([row["loss"] for row in rows(config.out)])
    ours, plain = curves["triton"], curves["reference"]
    assert len(ours) == len(plain) >= 30 and plain[-5:].mean() < 0.7 * plain[:5].mean()
    assert np.abs(ours / plain - 1).mean() < 0.05


def test_bad_evaluation_inputs_are_refused_before_training(small, tmp_path):
    (tmp_path / "boxes.json").write_text('[{"image_id": 77, "bbox": [0, 0, 9, 9]}]')
    for file, message in {
        "gone.json": "no such file",
        "boxes.json": "none of the 1 detections is for one of the 8",
    }.items():
        with pytest.raises(ValueError, match=message):
            train(replace(small, boxes=tmp_path / file))
    assert not small.out.exists()
    with pytest.raises(ValueError, match="device 'meta' cannot be used"):
        train(replace(small, device="meta", dry_run=True, out=tmp_path / "a" / "b" / "c"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["boxes.json"]  # a dry run that fails leaves nothing either
