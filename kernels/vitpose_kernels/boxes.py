"""Geometry of `crop`: from person boxes to the affine matrices that map image pixels to crop pixels.

Source: docs/numerics.md 3.1 to 3.3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def box_to_center_scale(
    boxes: Tensor, size: tuple[int, int], padding: float = 1.25, fix_aspect: bool = True
) -> tuple[Tensor, Tensor]:
    """Convert boxes to the centers and sizes of the image regions that are cropped (docs/numerics.md 3.1).

    Args:
        boxes: [P, 4] (x, y, width, height) in image pixels, P boxes; (x, y) is the top left corner.
        size: (H, W) of the crops in pixels.
        padding: factor on width and height of a box.
        fix_aspect: before padding, lengthen the side that is too short for the aspect ratio W / H, on both ends.

    Returns:
        centers [P, 2] (x, y) and sizes [P, 2] (width, height) in image pixels, float32. The sizes are 200 times the
        `scale` of the official code, with its float32 rounding.
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
    """Compute the affine matrices that map image pixels to crop pixels.

    Args:
        center, scale: [P, 2], centers and sizes of P regions in image pixels, from `box_to_center_scale`.
        rotation: [P] in degrees about the center. None means no rotation. As in the official code, a positive angle
            turns the person in the crop clockwise for "udp" and counterclockwise for "msra".
        size: (H, W) of the crops in pixels.
        codec: "udp" maps the region to 0..W - 1 and 0..H - 1, in float64 values that are rounded to float32 as the
            official code does (docs/numerics.md 3.2). "msra" maps the width of the region to W and has the same zoom
            on both axes, so the height of the region does not count (docs/numerics.md 3.3).

    Returns:
        float64 [P, 2, 3]: matrix @ (x, y, 1) in the image = (x, y) in the crop.
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
    # The matrix is determined by three points, in float32 as in the official code: the center, the point half a region
    # width above it, and the point half a region width to the left of that one. "Above" and "left" hold in the crop.
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
    """Return the affine matrices [P, 2, 3] that map three points each, `source` [P, 3, 2] to `target` [3, 2].

    This repeats OpenCV's 6x6 elimination operation by operation, because rounding matters. Box sizes are often round
    numbers; then crop pixels fall exactly between two of the 1/32 px steps of the sampling "exact-cv4", and the last
    bit of the matrix decides between the two.
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
    """Raise a ValueError that names the first bad box of [P, 4] (x, y, width, height) in pixels.

    A box is bad if a value is not finite, if its width or height is 1e-3 or less (also if negative), or if the absolute
    value of one of the four numbers is 1e6 or more. `op` is the first word of the message.
    """
    bad = ~((boxes.abs() < 1e6).all(-1) & (boxes[:, 2:] > 1e-3).all(-1))  # NaN compares false
    if bool(bad.any()):
        index = int(bad.nonzero()[0])
        box = [round(v, 3) if math.isfinite(v) else v for v in boxes[index].tolist()]
        raise ValueError(
            f"{op}: box {index} is {box}, expected finite (x, y, width, height) with width and height > 0, in pixels"
        )
