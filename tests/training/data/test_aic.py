"""AI Challenger's original files: people equal those of the COCO conversion, and boxes are only clipped at 0."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.data.sample_files import changed
from vitpose_training.data.read import read_labels


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


def test_original_aic_boxes_are_only_clipped_at_zero(original, reread):
    data = original("aic original")[:1]
    human = next(iter(data[0]["human_annotations"]))
    labels = reread("aic original", changed(data, [0, "human_annotations", human], [-10, -20, 90000, 101]))
    (person,) = (p for p in labels.people if p.annotation_id == f"{data[0]['image_id']} {human}")
    assert person.box == (0, 0, 90009, 120)  # moved inside and one pixel smaller, as in the official loader
    assert person.image.name == f"{data[0]['image_id']}.jpg"


def test_repeated_images_of_the_original_aic_are_reported(original, reread):
    data = original("aic original")[:2]
    labels = reread("aic original", [*data, data[0]])
    assert len(labels.people) == len(reread("aic original", data).people) and labels.images == 2
    assert [p.split("x_data.json: ")[1] for p in labels.problems] == [
        f"entry 2 (image_id '{data[0]['image_id']}'): the image_id is already used by an earlier entry,"
        " expected a unique one"
    ]
