"""Triton kernels of `heatmap_loss`: one program compares BLOCK pixels of one map with the target of these pixels.

The target is rendered in registers and never stored. Letters: B batch, P people, K keypoints, (h, w) size of a map in
pixels. Map b * K + k belongs to keypoint k of sample b. A pixel has the index y * w + x in its map, and the pixels of a
program are consecutive.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitpose_kernels.gpu.heatmap_target import Keypoints, pixel_offset, render, stride_arguments, target_arguments
from vitpose_kernels.launch import Launch, cdiv, num_bytes

_PIXELS = 1024  # pixels of a map per program


class Maps(NamedTuple):
    """Address and strides of heatmaps [B, K, h, w]."""

    ptr: tl.tensor
    stride_b: tl.tensor
    stride_k: tl.tensor
    stride_y: tl.tensor
    stride_x: tl.tensor


@triton.jit
def _compare(
    maps, mask_ptr, keypoints, one_map, pixel, count, h,
    W: tl.constexpr, DENSE: tl.constexpr, UDP: tl.constexpr, RADIUS: tl.constexpr,
):  # fmt: skip
    """Return (heatmap - target, weight^2 mask / count) at the pixels `pixel` [n] of map `one_map`, both [n] float32.

    weight: of the keypoint, from `render`. mask_ptr: float32 [B, h, w], or None for 1 everywhere. count: B K h w. For
    indices beyond the last pixel of the map the results are meaningless.
    """
    b = (one_map // keypoints.num_keypoints).to(tl.int64)
    k = (one_map % keypoints.num_keypoints).to(tl.int64)
    target, weight = render(keypoints, b, k, pixel, h, W, UDP, RADIUS)
    inside = pixel < h * W
    offset = pixel_offset(pixel, W, maps.stride_y, maps.stride_x, DENSE)
    heat = tl.load(maps.ptr + b * maps.stride_b + k * maps.stride_k + offset, inside, 0.0).to(tl.float32)
    weighting = tl.math.div_rn(weight * weight, 1.0 * count)
    if mask_ptr is not None:
        weighting *= tl.load(mask_ptr + b * (h * W) + pixel, inside, 0.0)
    return heat - target, weighting


@triton.jit
def heatmap_loss_kernel(
    heatmaps_ptr, mask_ptr, keypoints_ptr, visible_ptr, partials_ptr, num_people, num_keypoints,
    stride_x, stride_y, factor, count, h, stride_hb, stride_hk, stride_hy, stride_hx,
    W: tl.constexpr, DENSE: tl.constexpr, UDP: tl.constexpr, RADIUS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum the loss over BLOCK pixels of one map; partials_ptr [programs] gets one such sum per program."""
    pieces = tl.cdiv(h * W, BLOCK)
    one_map = tl.program_id(0) // pieces
    pixel = tl.program_id(0) % pieces * BLOCK + tl.arange(0, BLOCK)
    maps = Maps(heatmaps_ptr, stride_hb, stride_hk, stride_hy, stride_hx)
    keypoints = Keypoints(keypoints_ptr, visible_ptr, num_people, num_keypoints, stride_x, stride_y, factor)
    difference, weighting = _compare(maps, mask_ptr, keypoints, one_map, pixel, count, h, W, DENSE, UDP, RADIUS)
    loss = tl.where(pixel < h * W, difference * difference * weighting, 0.0)
    tl.store(partials_ptr + tl.program_id(0), tl.sum(loss, 0))


