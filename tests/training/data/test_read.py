"""Every data set's own files to people: counts of the official loaders, hand-computed boxes, damage by name."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path

import numpy as np
import pytest

from vitpose_fast.coco import check_annotations, clipped_box
from vitpose_fast.rows import read_json
from vitpose_training.data.catalog import DATA_SETS
from vitpose_training.data.common import image_paths
from vitpose_training.data.interhand import project
from vitpose_training.data.read import read_labels

NAN = float("nan")
MISSING = "<missing>"
LEAVES = [None, "", "x", -1, 0, 1e308, NAN, [], {}, True, [[1]], "1", 10**400]
FILES = {  # one file of each layout
    "coco": ("coco", "coco/test_coco.json"),
    "apt36k": ("apt36k", "apt-36k/apt36k_wolf_reconstructed.json"),
    "wholebody": ("wholebody", "coco-wholebody/test_coco_wholebody.json"),
    "aic": ("aic", "aic/test_aic.json"),
    "aic original": ("aic", "aic/aic_keypoint_annotations_example.json"),
    "mpii": ("mpii", "mpii/test_mpii.json"),
    "interhand": ("interhand", "interhand2.6m/test_interhand2.6m_data.json"),
}


@pytest.fixture
def original(samples):
    """original(layout) -> the content of a sample file, at most five entries."""

    def read(layout):
        data = read_json(samples / FILES[layout][1])
        if isinstance(data, list):
            return data[:5]
        known = {image["id"] for image in data["images"]}
        return data | {"annotations": [a for a in data["annotations"][:5] if a["image_id"] in known]}

    return read


@pytest.fixture
def reread(samples, tmp_path):
    """reread(layout, data, **companions) -> the labels of changed content; InterHand's companions beside it."""

    def read(layout, data, **companions):
        file = tmp_path / "x_data.json"
        file.write_text(json.dumps(data))
        for kind in ("camera", "joint_3d"):
            content = companions.get(kind) or read_json(samples / f"interhand2.6m/test_interhand2.6m_{kind}.json")
            (tmp_path / f"x_{kind}.json").write_text(json.dumps(content))
        return read_labels(FILES[layout][0], file, tmp_path)

    return read


def changed(data, path, value):
    """A copy of `data` with the value at `path` replaced, or taken out where it is MISSING."""
    data = copy.deepcopy(data)
    *way, last = path
    place = data
    for key in way:
        place = place[key]
    if value is MISSING:
        del place[last]
    else:
        place[last] = value
    return data


@pytest.mark.parametrize(
    ("name", "file", "used", "unlabelled", "crowd", "images"),
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
        # two images with both hands, two with one: each hand with more than 11 valid joints is a sample of its own
        ("interhand", "interhand2.6m/test_interhand2.6m_data.json", 6, 0, 0, 4),
    ],
)
def test_as_many_people_as_the_official_loaders_count(samples, name, file, used, unlabelled, crowd, images):
    labels = read_labels(name, samples / file, (samples / file).parent)
    counts = (len(labels.people), labels.unlabelled, labels.crowd, labels.images, labels.problems)
    assert counts == (used, unlabelled, crowd, images, [])
    k = DATA_SETS[name].keypoints.num_keypoints
    for person in labels.people:
        assert person.keypoints.shape == (k, 2) and person.visible.shape == (k,)
        assert person.keypoints.dtype == person.visible.dtype == np.float32
        assert set(person.visible.tolist()) <= {0, 1} and person.visible.any()
        assert not person.keypoints[person.visible == 0].any()
        assert person.source == str(samples / file) and min(person.box[2:]) > 0
    assert len({person.annotation_id for person in labels.people}) == used
    assert (labels.truth is None) == (name in ("mpii", "interhand"))
    if labels.truth is not None:
        assert check_annotations(labels.truth, DATA_SETS[name].keypoints) == (labels.truth, [])
        rows = {a["id"]: a for a in labels.truth["annotations"]}
        paths = {image["id"]: image["path"] for image in labels.truth["images"]}
        assert all(p.image == paths[p.image_id] for p in labels.people)
        assert all(p.category_id == rows[p.annotation_id]["category_id"] for p in labels.people)


