"""People of MPII files: boxes are the squares of the official loader, ids are indices in the file."""

from __future__ import annotations

import pytest

from tests.training.data.sample_files import changed


def test_mpii_boxes_are_the_official_squares(samples, original, reread):
    data = original("mpii")
    entry = {"image": "a.jpg", "center": [100, 200], "scale": 2, "joints": [[i + 1, 2 * i + 1] for i in range(16)]}
    labels = reread("mpii", [{**entry, "joints_vis": [1] * 15 + [0]}, *data])
    person = labels.people[0]
    # center (100, 200 + 15 * 2) - 1, side 200 * 2 * 1.25
    assert person.box == (99 - 250, 229 - 250, 500, 500)
    assert (person.padding, person.fix_aspect, person.image_size) == (1.0, False, None)
    assert person.keypoints.tolist() == [[i, 2 * i] for i in range(15)] + [[0, 0]]
    assert person.visible.tolist() == [1] * 15 + [0]
    assert [p.annotation_id for p in labels.people] == list(range(6))
    # first person of the sample: center (966, 340), scale 4.718488
    x, y, w, h = labels.people[1].box
    assert (x + w / 2, y + h / 2) == pytest.approx((965, 340 + 15 * 4.718488 - 1))
    assert w == h == pytest.approx(1179.622)


def test_mpii_people_keep_their_index_in_the_file(original, reread):
    """PCKh finds head boxes by this index, so a person who is left out leaves a gap."""
    data = changed(original("mpii"), [1, "center"], [-1, -1])
    data = changed(data, [3, "joints_vis"], [0] * 16)
    labels = reread("mpii", data)
    assert [p.annotation_id for p in labels.people] == [0, 2, 4]
    assert labels.unlabelled == 1 and len(labels.problems) == 1
