"""InterHand2.6M: projection equals a loop over joints, hands need their root and twelve joints, damage is reported."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from tests.training.data.sample_files import FILES, MISSING, changed
from vitpose_fast.rows import read_json
from vitpose_training.data.interhand import project
from vitpose_training.data.read import read_labels

NAN = float("nan")


def test_interhand_projection_equals_a_loop_over_joints(samples):
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
    """A camera at (1, 2, 3), rotated by 90 degrees about z, so that the world's x axis is the camera's y axis."""
    rotation = [0, -1, 0, 1, 0, 0, 0, 0, 1]
    camera = np.array([[1, 2, 3, *rotation, 100, 200, 10, 20]], dtype=float)
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
    assert used(0, 0, [0] * 21) == (rest, 0)  # only the left hand is annotated: the right one is no entry
    assert used(2, 1, [0] * 21)[1] == 1  # an annotation without any hand is one

    now = copy.deepcopy(data)
    now["annotations"][0]["joint_valid"][:9] = [[0]] * 9
    person = reread("interhand", now).people[0]
    assert person.visible.tolist() == [0] * 9 + [1] * 12 and not person.keypoints[:9].any()
    points = person.keypoints[9:]
    np.testing.assert_allclose(person.box, [*points.min(0), *(points.max(0) - points.min(0))], atol=1e-3)


def test_interhands_companions_are_required(samples, tmp_path):
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
def test_damage_in_interhands_companions_is_reported(original, reread, tmp_path, kind, path, value, reason):
    labels = reread("interhand", original("interhand"), **{kind: changed(original("interhand", kind), path, value)})
    named = [p for p in labels.problems if reason in p]
    assert named and all(p.startswith(f"{tmp_path / 'x_data.json'}: annotation ") for p in labels.problems)
    assert "326750 right" not in {p.annotation_id for p in labels.people} and len(labels.people) >= 4
