"""Crop person boxes out of one or many images, as normalized network input.

Each box is grown to the aspect ratio of the crop and padded (`box_to_center_scale`). The resulting region gives a 2x3
matrix from image pixels to crop pixels (`warp_matrix`). The inverse of the matrix maps every crop pixel to a point in
the image, where the image is sampled bilinearly; pixels outside the image count as 0. The crop holds
(value / 255 - mean) / std with ImageNet's mean and std. There are two samplings:

    "float":     exact coordinates, unrounded values (like grid_sample with zeros padding)
    "exact-cv4": OpenCV <= 4.11 bit for bit: coordinates in 1/32 px, 15-bit weights, values rounded to uint8

Letters: P boxes, (H, W) crop in pixels, (h_i, w_i) image i in pixels. images uint8 [h_i, w_i, 3] RGB -> [P, 3, H, W].
Memory-bound: 12 bytes read and 3 values written per crop pixel (6 if the mirror image of the crop is written as well).
Source: docs/numerics.md 3.1 to 3.5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vitpose_kernels.autocast import without_autocast
from vitpose_kernels.boxes import box_to_center_scale, check_boxes, warp_matrix
from vitpose_kernels.checks import check_device, choose_impl, may_look_at_values
from vitpose_kernels.eager import triton_op
from vitpose_kernels.launch import run
from vitpose_kernels.normalization import IMAGENET_MEAN, IMAGENET_STD


def _inverse(matrix: Tensor) -> Tensor:
    """Invert affine matrices [P, 2, 3], float64, with OpenCV's order of operations."""
    (m00, m01, m02), (m10, m11, m12) = (row.unbind(-1) for row in matrix.unbind(1))
    determinant = 1 / (m00 * m11 - m01 * m10)
    a, b, d, e = m11 * determinant, -m01 * determinant, -m10 * determinant, m00 * determinant
    return torch.stack([a, b, -a * m02 - b * m12, d, e, -d * m02 - e * m12], -1).reshape(-1, 2, 3)