def test_coco_people_are_those_of_the_file(samples):
    file = samples / "coco/test_coco.json"
    labels = read_labels("coco", file, samples / "coco")
    images = {image["id"]: image for image in read_json(file)["images"]}
    rows = {a["id"]: a for a in read_json(file)["annotations"]}
    for person in labels.people:
        row, image = rows[person.annotation_id], images[person.image_id]
        assert person.box == clipped_box(row["bbox"], image["width"], image["height"])
        assert person.image_size == (image["height"], image["width"])
        assert (person.padding, person.fix_aspect) == (1.25, True)
        triples = np.array(row["keypoints"]).reshape(17, 3)
        assert person.visible.tolist() == (triples[:, 2] > 0).tolist()
        np.testing.assert_array_equal(person.keypoints, triples[:, :2] * (triples[:, 2:] > 0))


def test_people_with_a_keypoint_count_of_zero_are_unlabelled(original, reread):
    """As in the official loader; CrowdPose counts visible keypoints only and so leaves out those who are hidden."""
    data = original("coco")
    whole = reread("coco", data)
    labels = reread("coco", changed(data, ["annotations", 0, "num_keypoints"], 0))
    assert [p.annotation_id for p in labels.people] == [p.annotation_id for p in whole.people[1:]]
    assert labels.unlabelled == whole.unlabelled + 1 and not labels.problems


def test_keypoints_of_a_users_own_set(tmp_path):
    pen = tmp_path / "pen.json"
    pen.write_text(json.dumps({"name": "pen", "names": ["tip", "cap"]}))
    row = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 9, 9], "keypoints": [2, 3, 0.5, 5, 6, 0]}
    image = {"id": 7, "file_name": "a/b.png", "width": 20, "height": 30}
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"images": [image], "annotations": [row]}))
    (person,) = read_labels(str(pen), file, tmp_path / "images").people
    assert person.image == tmp_path / "images" / "a" / "b.png" and person.category_id == 3
    assert person.keypoints.tolist() == [[2, 3], [0, 0]] and person.visible.tolist() == [0.5, 0]


def test_wholebody_parts_are_put_in_the_order_of_the_channels(samples):
    file = samples / "coco-wholebody/test_coco_wholebody.json"
    labels = read_labels("wholebody", file, samples / "coco")
    rows = {a["id"]: a for a in read_json(file)["annotations"]}
    parts = {"keypoints": 17, "foot_kpts": 6, "face_kpts": 68, "lefthand_kpts": 21, "righthand_kpts": 21}
    for person in labels.people:
        start = 0
        for key, count in parts.items():
            triples = np.array(rows[person.annotation_id][key]).reshape(count, 3)
            seen = triples[:, 2] > 0
            assert person.visible[start : start + count].tolist() == seen.tolist()
            expected = (triples[:, :2] * seen[:, None]).astype(np.float32)
            np.testing.assert_array_equal(person.keypoints[start : start + count], expected)
            start += count
    assert sum(p.visible[112:].any() for p in labels.people) == 5  # right hands
    merged = read_labels("wholebody", samples / "coco-wholebody/test_keypoint_partition_metric.json", samples)
    for one, other in zip(labels.people, merged.people, strict=True):
        np.testing.assert_array_equal(one.keypoints, other.keypoints)
        np.testing.assert_array_equal(one.visible, other.visible)
    for one, other in zip(labels.truth["annotations"], merged.truth["annotations"], strict=True):
        body = sum(v > 0 for v in rows[one["id"]]["keypoints"][2::3])
        assert one["num_keypoints"] == other["num_keypoints"] == body and len(one["keypoints"]) == 399


