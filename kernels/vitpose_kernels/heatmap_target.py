"""Render keypoints as Gaussian heatmaps, the training targets.

    udp:  G[y, x] = exp(-((x - ax)² + (y - ay)²) / (2 sigma²)),   ax = kx (w - 1) / (W - 1)           (sub-pixel center)
    msra: the same around the integer center (mx, my),            ax = kx w / W

(kx, ky) is a keypoint in crop pixels, (ax, ay) the same point in heatmap pixels; ay follows in the same way from ky, h
and H. G has these values inside the (2r + 1)² window around (mx, my) = trunc((ax, ay) + 0.5), with r = int(3 sigma),
and is zero outside.

Letters: B batch, P people, K keypoints, (W, H) crop and (w, h) heatmap in pixels.

    keypoints [B, K, 2] or [B, P, K, 2] crop px   visible [B, K] or [B, P, K]   heatmaps [B, K, h, w]   weights [B, K]

The weight of a keypoint is its visibility, clamped to 0..1. It is 0 if the keypoint is not finite or its window misses
the map; as in the official code, a window that ends one pixel before the first row or column does not miss it. A
keypoint is drawn if its weight is above 0.5; otherwise its heatmap is zero. With P people per sample, heatmaps and
weights are the maximum over the people.

Memory-bound: the maps are written once. Source: docs/numerics.md 4.1, 4.2 (truncation towards zero, as in C, is part of
the definition).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitpose_kernels.autocast import without_autocast
from vitpose_kernels.checks import check_device, choose_impl
from vitpose_kernels.eager import triton_op
from vitpose_kernels.launch import run


def heatmap_target_reference(
    keypoints: Tensor, visible: Tensor, size: tuple[int, int], image_size: tuple[int, int], udp: bool, sigma: float
) -> tuple[Tensor, Tensor]:
    """Reference implementation in plain PyTorch, which specifies the op.

    Returns (heatmaps [B, K, h, w], weights [B, K]). `size` is (h, w), `image_size` is (H, W).
    """
    radius = int(3 * sigma)
    weights = visible.clamp(0, 1) * keypoints.isfinite().all(-1)
    axes = []
    for axis, (cells, pixels) in enumerate(zip((size[1], size[0]), (image_size[1], image_size[0]), strict=True)):
        stride = max(pixels - 1, 1) / max(cells - 1, 1) if udp else pixels / cells
        center = keypoints[..., axis].nan_to_num(0.0, 0.0, 0.0) / stride
        nearest = torch.trunc(center + 0.5)
        weights = weights * ((nearest - radius < cells) & (nearest + radius + 1 >= 0))
        cell = torch.arange(cells, device=keypoints.device, dtype=keypoints.dtype)
        distance = cell - (center if udp else nearest)[..., None]
        inside = (cell - nearest[..., None]).abs() <= radius
        axes.append(torch.exp(-distance.square() / (2 * sigma**2)) * inside)
    drawn = (weights > 0.5).to(keypoints.dtype)[..., None]
    heatmaps = (axes[1] * drawn)[..., :, None] * axes[0][..., None, :]
    return (_over_people(heatmaps), _over_people(weights)) if keypoints.dim() == 4 else (heatmaps, weights)


def _over_people(x: Tensor) -> Tensor:
    """Return the maximum over dim 1 (people), or zeros if there are no people."""
    return x.amax(1) if x.shape[1] else x.sum(1)


@triton_op("vitpose_fast::heatmap_target")
def _heatmap_target(
    keypoints: Tensor,
    visible: Tensor,
    size: Sequence[int],
    image_size: Sequence[int],
    udp: bool,
    sigma: float,
    triton: bool,
) -> tuple[Tensor, Tensor]:
    sizes = (size[0], size[1]), (image_size[0], image_size[1])
    if not triton:
        return heatmap_target_reference(keypoints, visible, *sizes, udp, sigma)
    from vitpose_kernels.gpu import heatmap_target as gpu

    return run(*gpu.forward(keypoints, visible, *sizes, udp, sigma))


def check_keypoints(
    op: str,
    keypoints: Tensor,
    visible: Tensor,
    size: Sequence[int],
    image_size: Sequence[int] | None,
    codec: str,
    sigma: float,
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Check the arguments that `heatmap_target` and `heatmap_loss` share. `op` is the name in error messages.

    Returns:
        keypoints and visible, detached and in the same floating dtype (float32, or float64 for float64 keypoints), and
        the size (H, W) of the crop, which is four times `size` by default.

    Raises:
        ValueError: shapes or devices do not fit each other, the codec is unknown, sigma is not positive, or `size` is
            not two numbers >= 1.
    """
    if not (keypoints.dim() in (3, 4) and keypoints.shape[-1] == 2):
        raise ValueError(f"{op}: keypoints have shape {list(keypoints.shape)}, expected [B, K, 2] or [B, P, K, 2]")
    if visible.shape != keypoints.shape[:-1]:
        raise ValueError(f"{op}: visible has shape {list(visible.shape)}, expected {list(keypoints.shape[:-1])}")
    check_device(op, keypoints, visible=visible)
    if codec not in ("udp", "msra"):
        raise ValueError(f"{op}: got codec={codec!r}, expected 'udp' or 'msra'")
    if not sigma > 0:
        raise ValueError(f"{op}: got sigma={sigma}, expected a positive number of heatmap pixels")
    if not (len(size) == 2 and min(size) >= 1):
        raise ValueError(f"{op}: got size={tuple(size)}, expected (rows, columns) >= 1")
    image_size = (4 * size[0], 4 * size[1]) if image_size is None else (image_size[0], image_size[1])
    keypoints = keypoints if keypoints.is_floating_point() and keypoints.element_size() >= 4 else keypoints.float()
    return keypoints.detach(), visible.detach().to(keypoints.dtype), image_size


def heatmap_target(
    keypoints: Tensor,
    visible: Tensor,
    size: tuple[int, int] = (64, 48),
    codec: str = "udp",
    sigma: float = 2.0,
    image_size: tuple[int, int] | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Render keypoints as Gaussian heatmaps. The module docstring has the formula.

    Args:
        keypoints: [B, K, 2] (x, y) in crop pixels, or [B, P, K, 2] for P people per sample.
        visible: [B, K] or [B, P, K], the visibility of each keypoint; values are clamped to 0..1, so COCO's 2 counts as
            1.
        size: (h, w) of the heatmaps in pixels.
        codec: "udp" or "msra".
        sigma: standard deviation of the Gaussians in heatmap pixels.
        image_size: (H, W) of the crop in pixels. Default: four times `size`.
        impl: None (chosen by device), "triton" or "reference".

    Returns:
        heatmaps: [B, K, h, w]. A keypoint is drawn if its weight is above 0.5, otherwise its heatmap is zero. The
            heatmaps of several people are merged by maximum.
        weights: [B, K], the clamped visibility, or 0 for a keypoint that is not finite or lies so far outside that its
            Gaussian misses the heatmap. The maximum over several people.

        Both are in the dtype of `keypoints` (at least float32) and not differentiable.

    Raises:
        ValueError: shapes or devices do not fit each other, the codec is unknown, sigma is not positive, or `impl` does
            not support the call.
    """
    op = "heatmap_target"
    keypoints, visible, image_size = check_keypoints(op, keypoints, visible, size, image_size, codec, sigma)
    triton = choose_impl(op, impl, keypoints) == "triton"
    with without_autocast(keypoints):
        return _heatmap_target(keypoints, visible, list(size), list(image_size), codec == "udp", float(sigma), triton)
