"""Triton kernel of `patch_embed`: one matrix product whose left operand is gathered from the images (implicit GEMM).

Letters: B batch, N tokens (patches) per image, C channels of a token. A patch has 3 x 16 x 16 = 768 values.

A row of the patch in column i of the grid begins at image column 16 i - 2 (stride 16) or 8 i - 4 (stride 8). In 16-bit
dtypes this is aligned to 4 or 8 bytes, so contiguous images are loaded in copies of that size. Channels-last images are
loaded value by value.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitpose_kernels.chips import usual_chip
from vitpose_kernels.launch import Launch, block_size, cdiv, num_bytes

_FEW_PROGRAMS = 64  # fewer leave half of a large GPU idle: use smaller tiles (a batch of 1 or 2)


@triton.jit
def patch_embed_kernel(
    images_ptr, weight_ptr, bias_ptr, position_ptr, out_ptr,
    stride_ib, stride_ic, stride_iy, stride_ix, num_rows, height, width, grid_height, grid_width, channels,
    STRIDE: tl.constexpr, PADDING: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Compute a tile of BLOCK_M tokens and BLOCK_N channels; num_rows is B * N, the tokens of all images."""
    # Consecutive programs compute the blocks of channels of one block of tokens: they gather the same pixels from L2.
    blocks_n = tl.cdiv(channels, BLOCK_N)
    n = (tl.program_id(0) % blocks_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    start = (tl.program_id(0) // blocks_n).to(tl.int64) * BLOCK_M
    valid = tl.arange(0, BLOCK_M) < num_rows - start
    num_tokens = grid_height * grid_width
    image = start // num_tokens
    token = (start - image * num_tokens).to(tl.int32) + tl.arange(0, BLOCK_M)
    b = image + token // num_tokens
    token = token % num_tokens
    top = token // grid_width * STRIDE - PADDING
    left = token % grid_width * STRIDE - PADDING

    # A block of the K axis is BLOCK_K / 16 whole rows of one channel of a patch.
    k = tl.arange(0, BLOCK_K)
    px = k % 16
    x = left[:, None] + px[None, :]
    in_columns = valid[:, None] & (x >= 0) & (x < width)
    corner = images_ptr + (b * stride_ib + top.to(tl.int64) * stride_iy + left.to(tl.int64) * stride_ix)[:, None]
    w_tile = weight_ptr + n[None, :] * 768 + k[:, None]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, 768, BLOCK_K):
        channel = ((first + k) // 256).to(tl.int64)
        py = (first + k) % 256 // 16
        y = (top[:, None] + py[None, :]).to(tl.uint32)  # rows above the image wrap around to large numbers
        offset = channel * stride_ic + py.to(tl.int64) * stride_iy + px.to(tl.int64) * stride_ix
        pixels = tl.load(corner + offset[None, :], in_columns & (y < height), 0.0)
        weight = tl.load(w_tile + first, (n < channels)[None, :], 0.0)
        acc = tl.dot(pixels.to(weight.dtype), weight, acc, input_precision="tf32x3")

    bias = tl.load(bias_ptr + n, n < channels, 0.0).to(tl.float32)
    inside = valid[:, None] & (n < channels)[None, :]
    position = tl.load(position_ptr + token.to(tl.int64)[:, None] * channels + n[None, :], inside, 0.0).to(tl.float32)
    row = start + tl.arange(0, BLOCK_M)
    acc = acc + bias[None, :] + position
    tl.store(out_ptr + row[:, None] * channels + n[None, :], acc.to(out_ptr.dtype.element_ty), inside)


def tiles(rows: int, channels: int, dtype: torch.dtype, arch: int) -> tuple[int, int, int, int, int]:
    """Choose (BLOCK_M, BLOCK_N, BLOCK_K, warps, stages) for `rows` tokens (of all images) and `channels` channels.

    BLOCK_K is a multiple of 16, so that a block holds whole rows of a patch. No shape of a released model spills
    registers.
    """
    if dtype == torch.float32:
        return 64, block_size(channels, high=128), 32, 8, 3
    if cdiv(rows, 128) * cdiv(channels, 128) < _FEW_PROGRAMS:
        return 64, block_size(channels, high=64), 64, 4, 4
    rest = (64, 8, 3) if usual_chip(arch).has_large_shared_memory else (32, 8, 4)
    return 128, block_size(channels, high=128), *rest


def forward(
    images: Tensor,
    weight: Tensor,
    bias: Tensor,
    position: Tensor,
    grid: tuple[int, int],
    stride: int,
    padding: int,
    arch: int,
) -> tuple[Tensor, list[Launch]]:
    """Return (tokens [B, N, C] in the dtype of `weight`, launches).

    Args:
        images: [B, 3, height, width], any strides.
        weight: [C, 3, 16, 16].
        bias: [C].
        position: [N, C], added to the tokens.
        grid: (rows, columns) of patches, N = rows * columns.
        stride, padding: of the convolution, in pixels.
    """
    b, channels = images.shape[0], weight.shape[0]
    tokens = grid[0] * grid[1]
    out = weight.new_empty((b, tokens, channels))
    block_m, block_n, block_k, warps, stages = tiles(b * tokens, channels, weight.dtype, arch)
    arguments = dict(
        images_ptr=images,
        weight_ptr=weight.contiguous(),
        bias_ptr=bias.contiguous(),
        position_ptr=position.contiguous(),
        out_ptr=out,
        stride_ib=images.stride(0),
        stride_ic=images.stride(1),
        stride_iy=images.stride(2),
        stride_ix=images.stride(3),
        num_rows=b * tokens,
        height=images.shape[2],
        width=images.shape[3],
        grid_height=grid[0],
        grid_width=grid[1],
        channels=channels,
        STRIDE=stride,
        PADDING=padding,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
    )
    launch = Launch(
        patch_embed_kernel,
        (cdiv(b * tokens, block_m) * cdiv(channels, block_n),),
        arguments,
        num_warps=warps,
        num_stages=stages,
        flops=2 * b * tokens * channels * 768,
        bytes=num_bytes(images, weight, bias, position, out),
    )
    return out, [launch]
