"""Triton kernels of the `attention` forward pass: pooled keys, and the attention itself.

One program computes a tile of queries of one window, head and sample, with an online softmax over tiles of keys.
Windows, shift and padding are index arithmetic: no tensor is partitioned, rolled or masked in memory.

For relative position, a small matrix product multiplies each tile of queries with each of the two tables. A gather
reorders the columns of the result, from one per table entry to one per row (or column) of keys in the window. A product
with a one-hot matrix then broadcasts these terms over the keys and adds them to the fp32 logits, on the tensor cores.

The letters, and the terms slot, rows and parts, are defined in `attention_steps`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitpose_kernels.chips import usual_chip
from vitpose_kernels.gpu.attention_steps import (
    HIDDEN,
    LOG2_E,
    Grid,
    Rows,
    add_rows,
    divided,
    load_rows,
    place_of_program,
    pooled_logits,
    position_terms,
    qkv_of,
    rows_as,
    rows_of,
    slots_of,
    store_rows,
    times,
    tokens_in_window,
    window_logits,
    zero_rows,
)
from vitpose_kernels.launch import Launch, block_size, cdiv, num_bytes
from vitpose_kernels.windows import Windows


class Softmax(NamedTuple):
    """State of an online softmax over the keys, for a tile of m queries. All float32.

    Attributes:
        top: [m], the largest logit so far.
        total: [m], the sum of exp(logit - top) over the keys so far.
        acc: [m, D] as parts, the sum of exp(logit - top) * value over the keys so far.
    """

    top: tl.tensor
    total: tl.tensor
    acc: tl.tensor


@triton.jit
def attend(state, logits, v):
    """Return the `Softmax` after n more keys: `logits` [m, n] and the values `v`, [n, D] as parts."""
    top = tl.maximum(state.top, tl.max(logits, 1))
    p = tl.exp2((logits - top[:, None]) * LOG2_E)  # subtract first: exact for the logits near the top
    shrink = tl.exp2((state.top - top) * LOG2_E)
    total = state.total * shrink + tl.sum(p, 1)
    return Softmax(top, total, add_rows(p.to(v[0].dtype), v, times(state.acc, shrink[:, None])))


@triton.jit
def attention_forward_kernel(
    qkv_ptr, pooled_ptr, rel_h_ptr, rel_w_ptr, out_ptr, lse_ptr,
    rows, columns, windows_y, windows_x, shift_y, shift_x, num_heads, num_pooled, scale,
    stride_b, stride_n, stride_3, stride_h, stride_d,
    stride_pb, stride_pg, stride_p2, stride_ph, stride_pd,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_G: tl.constexpr, SHIFTED: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """Compute the output and the log-sum-exp of the logits for BLOCK_M queries of one window, head and sample.

    out_ptr is [B, N, C] and lse_ptr is [B, H, N], both contiguous. rel_h_ptr and rel_w_ptr are None without relative
    position, pooled_ptr is None without pooled keys. SHIFTED: the windows are shifted, so that a query may not attend
    to keys of another region (see `Slots`). FULL: every slot of every tile holds a token, so that no key is masked as
    padding.
    """
    grid = Grid(rows, columns, windows_y, windows_x, shift_y, shift_x)
    place = place_of_program(windows_y * windows_x, num_heads, tl.cdiv(WINDOW_H * WINDOW_W, BLOCK_M))
    qkv = qkv_of(qkv_ptr, place, stride_b, stride_n, stride_3, stride_h, stride_d)

    query = slots_of(place.tile * BLOCK_M + tl.arange(0, BLOCK_M), place.window, grid, WINDOW_H, WINDOW_W)
    q = load_rows(qkv.q, query.token, query.valid, D)
    position = None
    if rel_h_ptr is not None:
        position = position_terms(q, query, rel_h_ptr, rel_w_ptr, WINDOW_H, WINDOW_W, D)
    state = Softmax(tl.full([BLOCK_M], HIDDEN, tl.float32), tl.zeros([BLOCK_M], tl.float32), zero_rows(BLOCK_M, D))
    for start in tl.range(0, WINDOW_H * WINDOW_W, BLOCK_N):
        key = slots_of(start + tl.arange(0, BLOCK_N), place.window, grid, WINDOW_H, WINDOW_W)
        k = load_rows(qkv.k, key.token, key.valid, D)
        v = load_rows(qkv.v, key.token, key.valid, D)
        state = attend(state, window_logits(q, k, position, query, key, scale, SHIFTED, FULL), v)
    if pooled_ptr is not None:
        k_rows = rows_of(pooled_ptr, place, stride_pb, stride_pg, stride_ph, stride_pd)
        v_rows = rows_of(pooled_ptr + stride_p2, place, stride_pb, stride_pg, stride_ph, stride_pd)
        for start in tl.range(0, num_pooled, BLOCK_G):
            g = start + tl.arange(0, BLOCK_G)
            known = g < num_pooled
            k = rows_as(load_rows(k_rows, g, known, D), q[0].dtype)
            v = rows_as(load_rows(v_rows, g, known, D), q[0].dtype)
            state = attend(state, pooled_logits(q, k, known, scale), v)

    tokens = rows * columns
    out_rows = Rows(out_ptr + (place.sample * tokens * num_heads + place.head) * D, num_heads * D, 1)
    store_rows(out_rows, query.token, divided(state.acc, state.total), query.valid, D)
    lse_ptr += (place.sample * num_heads + place.head) * tokens
    tl.store(lse_ptr + query.token, state.top + tl.log(state.total), query.valid)


@triton.jit
def pool_kernel(
    qkv_ptr, pooled_ptr, rows, columns, windows_y, windows_x, num_heads,
    stride_b, stride_n, stride_3, stride_h, stride_d,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Compute the mean key or the mean value of one unshifted window, for one head of one sample.

    pooled_ptr is [B, M, 2, H, D], contiguous. BLOCK_D is at least D; slots are read BLOCK_N at a time.
    """
    grid = Grid(rows, columns, windows_y, windows_x, 0, 0)
    pid = tl.program_id(0)
    head = pid % num_heads
    which = (pid // num_heads) % 2
    window = (pid // (2 * num_heads)) % (windows_y * windows_x)
    b = (pid // (2 * num_heads * windows_y * windows_x)).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    ptr = qkv_ptr + b * stride_b + (1 + which) * stride_3 + head * stride_h
    total = tl.zeros([BLOCK_D], tl.float32)
    for start in tl.range(0, WINDOW_H * WINDOW_W, BLOCK_N):
        slots = slots_of(start + tl.arange(0, BLOCK_N), window, grid, WINDOW_H, WINDOW_W)
        mask = slots.valid[:, None] & (d < D)[None, :]
        values = tl.load(ptr + (slots.token * stride_n)[:, None] + d[None, :] * stride_d, mask, 0.0)
        total += tl.sum(values.to(tl.float32), 0)
    count = tokens_in_window(window, grid, WINDOW_H, WINDOW_W)
    place = ((b * (windows_y * windows_x) + window) * 2 + which) * num_heads + head
    tl.store(pooled_ptr + place * D + d, (total / count).to(pooled_ptr.dtype.element_ty), d < D)


def shape_arguments(qkv: Tensor, windows: Windows, scale: float) -> dict:
    """Return the arguments that the forward and backward kernels share: qkv, its strides, and the window geometry."""
    _, _, _, heads, width = qkv.shape
    h, w = windows.window
    return dict(
        qkv_ptr=qkv,
        rows=windows.grid[0],
        columns=windows.grid[1],
        windows_y=windows.windows[0],
        windows_x=windows.windows[1],
        shift_y=windows.shift[0],
        shift_x=windows.shift[1],
        num_heads=heads,
        scale=scale,
        **dict(zip(("stride_b", "stride_n", "stride_3", "stride_h", "stride_d"), qkv.stride(), strict=True)),
        WINDOW_H=h,
        WINDOW_W=w,
        D=width,
        SHIFTED=any(windows.shift),
    )


def extra_arguments(rel_h: Tensor | None, rel_w: Tensor | None, pooled: Tensor | None) -> dict:
    """Return the arguments for relative position and pooled keys.

    rel_h and rel_w are [2h - 1, D] and [2w - 1, D], pooled is [B, G, 2, H, D]. The pointer of a tensor that is None, or
    of a `pooled` with G = 0, is None.
    """
    count = 0 if pooled is None else pooled.shape[1]
    strides = (0, 0, 0, 0, 0) if pooled is None else pooled.stride()
    return dict(
        pooled_ptr=pooled if count > 0 else None,
        rel_h_ptr=None if rel_h is None else rel_h.contiguous(),
        rel_w_ptr=None if rel_w is None else rel_w.contiguous(),
        num_pooled=count,
        **dict(zip(("stride_pb", "stride_pg", "stride_p2", "stride_ph", "stride_pd"), strides, strict=True)),
        BLOCK_G=block_size(count, high=64),
    )


def pool(qkv: Tensor, windows: Windows) -> tuple[Tensor, Launch]:
    """Return the mean keys and values of the unshifted windows, [B, M, 2, H, D], and the launch that fills them.

    The shift of `windows` is ignored.
    """
    b, _, _, heads, width = qkv.shape
    count = windows.windows[0] * windows.windows[1]
    pooled = qkv.new_empty((b, count, 2, heads, width))
    arguments = shape_arguments(qkv, windows, 0.0)
    for name in ("scale", "shift_y", "shift_x", "SHIFTED"):
        del arguments[name]
    arguments |= dict(
        pooled_ptr=pooled,
        BLOCK_D=block_size(width),
        BLOCK_N=block_size(windows.window[0] * windows.window[1], high=64),
    )
    size = num_bytes(qkv) * 2 // 3 + num_bytes(pooled)
    return pooled, Launch(pool_kernel, (b * count * 2 * heads,), arguments, bytes=size)


def is_full(windows: Windows, block: int) -> bool:
    """Return whether all tiles of `block` slots, in every window, hold only tokens, so that keys need no mask.

    This requires that the windows divide the grid without padding and that `block` divides the slots of a window.
    """
    return windows.padded == windows.grid and windows.window[0] * windows.window[1] % block == 0


def forward(
    qkv: Tensor,
    windows: Windows,
    with_pool: bool,
    rel_h: Tensor | None,
    rel_w: Tensor | None,
    scale: float,
    pooled: Tensor | None,
    arch: int,
) -> tuple[tuple[Tensor, Tensor], list[Launch]]:
    """Return ((out [B, N, C], log-sum-exp of the logits [B, H, N] float32), launches).

    Args:
        qkv: [B, N, 3, H, D]; `out` has its dtype.
        with_pool: let every query also attend to the mean key and value of every unshifted window; `pooled` is ignored.
        rel_h, rel_w: [2h - 1, D] and [2w - 1, D] for (h, w) windows, or None.
        scale: factor on q.k.
        pooled: [B, G, 2, H, D] pooled keys and values, or None.
    """
    b, n, _, heads, width = qkv.shape
    length = windows.window[0] * windows.window[1]
    count = windows.windows[0] * windows.windows[1]
    launches = []
    if with_pool:
        pooled, launch = pool(qkv, windows)
        launches.append(launch)
    out = qkv.new_empty((b, n, heads * width))
    lse = qkv.new_empty((b, heads, n), dtype=torch.float32)
    block_m, block_n, warps, stages = forward_tile(length, qkv.element_size(), rel_h is not None, arch)
    arguments = shape_arguments(qkv, windows, scale) | extra_arguments(rel_h, rel_w, pooled)
    arguments |= dict(
        out_ptr=out, lse_ptr=lse, BLOCK_M=block_m, BLOCK_N=block_n, FULL=is_full(windows, max(block_m, block_n))
    )
    keys = length + (0 if pooled is None else pooled.shape[1])
    launches.append(
        Launch(
            attention_forward_kernel,
            (cdiv(length, block_m) * heads * count * b,),
            arguments,
            num_warps=warps,
            num_stages=stages,
            flops=4 * b * n * keys * heads * width,
            bytes=num_bytes(qkv, out, lse, rel_h, rel_w, pooled),
        )
    )
    return (out, lse), launches


def forward_tile(length: int, element_size: int, relative: bool, arch: int) -> tuple[int, int, int, int]:
    """Choose (BLOCK_M queries, BLOCK_N keys, warps, stages) of a program for windows of `length` slots.

    `relative` says whether the logits have relative position terms. No tile for a 16-bit dtype spills registers.
    """
    chip = usual_chip(arch)
    if element_size == 4:
        queries = 32 if relative or chip.tensor_cores == "mma" else 64
        return min(queries, block_size(length)), min(32, block_size(length)), 4, 1
    if length <= 64:
        return block_size(length), block_size(length), 4, 1
    if chip.tensor_cores != "mma":
        return (128, 64, 8, 2) if length > 256 else (64, 64, 4, 2 if chip.tensor_cores == "wgmma" else 1)
    return 64, 64, 4, 3 if chip.has_large_shared_memory else 2