def test_wholebody_parts_that_are_not_valid_are_unlabelled(original, reread):
    data = original("wholebody")
    first = next(i for i, a in enumerate(data["annotations"]) if a["foot_valid"] and any(a["keypoints"]))
    before = reread("wholebody", data)
    after = reread("wholebody", changed(data, ["annotations", first, "foot_valid"], False))
    index = [p.annotation_id for p in before.people].index(data["annotations"][first]["id"])
    assert before.people[index].visible[17:23].any() and not after.people[index].visible[17:23].any()
    assert not any(after.truth["annotations"][first]["keypoints"][3 * 17 + 2 : 3 * 23 : 3])
    np.testing.assert_array_equal(before.people[index].visible[23:], after.people[index].visible[23:])
    # hands without a body are no person to the official loader, and COCO ignores them
    body = changed(data, ["annotations", first, "keypoints"], [0] * 51)
    assert len(reread("wholebody", body).people) == len(before.people) - 1


def test_original_aic_equals_its_coco_conversion(samples):
    converted = read_labels("aic", samples / "aic/test_aic.json", samples / "aic")
    own = read_labels("aic", samples / "aic/aic_keypoint_annotations_example.json", samples / "aic")
    names = {p.image.name for p in converted.people}
    assert len(names) == 3

    def by_place(labels):
        people = [p for p in labels.people if p.image.name in names]
        rows = {a["id"]: a for a in labels.truth["annotations"]}
        return {
            (p.image, *rows[p.annotation_id]["bbox"]): (p, rows[p.annotation_id]) for p in people
        }  # the whole box: the conversion knows image sizes, the original does not

    a, b = by_place(converted), by_place(own)
    assert a.keys() == b.keys() and len(a) == 9
    for place in a:
        (one, row), (other, same) = a[place], b[place]
        np.testing.assert_array_equal(one.keypoints, other.keypoints)
        np.testing.assert_array_equal(one.visible, other.visible)
        assert row["keypoints"] == same["keypoints"] and row["num_keypoints"] == same["num_keypoints"]
        assert row["area"] == same["area"] == pytest.approx(0.53 * place[3] * place[4])
        assert one.box == other.box and one.image_size is not None and other.image_size is None


def test_original_aic_boxes_are_clipped_at_zero_alone(original, reread):
    data = original("aic original")[:1]
    human = next(iter(data[0]["human_annotations"]))
    labels = reread("aic original", changed(data, [0, "human_annotations", human], [-10, -20, 90000, 101]))
    (person,) = (p for p in labels.people if p.annotation_id == f"{data[0]['image_id']} {human}")
    assert person.box == (0, 0, 90009, 120)  # one pixel smaller, moved inside: what the official loader does
    assert person.image.name == f"{data[0]['image_id']}.jpg"


def test_mpii_boxes_are_the_official_squares(samples, original, reread):
    data = original("mpii")
    entry = {"image": "a.jpg", "center": [100, 200], "scale": 2, "joints": [[i + 1, 2 * i + 1] for i in range(16)]}
    labels = reread("mpii", [{**entry, "joints_vis": [1] * 15 + [0]}, *data])
    person = labels.people[0]
    # centre (100, 200 + 15 * 2) - 1, side 200 * 2 * 1.25
    assert person.box == (99 - 250, 229 - 250, 500, 500)
    assert (person.padding, person.fix_aspect, person.image_size) == (1.0, False, None)
    assert person.keypoints.tolist() == [[i, 2 * i] for i in range(15)] + [[0, 0]]
    assert person.visible.tolist() == [1] * 15 + [0]
    assert [p.annotation_id for p in labels.people] == list(range(6))
    # the first of the sample: centre (966, 340), scale 4.718488
    x, y, w, h = labels.people[1].box
    assert (x + w / 2, y + h / 2) == pytest.approx((965, 340 + 15 * 4.718488 - 1))
    assert w == h == pytest.approx(1179.622)


def test_mpii_people_keep_their_place_in_the_file(original, reread):
    """PCKh finds the head boxes by it: those who are left out leave a gap."""
    data = changed(original("mpii"), [1, "center"], [-1, -1])
    data = changed(data, [3, "joints_vis"], [0] * 16)
    labels = reread("mpii", data)
    assert [p.annotation_id for p in labels.people] == [0, 2, 4]
    assert labels.unlabelled == 1 and len(labels.problems) == 1


