"""The augmentation of docs/numerics.md 6.2: probabilities, ranges, and the settings of each data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vitpose_training.data.augment import Augmentation
from vitpose_training.data.catalog import data_set
from vitpose_training.data.people import Person

SIZE = (256, 192)
COCO = data_set("coco").keypoint_set


def person(visible=17, **changes):
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 100, (17, 2)).astype(np.float32)
    seen = (np.arange(17) < visible).astype(np.float32)
    return replace(Person(Path("a"), 1, 1, 1, (20.0, 10.0, 60.0, 120.0), points * seen[:, None], seen), **changes)


def views(augmentation, someone, count=4000, name="coco"):
    ready = augmentation.of(data_set(name))
    return [ready(someone, COCO, SIZE, 0, epoch, 5) for epoch in range(count)]


def test_flip_rotation_and_scale_have_the_published_frequencies():
    drawn = views(Augmentation(half_body_probability=0.0), person())
    factors = np.array([v["scale"][0] / 112.5 for v in drawn])  # 120 * 0.75 * 1.25, of a box of 60x120
    angles = np.array([v["rotation"] for v in drawn])
    assert abs(np.mean([v["flip"] for v in drawn]) - 0.5) < 0.03
    assert abs((angles != 0).mean() - 0.6) < 0.03 and np.abs(angles).max() == 80
    assert factors.min() == pytest.approx(0.5) and factors.max() == pytest.approx(1.5)
    assert abs((factors == factors.min()).mean() - 0.159) < 0.03  # probability of a normal draw below -1
    assert all(v["scale"][0] / v["scale"][1] == pytest.approx(0.75) for v in drawn[:50])


def test_center_jitter_is_drawn_once_per_run_by_default():
    still = dict(half_body_probability=0.0, jitter_probability=1.0)
    assert len({tuple(v["center"]) for v in views(Augmentation(**still), person(), 20)}) == 1
    centers = np.array([v["center"] for v in views(Augmentation(**still, jitter_every_epoch=True), person(), 2000)])
    offset = np.abs(centers - (50, 70)).max(0)
    assert 11.5 < offset[0] <= 12 and 23 < offset[1] <= 24  # a fifth of the box size


def test_half_body_crops_show_the_upper_or_the_lower_body():
    always = Augmentation(jitter_probability=0.0, half_body_probability=1.0, rotation_probability=0.0)
    upper = np.arange(17) < 11  # nose, eyes, ears, shoulders, elbows, wrists
    someone = person()
    means = [tuple(someone.keypoints[half].mean(0).round(2).tolist()) for half in (upper, ~upper)]
    found = [tuple(np.round(v["center"], 2).tolist()) for v in views(always, someone, 3000)]
    assert set(found) == set(means)
    assert abs(found.count(means[0]) / 3000 - 0.6915) < 0.03  # as with the normal draw of the official code
    assert {tuple(v["center"]) for v in views(always, person(visible=8), 50)} == {(50, 70)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("coco", (0.3, 0.3, 8, 0.5, 40.0)),
        ("mpii", (0.0, 0.0, 0, 0.5, 40.0)),
        ("crowdpose", (0.3, 0.3, 6, 0.5, 40.0)),
        ("interhand", (0.3, 0.0, 0, 0.3, 90.0)),
    ],
)
def test_each_data_set_has_its_own_recipe(name, expected):
    fields = ("jitter_probability", "half_body_probability", "half_body_over", "scale_factor", "rotation_degrees")
    own = Augmentation().of(data_set(name))
    assert tuple(getattr(own, f) for f in fields) == expected
    assert Augmentation(scale_factor=0.1).of(data_set(name)).scale_factor == 0.1


def test_values_out_of_range_are_refused():
    for option, value in {"flip_probability": 1.5, "scale_factor": 1.0, "rotation_degrees": -1.0}.items():
        with pytest.raises(ValueError, match=f"got augmentation.{option}={value}, expected"):
            Augmentation(**{option: value})


@pytest.mark.parametrize("labeled", [(3, 6), (2, 6), (6, 3), (6, 2)])  # of the upper, of the lower body
def test_half_bodies_have_more_than_two_keypoints_and_half_their_size_around_them(labeled):
    always = Augmentation(0.0, half_body_probability=1.0, half_body_over=7, rotation_probability=0.0, scale_factor=0.0)
    seen = np.zeros(17, np.float32)
    seen[: labeled[0]] = seen[11 : 11 + labeled[1]] = 1
    someone = replace(person(), visible=seen, keypoints=person().keypoints * seen[:, None])
    halves = [someone.keypoints[: labeled[0]], someone.keypoints[11 : 11 + labeled[1]]]
    expected = set()
    for half in [h for h in halves if len(h) > 2]:
        width, height = np.ptp(half, axis=0)
        size = 1.5 * max(width, 0.75 * height), 1.5 * max(height, width / 0.75)
        expected.add((*half.mean(0).round(2).tolist(), *np.round(size, 2).tolist()))
    found = {tuple(np.round([*v["center"], *v["scale"]], 2).tolist()) for v in views(always, someone, 60)}
    assert sorted(found) == [pytest.approx(e, abs=0.02) for e in sorted(expected)]
