"""Synthetic people: reproducible, correctly labeled, varied, and readable as a COCO data set."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from vitpose_training.demo.synthetic import render_scene, write_dataset

SIZE = (240, 320)


@pytest.fixture(scope="module")
def scenes():
    return [render_scene(7, index, SIZE) for index in range(60)]


@pytest.fixture(scope="module")
def people(scenes):
    """Keypoints (x, y, v) of all annotations of the scenes, float [people, 17, 3]."""
    return np.array([a["keypoints"] for _, annotations in scenes for a in annotations], float).reshape(-1, 17, 3)


def test_same_arguments_give_the_same_bytes(scenes):
    for index in (0, 5, 11):
        pixels, annotations = render_scene(7, index, SIZE)
        assert pixels.tobytes() == scenes[index][0].tobytes()
        assert json.dumps(annotations) == json.dumps(scenes[index][1])


def test_index_and_seed_change_the_scene(scenes):
    assert len({pixels.tobytes() for pixels, _ in scenes}) == len(scenes)
    assert render_scene(8, 0, SIZE)[0].tobytes() != scenes[0][0].tobytes()


@pytest.mark.parametrize("size", [(240, 320), (200, 150), (321, 243)])
def test_annotations_are_valid_coco(size):
    height, width = size
    for index in range(20):
        pixels, annotations = render_scene(3, index, size)
        assert pixels.dtype == np.uint8 and pixels.shape == (*size, 3)
        assert 1 <= len(annotations) <= 4
        for a in annotations:
            x, y, w, h = a["bbox"]
            assert w > 0 and h > 0 and x >= 0 and y >= 0 and x + w <= width and y + h <= height
            assert 0 < a["area"] <= w * h
            assert (a["iscrowd"], a["category_id"]) == (0, 1)
            points = np.array(a["keypoints"]).reshape(17, 3)
            seen = points[:, 2] > 0
            assert set(points[:, 2]) <= {0, 1, 2}
            assert a["num_keypoints"] == seen.sum() >= 5
            assert (points[~seen] == 0).all()
            assert (points[:, :2] >= 0).all() and (points[:, :2] <= (width - 1, height - 1)).all()
            # The box encloses the drawn figure and joints lie inside the limbs; 0.5 is the extent of a pixel.
            inner = points[seen]
            assert (inner[:, :2] >= (x - 0.5, y - 0.5)).all() and (inner[:, :2] <= (x + w - 0.5, y + h - 0.5)).all()


def test_scenes_are_varied(scenes, people):
    counts = [len(annotations) for _, annotations in scenes]
    assert min(counts) == 1 and max(counts) >= 3
    heights = np.array([a["bbox"][3] for _, annotations in scenes for a in annotations]) / SIZE[0]
    assert heights.min() < 0.5 and heights.max() > 0.8
    states = people[..., 2]
    assert (states == 1).mean() > 0.02 and (states == 2).mean() > 0.6  # some joints are hidden, most are visible
    assert ((states[:, 5:] == 0).any(1)).any()  # some people are partly outside the picture


def test_left_and_right_follow_from_the_face(people):
    """The left side of a person who faces the viewer is on the right in the picture; from behind, on the left."""
    states, x = people[..., 2], people[..., 0]
    trunk = (states[:, [5, 6, 11, 12]] > 0).all(1)
    facing = trunk & (states[:, 1] > 0) & (states[:, 2] > 0)
    behind = trunk & (states[:, :3] == 0).all(1) & (people[:, 5:7, 1] > 30).all(1)  # so the head is in the picture
    assert facing.sum() > 30 and behind.sum() > 8
    for left, right in ((5, 6), (11, 12)):
        assert (x[facing, left] > x[facing, right]).mean() > 0.9
        assert (x[behind, left] < x[behind, right]).mean() > 0.8
    both = (states[:, 1] == 2) & (states[:, 2] == 2)
    assert (x[both, 1] > x[both, 2]).all()


def test_figures_stand_out_from_the_background(scenes):
    """Visible joints lie on painted figures: their colors differ from the colors beside the box."""
    different = []
    for pixels, labels in scenes:
        for a in labels:
            points = np.array(a["keypoints"]).reshape(17, 3)
            for x, y, _ in points[5:][points[5:, 2] == 2]:
                outside = pixels[round(y), max(0, round(a["bbox"][0]) - 4)].astype(int)
                different.append(np.abs(pixels[round(y), round(x)] - outside).max() > 20)
    assert np.mean(different) > 0.75


def test_write_dataset_is_coco(tmp_path, capsys):
    COCO = pytest.importorskip("pycocotools.coco").COCO
    target = write_dataset(tmp_path / "set", 4, seed=1, size=(120, 160))
    assert target == tmp_path / "set" / "annotations.json"
    assert sorted(p.name for p in target.parent.iterdir()) == ["annotations.json", "images"]  # no temporary files
    coco = COCO(str(target))
    assert len(coco.imgs) == 4 and coco.getCatIds() == [1]
    category = coco.loadCats(1)[0]
    assert len(category["keypoints"]) == 17 and category["keypoints"][:2] == ["nose", "left_eye"]
    assert {i for limb in category["skeleton"] for i in limb} <= set(range(1, 18))
    for index, (key, entry) in enumerate(sorted(coco.imgs.items())):
        with Image.open(target.parent / "images" / entry["file_name"]) as picture:
            assert picture.size == (entry["width"], entry["height"]) == (160, 120)
        expected = render_scene(1, index, (120, 160))[1]
        got = coco.loadAnns(coco.getAnnIds(imgIds=key))
        assert [a["keypoints"] for a in got] == [a["keypoints"] for a in expected]
    before = target.read_bytes()
    assert write_dataset(tmp_path / "set", 4, seed=1, size=(120, 160)).read_bytes() == before