def test_interhand_projection_joint_by_joint(samples):
    folder = samples / "interhand2.6m"
    data, camera, world = (read_json(folder / f"test_interhand2.6m_{k}.json") for k in ("data", "camera", "joint_3d"))
    labels = read_labels("interhand", folder / "test_interhand2.6m_data.json", folder)
    people = {p.annotation_id: p for p in labels.people}
    assert list(people) == [
        "326750 right", "326750 left", "286291 right", "286291 left", "680801 left", "471953 right",
    ]  # fmt: skip
    for image, row in zip(data["images"], data["annotations"], strict=True):
        cam, name = camera[str(image["capture"])], image["camera"]
        for hand, side in enumerate(("right", "left")):
            person = people.get(f"{row['id']} {side}")
            if person is None:
                continue
            points = []
            for joint in range(21):
                xyz = world[str(image["capture"])][str(image["frame_idx"])]["world_coord"][21 * hand + joint]
                moved = [a - b for a, b in zip(xyz, cam["campos"][name])]
                seen = [sum(r * m for r, m in zip(line, moved)) for line in cam["camrot"][name]]
                points.append([seen[i] / seen[2] * cam["focal"][name][i] + cam["princpt"][name][i] for i in (0, 1)])
            np.testing.assert_allclose(person.keypoints, points, atol=1e-3)
            x, y, w, h = person.box
            points = np.array(points)
            np.testing.assert_allclose([x, y, x + w, y + h], [*points.min(0), *points.max(0)], atol=1e-3)
            bx, by, bw, bh = row["bbox"]
            assert bx <= x and by <= y and x + w <= bx + bw and y + h <= by + bh
            assert person.image_size == (image["height"], image["width"]) and person.padding == 1.5
            assert person.image == folder / image["file_name"] and person.visible.all()


def test_interhand_cameras_look_along_z():
    """A camera at (1, 2, 3), turned a quarter about z: world x is its y."""
    turn = [0, -1, 0, 1, 0, 0, 0, 0, 1]
    camera = np.array([[1, 2, 3, *turn, 100, 200, 10, 20]], dtype=float)
    points, depth = project(np.array([[[1.5, 2.25, 5.0]]]), camera)
    np.testing.assert_allclose(points, [[[10 - 0.25 / 2 * 100, 20 + 0.5 / 2 * 200]]])
    assert depth.tolist() == [[2]]


def test_interhand_hands_need_their_root_and_twelve_joints(original, reread):
    data = original("interhand")

    def used(row, hand, valid):
        now = copy.deepcopy(data)
        now["annotations"][row]["joint_valid"][21 * hand : 21 * hand + 21] = [[v] for v in valid]
        labels = reread("interhand", now)
        assert not labels.problems
        return [p.annotation_id for p in labels.people], labels.unlabelled

    everybody = used(0, 0, [1] * 21)[0]
    rest = [name for name in everybody if name != "326750 right"]
    assert used(0, 0, [0] * 9 + [1] * 12) == (everybody, 0)
    assert used(0, 0, [0] * 10 + [1] * 11) == (rest, 1)  # too few
    assert used(0, 0, [1] * 20 + [0]) == (rest, 1)  # no root
    assert used(0, 0, [0] * 21) == (rest, 0)  # an image of the left hand alone: no entry
    assert used(2, 1, [0] * 21)[1] == 1  # an annotation without a hand

    now = copy.deepcopy(data)
    now["annotations"][0]["joint_valid"][:9] = [[0]] * 9
    person = reread("interhand", now).people[0]
    assert person.visible.tolist() == [0] * 9 + [1] * 12 and not person.keypoints[:9].any()
    points = person.keypoints[9:]
    np.testing.assert_allclose(person.box, [*points.min(0), *(points.max(0) - points.min(0))], atol=1e-3)


