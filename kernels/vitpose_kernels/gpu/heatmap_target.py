"""Triton kernel of `heatmap_target`: one program renders BLOCK pixels of one map, the maximum over all people.

Letters: B batch, P people, K keypoints, (h, w) size of a map in pixels. Map b * K + k belongs to keypoint k of sample
b. A pixel has the index y * w + x in its map, and the pixels of a program are consecutive. `heatmap_loss` and
`heatmap_decode` use some of these functions.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from vitpose_kernels.launch import Launch, cdiv, num_bytes

_PIXELS = 1024  # pixels of a map per program


class Keypoints(NamedTuple):
    """The keypoints of a batch, and how they become Gaussians.

    Attributes:
        ptr: keypoints [B, P, K, 2], (x, y) in crop pixels, float32.
        visible_ptr: visibilities [B, P, K], float32.
        num_people, num_keypoints: P and K.
        stride_x, stride_y: crop pixels per heatmap pixel, by which coordinates are divided.
        factor: -log2(e) / (2 sigma^2), so that a Gaussian is exp2(squared distance * factor).
    """

    ptr: tl.tensor
    visible_ptr: tl.tensor
    num_people: tl.tensor
    num_keypoints: tl.tensor
    stride_x: tl.tensor
    stride_y: tl.tensor
    factor: tl.tensor


class Keypoint(NamedTuple):
    """A keypoint in heatmap pixels: the center (x, y) of its Gaussian, the nearest pixel, and its weight; all float32.

    With the codec "msra" the center is the nearest pixel.
    """

    x: tl.tensor
    y: tl.tensor
    near_x: tl.tensor
    near_y: tl.tensor
    weight: tl.tensor


@triton.jit
def load_keypoint(keypoints, index, h, w, UDP: tl.constexpr, RADIUS: tl.constexpr):
    """Load the `Keypoint` at `index`, (b * P + person) * K + k, for a map [h, w].

    Its weight is its visibility clamped to 0..1, or 0 if a coordinate is not finite or if the window of RADIUS pixels
    around the nearest pixel misses the map (at the left and top a window that only borders on the map does not miss
    it). A NaN visibility gives a NaN weight. UDP: the center is not rounded.
    """
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
    """Round float numbers towards zero, as a C cast to an integer does."""
    return tl.where(x < 0, tl.ceil(x), tl.floor(x))


@triton.jit
def gaussian(px, py, keypoint, factor, RADIUS: tl.constexpr):
    """Return the Gaussian of a `Keypoint` at the pixels (px, py); `factor` is that of `Keypoints`.

    The Gaussian is 0 at pixels that are more than RADIUS rows or columns from the nearest pixel, and everywhere if the
    weight of the keypoint is not above 0.5.
    """
    inside = (tl.abs(px - keypoint.near_x) <= RADIUS) & (tl.abs(py - keypoint.near_y) <= RADIUS)
    drawn = tl.where(keypoint.weight > 0.5, 1.0, 0.0)
    dx = px - keypoint.x
    dy = py - keypoint.y
    return tl.where(inside, drawn * tl.exp2((dx * dx + dy * dy) * factor), 0.0)


@triton.jit
def render(keypoints, b, k, pixel, h, w, UDP: tl.constexpr, RADIUS: tl.constexpr):
    """Return (target [n], weight) of keypoint k in sample b, both the maximum over all people (0 without people).

    target: at the pixels with the indices `pixel` [n] of a map [h, w]. weight: NaN if that of any person is NaN.
    """
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
    """Return the offset in elements, int64, of the pixel with index `pixel` in a map of `w` columns.

    DENSE: stride_y is w * stride_x, that is, the map has no gaps between its rows.
    """
    if DENSE:  # no division by w, so that the compiler vectorizes the loads for any w
        return pixel.to(tl.int64) * stride_x
    return (pixel // w).to(tl.int64) * stride_y + (pixel % w).to(tl.int64) * stride_x


@triton.jit
def heatmap_target_kernel(
    keypoints_ptr, visible_ptr, heatmaps_ptr, weights_ptr,
    num_people, num_keypoints, stride_x, stride_y, factor, h,
    W: tl.constexpr, UDP: tl.constexpr, RADIUS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Render BLOCK pixels of one map; the first program of a map also stores the weight of its keypoint.

    heatmaps_ptr is [B, K, h, w] and weights_ptr is [B, K], both contiguous.
    """
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
    """Return the arguments from which kernels build `Keypoints` and call `render`.

    Args:
        keypoints: [B, K, 2] or [B, P, K, 2], (x, y) in crop pixels. They become contiguous float32, and so does
            `visible`.
        visible: [B, K] or [B, P, K].
        size: (h, w) of the heatmaps.
        image_size: (rows, columns) of the crop in pixels.
        udp: codec "udp" instead of "msra".
        sigma: standard deviation of the Gaussians in heatmap pixels.
    """
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
    """Return the strides of heatmaps [B, K, h, w] as stride_<letter>b, k, y and x, and DENSE (see `pixel_offset`)."""
    strides = {f"stride_{letter}{axis}": stride for axis, stride in zip("bkyx", heatmaps.stride(), strict=True)}
    return strides | dict(DENSE=heatmaps.stride(2) == heatmaps.shape[3] * heatmaps.stride(3))


def forward(
    keypoints: Tensor, visible: Tensor, size: tuple[int, int], image_size: tuple[int, int], udp: bool, sigma: float
) -> tuple[tuple[Tensor, Tensor], list[Launch]]:
    """Return ((heatmaps [B, K, h, w], weights [B, K]), launches), in the dtype of `keypoints`.

    The parameters are those of `target_arguments`.
    """
    b, k = keypoints.shape[0], keypoints.shape[-2]
    heatmaps = keypoints.new_empty((b, k, *size))
    weights = keypoints.new_empty((b, k))
    arguments = target_arguments(keypoints, visible, size, image_size, udp, sigma)
    arguments |= dict(heatmaps_ptr=heatmaps, weights_ptr=weights, BLOCK=_PIXELS)
    grid = (b * k * cdiv(size[0] * size[1], _PIXELS),)
    launch = Launch(heatmap_target_kernel, grid, arguments, bytes=num_bytes(keypoints, visible, heatmaps, weights))
    return (heatmaps, weights), [launch]
