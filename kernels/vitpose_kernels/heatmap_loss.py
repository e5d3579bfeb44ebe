"""Weighted mean squared error between heatmaps and their targets, which are rendered from keypoints.

    L = sum over b, k, y, x of  weight[b, k]² mask[b, y, x] (P - G)[b, k, y, x]²   /   (B K h w)

P [B, K, h, w] are the heatmaps, and (G [B, K, h, w], weight [B, K]) = heatmap_target(keypoints, visible) the targets
and their weights. B batch, K keypoints, (h, w) heatmap in pixels. The mean runs over all keypoints, including those of
weight 0 (for example invisible ones), as in the official training.

The loss is computed in float32 for 16-bit heatmaps too. Every map is read, also where weight or mask is 0: a NaN makes
the loss NaN, and infinity makes it infinite or, times a 0, NaN. Memory-bound: the forward pass reads the heatmaps once,
the backward pass reads them and writes their gradient. The kernels never store the target (the reference does).
Source: docs/numerics.md 4.5, 8.1 (mask).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vitpose_kernels.autocast import contiguous_like, without_autocast
from vitpose_kernels.checks import check_device, choose_impl
from vitpose_kernels.eager import is_eager, triton_op
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
    """Return (P - G, weight² mask / (B K h w)): the loss is the sum of first² * second.

    The first is [B, K, h, w], the second broadcastable to that shape. Both are float32 (float64 for float64 heatmaps).
    """
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
    """Reference implementation in plain PyTorch, which specifies the op.

    Returns a scalar, float32 (float64 for float64 heatmaps).
    """
    difference, factor = _weighted_difference(heatmaps, keypoints, visible, image_size, udp, sigma, mask)
    return (difference.square() * factor).sum()


@triton_op("vitpose_fast::heatmap_loss")
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


@triton_op("vitpose_fast::heatmap_loss_backward")
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


class _LossOnCpu(torch.autograd.Function):
    """The op in eager mode on a CPU: saves the gradient instead of the heatmaps, so that targets are drawn once."""

    @staticmethod
    def forward(ctx, heatmaps: Tensor, *arguments: Any) -> Tensor:
        difference, factor = _weighted_difference(heatmaps, *arguments)
        gradient = difference * factor  # times 2
        ctx.save_for_backward(gradient)
        ctx.dtype = heatmaps.dtype
        return (difference * gradient).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return ((2 * grad) * gradient).to(ctx.dtype), *[None] * 6


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
    """Compute the weighted mean squared error of heatmaps against keypoints. The module docstring has the formula.

    Args:
        heatmaps: [B, K, h, w], raw network output.
        keypoints, visible, codec, sigma, image_size: as in `heatmap_target`. With keypoints [B, P, K, 2] of P people
            per sample, the targets of the people are merged by maximum.
        mask: [B, h, w], a factor on the squared error of each pixel, the same for all keypoints. Default: 1 everywhere.
        impl: None (chosen by device), "triton" or "reference".

    Returns:
        A scalar, float32 (float64 for float64 heatmaps), differentiable in `heatmaps` only; 0 for an empty batch.

    Raises:
        ValueError: shapes or devices do not fit each other, the codec is unknown, sigma is not positive, or `impl` does
            not support the call.
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
    udp, sigma = codec == "udp", float(sigma)
    with without_autocast(heatmaps):
        if not triton and is_eager((heatmaps, keypoints, visible, mask)):
            return _LossOnCpu.apply(heatmaps, keypoints, visible, image_size, udp, sigma, mask)
        return _heatmap_loss(heatmaps, keypoints, visible, list(image_size), udp, sigma, mask, triton)
