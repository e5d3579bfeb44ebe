"""Weighted mean squared error between heatmaps and the rendered target.

    L = sum over b, k, y, x of  w[b, k]² mask[b, y, x] (P - G)²   /   (B K h w)

with (G, w) = heatmap_target(keypoints, visible). The mean runs over all keypoints, invisible ones too (weight 0), as
in the official training. Letters and shapes as in heatmap_target. Statistics in float32 whatever the heatmaps are.
A keypoint of weight 0 is still read: NaN or infinity in its map makes the loss NaN, as 0 times it does.
Memory-bound: one read of the heatmaps forward, one read and one write backward; the target is never stored by the
kernels (the reference stores it). Source: SPEC 4.5, 8.1 (mask).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import triton_op

from vitpose_kernels.autocast import contiguous_like, without_autocast
from vitpose_kernels.checks import check_device, choose_impl
from vitpose_kernels.heatmap_target import check_keypoints, heatmap_target_reference
from vitpose_kernels.launch import run


def _weighted_difference(
    heatmaps: Tensor,
    keypoints: Tensor,
    visible: Tensor,
    image_size: tuple[int, int],
    udp: bool,
    sigma: float,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(P - G, w² mask / (B K h w)), both [B, K, h, w] or broadcastable to it, at least float32."""
    dtype = torch.float64 if heatmaps.dtype == torch.float64 else torch.float32
    size = heatmaps.shape[-2], heatmaps.shape[-1]
    target, weights = heatmap_target_reference(keypoints.to(dtype), visible.to(dtype), size, image_size, udp, sigma)
    factor = weights.square()[..., None, None] / max(heatmaps.numel(), 1)
    if mask is not None:
        factor = factor * mask.to(dtype).unsqueeze(1)
    return heatmaps.to(dtype) - target, factor


def heatmap_loss_reference(
    heatmaps: Tensor,
    keypoints: Tensor,
    visible: Tensor,
    image_size: tuple[int, int],
    udp: bool,
    sigma: float,
    mask: Tensor | None,
) -> Tensor:
    """The specification in plain PyTorch: scalar, float32 (float64 for float64 heatmaps)."""
    difference, factor = _weighted_difference(heatmaps, keypoints, visible, image_size, udp, sigma, mask)
    return (difference.square() * factor).sum()


@triton_op("vitpose_fast::heatmap_loss", mutates_args=())
def _heatmap_loss(
    heatmaps: Tensor,
    keypoints: Tensor,
    visible: Tensor,
    image_size: Sequence[int],
    udp: bool,
    sigma: float,
    mask: Tensor | None,
    triton: bool,
) -> Tensor:
    crop = image_size[0], image_size[1]
    if not triton:
        return heatmap_loss_reference(heatmaps, keypoints, visible, crop, udp, sigma, mask)
    from vitpose_kernels.gpu import heatmap_loss as gpu

    partials = run(*gpu.forward(heatmaps, keypoints, visible, crop, udp, sigma, mask))
    return partials.sum()


@triton_op("vitpose_fast::heatmap_loss_backward", mutates_args=())
def _heatmap_loss_backward(
    grad: Tensor,
    heatmaps: Tensor,
    keypoints: Tensor,
    visible: Tensor,
    image_size: Sequence[int],
    udp: bool,
    sigma: float,
    mask: Tensor | None,
    triton: bool,
) -> Tensor:
    crop = image_size[0], image_size[1]
    if not triton:
        difference, factor = _weighted_difference(heatmaps, keypoints, visible, crop, udp, sigma, mask)
        return contiguous_like(heatmaps, 2 * grad * difference * factor)
    from vitpose_kernels.gpu import heatmap_loss as gpu

    return run(*gpu.backward(grad, heatmaps, keypoints, visible, crop, udp, sigma, mask))


def _setup_context(ctx, inputs, output) -> None:
    heatmaps, keypoints, visible, image_size, udp, sigma, mask, triton = inputs
    ctx.save_for_backward(heatmaps, keypoints, visible, mask)
    ctx.options, ctx.triton = (image_size, udp, sigma), triton


def _backward(ctx, grad: Tensor):
    heatmaps, keypoints, visible, mask = ctx.saved_tensors
    return _heatmap_loss_backward(grad, heatmaps, keypoints, visible, *ctx.options, mask, ctx.triton), *[None] * 7


_heatmap_loss.register_autograd(_backward, setup_context=_setup_context)


def heatmap_loss(
    heatmaps: Tensor,
    keypoints: Tensor,
    visible: Tensor,
    codec: str = "udp",
    sigma: float = 2.0,
    mask: Tensor | None = None,
    image_size: tuple[int, int] | None = None,
    impl: str | None = None,
) -> Tensor:
    """Heatmap loss against keypoints; see the head of this file for the formula.

    Args:
        heatmaps: [B, K, h, w], raw network output.
        keypoints: [B, K, 2] (x, y) in crop pixels, or [B, P, K, 2] (people merged by maximum).
        visible: [B, K] or [B, P, K] in [0, 1].
        mask: [B, h, w], factor of each pixel; None: 1.
        codec, sigma, image_size: as in `heatmap_target`.
        impl: None (by device), "triton" or "reference".

    Returns:
        scalar, float32 (float64 for float64 heatmaps), differentiable in `heatmaps`; 0 for an empty batch.

    Raises:
        ValueError: shapes that do not fit each other, an unknown codec, a sigma that is not positive.
    """
    op = "heatmap_loss"
    triton = choose_impl(op, impl, heatmaps) == "triton"
    if heatmaps.dim() != 4:
        raise ValueError(f"{op}: heatmaps have shape {list(heatmaps.shape)}, expected [B, K, h, w]")
    b, k, h, w = heatmaps.shape
    keypoints, visible, image_size = check_keypoints(op, keypoints, visible, (h, w), image_size, codec, sigma)
    fits = (keypoints.shape[0], keypoints.shape[-2]) == (b, k)
    if not fits:
        raise ValueError(
            f"{op}: keypoints have shape {list(keypoints.shape)}, expected {b} samples and {k} keypoints as in heatmaps"
        )
    check_device(op, heatmaps, keypoints=keypoints, mask=mask)
    if mask is not None:
        if tuple(mask.shape) != (b, h, w):
            raise ValueError(f"{op}: mask has shape {list(mask.shape)}, expected {[b, h, w]}")
        mask = mask.detach()
    with without_autocast(heatmaps):
        return _heatmap_loss(heatmaps, keypoints, visible, list(image_size), codec == "udp", float(sigma), mask, triton)
