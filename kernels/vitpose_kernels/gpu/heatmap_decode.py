"""Triton kernel of `heatmap_decode`: one program finds the maximum of one map and refines it from nearby pixels.

Letters: B batch, K keypoints, (h, w) size of a map in pixels. A pixel has the index y * w + x in its map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitpose_kernels.gaussian import EPSILON, gaussian_taps
from vitpose_kernels.gpu.heatmap_target import pixel_offset, stride_arguments
from vitpose_kernels.launch import Launch, block_size, num_bytes

_PIXELS = 1024  # pixels of a map per step of the search for the maximum
_EPSILON = tl.constexpr(EPSILON)


class Maps(NamedTuple):
    """Addresses and strides of the map [h, w] of one keypoint, and of the map to average it with (the flip test).

    flipped_ptr, stride_fy, stride_fx: the map of the same keypoint in the network output for the mirrored image. It is
    mirrored back while it is loaded. flipped_ptr is None without a flip test.
    """

    ptr: tl.tensor
    flipped_ptr: tl.tensor
    h: tl.tensor
    w: tl.tensor
    stride_y: tl.tensor
    stride_x: tl.tensor
    stride_fy: tl.tensor
    stride_fx: tl.tensor


@triton.jit
def _load(maps, offset, y, x, inside, SHIFT: tl.constexpr):
    """Load the pixels (y, x), float32, averaged with the flipped map if there is one; 0 where not `inside`.

    offset: of these pixels from `maps.ptr`, in elements. SHIFT: the flipped map, after it is mirrored back, is moved
    one pixel to the right, while column 0 keeps its value.
    """
    value = tl.load(maps.ptr + offset, inside, 0.0).to(tl.float32)
    if maps.flipped_ptr is not None:
        mirrored = maps.w - 1 - (tl.maximum(x - 1, 0) if SHIFT else x)
        offset = y.to(tl.int64) * maps.stride_fy + mirrored.to(tl.int64) * maps.stride_fx
        value = (value + tl.load(maps.flipped_ptr + offset, inside, 0.0).to(tl.float32)) * 0.5
    return value


@triton.jit
def _load_near(maps, y, x, inside, SHIFT: tl.constexpr):
    """Load the pixels (y, x) like `_load`, after clamping coordinates outside of the map to its border."""
    y = tl.minimum(tl.maximum(y, 0), maps.h - 1)
    x = tl.minimum(tl.maximum(x, 0), maps.w - 1)
    return _load(maps, y.to(tl.int64) * maps.stride_y + x.to(tl.int64) * maps.stride_x, y, x, inside, SHIFT)


@triton.jit
def _arg_max(maps, DENSE: tl.constexpr, SHIFT: tl.constexpr, BLOCK: tl.constexpr):
    """Return (maximum, index of the first pixel that has it, whether any pixel is NaN) of one map.

    The averaged map counts if there is a flipped one. With a NaN the first two are meaningless.
    """
    lane = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    where = lane
    for start in tl.range(0, maps.h * maps.w, BLOCK):
        pixel = start + lane
        inside = pixel < maps.h * maps.w
        offset = pixel_offset(pixel, maps.w, maps.stride_y, maps.stride_x, DENSE)
        value = _load(maps, offset, pixel // maps.w, pixel % maps.w, inside, SHIFT)
        better = inside & ((value > best) | (value != value))  # a NaN in best stays
        best = tl.where(better, value, best)
        where = tl.where(better, pixel, where)
    maximum = tl.max(best, 0)
    first = tl.min(tl.where(best == maximum, where, maps.h * maps.w - 1), 0)
    return maximum, first, tl.max((best != best).to(tl.int32), 0) > 0


@triton.jit
def _reflect101(index, size):
    """Mirror an index outside [0, size) about the edge pixels (OpenCV's reflect-101), as often as needed."""
    period = tl.maximum(2 * (size - 1), 1)
    index = tl.abs(index) % period
    return tl.minimum(index, period - index)


@triton.jit
def _derivatives(maps, y, x, SHIFT: tl.constexpr, TAPS: tl.constexpr, TAPS_BLOCK: tl.constexpr):
    """Return the derivatives (dx, dy, dxx, dyy, dxy) of log(clip(blur(map), 0.001, 50)) at (y, x), per pixel.

    They come from seven pixels: the center, its four neighbors, and the neighbors at the lower right and upper left.
    The blur is separable, with the taps TAPS. dxx and dyy include the epsilon that the official code adds. All seven
    pixels are blurred by the same sums in the same order, so that a flat map gives zeros (plus epsilon) exactly. The
    center is subtracted first, because differences of nearly equal numbers are exact.
    """
    place = tl.arange(0, 8)  # the center, then right, left, below, above, lower right, upper left, and an idle lane
    step_x = tl.where((place == 1) | (place == 5), 1, tl.where((place == 2) | (place == 6), -1, 0))
    step_y = tl.where((place == 3) | (place == 5), 1, tl.where((place == 4) | (place == 6), -1, 0))
    x = tl.minimum(tl.maximum(x + step_x, 0), maps.w - 1)  # the border of the log map is replicated
    y = tl.minimum(tl.maximum(y + step_y, 0), maps.h - 1)
    tap = tl.arange(0, TAPS_BLOCK)
    inside = (place < 7)[:, None] & (tap < len(TAPS))[None, :]
    column = _reflect101(x[:, None] + (tap - len(TAPS) // 2)[None, :], maps.w)
    weight = tl.zeros([TAPS_BLOCK], tl.float32)
    strip = tl.zeros([8, TAPS_BLOCK], tl.float32)  # blurred vertically
    for i in tl.static_range(len(TAPS)):
        row = _reflect101(y + (i - len(TAPS) // 2), maps.h)
        strip += TAPS[i] * _load_near(maps, row[:, None], column, inside, SHIFT)
        weight = tl.where(tap == i, TAPS[i], weight)
    blurred = tl.sum(strip * weight[None, :], 1)
    log = tl.log(tl.where(blurred < 0.001, 0.001, tl.where(blurred > 50.0, 50.0, blurred)))  # keeps NaN
    even, odd = tl.split(tl.reshape(log, [2, 2, 2]))
    first, second = tl.split(even)  # [0, 4], [2, 6]
    third, fourth = tl.split(odd)  # [1, 5], [3, idle]
    middle, above = tl.split(first)
    left, upper_left = tl.split(second)
    right, lower_right = tl.split(third)
    below, _ = tl.split(fourth)
    right, left, below, above = right - middle, left - middle, below - middle, above - middle
    mixed = (lower_right - middle) - right - below - left - above + (upper_left - middle)
    return 0.5 * (right - left), 0.5 * (below - above), right + left + _EPSILON, below + above + _EPSILON, 0.5 * mixed


@triton.jit
def _difference_of_products(a, b, c, d):
    """a b - c d, accurate to the last bit or two even under cancellation (Kahan's algorithm)."""
    product = c * d
    return tl.fma(a, b, -product) + tl.fma(-c, d, product)


@triton.jit
def _quarter(maps, y, x, step_y, step_x, SHIFT: tl.constexpr):
    """Return the "msra" refinement along one axis: 0.25, -0.25, or 0 if the pixels ahead and behind are equal.

    The pixels are (y + step_y, x + step_x) ahead and (y - step_y, x - step_x) behind; 0.25 means that ahead is higher.
    """
    inside = x >= 0
    on = _load_near(maps, y + step_y, x + step_x, inside, SHIFT)
    back = _load_near(maps, y - step_y, x - step_x, inside, SHIFT)
    return tl.where(on > back, 0.25, tl.where(on < back, -0.25, 0.0))


@triton.jit
def heatmap_decode_kernel(
    heatmaps_ptr, flipped_ptr, centers_ptr, scales_ptr, points_ptr, scores_ptr, covariances_ptr, num_keypoints, h, w,
    stride_hb, stride_hk, stride_hy, stride_hx, stride_fb, stride_fk, stride_fy, stride_fx,
    CODEC: tl.constexpr, FLIP: tl.constexpr, TAPS: tl.constexpr, TAPS_BLOCK: tl.constexpr,
    DENSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute the keypoint, the score and (unless covariances_ptr is None) the covariance of one map.

    flipped_ptr: None, or the heatmaps of the mirrored images. FLIP: tuple [K], the channel there of each keypoint.
    centers_ptr, scales_ptr: center and size (x, y) of each crop in image pixels; None for results in heatmap pixels.
    CODEC: "udp", "msra" or "argmax". TAPS: of the blur for "udp" and the covariance. DENSE: see `pixel_offset`.

    A maximum <= 0 gives the keypoint (-1, -1). A NaN in the map makes keypoint, score and covariance NaN. The
    covariance is also NaN where the log map is not concave.
    """
    SHIFT: tl.constexpr = CODEC == "msra"
    b = (tl.program_id(0) // num_keypoints).to(tl.int64)
    k = (tl.program_id(0) % num_keypoints).to(tl.int64)
    one_map = tl.program_id(0).to(tl.int64)
    if flipped_ptr is not None:
        twin = k
        for i in tl.static_range(len(FLIP)):
            if FLIP[i] != i:
                twin = tl.where(k == i, FLIP[i], twin)
        flipped_ptr += b * stride_fb + twin * stride_fk
    map_ptr = heatmaps_ptr + b * stride_hb + k * stride_hk
    maps = Maps(map_ptr, flipped_ptr, h, w, stride_hy, stride_hx, stride_fy, stride_fx)
    score, pixel, broken = _arg_max(maps, DENSE, SHIFT, BLOCK)
    y = pixel // w
    x = pixel % w
    point_x = x.to(tl.float32)
    point_y = y.to(tl.float32)

    cells_x = tl.maximum(w - 1, 1) if CODEC == "udp" else w
    cells_y = tl.maximum(h - 1, 1) if CODEC == "udp" else h
    pixels_x = 1.0
    pixels_y = 1.0
    if centers_ptr is not None:
        pixels_x = tl.math.div_rn(tl.load(scales_ptr + 2 * b).to(tl.float32), 1.0 * cells_x)
        pixels_y = tl.math.div_rn(tl.load(scales_ptr + 2 * b + 1).to(tl.float32), 1.0 * cells_y)

    if CODEC == "udp" or covariances_ptr is not None:
        dx, dy, dxx, dyy, dxy = _derivatives(maps, y, x, SHIFT, TAPS, TAPS_BLOCK)
        determinant = _difference_of_products(dxx, dyy, dxy, dxy)
        if CODEC == "udp":
            point_x -= tl.where(determinant == 0, 0.0, _difference_of_products(dyy, dx, dxy, dy) / determinant)
            point_y -= tl.where(determinant == 0, 0.0, _difference_of_products(dxx, dy, dxy, dx) / determinant)
        if covariances_ptr is not None:
            concave = (determinant > 0) & (dxx < 0)  # false for a maximum <= 0: the clipped map is then flat
            inverse = tl.where(concave & (broken == 0), -1.0 / determinant, float("nan"))
            covariances_ptr += 4 * one_map
            tl.store(covariances_ptr, dyy * inverse * pixels_x * pixels_x)
            tl.store(covariances_ptr + 1, -dxy * inverse * pixels_x * pixels_y)
            tl.store(covariances_ptr + 2, -dxy * inverse * pixels_x * pixels_y)
            tl.store(covariances_ptr + 3, dxx * inverse * pixels_y * pixels_y)
    if CODEC == "msra":
        inner = (x > 1) & (x < w - 1) & (y > 1) & (y < h - 1)
        point_x += tl.where(inner, _quarter(maps, y, x, 0, 1, SHIFT), 0.0)
        point_y += tl.where(inner, _quarter(maps, y, x, 1, 0, SHIFT), 0.0)
    if centers_ptr is not None:
        point_x = (point_x - 0.5 * cells_x) * pixels_x + tl.load(centers_ptr + 2 * b).to(tl.float32)
        point_y = (point_y - 0.5 * cells_y) * pixels_y + tl.load(centers_ptr + 2 * b + 1).to(tl.float32)
    point_x = tl.where(score <= 0, -1.0, point_x)
    point_y = tl.where(score <= 0, -1.0, point_y)
    tl.store(points_ptr + 2 * one_map, tl.where(broken, float("nan"), point_x))
    tl.store(points_ptr + 2 * one_map + 1, tl.where(broken, float("nan"), point_y))
    tl.store(scores_ptr + one_map, tl.where(broken, float("nan"), score))


def forward(
    heatmaps: Tensor,
    codec: str,
    blur_kernel: int,
    flipped: Tensor | None,
    permutation: Sequence[int],
    centers: Tensor | None,
    scales: Tensor | None,
    covariance: bool,
) -> tuple[tuple[Tensor, Tensor, Tensor], list[Launch]]:
    """Return ((keypoints [B, K, 2], scores [B, K], covariances [B, K, 2, 2]), launches); all outputs are float32.

    The taps of the blur and the flip permutation are compile-time constants, so nothing is copied to the device, which
    also keeps the launch capturable in a CUDA graph.

    Args:
        heatmaps: [B, K, h, w], any strides.
        codec: "udp", "msra" or "argmax".
        blur_kernel: odd size of the Gaussian blur.
        flipped: [B, K, h, w], the heatmaps of the mirrored images, or None.
        permutation: for each keypoint its channel in `flipped`; ignored if that is None.
        centers, scales: [B, 2], center and size of each crop in image pixels, or None for results in heatmap pixels.
        covariance: whether to compute the covariances; an empty tensor is returned otherwise.
    """
    b, k, h, w = heatmaps.shape
    points = heatmaps.new_empty((b, k, 2), dtype=torch.float32)
    scores = heatmaps.new_empty((b, k), dtype=torch.float32)
    covariances = heatmaps.new_empty((b, k, 2, 2) if covariance else (0,), dtype=torch.float32)
    taps = tuple(gaussian_taps(blur_kernel)) if codec == "udp" or covariance else ()
    arguments = dict(
        heatmaps_ptr=heatmaps,
        flipped_ptr=flipped,
        centers_ptr=None if centers is None else centers.contiguous(),
        scales_ptr=None if scales is None else scales.contiguous(),
        points_ptr=points,
        scores_ptr=scores,
        covariances_ptr=covariances if covariance else None,
        num_keypoints=k,
        h=h,
        w=w,
        CODEC=codec,
        FLIP=() if flipped is None else tuple(permutation),
        TAPS=taps,
        TAPS_BLOCK=block_size(len(taps)),
        BLOCK=block_size(h * w, 128, _PIXELS),
    )
    arguments |= stride_arguments(heatmaps if flipped is None else flipped, "f")
    arguments |= stride_arguments(heatmaps, "h")  # last, so that DENSE describes `heatmaps`
    size = num_bytes(heatmaps, flipped, centers, scales, points, scores, covariances)
    return (points, scores, covariances), [Launch(heatmap_decode_kernel, (b * k,), arguments, bytes=size)]
