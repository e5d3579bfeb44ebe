"""Triton kernels of `layer_norm`: every row is read once and stays in registers.

Forward: a program has one warp if a row, padded to a power of two of channels, has at most 4 KiB. Backward: a bounded
number of programs loop over the rows, so that the gradients of weight and bias need one partial sum per program and no
atomics.

Letters: R rows, C channels. s is the input of the norm: x, or x + residual rounded to the dtype of x. The output is
y = (s - mean) * rstd * weight + bias with rstd = 1 / sqrt(variance + eps).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitpose_kernels.launch import Launch, block_size, cdiv, num_bytes

_WARPS = 2048  # warps of all programs of the backward kernel: about as many as are resident on a GPU at once


@triton.jit
def layer_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, s_ptr, y_ptr, mean_ptr, rstd_ptr,
    num_rows, stride_xr, stride_rr, eps,
    C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Normalize BLOCK_R rows, and store mean and rstd of each.

    s_ptr: where to store s; it and residual_ptr are None without a residual. y_ptr: where to store y; None if only mean
    and rstd are wanted. weight_ptr and bias_ptr: both None for a weight of 1 and a bias of 0. stride_xr, stride_rr: of
    the rows of x and of the residual.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.arange(0, BLOCK_C)
    in_row = (column < C)[None, :]
    valid = in_row if BLOCK_R == 1 else (row < num_rows)[:, None] & in_row  # with one row per program every row exists
    out = row[:, None] * C + column[None, :]
    s = tl.load(x_ptr + row[:, None] * stride_xr + column[None, :], valid, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        s += tl.load(residual_ptr + row[:, None] * stride_rr + column[None, :], valid, other=0.0).to(tl.float32)
        rounded = s.to(s_ptr.dtype.element_ty)
        tl.store(s_ptr + out, rounded, valid)
        s = rounded.to(tl.float32)
    # The rounding error of a mean far from zero matters. It equals the mean of the centered values, and is corrected.
    coarse = tl.math.div_rn(tl.sum(s, 1), C * 1.0)
    centered = tl.where(in_row, s - coarse[:, None], 0.0)
    missed = tl.math.div_rn(tl.sum(centered, 1), C * 1.0)
    variance = tl.math.div_rn(tl.sum(centered * centered, 1), C * 1.0) - missed * missed
    rstd = tl.math.div_rn(1.0, tl.math.sqrt_rn(tl.maximum(variance, 0.0) + eps))
    tl.store(mean_ptr + row, coarse + missed, row < num_rows)
    tl.store(rstd_ptr + row, rstd, row < num_rows)
    if y_ptr is not None:
        y = centered * rstd[:, None] - (missed * rstd)[:, None]
        if weight_ptr is not None:
            weight = tl.load(weight_ptr + column, column < C, other=0.0).to(tl.float32)
            bias = tl.load(bias_ptr + column, column < C, other=0.0).to(tl.float32)
            y = y * weight[None, :] + bias[None, :]
        tl.store(y_ptr + out, y, valid)


@triton.jit
def layer_norm_backward_kernel(
    grad_y_ptr, grad_s_ptr, s_ptr, weight_ptr, mean_ptr, rstd_ptr, grad_ptr, partial_ptr,
    num_rows, num_programs, stride_yr, stride_gr, stride_sr,
    NEED_INPUT: tl.constexpr, NEED_PARAMETERS: tl.constexpr,
    C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of s for every num_programs-th block of BLOCK_R rows, starting with the program's index.

    partial_ptr: [2, num_programs, C] float32, the sums over these rows for the gradients of weight and bias.
    grad_y_ptr: the gradient of y. grad_s_ptr: None, or the gradient that reaches s directly (through the residual
    stream), added to the result. grad_ptr: the result [R, C], contiguous. weight_ptr: None for a weight of 1.
    NEED_INPUT, NEED_PARAMETERS: whether to compute the gradient of s, and those of weight and bias.
    """
    column = tl.arange(0, BLOCK_C)
    weight = tl.full((BLOCK_C,), 1.0, tl.float32)
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + column, column < C, other=0.0).to(tl.float32)
    d_weight = tl.zeros((BLOCK_C,), tl.float32)
    d_bias = tl.zeros((BLOCK_C,), tl.float32)
    for block in tl.range(tl.program_id(0), tl.cdiv(num_rows, BLOCK_R), num_programs):
        row = (block * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
        valid = (row < num_rows)[:, None] & (column < C)[None, :]
        s = tl.load(s_ptr + row[:, None] * stride_sr + column[None, :], valid, other=0.0).to(tl.float32)
        grad_y = tl.load(grad_y_ptr + row[:, None] * stride_yr + column[None, :], valid, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + row, row < num_rows, other=0.0)
        rstd = tl.load(rstd_ptr + row, row < num_rows, other=0.0)
        normed = (s - mean[:, None]) * rstd[:, None]
        if NEED_PARAMETERS:
            d_weight += tl.sum(grad_y * normed, 0)
            d_bias += tl.sum(grad_y, 0)
        if NEED_INPUT:
            scaled = grad_y * weight[None, :]
            along = tl.math.div_rn(tl.sum(scaled * normed, 1), C * 1.0)
            shift = tl.math.div_rn(tl.sum(scaled, 1), C * 1.0)
            grad = (scaled - shift[:, None] - normed * along[:, None]) * rstd[:, None]
            if grad_s_ptr is not None:
                place = row[:, None] * stride_gr + column[None, :]
                grad += tl.load(grad_s_ptr + place, valid, other=0.0).to(tl.float32)
            tl.store(grad_ptr + row[:, None] * C + column[None, :], grad, valid)
    if NEED_PARAMETERS:
        partial_ptr += tl.program_id(0) * C
        tl.store(partial_ptr + column, d_weight, column < C)
        tl.store(partial_ptr + num_programs * C + column, d_bias, column < C)


def forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    statistics_only: bool = False,
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], list[Launch]]:
    """Return ((s [R, C], y [R, C], mean [R], rstd [R]), launches) for x and residual [R, C] with contiguous channels.

    weight and bias are [C], or None for 1 and 0. s is an empty tensor without a residual. With `statistics_only` y is
    empty, and only mean and rstd, float32, are computed.
    """
    rows, c = x.shape
    y = x.new_empty(0 if statistics_only else x.shape)
    s = x.new_empty(0 if residual is None else x.shape)
    mean, rstd = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
    block_c = block_size(c)
    block_r = max(1, 1024 // block_c)
    arguments = dict(
        x_ptr=x,
        residual_ptr=residual,
        weight_ptr=None if weight is None else weight.contiguous(),
        bias_ptr=None if bias is None else bias.contiguous(),
        s_ptr=None if residual is None else s,
        y_ptr=None if statistics_only else y,
        mean_ptr=mean,
        rstd_ptr=rstd,
        num_rows=rows,
        stride_xr=x.stride(0),
        stride_rr=0 if residual is None else residual.stride(0),
        eps=float(eps),
        C=c,
        BLOCK_R=block_r,
        BLOCK_C=block_c,
    )
    moved = num_bytes(x, residual, weight, bias, s, y, mean, rstd)
    warps = max(1, block_c * x.element_size() // 4096)  # at most 128 bytes of a row per thread
    launch = Launch(layer_norm_kernel, (cdiv(rows, block_r),), arguments, num_warps=warps, bytes=moved)
    return (s, y, mean, rstd), [launch]


def _contiguous_channels(x: Tensor) -> Tensor:
    """Return `x` [R, C], copied only if its channels are not contiguous."""
    return x if x.stride(1) == 1 else x.contiguous()


def backward(
    grad_y: Tensor,
    grad_s: Tensor | None,
    s: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    need_input: bool,
    need_parameters: bool,
) -> tuple[tuple[Tensor, Tensor], list[Launch]]:
    """Return ((gradient of s [R, C], partial gradients [2, programs, C] float32), launches).

    The gradients of weight and bias are the sums of partial[0] and of partial[1] over the programs.

    Args:
        grad_y: [R, C], the gradient of y.
        grad_s: [R, C], the gradient that reaches s directly, or None.
        s, weight, mean, rstd: from the forward pass, [R, C], [C] or None, [R] and [R].
        need_input: whether to compute the gradient of s; otherwise it is empty.
        need_parameters: whether to compute the partial gradients; otherwise they are [2, 0, C].
    """
    rows, c = s.shape
    grad_y = _contiguous_channels(grad_y)
    grad_s = None if grad_s is None else _contiguous_channels(grad_s)
    block_c = block_size(c)
    num_warps = min(max(1, block_c // 256), 8)
    block_r = max(1, 512 * num_warps // block_c)
    programs = min(cdiv(rows, block_r), _WARPS // num_warps)
    grad = s.new_empty(s.shape if need_input else 0)
    partial = s.new_empty((2, programs if need_parameters else 0, c), dtype=torch.float32)
    arguments = dict(
        grad_y_ptr=grad_y,
        grad_s_ptr=grad_s if need_input else None,
        s_ptr=s,
        weight_ptr=None if weight is None else weight.contiguous(),
        mean_ptr=mean,
        rstd_ptr=rstd,
        grad_ptr=grad if need_input else None,
        partial_ptr=partial if need_parameters else None,
        num_rows=rows,
        num_programs=programs,
        stride_yr=grad_y.stride(0),
        stride_gr=0 if grad_s is None else grad_s.stride(0),
        stride_sr=s.stride(0),
        NEED_INPUT=need_input,
        NEED_PARAMETERS=need_parameters,
        C=c,
        BLOCK_R=block_r,
        BLOCK_C=block_c,
    )
    moved = num_bytes(grad_y, grad_s if need_input else None, s, weight, mean, rstd, grad, partial)
    return (grad, partial), [
        Launch(layer_norm_backward_kernel, (programs,), arguments, num_warps=num_warps, bytes=moved)
    ]
