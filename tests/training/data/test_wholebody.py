"""People of COCO-WholeBody files: five lists become 133 channels, and parts that are not valid are unlabeled."""

from __future__ import annotations

import numpy as np

from tests.training.data.sample_files import changed
from vitpose_fast.rows import read_json
from vitpose_training.data.read import read_labels


def test_wholebody_parts_are_in_channel_order(samples):
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


def test_wholebody_parts_that_are_not_valid_are_unlabeled(original, reread):
    data = original("wholebody")
    first = next(i for i, a in enumerate(data["annotations"]) if a["foot_valid"] and any(a["keypoints"]))
    before = reread("wholebody", data)
    after = reread("wholebody", changed(data, ["annotations", first, "foot_valid"], False))
    index = [p.annotation_id for p in before.people].index(data["annotations"][first]["id"])
    assert before.people[index].visible[17:23].any() and not after.people[index].visible[17:23].any()
    assert not any(after.truth["annotations"][first]["keypoints"][3 * 17 + 2 : 3 * 23 : 3])
    np.testing.assert_array_equal(before.people[index].visible[23:], after.people[index].visible[23:])
    # The official loader leaves out annotations without body keypoints, and COCO evaluation ignores them.
    body = changed(data, ["annotations", first, "keypoints"], [0] * 51)
    assert len(reread("wholebody", body).people) == len(before.people) - 1