def _source_float(coefficients: Tensor, column: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """Compute one image coordinate (x or y) of every crop pixel.

    Args:
        coefficients: [P, 3], one row of the inverse matrices. Its dot product with (column, row, 1) is the coordinate.
        column, row: [P, columns] and [rows], positions in the crop. All are float64.

    Returns:
        (floor of the coordinate, int64; fraction, float32), each [P, rows, columns].
    """
    a, b, c = coefficients.unbind(-1)
    source = (a[:, None] * column)[:, None, :] + (b[:, None] * row + c[:, None])[:, :, None]
    whole = source.floor()
    return whole.long(), (source - whole).float()


def _source_exact(coefficients: Tensor, column: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """Do what `_source_float` does, with OpenCV's fixed-point rounding (docs/numerics.md 3.4).

    The fraction is int64, in units of 1/32 px.
    """
    a, b, c = coefficients.unbind(-1)
    along = (a[:, None] * column * 1024).round().long()
    down = ((b[:, None] * row + c[:, None]) * 1024).round().long() + 16
    source = (down[:, :, None] + along[:, None, :]) >> 5
    return source >> 5, source & 31


def _taps(whole: Tensor, fraction: Tensor, size: Tensor, one: int) -> list[tuple[Tensor, Tensor]]:
    """Return the two pixels between which image coordinates lie along an axis, as [(index, weight), (index, weight)].

    Args:
        whole, fraction: the coordinates, from `_source_float` or `_source_exact`.
        size: number of pixels of the image along the axis, [P, 1, 1].
        one: the sum of both weights: 1, or 32 if `fraction` counts 1/32 px.

    Indices are clamped to 0..size - 1. A pixel outside the image has weight 0.
    """
    out = []
    for place, weight in ((whole, one - fraction), (whole + 1, fraction)):
        inside = place.clamp(min=0).minimum(size - 1)
        out.append((inside, weight * (inside == place)))
    return out


def crop_reference(
    images: Sequence[Tensor],
    image_index: Tensor,
    matrices: Tensor,
    size: tuple[int, int],
    flip: Tensor | None,
    upright: bool,
    exact: bool,
    dtype: torch.dtype,
    twin: bool,
) -> Tensor:
    """Reference implementation in plain PyTorch, which specifies the op.

    Args:
        images: list of uint8 [h_i, w_i, 3].
        image_index: int64 [P], the index of the image of each crop, in range.
        matrices: float64 [P, 2, 3], from image to crop (see `warp_matrix`). One that is not finite gives a crop of NaN.
        size: (H, W).
        flip: bool [P], which crops to mirror, or None.
        upright: promises that no matrix rotates.
        exact: sampling "exact-cv4" instead of "float".
        twin: also return the mirror images.

    Returns:
        [P, 3, H, W] in `dtype`, or with `twin` [2 P, 3, H, W]: all crops, then the mirror image of every crop.
    """
    device, p = matrices.device, matrices.shape[0]
    pixels = torch.cat([image.reshape(-1, 3) for image in images])
    heights = torch.tensor([image.shape[0] for image in images], device=device)
    widths = torch.tensor([image.shape[1] for image in images], device=device)
    starts = (heights * widths).cumsum(0) - heights * widths
    height, width, start = (v.index_select(0, image_index)[:, None, None] for v in (heights, widths, starts))

    row = torch.arange(size[0], device=device, dtype=torch.float64)
    column = torch.arange(size[1], device=device, dtype=torch.float64).expand(p, -1)
    if flip is not None:
        column = torch.where(flip[:, None], size[1] - 1 - column, column)
    inverse = _inverse(matrices)
    source, one = (_source_exact, 32) if exact else (_source_float, 1)
    # Without rotation x depends on the column only and y on the row only: compute them for one row and one column.
    across = _taps(*source(inverse[:, 0], column, row[:1] if upright else row), width, one)
    down = _taps(*source(inverse[:, 1], column[:, :1] if upright else column, row), height, one)
    out = torch.zeros(p, *size, 3, device=device)
    for x, weight_x in across:
        rows = torch.zeros_like(out)
        for y, weight_y in down:
            tap = pixels.index_select(0, (y * width + start + x).flatten()).view_as(out)
            rows.addcmul_(tap.float(), weight_y[..., None].float())
        out.addcmul_(rows, weight_x[..., None].float())
    broken = (inverse.sum((1, 2)) * 0).float()[:, None, None, None]  # NaN where a matrix is not finite, else 0
    pixels = out.permute(0, 3, 1, 2)
    out = torch.empty(pixels.shape, device=device)
    _normalizer(exact, broken)(pixels, out)
    out = out.to(dtype)
    return torch.cat([out, out.flip(-1)]) if twin else out


def _normalizer(exact: bool, broken: Tensor) -> Callable[[Tensor, Tensor], object]:
    """Return a function normalize(x, out), which turns sampled pixels into network input.

    `x` [..., 3, H, W] holds sums of pixel values 0..255 times their bilinear weights. `out`, float32 and of the same
    shape, receives the result. `broken` is a tensor that broadcasts to `x`, 0 or, to make a crop NaN, NaN.

    The weights of the four pixels sum to 1; a pixel outside the image has weight 0. With `exact` (sampling "exact-cv4")
    the weights are integers that sum to 1024 instead, so float32 holds the sums exactly (they stay below 2^24), and
    normalize first divides by 1024 and rounds to a whole pixel value, halves up. OpenCV's weights sum to 2^15, which
    gives the same rounded values.
    """
    mean, std = (torch.tensor(v, device=broken.device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    if exact:
        mean = mean + broken
        return lambda x, out: out.copy_(x.add(512).mul_(1 / 1024).floor_().div_(255).sub_(mean).div_(std))
    offset, gain = broken - mean / std, 1 / (255 * std)
    return lambda x, out: torch.addcmul(offset, x, gain, out=out)


def _crop_upright(
    images: Sequence[Tensor],
    image_index: Tensor,
    matrices: Tensor,
    size: tuple[int, int],
    flip: Tensor | None,
    exact: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Do what `crop_reference` does, faster, for CPU tensors with `upright` and without `twin`.

    Crops are computed one by one, each first along y, then along x. The image regions of the crops differ in size, and
    that of a single crop stays in the cache.
    """
    p = matrices.shape[0]
    row = torch.arange(size[0], dtype=torch.float64)
    column = torch.arange(size[1], dtype=torch.float64).expand(p, -1)
    if flip is not None:
        column = torch.where(flip[:, None], size[1] - 1 - column, column)
    inverse, order = _inverse(matrices), image_index.tolist()
    height, width = (torch.tensor([images[i].shape[axis] for i in order])[:, None, None] for axis in (0, 1))
    source, one = (_source_exact, 32) if exact else (_source_float, 1)
    (x0, wx0), (x1, wx1) = _taps(*source(inverse[:, 0], column, row[:1]), width, one)  # [P, 1, columns]
    (y0, wy0), (y1, wy1) = _taps(*source(inverse[:, 1], column[:, :1], row), height, one)  # [P, rows, 1]
    weights = [w.float().flatten(1) for w in (wx0, wx1, wy0, wy1)]
    first, last = torch.minimum(x0, x1).amin((1, 2)), torch.maximum(x0, x1).amax((1, 2))
    x0, x1 = (x[:, 0] - first[:, None] for x in (x0, x1))
    y0, y1 = y0[..., 0], y1[..., 0]
    out, normalize = torch.empty(p, 3, *size, dtype=dtype), _normalizer(exact, torch.zeros(()))
    # All crops share buffers that are allocated once: fresh pages would cost more than the arithmetic.
    widest = size[0] * 3 * (int((last - first).max()) + 1 if p else 0)
    levels, near, far = torch.empty(widest, dtype=torch.uint8), torch.empty(widest), torch.empty(widest)
    left, right, crop = torch.empty(*size, 3), torch.empty(*size, 3), torch.empty(3, *size)
    for i, (number, start, end) in enumerate(zip(order, first.tolist(), last.tolist(), strict=True)):
        region = images[number][:, start : end + 1]
        shape = size[0], end + 1 - start, 3
        taken, above, below = (x[: size[0] * shape[1] * 3].view(shape) for x in (levels, near, far))
        near_x, far_x, near_y, far_y = (w[i] for w in weights)
        above.copy_(torch.index_select(region, 0, y0[i], out=taken)).mul_(near_y[:, None, None])
        below.copy_(torch.index_select(region, 0, y1[i], out=taken))
        above.addcmul_(below, far_y[:, None, None])
        torch.index_select(above, 1, x0[i], out=left).mul_(near_x[:, None])
        left.addcmul_(torch.index_select(above, 1, x1[i], out=right), far_x[:, None])
        if dtype == torch.float32:
            normalize(left.permute(2, 0, 1), out[i])
        else:
            normalize(left.permute(2, 0, 1), crop)
            out[i] = crop
    return out


@triton_op("vitpose_fast::crop")
def _crop(
    images: Sequence[Tensor],
    image_index: Tensor,
    matrices: Tensor,
    size: Sequence[int],
    flip: Tensor | None,
    upright: bool,
    exact: bool,
    dtype: torch.dtype,
    twin: bool,
    triton: bool,
) -> Tensor:
    arguments = (images, image_index, matrices, (size[0], size[1]), flip, upright, exact, dtype, twin)
    if not triton:
        return crop_reference(*arguments)
    from vitpose_kernels.gpu import crop as gpu

    return run(*gpu.forward(*arguments))


def crop(
    image: Tensor | Sequence[Tensor],
    boxes: Tensor,
    size: tuple[int, int] = (256, 192),
    sampling: str = "float",
    rotation: Tensor | None = None,
    flip: Tensor | None = None,
    codec: str = "udp",
    padding: float = 1.25,
    fix_aspect: bool = True,
    dtype: torch.dtype = torch.float32,
    image_index: Tensor | None = None,
    twin: bool = False,
    impl: str | None = None,
) -> Tensor:
    """Crop boxes out of images as normalized network input. The module docstring has the details.

    Args:
        image: uint8 [h, w, 3] RGB, or a list of such images (of any sizes) together with `image_index`.
        boxes: [P, 4] (x, y, width, height) in image pixels, with (x, y) the top left corner. They are converted to
            float64 for the official rounding. Boxes on the CPU are checked and turned into matrices on the CPU, even if
            the images are on CUDA.
        size: (H, W) of the crops in pixels, both at least 2.
        sampling: "float" or "exact-cv4".
        rotation: [P], degrees about the center of the box. A positive angle turns the person in the crop clockwise for
            "udp" and counterclockwise for "msra". Default: no rotation.
        flip: bool [P], which crops to mirror: their columns are reversed, after rotation. Default: none.
        codec: "udp" or "msra", the affine transform that turns a box into a crop. "udp" maps the padded box to
            columns 0..W - 1 and rows 0..H - 1. "msra" maps its width to W, with the same zoom on both axes.
        padding: factor on width and height of the box.
        fix_aspect: before padding, lengthen one side of the box, about its center, to the aspect ratio of `size`.
        dtype: floating dtype of the result.
        image_index: int64 [P], for each box the index of its image in the list. Optional for a single image.
        twin: also return the mirror image of every crop (its columns reversed), for the flip test.
        impl: None (chosen by device), "triton" or "reference".

    Returns:
        [P, 3, H, W], or with `twin` [2 P, 3, H, W]: all crops, then the mirror image of every crop. Normalized with
        ImageNet's mean and std; pixels outside the image count as 0 (black). Not differentiable.

    Raises:
        ValueError: there is no image, an image is not uint8 [h, w, 3], shapes or devices do not fit each other, size,
            dtype, sampling or codec is not supported, a value of a box is not finite or has an absolute value of 1e6 or
            more, the width or height of a box is 1e-3 or less, or an image index is out of range.

    Boxes and indices on CUDA are checked only with VITPOSE_FAST_DEBUG=1, and none are checked while torch.compile or
    torch.export traces. Without the check, a box that is not finite gives a crop of NaN, other bad boxes give
    meaningless crops, and in the Triton kernel an index out of range selects the nearest valid image.
    """
    op = "crop"
    images = [image] if isinstance(image, Tensor) else list(image)
    if not images:
        raise ValueError(f"{op}: got an empty list of images, expected at least one")
    if not (len(size) == 2 and min(size) >= 2):
        raise ValueError(f"{op}: got size={tuple(size)}, expected (rows, columns) >= 2")
    for i, one in enumerate(images):
        if not isinstance(one, Tensor):
            raise ValueError(f"{op}: image {i} is a {type(one).__name__}, expected a torch.Tensor")
        fits = one.dtype == torch.uint8 and one.dim() == 3 and one.shape[2] == 3 and one.numel() > 0
        if not fits:
            raise ValueError(
                f"{op}: image {i} is {one.dtype} {list(one.shape)}, expected torch.uint8 [height, width, 3] RGB"
            )
        check_device(op, images[0], **{f"image {i}": one})
    if not dtype.is_floating_point:
        raise ValueError(f"{op}: got dtype={dtype}, expected a floating dtype")
    device = images[0].device
    triton = choose_impl(op, impl, torch.empty(0, dtype=dtype, device=device)) == "triton"
    boxes = torch.as_tensor(boxes).detach()
    if not (boxes.dim() == 2 and boxes.shape[1] == 4):
        raise ValueError(f"{op}: boxes have shape {list(boxes.shape)}, expected [P, 4]")
    p = boxes.shape[0]
    if sampling not in ("float", "exact-cv4"):
        raise ValueError(f"{op}: got sampling={sampling!r}, expected 'float' or 'exact-cv4'")
    if codec not in ("udp", "msra"):
        raise ValueError(f"{op}: got codec={codec!r}, expected 'udp' or 'msra'")
    for name, value in {"rotation": rotation, "flip": flip, "image_index": image_index}.items():
        if value is not None:
            given = f"shape {list(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
            fits = isinstance(value, Tensor) and tuple(value.shape) == (p,)
            if not fits:
                raise ValueError(f"{op}: {name} has {given}, expected a tensor of shape [{p}]")
    if image_index is None and len(images) != 1:
        raise ValueError(f"{op}: got {len(images)} images without image_index; pass the image of each box")
    index = torch.zeros(p, dtype=torch.int64, device=device) if image_index is None else image_index.long()
    if may_look_at_values(boxes):
        check_boxes(boxes, op)
    if may_look_at_values(index):
        fits = p == 0 or (int(index.min()) >= 0 and int(index.max()) < len(images))
        if not fits:
            raise ValueError(f"{op}: image_index has values outside 0..{len(images) - 1} for {len(images)} images")
    turn = None if rotation is None else rotation.detach().to(boxes.device)
    mirror = None if flip is None else flip.to(device).bool()
    exact = sampling == "exact-cv4"
    with without_autocast(images[0]):
        center, scale = box_to_center_scale(boxes, size, padding, fix_aspect)
        matrices = warp_matrix(center, scale, turn, size, codec).to(device, non_blocking=device.type == "cuda")
        upright, index = turn is None, index.to(device, non_blocking=device.type == "cuda")
        plain = device.type == "cpu" and may_look_at_values(matrices) and all(type(i) is Tensor for i in images)
        if upright and not triton and plain:
            out = _crop_upright(images, index, matrices, (size[0], size[1]), mirror, exact, dtype)
            return torch.cat([out, out.flip(-1)]) if twin else out
        return _crop(images, index, matrices, list(size), mirror, upright, exact, dtype, twin, triton)
