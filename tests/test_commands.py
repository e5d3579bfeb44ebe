"""The command line: results, exit codes, and failures that print one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitpose_fast as vp
import vitpose_fast.images
from vitpose_fast.__main__ import COMMANDS, main


def run(*args: str) -> int:
    """Run the command line and return its exit code."""
    with pytest.raises(SystemExit) as done:
        main(list(args))
    return done.value.code


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Current directory with a checkpoint `weights`, and images photos/1.png to 3.png, 80 pixels wide and 60 high."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    vp.save_model(vp.create_model("vitpose-tiny", image_size=(64, 48), depth=1), "weights")
    Path("photos").mkdir()
    for i in (1, 2, 3):
        pixels = np.random.default_rng(i).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"photos/{i}.png")
    return tmp_path


def boxes(*rows) -> str:
    """Write detections to boxes.json in the current directory and return the name of the file."""
    Path("boxes.json").write_text(json.dumps(rows))
    return "boxes.json"


def test_predict_whole_images(folder, capsys):
    assert run("predict", "photos", "--weights", "weights", "--out", "out") == 0
    results = json.loads(Path("out/results.json").read_text())
    assert [r["image_id"] for r in results] == [1, 2, 3] and results[0]["file_name"] == "photos/1.png"
    assert {p.name for p in Path("out").iterdir()} == {"results.json", "1.jpg", "2.jpg", "3.jpg"}
    assert Image.open("out/1.jpg").size == (80, 60)
    assert "3 people in 3 of 3 images" in capsys.readouterr().out


def test_predict_boxes_by_image_id_and_file_name(folder, capsys):
    file = boxes(
        {"image_id": 1, "bbox": [5, 5, 20, 30], "score": 0.9, "category_id": 1},
        {"image_id": 1, "bbox": [30, 5, 20, 30], "score": 0.2},
        {"file_name": "3.png", "bbox": [1, 1, 50, 50], "score": 0.5},
        {"image_id": 99, "bbox": [1, 1, 50, 50], "score": 0.5},
    )
    assert (
        run("predict", "photos", "--weights", "weights", "--boxes", file, "--min-box-score", "0.3", "--out", "o") == 0
    )
    results = json.loads(Path("o/results.json").read_text())
    assert [(r["image_id"], r["box"]) for r in results] == [(1, [5, 5, 20, 30]), (3, [1, 1, 50, 50])]
    assert "1 of 4 boxes belong to other images" in capsys.readouterr().err
    expected = vp.PosePredictor(vp.load_model("weights"))("photos/1.png", [[5, 5, 20, 30]], [0.9])
    np.testing.assert_allclose(results[0]["keypoints"], expected.to_coco(1)[0]["keypoints"], atol=1e-3)


def test_predict_frozen(folder, capsys):
    assert run("predict", "photos", "--weights", "weights", "--out", "plain") == 0
    assert run("predict", "photos", "--weights", "weights", "--freeze", "fp32", "--out", "frozen") == 0
    assert "frozen to float32" in capsys.readouterr().out
    plain, frozen = (json.loads(Path(f"{out}/results.json").read_text()) for out in ("plain", "frozen"))
    scores = [[p["keypoints"][2::3] for p in people] for people in (plain, frozen)]
    np.testing.assert_allclose(*scores, atol=1e-5)


def test_predict_skips_bad_boxes_and_images(folder, capsys):
    Path("photos/2.png").write_bytes(b"broken")
    file = boxes(
        {"image_id": 1, "bbox": [5, 5, 20, 30], "score": 0.9},
        {"image_id": 1, "bbox": [5, 5, -20, 30], "score": 0.9},
        {"image_id": 1, "bbox": [500, 5, 20, 30], "score": 0.9},
        {"image_id": 1, "bbox": "left", "score": 0.9},
        {"image_id": 1, "bbox": [5, 5, 20, 30], "score": None},
        {"image_id": [1], "bbox": [5, 5, 20, 30]},
        "a box",
        {"image_id": 2, "bbox": [5, 5, 20, 30], "score": 0.9},
        {"image_id": 3, "bbox": [5, 5, 20, 30], "score": 0.9},
    )
    assert run("predict", "photos", "--weights", "weights", "--boxes", file, "--out", "out") == 1
    skipped = [line for line in capsys.readouterr().err.splitlines() if "skipped: " in line]
    reasons = [
        "boxes.json: detection 1: bbox is [5, 5, -20, 30], expected four",
        "boxes.json: detection 3: bbox is 'left', expected four",
        "boxes.json: detection 4: score is None, expected a finite number",
        "boxes.json: detection 5: image_id is [1], expected",
        "boxes.json: detection 6: is 'a box', expected a JSON object",
        "photos/1.png: box [500, 5, 20, 30] lies outside the 80x60 image",
        "photos/2.png: not an image",
    ]
    assert len(skipped) == 7 and all(reason in line for reason, line in zip(reasons, skipped))
    assert [r["image_id"] for r in json.loads(Path("out/results.json").read_text())] == [1, 3]
    assert {p.name for p in Path("out").iterdir()} == {"results.json", "1.jpg", "3.jpg"}


def test_predict_decodes_every_image_once(folder, monkeypatch):
    read = vitpose_fast.images.read_image
    seen: list[str] = []
    monkeypatch.setattr(vitpose_fast.images, "read_image", lambda path: (seen.append(str(path)), read(path))[1])
    Path("photos/2.png").write_bytes(b"broken")
    file = boxes(*({"image_id": i, "bbox": [5, 5, 20, 30]} for i in (1, 1, 2, 3)))
    assert run("predict", "photos", "--weights", "weights", "--boxes", file) == 1
    assert seen == ["photos/1.png", "photos/2.png", "photos/3.png"]


def test_predict_holds_few_images(folder, monkeypatch):
    """With one person per batch, each image is released before the next but one is read."""
    read = vitpose_fast.images.read_image
    alive: list[weakref.ref] = []
    most = 0

    def counted(path):
        nonlocal most
        most = max(most, sum(ref() is not None for ref in alive))
        pixels = read(path)
        alive.append(weakref.ref(pixels))
        return pixels

    monkeypatch.setattr(vitpose_fast.images, "read_image", counted)
    for i in range(4, 12):
        shutil.copy("photos/1.png", f"photos/{i}.png")
    assert run("predict", "photos", "--weights", "weights", "--batch-size", "1") == 0
    assert len(alive) == 11 and most <= 2


def test_predict_keeps_the_ids_of_the_detections(folder):
    Path("more").mkdir()
    for name in ("1.png", "17.png", "me.png"):
        shutil.copy("photos/1.png", f"more/{name}")
    box = [5, 5, 20, 30]
    file = boxes(
        {"image_id": 17, "file_name": "me.png", "bbox": box},
        {"image_id": "x", "file_name": "/data/set/photos/2.png", "bbox": box},
        {"file_name": "17.png", "bbox": box},  # 17 is taken
        {"file_name": "photos/1.png", "bbox": box},  # 1 is the number of two images
        {"file_name": "more\\1.png", "bbox": box},
        {"image_id": 3, "bbox": box},
    )
    assert run("predict", "photos", "more", "--weights", "weights", "--boxes", file) == 0
    found = {r["file_name"]: r["image_id"] for r in json.loads(Path("poses/results.json").read_text())}
    expected = {"more/me.png": 17, "photos/2.png": "x", "more/17.png": "more/17.png", "photos/3.png": 3}
    assert found == {**expected, "photos/1.png": "photos/1.png", "more/1.png": "more/1.png"}


def test_predict_gives_every_image_a_unique_id(folder):
    Path("more").mkdir()
    for name in ("01.png", "7.png", "me.png"):
        shutil.copy("photos/1.png", f"more/{name}")
    assert run("predict", "photos", "more", "photos/1.png", "--weights", "weights") == 0  # the last one is given twice
    found = [(r["file_name"], r["image_id"]) for r in json.loads(Path("poses/results.json").read_text())]
    assert found == [
        ("photos/1.png", "photos/1.png"), ("photos/2.png", 2), ("photos/3.png", 3),
        ("more/01.png", "more/01.png"), ("more/7.png", 7), ("more/me.png", "more/me.png"),
    ]  # fmt: skip


def test_predict_refuses_boxes_that_match_two_images(folder, capsys):
    Path("more").mkdir()
    shutil.copy("photos/1.png", "more/1.png")
    for detection in ({"file_name": "1.png"}, {"image_id": 1}, {"image_id": "1"}):
        file = boxes({"bbox": [5, 5, 20, 30], **detection})
        assert run("predict", "photos", "more", "--weights", "weights", "--boxes", file) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and "matches photos/1.png and more/1.png" in lines[0] and "detection 0" in lines[0]


def test_predict_prefers_an_equal_path(folder):
    shutil.copy("photos/1.png", "1.png")
    file = boxes({"file_name": "1.png", "bbox": [5, 5, 20, 30]})
    assert run("predict", "photos", "1.png", "--weights", "weights", "--boxes", file) == 0
    assert [r["file_name"] for r in json.loads(Path("poses/results.json").read_text())] == ["1.png"]


def test_predict_reports_contradictory_ids(folder, capsys):
    box = [5, 5, 20, 30]
    file = boxes(
        {"image_id": 5, "file_name": "1.png", "bbox": box},
        {"image_id": 6, "file_name": "1.png", "bbox": box},
        {"image_id": 5, "file_name": "2.png", "bbox": box},
        {"image_id": 8, "file_name": "3.png", "bbox": box},
        {"image_id": "photos/1.png", "file_name": "2.png", "bbox": box},
    )
    assert run("predict", "photos", "--weights", "weights", "--boxes", file) == 1
    skipped = [line for line in capsys.readouterr().err.splitlines() if "skipped: " in line]
    assert len(skipped) == 3 and "detection 1: image_id is 6, but photos/1.png has 5" in skipped[0]
    assert "detection 2: image_id is 5, but that is photos/1.png, not photos/2.png" in skipped[1]
    assert "detection 4: image_id is 'photos/1.png', but that is photos/1.png, not photos/2.png" in skipped[2]
    assert [r["image_id"] for r in json.loads(Path("poses/results.json").read_text())] == [5, 8]


def test_predict_matches_the_images_of_an_annotation_file(folder):
    rows = {"images": [{"id": 40, "file_name": "2.png"}], "annotations": [{"image_id": 40, "bbox": [5, 5, 20, 30]}]}
    Path("boxes.json").write_text(json.dumps(rows))
    assert run("predict", "photos", "--weights", "weights", "--boxes", "boxes.json") == 0
    (result,) = json.loads(Path("poses/results.json").read_text())
    assert (result["image_id"], result["file_name"], result["box_score"]) == (40, "photos/2.png", 1.0)


def test_predict_reports_folders_without_images(folder, capsys):
    Path("empty").mkdir()
    assert run("predict", "photos", "empty", "--weights", "weights") == 1
    assert "skipped: empty: no images in this folder" in capsys.readouterr().err
    assert len(json.loads(Path("poses/results.json").read_text())) == 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["predict", "nowhere", "--weights", "weights"], "nowhere: no such image file"),
        (["predict", "empty", "--weights", "weights"], "no images in empty"),
        (["predict", "photos", "--weights", "gone.pth"], "gone.pth: no such file, folder or hub id"),
        (["predict", "photos", "--weights", "weights", "--boxes", "gone.json"], "gone.json: no such file"),
        (["predict", "photos", "--weights", "weights", "--device", "gpu"], "device 'gpu' cannot be used"),
        (["predict", "photos", "--weights", "weights", "--out", "photos/1.png"], "cannot write to folder photos/1.png"),
        (["predict", "photos", "--weights", "weights", "--task", "aic"], "unknown task 'aic'; heads: coco"),
        (["convert", "gone", "out"], "gone: no such file"),
        (["convert", "weights", "weights"], "weights exists already"),
        (["info", "photos"], "expected one weights file in the folder, found none"),
        (["demo", "--image", "photos/1.png"], "got only one of --image and --weights"),
    ],
)
def test_failures_are_one_line_and_exit_1(folder, capsys, args, message):
    Path("empty").mkdir()
    assert run(*args) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "vitpose-fast" in line or message in line]
    assert len(lines) == 1 and message in lines[0]


def test_boxes_for_other_images_only_are_refused(folder, capsys):
    assert (
        run("predict", "photos", "--weights", "weights", "--boxes", boxes({"image_id": 9, "bbox": [0, 0, 1, 1]})) == 1
    )
    assert "none of its 1 boxes belongs to any of the 3 images" in capsys.readouterr().err
    Path("boxes.json").write_text('[{"bbox": [1, 2, 3, 4]}]')
    assert run("predict", "photos", "--weights", "weights", "--boxes", "boxes.json") == 1
    assert "detection 0: neither image_id nor file_name" in capsys.readouterr().err


def test_wrong_usage_exits_2(folder, capsys):
    assert run("predict") == 2
    assert run("paint") == 2
    assert "unknown command 'paint'; valid: demo, predict" in capsys.readouterr().err
    assert run() == 2


def test_help_and_version(capsys):
    assert run("--help") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)
    assert run("--version") == 0 and capsys.readouterr().out.startswith("vitpose-fast ")


def test_convert_round_trip_and_merge(folder, capsys):
    model = vp.create_model("vitpose++-tiny", tasks=("coco", "aic"), image_size=(64, 48), depth=1)
    vp.save_model(model, "plus")
    assert run("convert", "plus", "plus.pth", "--format", "official") == 0
    assert run("convert", "plus.pth", "back", "--image-size", "64", "48", "--num-heads", "3") == 0
    back = vp.load_model("back").state_dict()
    assert all(torch.equal(v, back[k]) for k, v in model.state_dict().items())
    assert run("convert", "plus", "aic", "--task", "aic") == 0
    plain = vp.load_model("aic")
    images = torch.randn(2, 3, 64, 48)
    assert plain.config.part_features == 0 and plain.tasks == ("aic",)
    torch.testing.assert_close(plain(images), model.eval()(images, "aic"))
    assert run("convert", "plus", "hf", "--format", "hf") == 1
    assert "it holds one head, the model has 2" in capsys.readouterr().err


def test_info(folder, capsys):
    assert run("info") == 0
    assert "vitpose++-h" in capsys.readouterr().out
    assert run("info", "weights") == 0
    assert "head coco: 17 keypoints" in capsys.readouterr().out


def test_command_line_in_a_subprocess(folder):
    done = subprocess.run([sys.executable, "-m", "vitpose_fast", "info", "gone"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stderr.startswith("vitpose-fast: error: gone")


def test_predict_drops_only_boxes_below_min_box_score(folder):
    """0 by default: also boxes of people that a detector is not sure about are used."""
    rows = [{"image_id": 1, "bbox": [5, 5, 20, 30], "score": score} for score in (0.01, 0.25, 0.5)]
    for flags, kept in (((), 3), (("--min-box-score", "0.25"), 2), (("--min-box-score", "0.5"), 1)):
        assert run("predict", "photos", "--weights", "weights", "--boxes", boxes(*rows), *flags, "--out", "o") == 0
        assert len(json.loads(Path("o/results.json").read_text())) == kept


def test_predict_draws_keypoints_with_scores_of_at_least_a_fifth(folder, monkeypatch):
    seen = []

    def draw(image, poses, threshold, boxes):
        seen.append(threshold)
        return Image.new("RGB", (80, 60))

    monkeypatch.setattr("vitpose_fast.commands.draw_poses", draw)
    assert run("predict", "photos/1.png", "--weights", "weights", "--out", "usual") == 0
    assert run("predict", "photos/1.png", "--weights", "weights", "--out", "o", "--min-keypoint-score", "0.4") == 0
    assert seen == [0.2, 0.4]


def test_predict_averages_with_the_mirror_image_if_asked(folder):
    for flags, flip_test in (((), False), (("--flip-test",), True)):
        assert run("predict", "photos/1.png", "--weights", "weights", *flags, "--out", "o") == 0
        found = json.loads(Path("o/results.json").read_text())[0]["keypoints"][2::3]
        both = (vp.PosePredictor(vp.load_model("weights"), f)("photos/1.png") for f in (flip_test, not flip_test))
        expected, other = both
        np.testing.assert_allclose(found, expected.scores[0], rtol=1e-5)
        assert not np.allclose(found, other.scores[0], rtol=1e-3)


def test_convert_takes_heads_and_image_size(folder):
    assert run("convert", "weights", "official.pth", "--format", "official") == 0
    assert run("convert", "official.pth", "out", "--num-heads", "6", "--image-size", "96", "48") == 0
    config = vp.load_model("out").config
    assert (config.num_heads, config.image_size) == (6, (96, 48)) and vp.load_model("weights").config.num_heads == 3
