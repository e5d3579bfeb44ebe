"""A run from data to metrics: it learns, resumes exactly, names bad input, and leaves what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vitpose_fast as vp
from vitpose_fast.__main__ import main as front_door
from vitpose_fast.training.checkpoint import save_state
from vitpose_fast.training.config import PRESETS, TrainConfig
from vitpose_fast.training.synthetic import write_dataset
from vitpose_fast.training.train import build_model, train
from vitpose_fast.training.validate import evaluate


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("people")
    write_dataset(folder, images=8, seed=5, size=(120, 160))
    return folder


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


def test_a_run_leaves_what_it_says(small):
    metrics, problems = train(small)
    assert problems == []
    out = small.out
    assert {p.name for p in out.iterdir()} == {"best", "config.json", "last.pt", "metrics.jsonl", "model"}
    assert json.loads((out / "config.json").read_text())["model"] == "vitpose-tiny"
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {"step", "loss", "norm", "lr", "seconds"} <= set(rows[0]) and rows[-1]["AP"] == metrics["AP"]
    model = vp.load_model(out / "model")
    assert evaluate(model, small.sources("val"), flip_test=small.flip_test)[0] == metrics


def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(small, tmp_path, monkeypatch):
    whole, parts = (replace(small, out=tmp_path / name, val=(), epochs=3) for name in ("whole", "parts"))
    train(whole)
    saved = []

    def save_and_stop(*args):
        save_state(*args)
        saved.append(args)
        if len(saved) == 2:  # after the second epoch
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vitpose_fast.training.train.save_state", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(parts)
    train(replace(parts, resume=True))
    a, b = weights(whole.out), weights(parts.out)
    assert all(torch.equal(a[k], b[k]) for k in a)
    steps = [[json.loads(r)["step"] for r in (run.out / "metrics.jsonl").open()] for run in (whole, parts)]
    assert steps[0] == steps[1]


def test_a_run_is_not_replaced_or_continued_as_another(small):
    train(replace(small, epochs=1, val=()))
    rows = (small.out / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match="holds a run already; --resume goes on with it, --overwrite replaces it"):
        train(small)
    with pytest.raises(ValueError, match=r"cannot resume with another lr: 0.0015 then, 0.1 now"):
        train(replace(small, epochs=1, val=(), resume=True, lr=0.1))
    assert (small.out / "metrics.jsonl").read_text() == rows
    train(replace(small, epochs=1, val=(), overwrite=True))


def test_training_lowers_the_loss(small):
    train(replace(small, epochs=12, augment=False, val=(), drop_path=0.0))
    rows = [json.loads(line) for line in (small.out / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]


def test_mixed_precision_trains(small):
    train(replace(small, epochs=1, precision="bf16"))
    assert all(v.isfinite().all() and v.dtype in (torch.float32, torch.int64) for v in weights(small.out).values())


def test_init_starts_from_another_checkpoint(small, tmp_path):
    source = vp.create_model("vitpose-tiny", image_size=(64, 48))
    vp.save_model(source, tmp_path / "source")
    (tmp_path / "nose.json").write_text('{"name": "nose_and_tail", "names": ["tail", "nose"]}')
    model = build_model(replace(small, init=str(tmp_path / "source"), task=str(tmp_path / "nose.json")))
    assert torch.equal(model.backbone.blocks[0].attn.qkv.weight, source.backbone.blocks[0].attn.qkv.weight)
    assert model.config.drop_path == 0.2 and model.tasks == ("nose_and_tail",)
    old, new = source.heads["coco"].final_layer, model.heads["nose_and_tail"].final_layer
    assert torch.equal(new.weight[1], old.weight[0]) and not torch.equal(new.weight[0], old.weight[1])
    with pytest.raises(ValueError, match=r"has width 192, vitpose-s has 384; choose --model"):
        build_model(replace(small, init=str(tmp_path / "source"), model="vitpose-s"))


def test_a_broken_image_is_named_and_left_out(small, data, tmp_path):
    copy = tmp_path / "images"
    copy.mkdir()
    for path in (data / "images").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    broken = sorted(copy.iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:100])
    _, problems = train(replace(small, train_images=(copy,), epochs=2, val=()))
    assert len(problems) == 1 and broken.name in problems[0]
    _, _, failed = evaluate(vp.load_model(small.out / "model"), [(data / "annotations.json", copy)])
    assert len(failed) == 1 and broken.name in failed[0]


def test_bad_runs_are_refused_in_one_line(small, tmp_path):
    with pytest.raises(ValueError, match="nothing to train on"):
        train(replace(small, train=(), train_images=()))
    with pytest.raises(ValueError, match="got 1 files in --train and 2 folders in --train-images"):
        replace(small, train_images=(tmp_path, tmp_path))
    with pytest.raises(ValueError, match=r"last\.pt: nothing to resume from"):
        train(replace(small, resume=True))
    with pytest.raises(ValueError, match="unknown preset 'vitpose-x'; valid: vitpose-tiny"):
        train(replace(small, model="vitpose-x"))
    with pytest.raises(ValueError, match=r"none\.json"):
        train(replace(small, val=(tmp_path / "none.json",)))
    assert not small.out.exists()  # nothing of the above has written anything
    for option, value in {"sigma": 0.0, "lr": -1.0, "seed": -1, "max_seconds": 0.0, "warmup": -5, "epochs": 0}.items():
        with pytest.raises(ValueError, match=f"got {option}={value}, expected"):
            replace(small, **{option: value})
    with pytest.raises(ValueError, match="is not finite; lower --lr"):
        train(replace(small, lr=1e30, warmup=0, epochs=20))
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
    options = ["--annotations", str(data / "annotations.json"), "--images", str(data / "images"), "--out", "found.json"]
    with pytest.raises(SystemExit) as done:
        front_door(["validate", "--weights", "run/model", *options])
    assert done.value.code == 0 and "AP 0." in capsys.readouterr().out
    assert json.loads(Path("found.json").read_text())[0]["category_id"] == 1
    with pytest.raises(SystemExit) as done:
        front_door(["train", "gigantic"])
    assert done.value.code == 2


@pytest.mark.slow
def test_knows_the_sample_people_by_heart(samples, tmp_path):
    """About 2 minutes: 45 labelled people of 14 photos, no augmentation, AP >= 0.90 on the same photos."""
    coco = samples / "coco"
    files = tuple(coco / n for n in ("test_coco.json", "extra_ccby_val2017.json", "extra_ccby_train2017.json"))
    folders = (coco, coco / "extra_ccby", coco / "extra_ccby")
    config = replace(
        PRESETS["overfit"][1], out=tmp_path / "run", train=files, train_images=folders, val=files, val_images=folders
    )
    assert train(config)[0]["AP"] >= 0.9
