"""Triton kernel of `crop`: one program samples a strip of one crop and, if asked to, also writes its mirror image.

A strip is a few tiles of pixels, one below the other. P is the number of crops, and (H, W) is their size.

For every pixel of a crop the inverse matrix gives source coordinates: a position in the image. They are fixed-point
int64 numbers in units of 1/1024 px for "exact-cv4" (as in OpenCV) and of 2^-32 px for "float". The float64 arithmetic
is done once for every column and once for every row of a tile; each pixel only adds the two integers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitpose_kernels.launch import Launch, block_size, cdiv
from vitpose_kernels.normalization import IMAGENET_MEAN, IMAGENET_STD

_PIXELS = 512  # pixels of a tile: four per thread, hence 48 loads in flight (4 neighbors x 3 channels for each)
_TILES = 4  # tiles of a strip: the matrix is inverted once for all of them

MEAN = tl.constexpr(IMAGENET_MEAN)
STD = tl.constexpr(IMAGENET_STD)


@triton.jit
def _product(a, b):
    """Return a * b, rounded before anything is added to it.

    The compiler must not fuse the product with a following addition, because the last bit decides how OpenCV rounds.
    """
    return tl.math.fma(a, b, 0.0)


@triton.jit
def _inverse(matrix_ptr):
    """Return the inverse (a, b, c, d, e, f) of an affine matrix from image to crop, float64 [2, 3], row-major.

    A crop pixel (column, row) comes from x = a column + b row + c and y = d column + e row + f in the image. The order
    of operations is OpenCV's.
    """
    m00 = tl.load(matrix_ptr)
    m01 = tl.load(matrix_ptr + 1)
    m02 = tl.load(matrix_ptr + 2)
    m10 = tl.load(matrix_ptr + 3)
    m11 = tl.load(matrix_ptr + 4)
    m12 = tl.load(matrix_ptr + 5)
    determinant = 1.0 / (_product(m00, m11) - _product(m01, m10))
    a = m11 * determinant
    b = -m01 * determinant
    d = -m10 * determinant
    e = m00 * determinant
    c = _product(-a, m02) - _product(b, m12)
    f = _product(-d, m02) - _product(e, m12)
    return a, b, c, d, e, f


@triton.jit
def _rint(x):
    """Round float64 to the nearest int64, ties to even. Exact below 2^51, beyond it within one step of float64."""
    return (x + 6755399441055744.0 - 6755399441055744.0).to(tl.int64)


@triton.jit
def _taps(a, b, c, column, row, size, EXACT: tl.constexpr):
    """Return the two image pixels next to the source coordinate a * column + b * row + c along one axis of the image.

    `size` is the size of the image along this axis. Returns (index, weight) of the lower neighbor, then of the upper
    one. The indices are inside 0..size - 1; the bilinear weight of a neighbor outside the image is 0. Weights are
    integers in units of 1/32 if EXACT, otherwise float32 in 0..1.
    """
    STEPS: tl.constexpr = 1024.0 if EXACT else 4294967296.0
    source = _rint(_product(a, column) * STEPS) + _rint((_product(b, row) + c) * STEPS)
    if EXACT:
        source = (source + 16) >> 5
        whole = tl.minimum(tl.maximum(source >> 5, -2), size).to(tl.int32)
        fraction = (source & 31).to(tl.int32)
    else:
        whole = (source >> 32).to(tl.int32)
        fraction = source.to(tl.uint32).to(tl.float32) * 2.3283064365386963e-10
    one: tl.constexpr = 32 if EXACT else 1.0
    near, near_weight = _inside(whole, one - fraction, size)
    far, far_weight = _inside(whole + 1, fraction, size)
    return near, near_weight, far, far_weight


@triton.jit
def _inside(place, weight, size):
    """Return (place, weight) where place is in 0..size - 1, else (0, 0): zero padding that loads no invalid address."""
    inside = (place >= 0) & (place < size)
    return tl.where(inside, place, 0), tl.where(inside, weight, 0)


# Not specialized on the size of an image: frames of any size share one compiled kernel.
@triton.jit(do_not_specialize=["num_images", "height", "width", "stride_row"])
def crop_kernel(
    image_ptr, table_ptr, index_ptr, matrices_ptr, flip_ptr, out_ptr,
    num_images, height, width, stride_row, stride_column, stride_channel, num_crops, num_rows, num_columns,
    UPRIGHT: tl.constexpr, EXACT: tl.constexpr, TWIN: tl.constexpr,
    TILES: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sample and normalize a strip of one crop: TILES tiles of BLOCK_ROWS x BLOCK_COLUMNS pixels, stacked vertically.

    table_ptr: None for one image. For several it is the table of `_image_arguments`, and index_ptr [P] holds the row of
    the table, that is the image, of each crop.
    matrices_ptr: float64 [P, 2, 3]. A matrix that is not finite makes its crop NaN.
    flip_ptr: None, or [P], not 0 for crops to mirror.
    UPRIGHT: promises that no crop is rotated. EXACT: compute as OpenCV does ("exact-cv4").
    TWIN: write crop p and also its mirror image, as crop num_crops + p.
    """
    across = tl.cdiv(num_columns, BLOCK_COLUMNS)
    strips = across * tl.cdiv(num_rows, TILES * BLOCK_ROWS)
    crop = (tl.program_id(0) // strips).to(tl.int64)
    strip = tl.program_id(0) % strips
    if table_ptr is not None:
        # An index out of range reads the nearest image, never memory that is not an image.
        image = tl.minimum(tl.maximum(tl.load(index_ptr + crop), 0), num_images - 1)
        image_ptr += tl.load(table_ptr + 6 * image)
        height = tl.load(table_ptr + 6 * image + 1)
        width = tl.load(table_ptr + 6 * image + 2)
        stride_row = tl.load(table_ptr + 6 * image + 3)
        stride_column = tl.load(table_ptr + 6 * image + 4)
        stride_channel = tl.load(table_ptr + 6 * image + 5)

    a, b, c, d, e, f = _inverse(matrices_ptr + 6 * crop)
    broken = ((c + f) * 0.0).to(tl.float32)  # NaN if the matrix is not finite, else 0
    out_column = (strip % across) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    twin_column = num_columns - 1 - out_column
    column = out_column
    if flip_ptr is not None:
        column = tl.where(tl.load(flip_ptr + crop) != 0, twin_column, out_column)
    column = column.to(tl.float64)
    plane = num_rows * num_columns
    for tile in tl.range(TILES):
        out_row = ((strip // across) * TILES + tile) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
        row = out_row.to(tl.float64)
        if UPRIGHT:  # x depends only on the column and y only on the row
            zero = tl.zeros((1, 1), tl.float64)
            x0, wx0, x1, wx1 = _taps(a, b, c, column, zero, width, EXACT)
            y0, wy0, y1, wy1 = _taps(d, e, f, zero, row, height, EXACT)
        else:
            x0, wx0, x1, wx1 = _taps(a, b, c, column, row, width, EXACT)
            y0, wy0, y1, wy1 = _taps(d, e, f, column, row, height, EXACT)
        line0 = y0.to(tl.int64) * stride_row
        line1 = y1.to(tl.int64) * stride_row
        place0 = x0.to(tl.int64) * stride_column
        place1 = x1.to(tl.int64) * stride_column
        on_crop = (out_row < num_rows) & (out_column < num_columns)
        for channel in tl.static_range(3):
            pixels_ptr = image_ptr + channel * stride_channel
            value = tl.load(pixels_ptr + (line0 + place0)).to(wx0.dtype) * (wy0 * wx0)
            value += tl.load(pixels_ptr + (line0 + place1)).to(wx0.dtype) * (wy0 * wx1)
            value += tl.load(pixels_ptr + (line1 + place0)).to(wx0.dtype) * (wy1 * wx0)
            value += tl.load(pixels_ptr + (line1 + place1)).to(wx0.dtype) * (wy1 * wx1)
            if EXACT:  # weights sum to 1024 here and to 2^15 in OpenCV: the rounding is the same
                level = ((value + 512) >> 10).to(tl.float32)
                value = tl.math.div_rn(tl.math.div_rn(level, 255.0) - MEAN[channel], STD[channel])
            else:
                value = value * (1 / (255 * STD[channel])) - MEAN[channel] / STD[channel]
            value += broken
            line_ptr = out_ptr + (3 * crop + channel) * plane + out_row * num_columns
            tl.store(line_ptr + out_column, value, on_crop)
            if TWIN:
                twin_ptr = out_ptr + (3 * (crop + num_crops) + channel) * plane + out_row * num_columns
                tl.store(twin_ptr + twin_column, value, on_crop)


def _image_arguments(images: Sequence[Tensor]) -> dict:
    """Return the arguments of `crop_kernel` that describe where the images, uint8 [h_i, w_i, 3], are in memory.

    One image is passed as a pointer with its strides. Several are passed as a pointer to the first image and an int64
    table with a row (offset in bytes from the first image, height, width, strides of row, column and channel) for each.
    While tracing, tensors have no address, and a table of addresses would not keep the images alive in a graph: several
    images are then copied into one buffer, which the table describes.
    """
    first = images[0]
    if len(images) == 1:
        shape = dict(height=first.shape[0], width=first.shape[1])
        strides = zip(("stride_row", "stride_column", "stride_channel"), first.stride(), strict=True)
        return dict(image_ptr=first, table_ptr=None, num_images=1, **shape, **dict(strides))
    rows = []
    if all(type(image) is Tensor for image in images):
        for image in images:
            rows.append([image.data_ptr() - first.data_ptr(), *image.shape[:2], *image.stride()])
    else:
        start = 0
        for image in images:
            rows.append([start, *image.shape[:2], 3 * image.shape[1], 3, 1])
            start += 3 * image.shape[0] * image.shape[1]
        first = torch.cat([image.reshape(-1) for image in images])
    table = torch.tensor(rows, dtype=torch.int64).to(first.device, non_blocking=True)
    unused = dict(height=0, width=0, stride_row=0, stride_column=0, stride_channel=0)
    return dict(image_ptr=first, table_ptr=table, num_images=len(images), **unused)


def forward(
    images: Sequence[Tensor],
    image_index: Tensor,
    matrices: Tensor,
    size: tuple[int, int],
    flip: Tensor | None,
    upright: bool,
    exact: bool,
    dtype: torch.dtype,
    twin: bool,
) -> tuple[Tensor, list[Launch]]:
    """Return (crops, launches): crops [P, 3, H, W], or with `twin` [2 P, 3, H, W], the second half mirror images.

    Args:
        images: uint8 [h_i, w_i, 3].
        image_index: [P], the index in `images` of the image of each crop.
        matrices: float64 [P, 2, 3], from image to crop.
        size: (H, W).
        flip: bool [P], which crops to mirror, or None.
        upright: promises that no matrix rotates.
        exact: sample as "exact-cv4" instead of "float".
        dtype: of the crops.
    """
    p, (rows, columns) = matrices.shape[0], size
    out = matrices.new_empty((2 * p if twin else p, 3, rows, columns), dtype=dtype)
    block_columns = block_size(columns, 16, 64)
    block_rows = _PIXELS // block_columns
    arguments = _image_arguments(images) | dict(
        index_ptr=image_index.contiguous(),
        matrices_ptr=matrices.contiguous(),
        flip_ptr=None if flip is None else flip.contiguous().view(torch.uint8),
        out_ptr=out,
        num_crops=p,
        num_rows=rows,
        num_columns=columns,
        UPRIGHT=upright,
        EXACT=exact,
        TWIN=twin,
        TILES=_TILES,
        BLOCK_ROWS=block_rows,
        BLOCK_COLUMNS=block_columns,
    )
    grid = (p * cdiv(columns, block_columns) * cdiv(rows, _TILES * block_rows),)
    moved = p * rows * columns * (12 + 3 * out.element_size() * (2 if twin else 1))
    return out, [Launch(crop_kernel, grid, arguments, bytes=moved)]
