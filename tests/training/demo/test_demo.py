"""The demo: a short version, and the full one, which is marked slow."""

from __future__ import annotations

import json
import time

import pytest
from PIL import Image

import vitpose_fast as vp
from vitpose_training.demo.demo import main


def test_a_short_demo_leaves_pictures_and_results(tmp_path, capsys):
    out = tmp_path / "demo"
    code = main(["--out", str(out), "--seconds", "12", "--images", "24", "--held-out", "8", "--device", "cpu"])
    assert code == 0 and "held-out  AP" in capsys.readouterr().out
    summary = json.loads((out / "results.json").read_text())
    assert {"AP", "AR"} <= set(summary["metrics"]) and summary["results"][0]["keypoints"]
    for name in ("poses.png", "training.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 200
    options = ["--image", str(out / "poses.png"), "--weights", str(out / "run" / "model")]
    assert main(["--out", str(tmp_path / "again"), *options]) == 0
    with Image.open(tmp_path / "again" / "poses.png") as a, Image.open(out / "poses.png") as b:
        assert a.size == b.size


def test_an_image_without_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match="held_out=0, expected at least 8"):
        main(["--held-out", "0", "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="got only one of --image and --weights"):
        main(["--image", "photo.jpg", "--out", str(tmp_path)])


@pytest.mark.slow
def test_the_demo_reaches_its_goal_within_three_minutes(tmp_path):
    started = time.monotonic()
    assert main(["--out", str(tmp_path / "demo")]) == 0
    assert time.monotonic() - started < 180
    summary = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert summary["metrics"]["AP"] >= 0.5
    assert vp.load_model(tmp_path / "demo" / "run" / "model").config.width == 192
