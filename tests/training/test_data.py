"""Annotations to samples to batches: official boxes, keypoints that follow their pixels, damage named and left out."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitpose_fast.coco import read_annotations
from vitpose_fast.codec import HeatmapCodec
from vitpose_fast.keypoints import KEYPOINT_SETS
from vitpose_fast.training.augment import Augmentation
from vitpose_fast.training.data import EpochSampler, PeopleDataset, clipped_box, keep_usable, make_batch, read_people
from vitpose_fast.training.validate import people_by_image

COCO = KEYPOINT_SETS["coco"]
SIZE = (256, 192)


def person(**changes):
    keypoints = [float(v) for i in range(17) for v in (20 + 3 * i, 30 + 2 * i, 2)]
    return {"id": 5, "image_id": 1, "category_id": 1, "bbox": [10.0, 20.0, 60.0, 50.0], "area": 900.0,
            "iscrowd": 0, "num_keypoints": 17, "keypoints": keypoints, **changes}  # fmt: skip


def write(folder: Path, annotations, images=None) -> Path:
    images = images or [{"id": 1, "file_name": "a.png", "width": 120, "height": 90}]
    (folder / "annotations.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder / "annotations.json"


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((10, 20, 60, 50), (10, 20, 59, 49)),  # one pixel smaller than annotated
        ((-5, -5, 20, 20), (0, 0, 19, 19)),
        ((100, 80, 60, 50), (100, 80, 19, 9)),
        ((119, 0, 5, 5), None),
        ((10, 10, 1, 5), None),
    ],
)
def test_boxes_are_those_of_the_official_loader(box, expected):
    assert clipped_box(box, 120, 90) == expected


def test_sample_files_hold_as_many_people_as_the_official_loaders_count(samples):
    counts = {
        ("coco", "test_coco.json"): 12,
        ("coco", "extra_ccby_val2017.json"): 13,
        ("coco", "extra_ccby_train2017.json"): 20,
        ("coco", "person_keypoints_val2017_538img.json"): 1354,
        ("ochuman", "test_ochuman.json"): 5,
        ("ap10k", "test_ap10k.json"): 2,
        ("crowdpose", "test_crowdpose.json"): 4,
        ("aic", "test_aic.json"): 9,
    }
    for (folder, name), count in counts.items():
        keypoints = KEYPOINT_SETS["coco" if folder == "coco" else folder]
        people = read_people(samples / folder / name, samples / folder, keypoints)
        assert len(people) == count, name
        assert all(len(p.keypoints) == keypoints.num_keypoints and p.visible.max() == 1 for p in people)


def test_crowds_and_unlabelled_people_are_left_out(tmp_path):
    unlabelled = person(keypoints=[0] * 51, id=6)
    people = read_people(write(tmp_path, [person(), person(id=7, iscrowd=1), unlabelled]), tmp_path, COCO)
    assert [p.annotation_id for p in people] == [5]


def test_damaged_annotations_are_named_and_left_out(tmp_path, caplog):
    rows = [person(), person(id=6, bbox=None), person(id=7, image_id=9), person(id=8, keypoints=[1, 1, 2]), 3]
    file = write(tmp_path, rows)
    with caplog.at_level(logging.WARNING):
        people = read_people(file, tmp_path, COCO)
    assert [p.annotation_id for p in people] == [5]
    for name in ("annotation 1 (id 6)", "annotation 2 (id 7)", "annotation 3 (id 8)", "annotation 4: is 3"):
        assert f"skipped {file}: {name}" in caplog.text
    caplog.clear()
    problems = ["before"]
    assert len(read_people(file, tmp_path, COCO, problems)) == 1
    assert len(problems) == 5 and problems[0] == "before" and not caplog.text


def test_training_and_evaluation_agree_on_what_is_damaged(tmp_path):
    file = write(tmp_path, [person(), person(id=6, bbox=[500, 0, 9, 9]), person(id=7, area=0), person(id=8, id_=1)])
    problems: list[str] = []
    people = read_people(file, tmp_path, COCO, problems)
    truth, same = read_annotations(file, COCO)
    assert [p.annotation_id for p in people] == [a["id"] for a in truth["annotations"]] == [5, 8]
    assert problems == same and len(problems) == 2
    boxes = [p["bbox"] for p in people_by_image(truth)[1]]
    assert boxes == [p.box for p in people]


def test_unusable_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.json: no such file"):
        read_people(tmp_path / "none.json", tmp_path, COCO)
    with pytest.raises(
        ValueError, match=r"no usable annotation among 1; the first of 1 problems: annotation 0 \(id 5\)"
    ):
        read_people(write(tmp_path, [person(image_id=3)]), tmp_path, COCO)
    with pytest.raises(
        ValueError, match="no person with labelled coco keypoints; the first of 1 problems: .* bbox is None"
    ):
        read_people(write(tmp_path, [person(iscrowd=1), person(id=6, bbox=None)]), tmp_path, COCO)
    with pytest.raises(ValueError, match="no person with labelled coco keypoints$"):
        read_people(write(tmp_path, [person(iscrowd=1)]), tmp_path, COCO)


@pytest.fixture
def marked(tmp_path):
    """A black image with one white 3x3 square at each keypoint of one person."""
    rng = np.random.default_rng(0)
    pixels = np.zeros((300, 240, 3), np.uint8)
    points = np.stack([rng.uniform(80, 160, 17), rng.uniform(90, 210, 17)], 1).round()
    for x, y in points.astype(int):
        pixels[y - 1 : y + 2, x - 1 : x + 2] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    keypoints = np.concatenate([points, np.full((17, 1), 2)], 1).flatten().tolist()
    annotation = person(keypoints=keypoints, bbox=[60.0, 60.0, 120.0, 180.0])
    image = {"id": 1, "file_name": "a.png", "width": 240, "height": 300}
    return read_people(write(tmp_path, [annotation], [image]), tmp_path, COCO)


@pytest.mark.parametrize("task", ["coco", "ap10k"])  # udp and plain affine
def test_keypoints_stay_on_their_pixels_through_every_augmentation(marked, task):
    keypoints = KEYPOINT_SETS[task]
    dataset = PeopleDataset(marked, keypoints, Augmentation(), 3, SIZE, keep_images=True)
    codec = HeatmapCodec(keypoints, SIZE)
    samples = [dataset[epoch, 0] for epoch in range(12)]
    assert {bool(s["flip"]) for s in samples} == {True, False} and any(s["rotation"] for s in samples)
    batch = make_batch(samples, codec, "cpu")
    black = (0 - 0.485) / 0.229
    seen = 0
    for crop, points, visible in zip(batch.crops, batch.keypoints, batch.visible):
        for (x, y), v in zip(points.round().int().tolist(), visible):
            if v > 0 and 0 <= x < SIZE[1] and 0 <= y < SIZE[0]:
                seen += 1
                assert crop[0, y, x] > black + 1
    assert seen > 100


def test_a_flipped_sample_swaps_left_and_right(marked):
    codec = HeatmapCodec(COCO, SIZE)
    plain = Augmentation(0, 0, 0, scale_factor=0.0, rotation_probability=-1)
    mirrored = Augmentation(0, 1, 0, scale_factor=0.0, rotation_probability=-1)
    a, b = (
        make_batch([PeopleDataset(marked, COCO, how, 0, SIZE, True)[0, 0]], codec, "cpu") for how in (plain, mirrored)
    )
    assert torch.equal(a.crops.flip(-1), b.crops)
    nose, left_eye, right_eye = (COCO.index(n) for n in ("nose", "left_eye", "right_eye"))
    assert b.keypoints[0, nose, 0].item() == pytest.approx(191 - a.keypoints[0, nose, 0].item(), abs=1e-3)
    assert b.keypoints[0, left_eye, 0].item() == pytest.approx(191 - a.keypoints[0, right_eye, 0].item(), abs=1e-3)


def test_samples_depend_on_seed_epoch_and_index_only(marked):
    def view(seed, epoch):
        sample = PeopleDataset(marked, COCO, Augmentation(), seed, SIZE, False)[epoch, 0]
        return {k: np.asarray(sample[k]).tolist() for k in ("center", "scale", "rotation", "flip")}

    assert view(0, 4) == view(0, 4)
    assert view(0, 4) != view(0, 5) and view(0, 4) != view(1, 4)


def test_broken_images_become_reasons(marked, tmp_path):
    (tmp_path / "a.png").write_bytes(b"broken")
    dataset = PeopleDataset(marked, COCO, None, 0, SIZE, False)
    samples, reasons = keep_usable([dataset[0, 0]])
    assert samples == [] and "a.png" in reasons[0]
    long = replace(marked[0], image=tmp_path / ("x" * 300 + ".png"))
    assert "xxx.png" in PeopleDataset([long], COCO, None, 0, SIZE, False)[0, 0]


def test_sampler_shuffles_by_epoch_and_starts_in_the_middle():
    def order(batches):
        return [i for batch in batches for _, i in batch]

    sampler = EpochSampler(10, 4, seed=1)
    epochs = []
    for epoch in (0, 1, 0):
        sampler.start(epoch)
        epochs.append(list(sampler))
    assert epochs[0] == epochs[2] and order(epochs[0]) != order(epochs[1])
    assert sorted(order(epochs[0])) == list(range(10)) and len(sampler) == 3
    sampler.start(1, first_batch=1)
    assert list(sampler) == epochs[1][1:]


def test_half_body_is_taken_from_one_half(marked):
    rng = np.random.default_rng(0)
    upper = {tuple(p) for p in marked[0].keypoints[list(COCO.upper_body)].tolist()}
    lower = {tuple(p) for p in marked[0].keypoints.tolist()} - upper
    centers = {tuple(Augmentation._half_body(marked[0], COCO, SIZE, rng)[0].tolist()) for _ in range(50)}
    expected = {tuple(np.mean(list(half), axis=0, dtype=np.float32).tolist()) for half in (upper, lower)}
    assert {tuple(round(v, 2) for v in c) for c in centers} == {tuple(round(v, 2) for v in c) for c in expected}
