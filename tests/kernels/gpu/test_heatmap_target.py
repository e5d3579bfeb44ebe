"""The Triton kernel of heatmap_target against the float64 reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitpose_fast import functional as F


def draw(people, keypoints, seed, batch=2):
    """Return random keypoints, inside and outside of the crop, and their visibility."""
    g = torch.Generator().manual_seed(seed)
    shape = (batch, keypoints) if people is None else (batch, people, keypoints)
    return torch.rand(*shape, 2, generator=g) * 160 - 40, torch.rand(*shape, generator=g)


@settings(max_examples=25)
@given(
    size=st.sampled_from([(16, 12), (33, 17), (1, 1), (64, 48)]),  # the last one needs several programs per map
    people=st.sampled_from([None, 0, 1, 3]),
    keypoints=st.integers(1, 3),
    udp=st.booleans(),
    sigma=st.sampled_from([1.0, 2.0, 3.0]),
    seed=st.integers(0, 2**16),
)
def test_any_shape_equals_the_reference(device, size, people, keypoints, udp, sigma, seed):
    points, visible = draw(people, keypoints, seed)
    options = dict(size=size, image_size=(64, 48), codec="udp" if udp else "msra", sigma=sigma)
    truth, weights = F.heatmap_target(points.double(), visible.double(), **options)
    plain, _ = F.heatmap_target(points, visible, **options)
    ours, our_weights = F.heatmap_target(points.to(device), visible.to(device), impl="triton", **options)
    error, theirs = ((x.cpu() - truth).abs().max().item() if truth.numel() else 0.0 for x in (ours, plain))
    assert error <= 2 * theirs + torch.finfo(torch.float32).eps  # relative to the peak of 1, which may be off the map
    torch.testing.assert_close(our_weights.cpu(), weights.float(), rtol=0, atol=0)


def test_non_finite_coordinates_and_odd_visibility(device, poisoned):
    points = torch.tensor([[[50.0, 50], [50, 50], [50, 50], [math.nan, 50], [50, math.inf], [1e30, 0], [-30, 10]]])
    visible = torch.tensor([[0.0, 0.3, 2.0, 1.0, 1.0, 1.0, 1.0]])
    expected = F.heatmap_target(points, visible)
    ours = F.heatmap_target(points.to(device), visible.to(device), impl="triton")
    for a, b in zip(ours, expected):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-5, atol=1e-6)


def test_exact_ties_are_rounded_as_in_the_reference(device):
    """msra keypoints exactly between two pixels: the rounding must not depend on an approximate division."""
    points = torch.stack([torch.arange(0, 192, 2.0), torch.full((96,), 30.0)], -1)[None]
    plain, _ = F.heatmap_target(points, torch.ones(1, 96), codec="msra")
    ours, _ = F.heatmap_target(points.to(device), torch.ones(1, 96, device=device), codec="msra", impl="triton")
    assert torch.equal(ours.flatten(2).argmax(-1).cpu(), plain.flatten(2).argmax(-1))


def test_empty_batch(device):
    ours = F.heatmap_target(torch.zeros(0, 3, 2, device=device), torch.zeros(0, 3, device=device), impl="triton")
    assert [t.shape for t in ours] == [(0, 3, 64, 48), (0, 3)]


def test_float64_is_refused_in_one_line(device):
    with pytest.raises(ValueError, match=r"heatmap_target: got torch.float64 .*, the Triton kernels take"):
        F.heatmap_target(torch.zeros(1, 1, 2, device=device).double(), torch.ones(1, 1, device=device), impl="triton")
