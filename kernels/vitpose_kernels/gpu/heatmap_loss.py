"""Triton kernels of `heatmap_loss`: one program compares a piece of one map with its target, rendered in registers."""

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
    """Return (P - G, w^2 mask / count) at pixels of one map: heatmap P, target G, keypoint weight w."""
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
    """Partial sum of the loss over BLOCK pixels of one map."""
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
    """Gradient of BLOCK pixels of one map; the target is rendered again, not read."""
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
    """Return (number of programs, arguments), which the forward and backward kernels share."""
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
    """Number of warps of a program, chosen so that every thread reads 16 bytes of the heatmaps."""
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
    """Return (partial sums of the loss, float32, one per program; launches)."""
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
    """Return (gradient of the heatmaps, launches); grad is a float32 scalar."""
    programs, arguments = _plan(heatmaps, keypoints, visible, image_size, udp, sigma, mask)
    d_heatmaps = torch.empty(heatmaps.shape, dtype=heatmaps.dtype, device=heatmaps.device)
    arguments |= dict(grad_ptr=grad, d_heatmaps_ptr=d_heatmaps)
    size = num_bytes(heatmaps, keypoints, visible, mask, d_heatmaps)
    return d_heatmaps, [Launch(heatmap_loss_backward_kernel, (programs,), arguments, _num_warps(heatmaps), bytes=size)]
