"""Tests of the heatmap loss, against the weighted MSE of docs/numerics.md 4.5 over the rendered target."""

from __future__ import annotations

import pytest
import torch

from vitpose_fast import functional as F


def make(b=3, k=4, people=None, dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    shape = (b, k) if people is None else (b, people, k)
    heatmaps = torch.randn(b, k, 16, 12, generator=g, dtype=torch.float64).to(dtype)
    keypoints = torch.rand(*shape, 2, generator=g, dtype=torch.float64) * 80 - 10
    return heatmaps, keypoints, torch.randint(0, 2, shape, generator=g).double()


@pytest.mark.parametrize("codec", ["udp", "msra"])
@pytest.mark.parametrize("people", [None, 3])
def test_equals_the_mean_over_all_keypoints(codec, people):
    heatmaps, keypoints, visible = make(people=people)
    target, w = F.heatmap_target(keypoints, visible, (16, 12), codec)
    w = w[..., None, None]
    expected = (w * heatmaps - w * target).square().mean()
    torch.testing.assert_close(F.heatmap_loss(heatmaps, keypoints, visible, codec), expected)


def test_official_sum_over_keypoints():
    heatmaps, keypoints, visible = make()
    target, w = F.heatmap_target(keypoints, visible, (16, 12))
    per_joint = [((heatmaps[:, i] - target[:, i]).flatten(1) * w[:, i, None]).square().mean() for i in range(4)]
    torch.testing.assert_close(F.heatmap_loss(heatmaps, keypoints, visible), sum(per_joint) / 4)


def test_mask_weights_pixels():
    heatmaps, keypoints, visible = make()
    mask = torch.zeros(3, 16, 12)
    assert F.heatmap_loss(heatmaps, keypoints, visible, mask=mask) == 0
    full = F.heatmap_loss(heatmaps, keypoints, visible)
    half = F.heatmap_loss(heatmaps, keypoints, visible, mask=mask + 0.5)
    torch.testing.assert_close(half, full / 2)


def test_gradcheck_and_zero_gradient_at_the_target():
    heatmaps, keypoints, visible = make(b=1, k=2)
    mask = torch.rand(1, 16, 12)
    heatmaps.requires_grad_()
    assert torch.autograd.gradcheck(lambda h: F.heatmap_loss(h, keypoints, visible, mask=mask), heatmaps)
    target, _ = F.heatmap_target(keypoints, torch.ones_like(visible), (16, 12))
    target.requires_grad_()
    F.heatmap_loss(target, keypoints, torch.ones_like(visible)).backward()
    assert target.grad.abs().max() < 1e-12


def test_invisible_keypoints_get_no_gradient_but_stay_in_the_mean():
    heatmaps, keypoints, _ = make()
    visible = torch.zeros(3, 4)
    visible[:, 0] = 1
    heatmaps.requires_grad_()
    loss = F.heatmap_loss(heatmaps, keypoints, visible)
    loss.backward()
    assert heatmaps.grad[:, 1:].abs().max() == 0
    torch.testing.assert_close(loss, F.heatmap_loss(heatmaps[:, :1], keypoints[:, :1], visible[:, :1]) / 4)


def test_half_precision_is_computed_in_float32():
    heatmaps, keypoints, visible = make(dtype=torch.bfloat16)
    loss = F.heatmap_loss(heatmaps, keypoints, visible)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.heatmap_loss(heatmaps.double(), keypoints, visible).float())
    heatmaps.requires_grad_()
    F.heatmap_loss(heatmaps, keypoints, visible).backward()
    assert heatmaps.grad.dtype == torch.bfloat16


def test_empty_batch_is_zero():
    assert F.heatmap_loss(torch.zeros(0, 4, 16, 12), torch.zeros(0, 4, 2), torch.zeros(0, 4)) == 0


def test_opcheck_and_compile():
    heatmaps, keypoints, visible = make(dtype=torch.float32)
    args = (heatmaps.requires_grad_(), keypoints.float(), visible.float(), [64, 48], True, 2.0, None, False)
    assert set(torch.library.opcheck(torch.ops.vitpose_fast.heatmap_loss, args).values()) == {"SUCCESS"}
    compiled = torch.compile(F.heatmap_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(heatmaps, keypoints, visible), F.heatmap_loss(heatmaps, keypoints, visible))


def test_refuses_in_one_line():
    heatmaps, keypoints, visible = make()
    with pytest.raises(ValueError, match="expected 3 samples and 4 keypoints as in heatmaps"):
        F.heatmap_loss(heatmaps, keypoints[:, :2], visible[:, :2])
    with pytest.raises(ValueError, match=r"mask has shape \[3, 16\], expected \[3, 16, 12\]"):
        F.heatmap_loss(heatmaps, keypoints, visible, mask=torch.ones(3, 16))
