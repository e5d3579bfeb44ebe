"""`vitpose-fast info`: it counts, checks and draws the people of a data set, and still describes checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitpose_fast as vp
from vitpose_fast.__main__ import main
from vitpose_fast.draw import keypoint_colours
from vitpose_fast.keypoints import keypoint_set
from vitpose_training.data.people import Person
from vitpose_training.data.survey import draw_person

PEN = {"name": "pen", "names": ["left_tip", "right_cap", "ring"], "skeleton": [["left_tip", "ring"]]}
GRAYS = (60, 120, 180)
TILE = (192, 256)  # width, height of one person in the picture


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(list(args))
    return done.value.code


@pytest.fixture
def pens(tmp_path, monkeypatch):
    """Change to a directory with a keypoint set (pen.json), and annotations (pens.json) of images/1.png to 3.png.

    There is one pen on each image. Images are 120 pixels wide and 80 high, and each has one shade of gray. The value of
    the fixture is the list of annotations.
    """
    monkeypatch.chdir(tmp_path)
    Path("pen.json").write_text(json.dumps(PEN))
    Path("images").mkdir()
    rows = []
    for i, gray in enumerate(GRAYS, 1):
        Image.new("RGB", (120, 80), (gray, gray, gray)).save(f"images/{i}.png")
        keypoints = [30, 30, 2, 50, 50, 0 if i == 1 else 1, 60, 40, 2]
        rows.append({"id": i, "image_id": i, "category_id": 1, "bbox": [20, 10, 61, 61], "keypoints": keypoints})
    write(rows)
    return rows


def write(rows, width=120):
    images = [{"id": i, "file_name": f"{i}.png", "width": width, "height": 80} for i in (1, 2, 3)]
    Path("pens.json").write_text(json.dumps({"images": images, "annotations": rows}))


PENS = ("info", "pen.json", "--annotations", "pens.json", "--images", "images")


def tiles(file="data-set.png") -> list[np.ndarray]:
    pixels, (width, height) = np.asarray(Image.open(file)), TILE
    count = (pixels.shape[1] + 6) // (width + 6)
    assert pixels.shape == (height, count * (width + 6) - 6, 3)
    return [pixels[:, i * (width + 6) : i * (width + 6) + width] for i in range(count)]


def test_output_for_an_undamaged_data_set(pens, capsys):
    assert run(*PENS) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "pen: 3 used of 3 entries on 3 images (0 without keypoints, 0 crowds, 0 refused)",
        "images: 3 of 3 exist",
        "labeled keypoints of 3 people:",
        "  left_tip  3   right_cap 2   ring      3",
        "mean box size: 60 x 60 pixels",
        "sample: the images of 3 of 3 people can be decoded",
        "picture: data-set.png",
    ]
    assert not err


def test_the_picture_shows_every_person_with_labeled_keypoints(pens):
    assert run(*PENS) == 0
    left, right, middle = keypoint_colours(keypoint_set("pen.json"))
    shown = tiles()
    assert len(shown) == 3
    # The 60x60 box at (20, 10) is enlarged by 1.25, so that 75 pixels fill the 192 of a tile's width. Its center
    # (50, 40) is the center of the tile.
    scale = TILE[0] / 75
    for number, (tile, gray) in enumerate(zip(shown, GRAYS), 1):
        places = {
            (30, 30): left,
            (60, 40): middle,
            (50, 50): (gray,) * 3 if number == 1 else right,
            (50, 25): (gray,) * 3,
        }
        for (x, y), color in places.items():
            column, row = TILE[0] / 2 + (x - 50) * scale, TILE[1] / 2 + (y - 40) * scale
            assert tile[round(row), round(column)].tolist() == list(color), (number, x, y)
        limb = tile[round(TILE[1] / 2 - 5 * scale), round(TILE[0] / 2 - 5 * scale)]  # halfway from tip to ring
        assert limb.tolist() == [(a + b) // 2 for a, b in zip(left, middle)]
        assert not tile[:20].any() and not tile[-20:].any()  # black above and below the image, which is 80 high


def test_choice_of_people_depends_only_on_the_seed(pens):
    def picture(seed):
        assert run(*PENS, "--count", "1", "--seed", str(seed), "--out", f"out/{seed}.png") == 0
        return tiles(f"out/{seed}.png")[0]

    assert np.array_equal(picture(0), picture(0))
    grays = {int(picture(seed)[128, 20, 0]) for seed in range(20)}
    assert grays == set(GRAYS)


def test_a_count_of_0_draws_no_picture(pens, capsys):
    assert run(*PENS, "--count", "0") == 0
    assert not Path("data-set.png").exists() and "picture" not in capsys.readouterr().out


def test_damage_is_reported(pens, capsys):
    write([*pens, {**pens[0], "id": 9, "bbox": None}, {**pens[0], "id": 10, "iscrowd": 1}], width=110)
    Path("images/1.png").unlink()
    Path("images/2.png").write_bytes(b"broken")
    assert run(*PENS) == 1
    out, err = capsys.readouterr()
    assert "3 used of 5 entries on 3 images (0 without keypoints, 1 crowds, 1 refused)" in out
    assert "images: 2 of 3 exist" in out and "the images of 1 of 2 people can be decoded" in out
    lines = err.splitlines()
    assert len(lines) == 4 and "annotation 3 (id 9): bbox is None" in lines[0]
    assert "images/1.png: no such image file" in lines[1] and "images/2.png: not an image" in lines[2]
    assert "images/3.png: is 120x80, expected 110x80 as annotated" in lines[3]
    assert len(tiles()) == 1


def test_damaged_annotations_set_the_exit_code(pens, capsys):
    write([*pens, {**pens[0], "id": 9, "image_id": 8}])
    assert run(*PENS) == 1
    out, err = capsys.readouterr()
    assert "images: 3 of 3 exist" in out and len(err.splitlines()) == 1
    assert "annotation 3 (id 9): image_id 8 is not in images" in err


def test_many_missing_images_are_shortened(pens, capsys):
    for image in Path("images").iterdir():
        image.unlink()
    images = [{"id": i, "file_name": f"{i}.png", "width": 120, "height": 80} for i in range(1, 60)]
    Path("pens.json").write_text(json.dumps({"images": images, "annotations": pens}))
    assert run(*PENS) == 1
    out, err = capsys.readouterr()
    assert "images: 0 of 59 exist" in out and "no picture" in out and not Path("data-set.png").exists()
    assert len(err.splitlines()) == 21 and "39 more problems" in err


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("info", "coco"), "data/coco/annotations/person_keypoints_train2017.json: no such file"),
        (("info", "--data", "sets", "coco"), "sets/coco/annotations/person_keypoints_train2017.json: no such file"),
        (("info", "ochuman", "--data=sets"), "sets/ochuman/annotations/ochuman_coco_format_val_range"),
        (("info", "coco", "--split", "test"), "data set 'coco' has no split 'test'; valid: train, val"),
        (("info", "pen.json"), "pen.json has no default files, pass them with --annotations and --images"),
        (("info", "coco", "--images", "images"), "got one of --annotations and --images, expected both"),
        (("info", "coco", "--count", "-3"), "got --count -3"),
        (("info", "coco", "--out", "picture.txt"), "expected a count of at least 0 and a file ending in .png"),
        (("info", "none.json"), "'none.json': no such file, expected a keypoint set"),
        (("info", "somewhere"), "somewhere: no such file, folder or hub id"),
    ],
)
def test_wrong_use_is_one_line(pens, capsys, args, reason):
    assert run(*args) == 1
    err = capsys.readouterr().err
    assert reason in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "folder", "file", "people"),
    [
        ("coco", "coco", "test_coco.json", 12),
        ("mpii", "mpii", "test_mpii.json", 5),
        ("interhand", "interhand2.6m", "test_interhand2.6m_data.json", 6),
        ("ap10k", "ap10k", "test_ap10k.json", 2),
    ],
)
def test_sample_data(samples, tmp_path, capsys, name, folder, file, people):
    out = tmp_path / "a.png"
    files = ("--annotations", str(samples / folder / file), "--images", str(samples / folder))
    assert run("info", name, *files, "--out", str(out)) == 0
    assert f"the images of {people} of {people} people can be decoded" in capsys.readouterr().out
    pixels = np.asarray(Image.open(out)).astype(int)
    assert pixels.shape[1] == min(people, 6) * (TILE[0] + 6) - 6
    colors = {tuple(c) for c in keypoint_colours(vp.KEYPOINT_SETS[name])}
    assert colors <= set(map(tuple, pixels.reshape(-1, 3).tolist()))


def test_a_whole_data_set_below_its_root(samples, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, source in {"annotations/person_keypoints_val2017.json": "test_coco.json"}.items():
        Path("sets/coco", name).parent.mkdir(parents=True)
        Path("sets/coco", name).symlink_to(samples / "coco" / source)
    Path("sets/coco/val2017").symlink_to(samples / "coco")
    assert run("info", "--data", "sets", "--split", "val", "coco", "--count", "3") == 0
    out = capsys.readouterr().out
    assert "coco: 12 used of 14 entries on 4 images" in out and "nose           11" in out
    assert len(tiles()) == 3


def test_numbered_keypoints_with_equal_counts_share_a_cell(samples, tmp_path, capsys):
    file = samples / "coco-wholebody/test_coco_wholebody.json"
    files = ("--annotations", str(file), "--images", str(samples / "coco"), "--count", "0")
    assert run("info", "wholebody", *files) == 0
    out = capsys.readouterr().out
    assert "face_0 .. 67" in out and "right_ankle" in out and "left_thumb1 .. 4" in out
    assert all(len(line) <= 100 for line in out.splitlines())


def test_huge_boxes_do_not_make_huge_pictures():
    keypoints = np.array([[5e5, 5e5], [10, 10], [20, 20]], np.float32)
    person = Person(Path("a.png"), 1, 1, 1, (0.0, 0.0, 999999.0, 1.0), keypoints, np.ones(3, np.float32))
    image = torch.full((30, 40, 3), 200, dtype=torch.uint8)
    tile = draw_person(person, image, vp.KeypointSet.from_dict(PEN))
    assert tile.size == TILE and np.asarray(tile)[:60].max() == 0


def test_checkpoints_and_versions_are_described(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    vp.save_model(vp.create_model("vitpose-tiny", image_size=(64, 48), depth=1), "weights")
    assert run("info", "weights") == 0
    assert "head coco: 17 keypoints" in capsys.readouterr().out
    assert run("info") == 0
    assert "presets: vitpose-tiny" in capsys.readouterr().out
    assert run("info", "--help") == 0
    out = capsys.readouterr().out
    assert "checkpoint of any supported format" in out and "info DATASET --help" in out and "apt36k" in out
    assert run("info", "coco", "--help") == 0
    assert "--annotations" in capsys.readouterr().out


def test_info_needs_no_training_packages(samples):
    code = f"""
import sys
for name in ("pycocotools", "matplotlib", "tensorboard"):
    sys.modules[name] = None
from vitpose_fast.__main__ import COMMANDS, main
files = ["--annotations", {str(samples / "coco/test_coco.json")!r}, "--images", {str(samples / "coco")!r}]
for args in (["info"], ["info", "coco", *files, "--count", "0"]):
    try:
        main(args)
    except SystemExit as done:
        assert done.code == 0, args
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "presets:" in done.stdout and "coco: 12 used" in done.stdout
