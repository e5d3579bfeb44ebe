"""Invalid training options: each is refused with an exit code and a reason, and nothing is written."""

from __future__ import annotations

import pytest

from vitpose_fast.__main__ import main


def bad(option, *values):
    return [(f"--{option} {value}", option) for value in values]


OPTIONS = [  # (arguments, a word that the error message contains)
    *bad("optimizer.lr", "x", "nan", "inf", "-1", "0", ""),
    *bad("sigma", "0", "nan"),
    *bad("optimizer.clip", "0", "-1"),
    *bad("optimizer.layer-decay", "0", "nan"),
    *bad("max-seconds", "0", "nan", "-3"),
    *bad("optimizer.weight-decay", "-1", "nan"),
    *bad("schedule.warmup", "-1", "1.5"),
    *bad("workers", "-1", "many"),
    *bad("seed", "-1", "4294967296"),
    *bad("eval-every", "-1"),
    *bad("epochs", "0", "-1", "1.5", "x"),
    *bad("batch-size", "0", "-4", "1.5"),
    *bad("micro-batch", "0", "9999"),
    *bad("keep", "0"),
    *bad("log-every", "0"),
    *bad("save-every", "0"),
    *bad("max-bad-images", "-1"),
    *bad("ema", "0", "1", "nan", "-0.5"),
    *bad("blur-kernel", "0", "2", "-1"),
    *bad("schedule.decay", "0.9 0.1", "0", "1.5", "nan", "x", "0.5 cosine"),
    *((f"--{name} x", name) for name in ("precision", "sampling", "codec", "batchnorm", "recompute")),
    *((f"--{name} x", name) for name in ("parallel", "experts", "track", "patch-stride", "image-size", "window")),
    ("--patch-stride 4", "patch-stride"),
    ("--image-size 64", "image-size"),
    ("--image-size 8 8", "image_size"),
    ("--image-size 0 48", "image_size"),
    ("--model vitpose-xxl", "vitpose-xxl"),
    ("--decoder x", "decoder"),
    ("--attention x", "attention"),
    ("--attention window --window 0 3", "window"),
    ("--attention window --window 99 99", "window"),
    ("--part-features -1", "part_features"),
    ("--part-features 9999", "part_features"),
    ("--experts added --part-features 48", "exclude each other"),
    *((f"--drop-path {v}", "drop_path") for v in ("1", "-0.1", "nan")),
    ("--augmentation.flip-probability 2", "flip_probability"),
    ("--augmentation.flip-probability nan", "flip_probability"),
    ("--augmentation.half-body-probability -1", "half_body_probability"),
    ("--augmentation.scale-factor 1", "scale_factor"),
    ("--augmentation.rotation-degrees 181", "rotation_degrees"),
    ("--augmentation.rotation-degrees nan", "rotation_degrees"),
    ("--tasks", "tasks"),
    ("--tasks coco coco", "tasks"),
    ("--tasks nobody", "nobody"),
    ("--tasks none.json", "none.json"),
    ("--tasks ochuman", "evaluation only"),
    ("--tasks coco aic", "tasks"),
    ("--tasks aic", "aic"),  # with annotation files of COCO
    ("--val-tasks aic", "val_tasks"),
    ("--train-images a b", "folders"),
    ("--train none.json", "none.json"),
    ("--val none.json", "none.json"),
    ("--boxes none.json --val a.json b.json", "boxes"),
    ("--resume --overwrite", "--resume"),
    ("--parallel fsdp", "torchrun"),
    ("--device nowhere", "nowhere"),
    ("--init none.pth", "none.pth"),
    ("--nothing 3", "--nothing"),
    ("--no-such-flag", "--no-such-flag"),
    ("stray", "stray"),
    ("--optimizer.lr", "optimizer.lr"),
    ("--lr 0.001", "--optimizer.lr"),  # the message suggests the right flag
    ("--schedule cosine", "--schedule.decay"),
]


@pytest.mark.parametrize(("options", "word"), OPTIONS)
def test_invalid_options_are_refused(samples, tmp_path, capsys, monkeypatch, options, word):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")
    file, folder = str(samples / "coco/test_coco.json"), str(samples / "coco")
    good = ["--train", file, "--train-images", folder, "--val", file, "--val-images", folder]
    good += ["--image-size", "64", "48", "--device", "cpu", "--epochs", "1", "--dry-run", "--out", "run"]
    with pytest.raises(SystemExit) as end:
        main(["train", "tiny", *good, *options.split(" ")])
    text = capsys.readouterr().err
    assert end.value.code in (1, 2) and "Traceback" not in text
    if end.value.code == 1:
        assert text.startswith("vitpose-fast: error: ") and text.count("\n") == 1
    assert word in text or word.replace("-", "_") in text
    assert list(tmp_path.iterdir()) == []


def test_there_are_more_than_60_and_all_differ():
    assert len(set(OPTIONS)) == len(OPTIONS) >= 60
