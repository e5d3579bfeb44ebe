"""Boxes of people to the affine matrices of their crops: the geometry of `crop`, on tensors of any device.

Source: SPEC 3.1 to 3.3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def box_to_center_scale(
    boxes: Tensor, size: tuple[int, int], padding: float = 1.25, fix_aspect: bool = True
) -> tuple[Tensor, Tensor]:
    """xywh boxes [P, 4] in pixels -> centres and padded sizes of the crops [P, 2] in pixels, float32 (SPEC 3.1).

    `fix_aspect` grows the shorter side to the aspect of `size` (H, W) first. The sizes are 200 times the `scale` of the
    official code, with its float32 rounding.
    """
    x, y, w, h = boxes.double().unbind(-1)
    center = torch.stack([x + w * 0.5, y + h * 0.5], -1).float()
    if fix_aspect:
        aspect = size[1] / size[0]
        w, h = torch.where(w < aspect * h, h * aspect, w), torch.where(w > aspect * h, w / aspect, h)
    return center, (torch.stack([w, h], -1) / 200).float() * padding * 200


def warp_matrix(
    center: Tensor, scale: Tensor, rotation: Tensor | None, size: tuple[int, int], codec: str = "udp"
) -> Tensor:
    """Matrices image -> crop, float64 [P, 2, 3], from centres, sizes [P, 2] px and rotations [P] in degrees.

    codec "udp": SPEC 3.2 (size - 1 both ways), rounded to float32 as the official code stores it. "msra": SPEC 3.3, the
    three-point affine that uses only the width.
    """
    height, width = size
    angle = torch.zeros_like(center[:, 0]) if rotation is None else rotation
    angle = angle.double().deg2rad()
    cos, sin = angle.cos(), angle.sin()
    (cx, cy), (tw, th) = center.double().unbind(-1), scale.double().unbind(-1)
    if codec == "udp":
        sx, sy = (width - 1) / tw, (height - 1) / th
        rows = [
            torch.stack([cos * sx, -sin * sx, sx * (-cx * cos + cy * sin + 0.5 * tw)], -1),
            torch.stack([sin * sy, cos * sy, sy * (-cx * sin - cy * cos + 0.5 * th)], -1),
        ]
        return torch.stack(rows, 1).float().double()
    # Points as float32, like the official code: centre, middle of the upper edge, and that step turned by 90 degrees.
    up = torch.stack([sin * tw * 0.5, -cos * tw * 0.5], -1)
    first = center.float()
    second = (center.double() + up).float()
    edge = first - second
    third = second + torch.stack([-edge[:, 1], edge[:, 0]], -1)
    source = torch.stack([first, second, third], 1).double()
    half = width * 0.5
    target = [(half, height * 0.5), (half, height * 0.5 - half), (half - half, height * 0.5 - half)]
    return _solve_affine(source, source.new_tensor(target))


def _solve_affine(source: Tensor, target: Tensor) -> Tensor:
    """Affine matrices [P, 2, 3] that map three points [P, 3, 2] to [3, 2], by OpenCV's 6x6 elimination, step by step.

    The order matters: sizes are often round numbers, so that crop pixels fall exactly between two of the 1/32 px steps
    of "exact-cv4", and the last bit of the matrix decides.
    """
    p = len(source)
    system = source.new_zeros(p, 6, 7)  # rows: x and y equation of each point; last column: the right-hand side
    for point in range(3):
        for axis in range(2):
            system[:, 2 * point + axis, 3 * axis : 3 * axis + 2] = source[:, point]
            system[:, 2 * point + axis, 3 * axis + 2] = 1
            system[:, 2 * point + axis, 6] = target[point, axis]
    rows = torch.arange(6, device=source.device)
    for i in range(6):
        pivot = i + system[:, i:, i].abs().argmax(1, keepdim=True)
        order = torch.where(rows == i, pivot, torch.where(rows == pivot, i, rows))  # swap row i and the pivot row
        system = system.gather(1, order[..., None].expand(-1, -1, 7))
        factor = system[:, i + 1 :, i] * (-1 / system[:, i, None, i])
        system[:, i + 1 :, i + 1 :] += factor[..., None] * system[:, i, None, i + 1 :]
    solution: list[Tensor] = [system[:, 0, 6]] * 6
    for i in reversed(range(6)):
        rest = system[:, i, 6]
        for k in range(i + 1, 6):
            rest = rest - system[:, i, k] * solution[k]
        solution[i] = rest / system[:, i, i]
    return torch.stack(solution, -1).reshape(p, 2, 3)


def check_boxes(boxes: Tensor, op: str = "boxes") -> None:
    """Raise ValueError that names the first box [P, 4] (xywh) that is not finite, has no area, or is absurdly large."""
    bad = ~((boxes.abs() < 1e6).all(-1) & (boxes[:, 2:] > 1e-3).all(-1))  # NaN compares false
    if bool(bad.any()):
        index = int(bad.nonzero()[0])
        box = [round(v, 3) if math.isfinite(v) else v for v in boxes[index].tolist()]
        raise ValueError(
            f"{op}: box {index} is {box}, expected finite (x, y, width, height) with width and height > 0, in pixels"
        )
