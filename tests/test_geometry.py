"""Crop transforms and their inverses, flips, and boxes outside the image."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitpose_fast.geometry import (
    box_to_center_scale,
    boxes_outside,
    crop_to_image,
    flip_keypoints,
    transform_points,
    warp_matrix,
)


@given(
    x=st.floats(-100, 500),
    y=st.floats(-100, 500),
    w=st.floats(2, 400),
    h=st.floats(2, 400),
    codec=st.sampled_from(["udp", "msra"]),
)
def test_image_to_crop_and_back(x, y, w, h, codec):
    center, scale = box_to_center_scale(torch.tensor([[x, y, w, h]], dtype=torch.float64), (256, 192))
    points = torch.rand(1, 5, 2, dtype=torch.float64) * 300
    crop = transform_points(warp_matrix(center, scale, None, (256, 192), codec), points)
    back = crop_to_image(crop, center.double(), scale.double(), (256, 192), codec)
    torch.testing.assert_close(back, points, rtol=1e-3, atol=1e-2 * max(w, h) / 100 + 1e-2)


@pytest.mark.parametrize("codec", ["udp", "msra"])
def test_rotation_turns_about_the_box_center(codec):
    center, scale = torch.tensor([[110.0, 70.0]]), torch.tensor([[250.0, 1000 / 3]])
    flat = transform_points(warp_matrix(center, scale, None, (256, 192), codec), center[:, None].double())
    turned = transform_points(
        warp_matrix(center, scale, torch.tensor([37.0]), (256, 192), codec), center[:, None].double()
    )
    torch.testing.assert_close(flat, turned, rtol=0, atol=1e-3)


def test_flip_twice_changes_nothing():
    points, visible = torch.rand(2, 4, 2) * 100, torch.rand(2, 4)
    once = flip_keypoints(points, visible, (1, 0, 2, 3), 192)
    assert once[0][0, 0].tolist() == pytest.approx([191 - points[0, 1, 0].item(), points[0, 1, 1].item()])
    twice = flip_keypoints(*once, (1, 0, 2, 3), torch.tensor([192.0, 192.0]))
    torch.testing.assert_close(twice, (points, visible))


def test_boxes_outside():
    boxes = torch.tensor([[0.0, 0, 5, 5], [-5, 0, 5, 5], [79.5, 0, 5, 5], [80, 0, 5, 5], [0, 60, 5, 5], [0, -9, 5, 9]])
    assert boxes_outside(boxes, (60, 80)).tolist() == [False, True, False, True, True, True]
