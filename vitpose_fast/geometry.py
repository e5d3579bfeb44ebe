"""Batched geometry: boxes, crop transforms and flips.

Boxes are (x, y, width, height) and sizes (height, width), all in pixels.
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
    """Apply affine matrices [P, 2, 3] to points [P, ..., 2]."""
    matrix = matrix.to(points.dtype).reshape(-1, *[1] * (points.dim() - 2), 2, 3)
    return (matrix[..., :2] @ points[..., None])[..., 0] + matrix[..., 2]


def crop_to_image(points: Tensor, center: Tensor, scale: Tensor, size: tuple[int, int], codec: str = "udp") -> Tensor:
    """Map points from crop pixels back to image pixels (docs/numerics.md 5.5).

    Args:
        points: [P, K, 2], in pixels of the crop (or of its heatmap).
        center, scale: centers and sizes of the crops in the image, [P, 2] each.
        size: (height, width) of the crop (or heatmap).
        codec: "udp" or "msra", see `warp_matrix`.

    Returns:
        [P, K, 2].
    """
    height, width = size
    cells = points.new_tensor([width - 1, height - 1] if codec == "udp" else [width, height])
    return points * (scale / cells)[:, None] + (center - scale / 2)[:, None]


def flip_keypoints(
    points: Tensor, visible: Tensor, permutation: Sequence[int], width: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Mirror keypoints together with their image: flip x and swap left and right channels.

    Args:
        points: [P, K, 2]. visible: [P, K].
        permutation: `KeypointSet.flip_permutation`.
        width: width of the images, [P] or one number for all.

    Returns:
        Points and visibilities in the mirrored images, of the same shapes.
    """
    order = list(permutation)
    x = torch.as_tensor(width, device=points.device, dtype=points.dtype).reshape(-1, 1) - 1 - points[..., 0]
    return torch.stack([x, points[..., 1]], -1)[:, order], visible[:, order]


def boxes_outside(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return bool [P]: which boxes [P, 4] lie completely outside an image of `size`."""
    x, y, w, h = boxes.unbind(-1)
    return (x >= size[1]) | (y >= size[0]) | (x + w <= 0) | (y + h <= 0)