WINDOWS = r"D:\Animal_pose\AP-36k-patr1\29wolf\clip1\13.jpg"


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_plain_names_are_taken_as_they_stand(tmp_path):
    assert image_paths(tmp_path, ["a.jpg", "b/c.jpg", "../d.jpg"]) == [
        tmp_path / "a.jpg", tmp_path / "b" / "c.jpg", tmp_path / ".." / "d.jpg",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("there", "found"),
    [
        (["29wolf/clip1/13.jpg"], "29wolf/clip1/13.jpg"),
        (["AP-36k-patr1/29wolf/clip1/13.jpg", "clip1/13.jpg", "13.jpg"], "AP-36k-patr1/29wolf/clip1/13.jpg"),
        (["clip1/14.jpg", "13.jpg"], "13.jpg"),
        ([], "Animal_pose/AP-36k-patr1/29wolf/clip1/13.jpg"),
    ],
)
def test_windows_paths_mean_the_longest_tail_that_exists(tmp_path, there, found):
    touch(tmp_path, *there)
    assert image_paths(tmp_path, [WINDOWS]) == [tmp_path / found]
    assert image_paths(tmp_path, [WINDOWS.replace("\\", "/")]) == [tmp_path / found]
    assert image_paths(tmp_path, [WINDOWS[2:].replace("\\", "/")]) == [tmp_path / found]  # a root, but no drive


def test_missing_windows_paths_are_looked_for_beside_their_siblings(tmp_path):
    touch(tmp_path, "29wolf/clip1/13.jpg")
    found, missing = image_paths(tmp_path, [WINDOWS, WINDOWS.replace("13", "14")])
    assert found == tmp_path / "29wolf/clip1/13.jpg" and missing == tmp_path / "29wolf/clip1/14.jpg"


def test_two_images_are_never_one_file(tmp_path):
    """13.jpg of two clips, and one 13.jpg that nobody sorted into a folder: whose it is cannot be known."""
    touch(tmp_path, "13.jpg", "clip3/13.jpg")
    names = [WINDOWS, WINDOWS.replace("clip1", "clip2"), WINDOWS.replace("clip1", "clip3")]
    first, second, third = image_paths(tmp_path, names)
    assert not first.exists() and not second.exists() and "clip2" in str(second)
    assert third == tmp_path / "clip3/13.jpg"
    same = image_paths(tmp_path, [WINDOWS.replace("clip1", "clip3")] * 2)  # one image with two ids
    assert same == [tmp_path / "clip3/13.jpg"] * 2


def test_absolute_paths_that_exist_are_used(tmp_path):
    touch(tmp_path, "elsewhere/a.jpg", "images/a.jpg")
    assert image_paths(tmp_path / "images", [str(tmp_path / "elsewhere/a.jpg")]) == [tmp_path / "elsewhere/a.jpg"]


def test_apt36k_images_are_found_by_their_windows_paths(samples, original, reread, tmp_path):
    touch(tmp_path, *(f"29wolf/video9_clip5_1m45s-1m47s_frame/{i}.jpg" for i in (13, 14, 15)))
    labels = reread("apt36k", original("apt36k"))
    assert len(labels.people) == 5 and all(p.image.is_file() for p in labels.people)
    crowd = reread("apt36k", changed(original("apt36k"), ["annotations", 0, "is_crowd"], 1))
    assert (len(crowd.people), crowd.crowd, crowd.unlabelled) == (4, 1, 0)
    both = changed(original("apt36k"), ["annotations", 0, "is_crowd"], 1)
    assert reread("apt36k", changed(both, ["annotations", 0, "iscrowd"], 0)).crowd == 0


