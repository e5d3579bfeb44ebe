"""Readers of all data sets: as many people as in the official loaders, reported damage, refused unusable files."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.training.data.sample_files import COMPANIONS, FILES, MISSING, changed
from vitpose_fast.coco import check_annotations
from vitpose_training.data.catalog import DATA_SETS
from vitpose_training.data.read import read_labels

NAN = float("nan")
LEAVES = [None, "", "x", -1, 0, 1e308, NAN, [], {}, True, [[1]], "1", 10**400]


@pytest.mark.parametrize(
    ("name", "file", "used", "unlabeled", "crowd", "images"),
    [
        ("coco", "coco/test_coco.json", 12, 2, 0, 4),
        ("coco", "coco/extra_ccby_val2017.json", 13, 12, 0, 6),
        ("coco", "coco/extra_ccby_train2017.json", 20, 23, 3, 4),
        ("coco", "coco/person_keypoints_val2017_538img.json", 1354, 810, 49, 538),
        ("wholebody", "coco-wholebody/test_coco_wholebody.json", 12, 2, 0, 4),
        ("wholebody", "coco-wholebody/test_keypoint_partition_metric.json", 12, 2, 0, 4),
        ("wholebody", "coco-wholebody/example_gt.json", 24, 2, 0, 5),
        ("aic", "aic/test_aic.json", 9, 0, 0, 3),
        ("aic", "aic/aic_keypoint_annotations_example.json", 2761, 0, 0, 1000),
        ("mpii", "mpii/test_mpii.json", 5, 0, 0, 5),
        ("ochuman", "ochuman/test_ochuman.json", 5, 0, 0, 3),
        ("ap10k", "ap10k/test_ap10k.json", 2, 0, 0, 2),
        ("apt36k", "apt-36k/apt36k_wolf_reconstructed.json", 5, 0, 0, 3),
        ("crowdpose", "crowdpose/test_crowdpose.json", 4, 1, 0, 2),
        ("crowdpose", "crowdpose/crowdpose_val.json", 7074, 1347, 106, 2000),
        # two images with both hands, two with one: each hand with more than 11 valid joints is a separate sample
        ("interhand", "interhand2.6m/test_interhand2.6m_data.json", 6, 0, 0, 4),
    ],
)
def test_as_many_people_as_in_the_official_loaders(samples, name, file, used, unlabeled, crowd, images):
    labels = read_labels(name, samples / file, (samples / file).parent)
    counts = (len(labels.people), labels.unlabelled, labels.crowd, labels.images, labels.problems)
    assert counts == (used, unlabeled, crowd, images, [])
    k = DATA_SETS[name].keypoint_set.num_keypoints
    for person in labels.people:
        assert person.keypoints.shape == (k, 2) and person.visible.shape == (k,)
        assert person.keypoints.dtype == person.visible.dtype == np.float32
        assert set(person.visible.tolist()) <= {0, 1} and person.visible.any()
        assert not person.keypoints[person.visible == 0].any()
        assert person.source == str(samples / file) and min(person.box[2:]) > 0
    assert len({person.annotation_id for person in labels.people}) == used
    assert (labels.truth is None) == (name in ("mpii", "interhand"))
    if labels.truth is not None:
        assert check_annotations(labels.truth, DATA_SETS[name].keypoint_set) == (labels.truth, [])
        rows = {a["id"]: a for a in labels.truth["annotations"]}
        paths = {image["id"]: image["path"] for image in labels.truth["images"]}
        assert all(p.image == paths[p.image_id] for p in labels.people)
        assert all(p.category_id == rows[p.annotation_id]["category_id"] for p in labels.people)


A0, E0 = ["annotations", 0], [0]
HUMAN = "human1"
DAMAGE = [
    ("coco", [*A0, "bbox"], [1, 2, NAN, 4], "annotation 0 (id 442619): bbox is [1, 2, nan, 4], expected four"),
    ("coco", [*A0, "id"], 198196, "annotation 1 (id 198196): the id is already used by annotation 0"),
    ("apt36k", [*A0, "is_crowd"], "no", "annotation 0 (id 1): is_crowd is 'no', expected 0 or 1"),
    ("wholebody", [*A0, "foot_kpts"], MISSING, "annotation 0 (id 442619): no foot_kpts"),
    ("wholebody", [*A0, "foot_kpts"], [0] * 17, "foot_kpts holds 17 numbers, expected 18"),
    ("wholebody", [*A0, "face_kpts"], "0", "face_kpts is '0', expected a flat list of finite numbers"),
    ("wholebody", [*A0, "face_kpts", 5], NAN, "face_kpts is ["),
    ("wholebody", [*A0, "keypoints"], [0] * 50, "keypoints holds 50 numbers, expected 51"),
    ("wholebody", [*A0, "lefthand_kpts", 2], -1, "lefthand_kpts has visibility -1, expected at least 0"),
    ("wholebody", [*A0, "righthand_valid"], "yes", "righthand_valid is 'yes', expected true or false"),
    ("aic", [*A0, "keypoints"], [0] * 51, "annotation 0 (id 4): keypoints has 51 numbers, expected 42 for aic"),
    ("aic original", E0, 3, "entry 0: is 3, expected a JSON object"),
    ("aic original", [0, "image_id"], MISSING, "entry 0: no image_id"),
    ("aic original", [0, "image_id"], "a\nb", "entry 0: image_id is 'a\\nb.jpg', expected the name of an image file"),
    ("aic original", [0, "human_annotations"], [], "human_annotations is [], expected an object with a list"),
    ("aic original", [0, "human_annotations", HUMAN], MISSING, "'human1': no human_annotations"),
    ("aic original", [0, "keypoint_annotations", HUMAN], MISSING, "'human1': no keypoint_annotations"),
    ("aic original", [0, "human_annotations", HUMAN], [9, 9, 5, 20], "human_annotations is [9, 9, 5, 20], expected x1"),
    ("aic original", [0, "human_annotations", HUMAN], [9, 9, NAN, 20], "expected 4 finite numbers"),
    ("aic original", [0, "keypoint_annotations", HUMAN], [1, 2, 1], "keypoint_annotations is [1, 2, 1], expected 42"),
    ("aic original", [0, "keypoint_annotations", HUMAN, 2], 0, "keypoint_annotations has visibility 0, expected 1, 2"),
    ("mpii", E0, None, "entry 0: is None, expected a JSON object"),
    ("mpii", [0, "image"], MISSING, "entry 0: no image"),
    ("mpii", [0, "center"], [-1, -1], "entry 0 (image '005808361.jpg'): center is [-1, -1], which marks a missing"),
    ("mpii", [0, "center"], [5], "center is [5], expected 2 finite numbers"),
    ("mpii", [0, "scale"], -2, "scale is -2, expected a number > 0"),
    ("mpii", [0, "scale"], NAN, "scale is nan, expected a number > 0"),
    ("mpii", [0, "joints"], [[1, 2]] * 15, "expected 16 x 2 finite numbers"),
    ("mpii", [0, "joints", 3], [1, 2, 3], "expected 16 x 2 finite numbers"),
    ("mpii", [0, "joints", 3], [1, True], "expected 16 x 2 finite numbers"),
    ("mpii", [0, "joints", 3], [1, 10**400], "expected 16 x 2 finite numbers"),
    ("mpii", [0, "joints_vis", 0], 7, "expected 0 or 1 for every joint"),
    ("interhand", [*A0, "image_id"], 5, "annotation 0 (id 326750): image_id 5 is not in images"),
    ("interhand", [*A0, "id"], 286291, "annotation 1 (id 286291): the id is already used by annotation 0"),
    ("interhand", [*A0, "joint_valid"], MISSING, "annotation 0 (id 326750): no joint_valid"),
    ("interhand", [*A0, "joint_valid"], [[1]] * 41, "expected 42 x 1 finite numbers"),
    ("interhand", [*A0, "joint_valid", 3], [NAN], "expected 42 x 1 finite numbers"),
    ("interhand", [*A0, "joint_valid", 3], [0.5], "expected 0 or 1 for every joint"),
    ("interhand", ["images", 0, "camera"], MISSING, "image 0 (id 326750): no camera"),
    ("interhand", ["images", 0, "camera"], "x", "camera 'x' of capture '3' in x_camera.json has no campos"),
    ("interhand", ["images", 0, "capture"], 9, "capture '9' is not in x_camera.json"),
    ("interhand", ["images", 0, "frame_idx"], 1, "frame '1' of capture '3' is not in x_joint_3d.json"),
    ("interhand", ["images", 0, "width"], 0, "image 0 (id 326750): width is 0, expected a whole number"),
    ("interhand", ["images", 0, "width"], 20, "the left hand lies outside the image, expected it in the 20x512 image"),
]


@pytest.mark.parametrize(("layout", "path", "value", "reason"), DAMAGE, ids=lambda v: str(v)[:40])
def test_damage_is_reported_and_the_rest_is_read(original, reread, tmp_path, layout, path, value, reason):
    data = original(layout)
    whole = reread(layout, data)
    labels = reread(layout, changed(data, path, value))
    named = [p for p in labels.problems if reason in p]
    assert named and all(p.startswith(f"{tmp_path / 'x_data.json'}: ") and "\n" not in p for p in labels.problems)
    lost = {str(p) for p in whole.people} - {str(p) for p in labels.people}
    assert labels.people and lost
    survivors = {str(p): p for p in labels.people}
    for person in whole.people:
        if str(person) in survivors and layout != "mpii":
            np.testing.assert_array_equal(person.keypoints, survivors[str(person)].keypoints)


@pytest.mark.parametrize(
    ("layout", "data", "reason"),
    [
        ("coco", [], "no list 'images'"),
        ("wholebody", {"images": []}, "no list 'annotations'"),
        ("aic original", [], "no usable entry among 0 entries"),
        (
            "aic original",
            [{"image_id": 3}],
            "no usable entry among 1 entries; the first of 1 problems: entry 0: no human",
        ),
        (
            "aic original",
            [{"image_id": 3, "human_annotations": {"a": []}, "keypoint_annotations": {}}],
            "no usable person among 1 entries; the first of 1 problems: entry 0 (image_id 3): 'a': expected",
        ),
        (
            "aic original",
            [{"image_id": 3, "human_annotations": {}, "keypoint_annotations": {}}],
            "no person with labeled aic keypoints",
        ),
        ("mpii", {}, "is {}, expected MPII's list of people"),
        ("mpii", [], "no usable entry among 0"),
        ("mpii", [3], "no usable entry among 1; the first of 1 problems: entry 0: is 3"),
        ("interhand", [], "no list 'images', expected InterHand2.6M annotations"),
        ("interhand", {"images": [], "annotations": [1]}, "no usable annotation among 1; the first of 1 problems"),
    ],
)
def test_unusable_files_raise_one_line(reread, tmp_path, layout, data, reason):
    with pytest.raises(ValueError) as error:
        reread(layout, data)
    text = str(error.value)
    assert text.startswith(f"{tmp_path / 'x_data.json'}: ") and "\n" not in text
    assert reason.removesuffix(": expected") in text


@pytest.mark.parametrize("layout", FILES)
def test_files_that_hold_something_else_raise_one_line(reread, tmp_path, layout):
    for content in LEAVES:
        with pytest.raises(ValueError) as error:
            reread(layout, content)
        assert str(error.value).startswith(f"{tmp_path / 'x_data.json'}: ") and "\n" not in str(error.value)


def test_files_without_a_usable_person_are_refused(original, reread):
    data = original("mpii")[:1]
    with pytest.raises(ValueError, match="no person with labeled mpii keypoints$"):
        reread("mpii", changed(data, [0, "joints_vis"], [0] * 16))
    data = original("coco")
    rows = [{**a, "iscrowd": 1} for a in data["annotations"][:1]] + [3]
    with pytest.raises(ValueError, match="no person with labeled coco .*; the first of 1 problems: annotation 1: is 3"):
        reread("coco", {**data, "annotations": rows})


@pytest.mark.parametrize("layout", FILES)
def test_random_damage(original, reread, tmp_path, damage, layout):
    """Any damage is reported in one line, and what remains can be trained on and scored."""
    rng = random.Random(0)
    data = original(layout)
    if isinstance(data, dict):  # keep little else, so that more of the damage hits the annotations
        known = {image["id"] for image in data["images"]}
        annotations = [row for row in data["annotations"][:5] if row["image_id"] in known]
        data = {"images": [image for image in data["images"] if "file_name" in image], "annotations": annotations}
    else:
        data = data[: 1 if layout == "aic original" else 3]
    companions = {kind: original("interhand", kind) for kind in COMPANIONS}
    seen = []
    for _ in range(300):
        content = {"data": data, **companions}
        kind = rng.choice(list(content)) if layout == "interhand" else "data"
        content[kind] = damage(content[kind], rng)
        try:
            labels = reread(layout, content["data"], camera=content["camera"], joint_3d=content["joint_3d"])
        except ValueError as error:
            assert "\n" not in str(error) and ".json: " in str(error), content[kind]
            seen.append("refused")
            continue
        assert all("\n" not in p and p.startswith(f"{tmp_path / 'x_data.json'}: ") for p in labels.problems)
        seen.append("named" if labels.problems else "clean")
        assert labels.people and labels.summary()
        for person in labels.people:
            assert np.isfinite(person.keypoints).all() and (np.abs(person.keypoints) <= 1e6).all()
            assert person.visible.any() and ((person.visible >= 0) & (person.visible <= 1)).all()
            assert np.isfinite(person.box).all() and min(person.box[2:]) > 0
        if labels.truth is not None:
            assert check_annotations(labels.truth, labels.data_set.keypoint_set) == (labels.truth, [])
            assert len(labels.truth["annotations"]) == len(labels.people) + labels.unlabelled + labels.crowd
    assert all(seen.count(what) >= 5 for what in ("clean", "named", "refused")), {w: seen.count(w) for w in seen}
