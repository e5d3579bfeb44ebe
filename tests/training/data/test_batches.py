"""Samples and batches: keypoints follow their pixels, samples depend only on seed and step, bad images are replaced."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from vitpose_fast.codec import HeatmapCodec
from vitpose_training.data.augment import Augmentation
from vitpose_training.data.batches import SampleSet, make_batch
from vitpose_training.data.catalog import data_set
from vitpose_training.data.order import Key
from vitpose_training.data.people import Labels, Person, adjusted

SIZE = (256, 192)
STILL = Augmentation(0.0, False, 0.0, 0.0, scale_factor=0.0, rotation_probability=0.0)


def labels(task, people):
    return Labels(data_set(task), people, None)


def codecs(*tasks):
    return {task: HeatmapCodec(data_set(task).keypoint_set, SIZE) for task in tasks}


def batch_of(samples, *tasks, device="cpu"):
    return make_batch(samples, codecs(*tasks), device)


@pytest.fixture
def marked(tmp_path):
    """marked(task="coco", number=0, **changes) -> a `Person` on a black image with a white 3x3 square at each keypoint.

    `number` determines the keypoints and the ids, and `changes` replaces fields.
    """

    def make(task="coco", number=0, **changes):
        count = data_set(task).keypoint_set.num_keypoints
        rng = np.random.default_rng(number)
        pixels = np.zeros((300, 240, 3), np.uint8)
        points = np.stack([rng.uniform(80, 160, count), rng.uniform(90, 210, count)], 1).round().astype(np.float32)
        for x, y in points.astype(int):
            pixels[y - 1 : y + 2, x - 1 : x + 2] = 255
        path = tmp_path / f"{task}-{number}.png"
        Image.fromarray(pixels).save(path)
        seen = np.ones(count, np.float32)
        person = Person(path, number, number, 1, (60.0, 60.0, 119.0, 179.0), points, seen, "file.json", (300, 240))
        return replace(person, **changes)

    return make


@pytest.mark.parametrize("task", ["coco", "ap10k", "mpii"])  # udp, plain affine, stretched
def test_keypoints_stay_on_their_pixels_through_every_augmentation(marked, task):
    shape = {"fix_aspect": False, "padding": 1.0} if task == "mpii" else {}
    samples = SampleSet([labels(task, [marked(task, **shape)])], SIZE, Augmentation(), seed=3)
    drawn = [samples[Key(epoch, 0, epoch)] for epoch in range(12)]
    assert {bool(s.view["flip"]) for s in drawn} == {True, False} and any(s.view["rotation"] for s in drawn)
    batch = batch_of(drawn, task)
    black = (0 - 0.485) / 0.229
    part, seen = batch.parts[task], 0
    for crop, points, visible in zip(batch.crops, part.keypoints, part.visible):
        for (x, y), v in zip(points.round().int().tolist(), visible):
            if v > 0 and 0 <= x < SIZE[1] and 0 <= y < SIZE[0]:
                seen += 1
                assert crop[0, y, x] > black + 0.6
    assert seen > 100


def test_a_flipped_sample_swaps_left_and_right(marked):
    both = [SampleSet([labels("coco", [marked()])], SIZE, replace(STILL, flip_probability=p))[0, 0, 0] for p in (0, 1)]
    a, b = (batch_of([sample], "coco") for sample in both)
    assert torch.equal(a.crops.flip(-1), b.crops)
    nose, left_eye, right_eye = 0, 1, 2
    before, after = a.parts["coco"].keypoints[0], b.parts["coco"].keypoints[0]
    assert after[nose, 0].item() == pytest.approx(191 - before[nose, 0].item(), abs=1e-3)
    assert after[left_eye, 0].item() == pytest.approx(191 - before[right_eye, 0].item(), abs=1e-3)


def test_samples_depend_on_seed_epoch_and_number_only(marked):
    people = [marked("coco", i) for i in range(3)]

    def view(seed, epoch, samples=None):
        sample = (samples or SampleSet([labels("coco", people)], SIZE, Augmentation(), seed))[epoch, 1, 0]
        return {k: np.asarray(v).tolist() for k, v in sample.view.items()}

    used = SampleSet([labels("coco", people)], SIZE, Augmentation(), 0)
    for _ in range(5):
        used[7, 2, 0]
    assert view(0, 4) == view(0, 4) == view(0, 4, used)
    assert view(0, 4) != view(0, 5) and view(0, 4) != view(1, 4)


def test_samples_of_a_task_are_contiguous_in_a_batch(marked):
    people = {"coco": [marked("coco", 0), marked("coco", 1)], "aic": [marked("aic", 0)], "mpii": []}
    samples = SampleSet([labels(task, own) for task, own in people.items() if own], SIZE)
    batch = batch_of([samples[0, i, i] for i in (2, 0, 1)], "mpii", "aic", "coco")
    assert {task: (p.rows.start, p.rows.stop) for task, p in batch.parts.items()} == {"aic": (0, 1), "coco": (1, 3)}
    assert batch.positions == [2, 0, 1] and [p.annotation_id for p in batch.people] == [0, 0, 1]
    assert batch.parts["aic"].keypoints.shape == (1, 14, 2) and batch.crops.shape == (3, 3, *SIZE)
    alone = batch_of([samples[0, 2, 0]], "aic")
    assert torch.equal(alone.crops[0], batch.crops[0])


def test_bad_images_are_reported_and_their_replacement_is_deterministic(marked):
    people = [marked("coco", i) for i in range(6)]
    other = [marked("aic", i) for i in range(6)]
    for person in people[:3]:
        person.image.write_bytes(b"broken")
    samples = SampleSet([labels("coco", people), labels("aic", other)], SIZE, Augmentation(), 0)
    twice = [[samples[epoch, 1, 0] for epoch in range(6)] for _ in range(2)]
    for a, b in zip(*twice):
        assert a.person is b.person and a.view["rotation"] == b.view["rotation"]
        assert a.task == "coco" and a.person.annotation_id >= 3
        assert a.bad[0][0] == str(people[1].image) and "not an image" in a.bad[0][1]
    assert len({s.person.annotation_id for s in twice[0]}) > 1
    assert samples[0, 4, 0].bad == []
    alone = SampleSet([labels("coco", people[:3])], SIZE)
    with pytest.raises(ValueError, match=r"20 images of coco in a row cannot be used; the first: .*coco-0\.png"):
        alone[0, 0, 0]


def test_an_image_of_another_size_than_annotated_is_bad(marked):
    people = [marked("coco", 0, image_size=(240, 300)), marked("coco", 1)]
    sample = SampleSet([labels("coco", people)], SIZE)[0, 0, 0]
    assert sample.person is people[1]
    assert sample.bad[0][1].endswith("coco-0.png: is 240x300 pixels, file.json says 300x240")


def test_peculiarities_of_the_official_loaders_can_be_switched_off(marked):
    person, square = marked(), marked("mpii", fix_aspect=False, padding=1.0, box=(50.0, 60.0, 120.0, 120.0))
    both = [labels("coco", [person]), labels("mpii", [square])]
    usual, free = SampleSet(both, SIZE), SampleSet([adjusted(one, False, False) for one in both], SIZE)
    scale = [[s[0, i, 0].view["scale"].tolist() for i in (0, 1)] for s in (usual, free)]
    assert scale[0][1] == pytest.approx([120, 120]) and scale[1][1] == pytest.approx([120, 160])
    assert scale[1][0][1] / scale[0][0][1] == pytest.approx(180 / 179)
    assert adjusted(both[0]) is both[0]


def test_visibility_is_swapped_with_the_keypoints_of_a_mirror_image(marked):
    person = marked()
    seen = person.visible.copy()
    seen[1] = 0  # the left eye
    for flip, unlabelled in ((0, 1), (1, 2)):
        own = labels("coco", [replace(person, visible=seen)])
        samples = SampleSet([own], SIZE, replace(STILL, flip_probability=flip))
        visible = batch_of([samples[0, 0, 0]], "coco").parts["coco"].visible[0]
        assert visible.sum() == 16 and visible[unlabelled] == 0
