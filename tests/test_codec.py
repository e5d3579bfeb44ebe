"""HeatmapCodec: its defaults are those of the released models."""

from __future__ import annotations

import pytest
import torch

import vitpose_fast as vp
from vitpose_fast.codec import HeatmapCodec

COCO = HeatmapCodec(vp.KEYPOINT_SETS["coco"])


def test_defaults_are_those_of_the_released_models():
    assert (COCO.kind, COCO.image_size, COCO.heatmap_size) == ("udp", (256, 192), (64, 48))
    assert (COCO.sigma, COCO.blur_kernel) == (2.0, 11)


def test_golden_decoding():
    """Two peaks make the result depend on the blur. With crops of 47x63 pixels, heatmap cells are image pixels."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(48.0), indexing="ij")
    one, other = (x - 20.3) ** 2 / 8 + (y - 40.6) ** 2 / 10, ((x - 24) ** 2 + (y - 38) ** 2) / 8
    maps = (0.8 * torch.exp(-one) + 0.3 * torch.exp(-other)).expand(1, 17, 64, 48)
    points, scores = COCO.decode(maps, torch.tensor([[23.5, 31.5]]), torch.tensor([[47.0, 63.0]]))
    assert points[0, 0].tolist() == pytest.approx((20.706263, 40.285881), abs=1e-4)
    assert scores[0, 0].item() == pytest.approx(0.79167545, rel=1e-6)


def test_golden_target():
    """The keypoint (100.3, 77.7) of a 192x256 crop, with a sigma of 2."""
    points = torch.tensor([100.3, 77.7]).expand(1, 17, 2)
    maps, weights = COCO.encode(points, torch.ones(1, 17))
    assert weights.eq(1).all() and maps.shape == (1, 17, 64, 48)
    assert maps[0, 0, 19, 25].item() == pytest.approx(0.98261964) and maps[0, 0].sum().item() == pytest.approx(25.07586)
