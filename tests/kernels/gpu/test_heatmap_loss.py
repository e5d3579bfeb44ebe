"""The Triton kernels of heatmap_loss against the formula in float64, with gradients by autograd."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitpose_fast import functional as F


def draw(size, people, keypoints, seed, batch=2):
    """Return random (heatmaps, keypoints inside and outside of the crop, visible, mask)."""
    g = torch.Generator().manual_seed(seed)
    shape = (batch, keypoints) if people is None else (batch, people, keypoints)
    heatmaps = torch.randn(batch, keypoints, *size, generator=g)
    return (
        heatmaps,
        torch.rand(*shape, 2, generator=g) * 90 - 15,
        torch.rand(*shape, generator=g),
        torch.rand(batch, *size, generator=g),
    )


def lay_out(x, layout):
    """Return the same values with other strides; "slice" is a view into a buffer of NaN."""
    if layout == "channels last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "slice":
        b, k, h, w = x.shape
        wide = x.new_full((b + 1, k + 2, h + 3, w + 5), math.nan)
        return wide[1:, 1:-1, 2:-1, 3:-2].copy_(x)
    return x


def loss_and_gradient(heatmaps, points, visible, **options):
    """Return the loss and 1000 times the gradient of the heatmaps, from `heatmap_loss`."""
    heatmaps = heatmaps.detach().requires_grad_()
    loss = F.heatmap_loss(heatmaps, points, visible, image_size=(64, 48), **options)
    (1000 * loss).backward()
    return loss.detach(), heatmaps.grad


def by_autograd(heatmaps, points, visible, codec, mask):
    """Return the loss and 1000 times the gradient of the heatmaps, from the formula in float64."""
    heatmaps = heatmaps.double().requires_grad_()
    size = (heatmaps.shape[2], heatmaps.shape[3])
    target, weights = F.heatmap_target(points.double(), visible.double(), size, codec, image_size=(64, 48))
    square = (weights[..., None, None] * (heatmaps - target)).square()
    loss = (square if mask is None else square * mask.double()[:, None]).mean()
    (1000 * loss).backward()
    return loss.detach(), heatmaps.grad


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.sampled_from([(16, 12), (33, 17), (1, 1), (40, 30)]),  # the last one needs several programs per map
    layout=st.sampled_from(["contiguous", "channels last", "transposed", "slice"]),
    people=st.sampled_from([None, 0, 1, 3]),
    keypoints=st.integers(1, 3),
    codec=st.sampled_from(["udp", "msra"]),
    masked=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_equals_autograd_of_the_formula(
    device, dtype, check_error_rule, size, layout, people, keypoints, codec, masked, seed
):
    heatmaps, points, visible, mask = draw(size, people, keypoints, seed)
    heatmaps, mask = heatmaps.to(dtype), mask if masked else None
    expected, d_expected = by_autograd(heatmaps, points, visible, codec, mask)
    _, d_plain = loss_and_gradient(heatmaps, points, visible, codec=codec, mask=mask)
    on_device = [None if x is None else x.to(device) for x in (points, visible, mask)]
    given = lay_out(heatmaps.to(device), layout)
    loss, d_heatmaps = loss_and_gradient(given, *on_device[:2], codec=codec, mask=on_device[2], impl="triton")
    assert loss.dtype == torch.float32 and d_heatmaps.dtype == dtype
    torch.testing.assert_close(loss.cpu().double(), expected, rtol=1e-6, atol=0)  # a sum of squares has no cancellation
    check_error_rule(d_heatmaps, d_plain, d_expected, factor=3.0)


def test_writes_every_gradient_and_reads_nothing_outside(device, poisoned):
    heatmaps, points, visible, mask = draw((33, 17), None, 3, seed=1)
    _, expected = loss_and_gradient(heatmaps, points, visible, mask=mask)
    ours = lay_out(heatmaps.to(device), "slice").requires_grad_()
    mask = lay_out(mask[:, None].to(device), "slice")[:, 0]
    loss = F.heatmap_loss(ours, points.to(device), visible.to(device), mask=mask, image_size=(64, 48), impl="triton")
    (grad,) = torch.autograd.grad(1000 * loss, ours)
    torch.testing.assert_close(grad.cpu(), expected)
    assert grad.is_contiguous()


@pytest.mark.parametrize("codec", ["udp", "msra"])
def test_a_map_equal_to_its_target_has_no_loss(device, codec):
    _, points, visible, _ = (x.to(device) for x in draw((33, 17), 2, 3, seed=2))
    target, _ = F.heatmap_target(points, visible, (33, 17), codec, image_size=(64, 48), impl="triton")
    loss, grad = loss_and_gradient(target, points, visible, codec=codec, impl="triton")
    assert loss < 1e-12 and grad.abs().max() < 1e-6


def test_permuting_keypoints_permutes_the_gradient(device):
    heatmaps, points, visible, _ = (x.to(device) for x in draw((16, 12), None, 4, seed=3))
    order = [2, 0, 3, 1]
    loss, grad = loss_and_gradient(heatmaps, points, visible, impl="triton")
    moved, d_moved = loss_and_gradient(heatmaps[:, order], points[:, order], visible[:, order], impl="triton")
    torch.testing.assert_close(moved, loss)
    assert torch.equal(d_moved, grad[:, order])


def test_reruns_are_equal_bit_for_bit(device):
    heatmaps, points, visible, mask = (x.to(device) for x in draw((40, 30), None, 3, seed=4))
    a, b = (loss_and_gradient(heatmaps, points, visible, mask=mask, impl="triton") for _ in range(2))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_pixel_of_weight_zero_propagates_as_in_the_reference(device, bad):
    heatmaps, points, visible, _ = draw((16, 12), None, 2, seed=5)
    visible[0, 1], heatmaps[0, 1, 3, 4] = 0, bad
    plain, d_plain = loss_and_gradient(heatmaps, points, visible)
    ours, d_ours = loss_and_gradient(*(x.to(device) for x in (heatmaps, points, visible)), impl="triton")
    assert plain.isnan() and ours.isnan()
    assert d_plain.isnan().sum() == 1  # only the gradient of that pixel
    torch.testing.assert_close(d_ours.cpu(), d_plain, equal_nan=True)


def test_float64_keypoints_are_rounded_to_float32(device):
    heatmaps, points, visible, _ = (x.to(device) for x in draw((16, 12), None, 2, seed=6))
    ours = F.heatmap_loss(heatmaps, points.double(), visible.double(), impl="triton")
    assert ours.dtype == torch.float32 and torch.equal(ours, F.heatmap_loss(heatmaps, points, visible, impl="triton"))


def test_empty_batch(device):
    loss, grad = loss_and_gradient(*(x.to(device) for x in draw((16, 12), None, 3, 0, batch=0)[:3]), impl="triton")
    assert loss == 0 and grad.shape == (0, 3, 16, 12)


def test_float64_is_refused_in_one_line(device):
    heatmaps, points, visible, _ = (x.to(device) for x in draw((16, 12), None, 2, 0))
    with pytest.raises(ValueError, match=r"heatmap_loss: got torch.float64 .*, the Triton kernels take"):
        F.heatmap_loss(heatmaps.double(), points, visible, impl="triton")


@pytest.mark.cuda
def test_opcheck():
    heatmaps, points, visible, mask = (x.cuda() for x in draw((16, 12), None, 2, 0))
    args = (heatmaps.requires_grad_(), points, visible, [64, 48], True, 2.0, mask, True)
    assert set(torch.library.opcheck(torch.ops.vitpose_fast.heatmap_loss, args).values()) == {"SUCCESS"}
