"""People of COCO files: equal to the file, with a user's own keypoints, and filtered as in the official loader."""

from __future__ import annotations

import json

import numpy as np

from tests.training.data.sample_files import changed
from vitpose_fast.coco import clipped_box
from vitpose_fast.rows import read_json
from vitpose_training.data.read import read_labels


def test_coco_people_equal_the_annotations(samples):
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


def test_people_with_a_keypoint_count_of_zero_are_unlabeled(original, reread):
    """As in the official loader. CrowdPose counts only visible keypoints, so fully hidden people have a count of 0."""
    data = original("coco")
    whole = reread("coco", data)
    labels = reread("coco", changed(data, ["annotations", 0, "num_keypoints"], 0))
    assert [p.annotation_id for p in labels.people] == [p.annotation_id for p in whole.people[1:]]
    assert labels.unlabelled == whole.unlabelled + 1 and not labels.problems


def test_users_own_keypoint_set(tmp_path):
    pen = tmp_path / "pen.json"
    pen.write_text(json.dumps({"name": "pen", "names": ["tip", "cap"]}))
    row = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 9, 9], "keypoints": [2, 3, 0.5, 5, 6, 0]}
    image = {"id": 7, "file_name": "a/b.png", "width": 20, "height": 30}
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"images": [image], "annotations": [row]}))
    (person,) = read_labels(str(pen), file, tmp_path / "images").people
    assert person.image == tmp_path / "images" / "a" / "b.png" and person.category_id == 3
    assert person.keypoints.tolist() == [[2, 3], [0, 0]] and person.visible.tolist() == [0.5, 0]