A0, E0 = ["annotations", 0], [0]
HUMAN = "human1"
DAMAGE = [
    ("coco", [*A0, "bbox"], [1, 2, NAN, 4], "annotation 0 (id 442619): bbox is [1, 2, nan, 4], expected four"),
    ("coco", [*A0, "id"], 198196, "annotation 1 (id 198196): the id is that of annotation 0"),
    ("apt36k", [*A0, "is_crowd"], "no", "annotation 0 (id 1): is_crowd is 'no', expected 0 or 1"),
    ("wholebody", [*A0, "foot_kpts"], MISSING, "annotation 0 (id 442619): no foot_kpts"),
    ("wholebody", [*A0, "foot_kpts"], [0] * 17, "foot_kpts holds 17 numbers, expected 18"),
    ("wholebody", [*A0, "face_kpts"], "0", "face_kpts is '0', expected a flat list of finite numbers"),
    ("wholebody", [*A0, "face_kpts", 5], NAN, "face_kpts is ["),
    ("wholebody", [*A0, "keypoints"], [0] * 50, "keypoints holds 50 numbers, expected 51"),
    ("wholebody", [*A0, "lefthand_kpts", 2], -1, "lefthand_kpts has visibility -1, expected at least 0"),
    ("wholebody", [*A0, "righthand_valid"], "yes", "righthand_valid is 'yes', expected true or false"),
    ("aic", [*A0, "keypoints"], [0] * 51, "annotation 0 (id 4): 51 keypoint numbers, expected 42 for aic"),
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
    ("mpii", [0, "center"], [-1, -1], "entry 0 (image '005808361.jpg'): center is [-1, -1]: nobody, expected"),
    ("mpii", [0, "center"], [5], "center is [5], expected 2 finite numbers"),
    ("mpii", [0, "scale"], -2, "scale is -2, expected a number > 0"),
    ("mpii", [0, "scale"], NAN, "scale is nan, expected a number > 0"),
    ("mpii", [0, "joints"], [[1, 2]] * 15, "expected 16 x 2 finite numbers"),
    ("mpii", [0, "joints", 3], [1, 2, 3], "expected 16 x 2 finite numbers"),
    ("mpii", [0, "joints", 3], [1, True], "expected 16 x 2 finite numbers"),
    ("mpii", [0, "joints", 3], [1, 10**400], "expected 16 x 2 finite numbers"),
    ("mpii", [0, "joints_vis", 0], 7, "expected 0 or 1 for every joint"),
    ("interhand", [*A0, "image_id"], 5, "annotation 0 (id 326750): image_id 5 is not in images"),
    ("interhand", [*A0, "id"], 286291, "annotation 1 (id 286291): the id is that of annotation 0, expected another"),
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
def test_damage_is_named_and_the_rest_is_read(original, reread, tmp_path, layout, path, value, reason):
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
    ("kind", "path", "value", "reason"),
    [
        ("camera", ["3", "campos"], MISSING, "camera '400026' of capture '3' in x_camera.json has no campos"),
        ("camera", ["3", "focal", "400026"], [1], "x_camera.json: focal is [1], expected 2 finite numbers"),
        ("camera", ["3", "focal", "400026"], [1, -1], "focal is [1.0, -1.0], expected two numbers > 0"),
        ("camera", ["3", "camrot", "400026", 0, 0], 0, "expected a rotation"),
        ("camera", ["3", "princpt", "400026"], None, "princpt is None, expected 2 finite numbers"),
        ("camera", ["3"], [], "capture '3' is not in x_camera.json"),
        ("joint_3d", ["3", "69148"], MISSING, "frame '69148' of capture '3' is not in x_joint_3d.json"),
        ("joint_3d", ["3", "69148", "world_coord"], MISSING, "in x_joint_3d.json: no world_coord"),
        ("joint_3d", ["3", "69148", "world_coord", 3, 1], NAN, "expected 42 x 3 finite numbers"),
        ("joint_3d", ["3", "69148", "world_coord", 3], [0, 0, -9999], "the right hand has a joint behind the camera"),
        ("joint_3d", ["3", "69148", "world_coord"], [[0, 0, 1000]] * 42, "has its valid joints in one row or column"),
    ],
)
def test_damage_in_interhands_companions_is_named(samples, original, reread, tmp_path, kind, path, value, reason):
    content = read_json(samples / f"interhand2.6m/test_interhand2.6m_{kind}.json")
    labels = reread("interhand", original("interhand"), **{kind: changed(content, path, value)})
    named = [p for p in labels.problems if reason in p]
    assert named and all(p.startswith(f"{tmp_path / 'x_data.json'}: annotation ") for p in labels.problems)
    assert "326750 right" not in {p.annotation_id for p in labels.people} and len(labels.people) >= 4


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
            "no person with labelled aic keypoints",
        ),
        ("mpii", {}, "is {}, expected MPII's list of people"),
        ("mpii", [], "no usable entry among 0"),
        ("mpii", [3], "no usable entry among 1; the first of 1 problems: entry 0: is 3"),
        ("interhand", [], "no list 'images', expected InterHand2.6M annotations"),
        ("interhand", {"images": [], "annotations": [1]}, "no usable annotation among 1; the first of 1 problems"),
    ],
)
def test_files_of_no_use_are_one_line(reread, tmp_path, layout, data, reason):
    with pytest.raises(ValueError) as error:
        reread(layout, data)
    text = str(error.value)
    assert text.startswith(f"{tmp_path / 'x_data.json'}: ") and "\n" not in text
    assert reason.removesuffix(": expected") in text


