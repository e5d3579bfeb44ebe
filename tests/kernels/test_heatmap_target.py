"""Tests of heatmap targets, against the golden numbers of docs/numerics.md 12.2 and a loop like the official code."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitpose_fast import functional as F

GOLDEN = [  # joint, weight, argmax (y, x), maximum, sum, non-zero cells
    ((100.3, 77.7), 1, (19, 25), 0.98261964, 25.07586, 169),
    ((1.0, 254.9), 1, (63, 0), 0.99238384, 9.808587, 49),
    ((-20.0, 10.0), 1, (2, 0), 0.047109295, 0.29640985, 27),
    ((-30.0, 10.0), 1, (2, 0), 0.0010703289, 0.005142254, 9),
    ((216.0, 100.0), 1, (25, 47), 0.00872604, 0.044170283, 13),
]


def loop_target(point, size, image_size, udp, sigma=2.0):
    """Render one keypoint cell by cell, with int() that truncates as in C. Returns (weight, map [h, w])."""
    (h, w), (ih, iw) = size, image_size
    stride = ((iw - 1) / (w - 1), (ih - 1) / (h - 1)) if udp else (iw / w, ih / h)
    at = [c / s for c, s in zip(point, stride)]
    m = [int(a + 0.5) for a in at]
    r = int(3 * sigma)
    g = torch.zeros(h, w, dtype=torch.float64)
    if m[0] - r >= w or m[1] - r >= h or m[0] + r + 1 < 0 or m[1] + r + 1 < 0:
        return 0.0, g
    center = at if udp else m
    for y in range(max(0, m[1] - r), min(h, m[1] + r + 1)):
        for x in range(max(0, m[0] - r), min(w, m[0] + r + 1)):
            g[y, x] = math.exp(-((x - center[0]) ** 2 + (y - center[1]) ** 2) / (2 * sigma**2))
    return 1.0, g


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda g: str(g[0]))
def test_golden_numbers(golden):
    point, weight, peak, maximum, total, cells = golden
    maps, weights = F.heatmap_target(torch.tensor([[point]]), torch.ones(1, 1))
    heat = maps[0, 0]
    assert weights.item() == weight
    assert divmod(int(heat.argmax()), 48) == peak
    assert heat.max().item() == pytest.approx(maximum, rel=1e-6)
    assert heat.sum().item() == pytest.approx(total, rel=1e-5)
    assert int((heat != 0).sum()) == cells


def test_golden_cells():
    heat = F.heatmap_target(torch.tensor([[[100.3, 77.7]]]), torch.ones(1, 1))[0][0, 0]
    assert heat[19, 24].item() == pytest.approx(0.9391115, rel=1e-6)
    assert heat[18, 25].item() == pytest.approx(0.82559514, rel=1e-6)
    assert heat[25, 31].item() == pytest.approx(1.0092837e-4, rel=1e-5)


@settings(max_examples=60)
@given(x=st.floats(-60, 260), y=st.floats(-60, 320), udp=st.booleans(), sigma=st.sampled_from([1.0, 2.0, 3.0]))
def test_equals_the_loop(x, y, udp, sigma):
    size, image = (16, 12), (64, 48)
    point = torch.tensor([[[x / 4, y / 4]]], dtype=torch.float64)
    maps, weights = F.heatmap_target(point, torch.ones(1, 1), size, "udp" if udp else "msra", sigma)
    weight, expected = loop_target((x / 4, y / 4), size, image, udp, sigma)
    assert weights.item() == weight
    torch.testing.assert_close(maps[0, 0], expected, rtol=1e-9, atol=1e-12)


def test_msra_peak_is_one_on_the_grid():
    maps, _ = F.heatmap_target(torch.tensor([[[101.0, 77.0]]]), torch.ones(1, 1), codec="msra")
    assert maps.max() == 1 and divmod(int(maps.argmax()), 48) == (19, 25)


def test_visibility_and_broken_coordinates():
    points = torch.tensor([[[50.0, 50.0], [50.0, 50.0], [50.0, 50.0], [math.nan, 50.0], [math.inf, 50.0]]])
    maps, weights = F.heatmap_target(points, torch.tensor([[0.0, 0.3, 2.0, 1.0, 1.0]]))
    assert weights.tolist() == [[0.0, pytest.approx(0.3), 1.0, 0.0, 0.0]]  # drawn if above 0.5; COCO's 2 counts as 1
    assert [bool(m.any()) for m in maps[0]] == [False, False, True, False, False]


def test_people_are_merged_by_maximum():
    points = torch.tensor([[[[40.0, 40.0]], [[44.0, 40.0]]]])
    maps, weights = F.heatmap_target(points, torch.tensor([[[1.0], [0.0]]]))
    one, _ = F.heatmap_target(points[:, 0], torch.ones(1, 1))
    two, _ = F.heatmap_target(points[:, 1], torch.ones(1, 1))
    assert torch.equal(maps, one) and weights.tolist() == [[1.0]]
    assert torch.equal(F.heatmap_target(points, torch.ones(1, 2, 1))[0], torch.maximum(one, two))
    assert F.heatmap_target(points[:, :0], torch.ones(1, 0, 1))[0].abs().sum() == 0


def test_any_stride():
    maps, _ = F.heatmap_target(torch.tensor([[[31.0, 0.0]]]), torch.ones(1, 1), size=(32, 32), image_size=(63, 63))
    assert maps[0, 0, 0, 15] == maps[0, 0, 0, 16] == maps.max()  # 31 / (62 / 31) = 15.5 is halfway between two cells
    assert F.heatmap_target(torch.zeros(1, 1, 2), torch.ones(1, 1), size=(1, 1))[0].tolist() == [[[[1.0]]]]


def test_opcheck():
    args = (torch.rand(2, 3, 2) * 60, torch.ones(2, 3), [16, 12], [64, 48], True, 2.0, False)
    assert set(torch.library.opcheck(torch.ops.vitpose_fast.heatmap_target, args).values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(codec="dark"), "got codec='dark', expected 'udp' or 'msra'"),
        (dict(sigma=0.0), "expected a positive number of heatmap pixels"),
        (dict(visible=torch.ones(1, 2)), r"visible has shape \[1, 2\], expected \[1, 1\]"),
        (dict(keypoints=torch.ones(1, 3)), r"expected \[B, K, 2\] or \[B, P, K, 2\]"),
    ],
)
def test_refuses_in_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        F.heatmap_target(**{"keypoints": torch.ones(1, 1, 2), "visible": torch.ones(1, 1), **options})
