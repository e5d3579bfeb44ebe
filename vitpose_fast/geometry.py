"""Batched geometry: boxes, crop transforms and flips.

Boxes are (x, y, width, height), and sizes of images, crops and heatmaps are (height, width), in pixels. The `scale` of
a crop is its size in the image as (width, height), in image pixels. Letters: P people, K keypoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitpose_kernels.boxes import box_to_center_scale, check_boxes, warp_matrix

__all__ = [
    "box_to_center_scale",
    "boxes_outside",
    "check_boxes",
    "crop_to_image",
    "flip_keypoints",
    "transform_points",
    "warp_matrix",
]


def transform_points(matrix: Tensor, points: Tensor) -> Tensor:
    """Apply matrix p of affine matrices [P, 2, 3] to all points in `points[p]`, for points [P, ..., 2] as (x, y)."""
    matrix = matrix.to(points.dtype).reshape(-1, *[1] * (points.dim() - 2), 2, 3)
    return (matrix[..., :2] @ points[..., None])[..., 0] + matrix[..., 2]


def crop_to_image(points: Tensor, center: Tensor, scale: Tensor, size: tuple[int, int], codec: str = "udp") -> Tensor:
    """Map points from pixels of unrotated crops, or of their heatmaps, to image pixels (docs/numerics.md 5.5).

    Args:
        points: [P, K, 2] as (x, y), in pixels of the crop or heatmap.
        center, scale: centers (x, y) and sizes (width, height) of the crops in image pixels, [P, 2] each.
        size: (height, width) of the crop or heatmap that `points` refer to.
        codec: "udp" spreads the size of the crop over (width - 1, height - 1) pixels, "msra" over (width, height).

    Returns:
        [P, K, 2] as (x, y) in image pixels.
    """
    height, width = size
    cells = points.new_tensor([width - 1, height - 1] if codec == "udp" else [width, height])
    return points * (scale / cells)[:, None] + (center - scale / 2)[:, None]


def flip_keypoints(
    points: Tensor, visible: Tensor, permutation: Sequence[int], width: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Mirror keypoints together with their image: x becomes width - 1 - x, and left and right channels swap.

    Args:
        points: [P, K, 2] as (x, y) in image pixels.
        visible: [P, K], visibilities, in any unit.
        permutation: `KeypointSet.flip_permutation`.
        width: width of the images in pixels, [P] or one number for all.

    Returns:
        (points, visibilities) in the mirrored images, of the same shapes.
    """
    order = list(permutation)
    x = torch.as_tensor(width, device=points.device, dtype=points.dtype).reshape(-1, 1) - 1 - points[..., 0]
    return torch.stack([x, points[..., 1]], -1)[:, order], visible[:, order]


def boxes_outside(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return bool [P]: which boxes [P, 4] lie completely outside an image of `size` (height, width).

    A box that only touches the edge of the image from outside counts as outside.
    """
    x, y, w, h = boxes.unbind(-1)
    return (x >= size[1]) | (y >= size[0]) | (x + w <= 0) | (y + h <= 0)
