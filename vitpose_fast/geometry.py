"""Boxes, crop transforms and flips, all batched. Boxes are xywh, sizes (height, width), everything in pixels."""

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
    """Points [P, K, 2] in crop (or heatmap) pixels of `size` to the image (SPEC 5.5); centre, scale [P, 2] px."""
    height, width = size
    cells = points.new_tensor([width - 1, height - 1] if codec == "udp" else [width, height])
    return points * (scale / cells)[:, None] + (center - scale / 2)[:, None]


def flip_keypoints(
    points: Tensor, visible: Tensor, permutation: Sequence[int], width: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Keypoints [P, K, 2] and visibilities [P, K] of the mirrored image of a width [P] or one for all."""
    order = list(permutation)
    x = torch.as_tensor(width, device=points.device, dtype=points.dtype).reshape(-1, 1) - 1 - points[..., 0]
    return torch.stack([x, points[..., 1]], -1)[:, order], visible[:, order]


def boxes_outside(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """bool [P]: the box shares no pixel with an image of `size`."""
    x, y, w, h = boxes.unbind(-1)
    return (x >= size[1]) | (y >= size[0]) | (x + w <= 0) | (y + h <= 0)