@triton.jit
def heatmap_loss_backward_kernel(
    grad_ptr, heatmaps_ptr, mask_ptr, keypoints_ptr, visible_ptr, d_heatmaps_ptr, num_people, num_keypoints,
    stride_x, stride_y, factor, count, h, stride_hb, stride_hk, stride_hy, stride_hx,
    W: tl.constexpr, DENSE: tl.constexpr, UDP: tl.constexpr, RADIUS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of BLOCK pixels of one map; the target is rendered again.

    grad_ptr: the gradient of the loss, one number. d_heatmaps_ptr: [B, K, h, w], contiguous.
    """
    pieces = tl.cdiv(h * W, BLOCK)
    one_map = tl.program_id(0) // pieces
    pixel = tl.program_id(0) % pieces * BLOCK + tl.arange(0, BLOCK)
    maps = Maps(heatmaps_ptr, stride_hb, stride_hk, stride_hy, stride_hx)
    keypoints = Keypoints(keypoints_ptr, visible_ptr, num_people, num_keypoints, stride_x, stride_y, factor)
    difference, weighting = _compare(maps, mask_ptr, keypoints, one_map, pixel, count, h, W, DENSE, UDP, RADIUS)
    gradient = 2 * tl.load(grad_ptr) * difference * weighting
    tl.store(d_heatmaps_ptr + one_map.to(tl.int64) * (h * W) + pixel, gradient, pixel < h * W)


def _plan(
    heatmaps: Tensor,
    keypoints: Tensor,
    visible: Tensor,
    image_size: tuple[int, int],
    udp: bool,
    sigma: float,
    mask: Tensor | None,
) -> tuple[int, dict]:
    """Return (number of programs, arguments) of a launch, as far as the forward and the backward kernel share them.

    The parameters are those of `forward`.
    """
    b, k, h, w = heatmaps.shape
    arguments = target_arguments(keypoints, visible, (h, w), image_size, udp, sigma)
    arguments |= stride_arguments(heatmaps, "h")
    arguments |= dict(
        heatmaps_ptr=heatmaps,
        mask_ptr=None if mask is None else mask.float().contiguous(),
        count=max(heatmaps.numel(), 1),
        BLOCK=_PIXELS,
    )
    return b * k * cdiv(h * w, _PIXELS), arguments


def _num_warps(heatmaps: Tensor) -> int:
    """Return the number of warps of a program, such that every thread reads 16 bytes of the heatmaps."""
    return _PIXELS * heatmaps.element_size() // (16 * 32)


def forward(
    heatmaps: Tensor,
    keypoints: Tensor,
    visible: Tensor,
    image_size: tuple[int, int],
    udp: bool,
    sigma: float,
    mask: Tensor | None,
) -> tuple[Tensor, list[Launch]]:
    """Return (partial sums, launches). The loss is the sum of the partial sums, float32 [programs].

    Args:
        heatmaps: [B, K, h, w], any strides.
        keypoints: [B, K, 2] or [B, P, K, 2], (x, y) in crop pixels.
        visible: [B, K] or [B, P, K].
        image_size: (rows, columns) of the crop in pixels.
        udp: codec "udp" instead of "msra".
        sigma: standard deviation of the Gaussians in heatmap pixels.
        mask: [B, h, w], a factor on the squared error of each pixel, or None.
    """
    programs, arguments = _plan(heatmaps, keypoints, visible, image_size, udp, sigma, mask)
    partials = heatmaps.new_empty(programs, dtype=torch.float32)
    size = num_bytes(heatmaps, keypoints, visible, mask, partials)
    arguments |= dict(partials_ptr=partials)
    return partials, [Launch(heatmap_loss_kernel, (programs,), arguments, _num_warps(heatmaps), bytes=size)]


def backward(
    grad: Tensor,
    heatmaps: Tensor,
    keypoints: Tensor,
    visible: Tensor,
    image_size: tuple[int, int],
    udp: bool,
    sigma: float,
    mask: Tensor | None,
) -> tuple[Tensor, list[Launch]]:
    """Return (gradient of the heatmaps [B, K, h, w] in their dtype, launches).

    grad is the gradient of the loss, a float32 scalar. The other parameters are those of `forward`.
    """
    programs, arguments = _plan(heatmaps, keypoints, visible, image_size, udp, sigma, mask)
    d_heatmaps = torch.empty(heatmaps.shape, dtype=heatmaps.dtype, device=heatmaps.device)
    arguments |= dict(grad_ptr=grad, d_heatmaps_ptr=d_heatmaps)
    size = num_bytes(heatmaps, keypoints, visible, mask, d_heatmaps)
    return d_heatmaps, [Launch(heatmap_loss_backward_kernel, (programs,), arguments, _num_warps(heatmaps), bytes=size)]