@pytest.mark.parametrize("layout", FILES)
def test_files_that_hold_something_else_are_one_line(reread, tmp_path, layout):
    for content in LEAVES:
        with pytest.raises(ValueError) as error:
            reread(layout, content)
        assert str(error.value).startswith(f"{tmp_path / 'x_data.json'}: ") and "\n" not in str(error.value)


def test_repeated_images_of_the_original_aic_are_named(original, reread):
    data = original("aic original")[:2]
    labels = reread("aic original", [*data, data[0]])
    assert len(labels.people) == len(reread("aic original", data).people) and labels.images == 2
    assert [p.split("x_data.json: ")[1] for p in labels.problems] == [
        f"entry 2 (image_id '{data[0]['image_id']}'): the image_id is that of an earlier entry, expected another"
    ]


def test_files_in_which_nobody_is_left_are_refused(original, reread):
    data = original("mpii")[:1]
    with pytest.raises(ValueError, match="no person with labelled mpii keypoints$"):
        reread("mpii", changed(data, [0, "joints_vis"], [0] * 16))
    data = original("coco")
    rows = [{**a, "iscrowd": 1} for a in data["annotations"][:1]] + [3]
    with pytest.raises(
        ValueError, match="no person with labelled coco .*; the first of 1 problems: annotation 1: is 3"
    ):
        reread("coco", {**data, "annotations": rows})


def test_interhands_companions_must_be_there(samples, tmp_path):
    content = (samples / FILES["interhand"][1]).read_bytes()
    (tmp_path / "x_data.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"x_camera\.json: no such file"):
        read_labels("interhand", tmp_path / "x_data.json", tmp_path)
    (tmp_path / "x_camera.json").write_text("[]")
    with pytest.raises(ValueError, match=r"x_camera\.json: is \[\], expected an object"):
        read_labels("interhand", tmp_path / "x_data.json", tmp_path)
    (tmp_path / "hands.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"hands\.json: expected a file called \.\._data\.json"):
        read_labels("interhand", tmp_path / "hands.json", tmp_path)
    with pytest.raises(ValueError, match=r"none_data\.json: no such file"):
        read_labels("interhand", tmp_path / "none_data.json", tmp_path)


@pytest.mark.parametrize("layout", FILES)
def test_random_damage(samples, original, reread, tmp_path, damage, layout):
    """Whatever happens to a file is said in one line; what is left can be trained on and scored."""
    rng = random.Random(0)
    data = original(layout)
    if isinstance(data, dict):  # smaller: more of the damage is where it matters
        data = {key: data[key] for key in ("images", "annotations")}
        data["images"] = [image for image in data["images"] if "file_name" in image]
    else:
        data = data[: 1 if layout == "aic original" else 3]
    companions = {k: read_json(samples / f"interhand2.6m/test_interhand2.6m_{k}.json") for k in ("camera", "joint_3d")}
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
            assert check_annotations(labels.truth, labels.data_set.keypoints) == (labels.truth, [])
            assert len(labels.truth["annotations"]) == len(labels.people) + labels.unlabelled + labels.crowd
    assert all(seen.count(what) >= 5 for what in ("clean", "named", "refused")), {w: seen.count(w) for w in seen}
