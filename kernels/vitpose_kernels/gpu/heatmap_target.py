"""Triton kernel of `heatmap_target`: one program renders a piece of one keypoint's map, the maximum over all people."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from vitpose_kernels.launch import Launch, cdiv, num_bytes

_PIXELS = 1024  # pixels of a map per program


class Keypoints(NamedTuple):
    """The keypoints [B, P, K, 2] and visibility [B, P, K] of a batch, and their mapping to heatmap pixels.

    Attributes:
        stride_x, stride_y: crop pixels per heatmap pixel.
        factor: -log2(e) / (2 sigma^2).
    """

    ptr: tl.tensor
    visible_ptr: tl.tensor
    num_people: tl.tensor
    num_keypoints: tl.tensor
    stride_x: tl.tensor
    stride_y: tl.tensor
    factor: tl.tensor


class Keypoint(NamedTuple):
    """A keypoint in heatmap pixels: the center of its Gaussian, the nearest pixel, and its weight."""

    x: tl.tensor
    y: tl.tensor
    near_x: tl.tensor
    near_y: tl.tensor
    weight: tl.tensor


@triton.jit
def load_keypoint(keypoints, index, h, w, UDP: tl.constexpr, RADIUS: tl.constexpr):
    """Load the `Keypoint` at `index`; its weight is 0 if it is not finite or its Gaussian misses the map."""
    x = tl.load(keypoints.ptr + 2 * index)
    y = tl.load(keypoints.ptr + 2 * index + 1)
    weight = tl.load(keypoints.visible_ptr + index)
    weight = tl.where(weight > 1.0, 1.0, tl.where(weight < 0.0, 0.0, weight))
    finite = (tl.abs(x) <= 3.4028234e38) & (tl.abs(y) <= 3.4028234e38)
    x = tl.math.div_rn(tl.where(finite, x, 0.0), keypoints.stride_x)
    y = tl.math.div_rn(tl.where(finite, y, 0.0), keypoints.stride_y)
    near_x = _truncate(x + 0.5)
    near_y = _truncate(y + 0.5)
    on_map = (near_x - RADIUS < w) & (near_x + RADIUS + 1 >= 0) & (near_y - RADIUS < h) & (near_y + RADIUS + 1 >= 0)
    weight = tl.where(finite & on_map, weight, 0.0 * weight)
    if not UDP:
        x = near_x
        y = near_y
    return Keypoint(x, y, near_x, near_y, weight)


@triton.jit
def _truncate(x):
    """Round towards zero, as a C cast does."""
    return tl.where(x < 0, tl.ceil(x), tl.floor(x))


@triton.jit
def gaussian(px, py, keypoint, factor, RADIUS: tl.constexpr):
    """Value of the Gaussian of a `Keypoint` at the pixels (px, py); factor = -log2(e) / (2 sigma^2)."""
    inside = (tl.abs(px - keypoint.near_x) <= RADIUS) & (tl.abs(py - keypoint.near_y) <= RADIUS)
    drawn = tl.where(keypoint.weight > 0.5, 1.0, 0.0)
    dx = px - keypoint.x
    dy = py - keypoint.y
    return tl.where(inside, drawn * tl.exp2((dx * dx + dy * dy) * factor), 0.0)


@triton.jit
def render(keypoints, b, k, pixel, h, w, UDP: tl.constexpr, RADIUS: tl.constexpr):
    """Return (target at the pixels [n], weight) of keypoint k in sample b, both the maximum over all people."""
    row = pixel // w
    px = (pixel - row * w).to(tl.float32)
    py = row.to(tl.float32)
    target = px * 0.0
    weight = b * 0.0
    for person in tl.range(0, keypoints.num_people):
        index = (b * keypoints.num_people + person) * keypoints.num_keypoints + k
        keypoint = load_keypoint(keypoints, index, h, w, UDP, RADIUS)
        target = tl.maximum(target, gaussian(px, py, keypoint, keypoints.factor, RADIUS))
        weight = tl.maximum(weight, keypoint.weight, propagate_nan=tl.PropagateNan.ALL)
    return target, weight


@triton.jit
def pixel_offset(pixel, w, stride_y, stride_x, DENSE: tl.constexpr):
    """Offset of the pixel with index `pixel` in a map; DENSE: there is no gap between its rows."""
    if DENSE:  # no division by w, so that the compiler vectorizes the loads for any w
        return pixel.to(tl.int64) * stride_x
    return (pixel // w).to(tl.int64) * stride_y + (pixel % w).to(tl.int64) * stride_x


@triton.jit
def heatmap_target_kernel(
    keypoints_ptr, visible_ptr, heatmaps_ptr, weights_ptr,
    num_people, num_keypoints, stride_x, stride_y, factor, h,
    W: tl.constexpr, UDP: tl.constexpr, RADIUS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK pixels of the map of one keypoint; the first program of a map stores its weight."""
    pieces = tl.cdiv(h * W, BLOCK)
    one_map = (tl.program_id(0) // pieces).to(tl.int64)
    piece = tl.program_id(0) % pieces
    pixel = piece * BLOCK + tl.arange(0, BLOCK)
    keypoints = Keypoints(keypoints_ptr, visible_ptr, num_people, num_keypoints, stride_x, stride_y, factor)
    b = one_map // num_keypoints
    target, weight = render(keypoints, b, one_map % num_keypoints, pixel, h, W, UDP, RADIUS)
    tl.store(heatmaps_ptr + one_map * (h * W) + pixel, target, pixel < h * W)
    if piece == 0:
        tl.store(weights_ptr + one_map, weight)


def target_arguments(
    keypoints: Tensor, visible: Tensor, size: tuple[int, int], image_size: tuple[int, int], udp: bool, sigma: float
) -> dict:
    """Return the arguments of `render`; keypoints [B, K, 2] or [B, P, K, 2] become contiguous float32."""
    (h, w), (rows, columns) = size, image_size
    stride_x, stride_y = columns / w, rows / h
    if udp:
        stride_x, stride_y = (max(columns - 1, 1) / max(w - 1, 1), max(rows - 1, 1) / max(h - 1, 1))
    return dict(
        keypoints_ptr=keypoints.float().contiguous(),
        visible_ptr=visible.float().contiguous(),
        num_people=keypoints.shape[1] if keypoints.dim() == 4 else 1,
        num_keypoints=keypoints.shape[-2],
        stride_x=float(stride_x),
        stride_y=float(stride_y),
        factor=-1.4426950408889634 / (2 * sigma**2),
        h=h,
        W=w,  # a compile-time constant, because every pixel index is divided by it
        UDP=udp,
        RADIUS=int(3 * sigma),
    )


def stride_arguments(heatmaps: Tensor, letter: str) -> dict:
    """Return the strides of heatmaps [B, K, h, w] as stride_<letter>b, ..., and DENSE (see `pixel_offset`)."""
    strides = {f"stride_{letter}{axis}": stride for axis, stride in zip("bkyx", heatmaps.stride(), strict=True)}
    return strides | dict(DENSE=heatmaps.stride(2) == heatmaps.shape[3] * heatmaps.stride(3))


def forward(
    keypoints: Tensor, visible: Tensor, size: tuple[int, int], image_size: tuple[int, int], udp: bool, sigma: float
) -> tuple[tuple[Tensor, Tensor], list[Launch]]:
    """Return ((heatmaps [B, K, h, w], weights [B, K]), launches)."""
    b, k = keypoints.shape[0], keypoints.shape[-2]
    heatmaps = keypoints.new_empty((b, k, *size))
    weights = keypoints.new_empty((b, k))
    arguments = target_arguments(keypoints, visible, size, image_size, udp, sigma)
    arguments |= dict(heatmaps_ptr=heatmaps, weights_ptr=weights, BLOCK=_PIXELS)
    grid = (b * k * cdiv(size[0] * size[1], _PIXELS),)
    launch = Launch(heatmap_target_kernel, grid, arguments, bytes=num_bytes(keypoints, visible, heatmaps, weights))
    return (heatmaps, weights), [launch]
