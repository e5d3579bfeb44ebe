"""Triton kernels of `attention`, forward: pooled keys, and the attention itself.

A program owns a tile of the queries of one window and one head. Windows, shift and padding are arithmetic on the place
of a slot: nothing is partitioned, rolled or masked in memory. Relative position is one small product with the tables
per query tile, skewed by a gather to one term per row and column of keys, and spread over the keys by a product with
a one-hot matrix. A head width such as 80 is kept in two parts (64 + 16), so that it does not cost what 128 costs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitpose_kernels.launch import Launch, block_size, cdiv, num_bytes
from vitpose_kernels.windows import Windows

HIDDEN = tl.constexpr(-1e30)  # logit of a key that is not seen; finite, so that a tile of hidden keys makes no NaN
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def dot(a, b, acc):
    return tl.dot(a, b, acc, input_precision="tf32x3")


@triton.jit
def place_of_slot(
    slot, window_y, window_x, rows, columns, windows_y, windows_x, shift_y, shift_x,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr,
):  # fmt: skip
    """(y, x, shift region, holds a token, row, column) of slots of a window; region: tokens of equal ones were near."""
    row = slot // WINDOW_W
    column = slot % WINDOW_W
    y = window_y * WINDOW_H + row + shift_y
    x = window_x * WINDOW_W + column + shift_x
    wrapped_y = y >= windows_y * WINDOW_H
    wrapped_x = x >= windows_x * WINDOW_W
    y = tl.where(wrapped_y, y - windows_y * WINDOW_H, y)
    x = tl.where(wrapped_x, x - windows_x * WINDOW_W, x)
    ok = (slot < WINDOW_H * WINDOW_W) & (y < rows) & (x < columns)
    return y, x, 2 * wrapped_y.to(tl.int32) + wrapped_x.to(tl.int32), ok, row, column


@triton.jit
def load_rows(ptr, offset, ok, stride_d, D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr):
    """Rows [n, D] at offsets [n], zeros where not ok, in two parts of D1 and D2 columns (D2 = 0: the first twice)."""
    d = tl.arange(0, D1)
    mask = ok[:, None]
    if D < D1:
        mask = mask & (d < D)[None, :]
    first = tl.load(ptr + offset[:, None] + d[None, :] * stride_d, mask, 0.0)
    second = first
    if D2 > 0:
        d = D1 + tl.arange(0, D2)
        mask = ok[:, None]
        if D < D1 + D2:
            mask = mask & (d < D)[None, :]
        second = tl.load(ptr + offset[:, None] + d[None, :] * stride_d, mask, 0.0)
    return first, second


@triton.jit
def store_rows(ptr, offset, first, second, ok, D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr):
    """The inverse of `load_rows` for contiguous rows."""
    d = tl.arange(0, D1)
    mask = ok[:, None] & (d < D)[None, :]
    tl.store(ptr + offset[:, None] + d[None, :], first.to(ptr.dtype.element_ty), mask)
    if D2 > 0:
        d = D1 + tl.arange(0, D2)
        mask = ok[:, None] & (d < D)[None, :]
        tl.store(ptr + offset[:, None] + d[None, :], second.to(ptr.dtype.element_ty), mask)


@triton.jit
def products(a1, a2, b1, b2, D2: tl.constexpr):
    """Rows a [m, D] with rows b [n, D]: [m, n]."""
    out = dot(a1, tl.trans(b1), tl.zeros([a1.shape[0], b1.shape[0]], tl.float32))
    if D2 > 0:
        out = dot(a2, tl.trans(b2), out)
    return out


@triton.jit
def position_terms(
    q1, q2, table_ptr, place, SIZE: tl.constexpr, D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    REL_KEYS: tl.constexpr, REL_TABLE: tl.constexpr,
):  # fmt: skip
    """[m, REL_KEYS]: q . table[place - key + SIZE - 1] for every row (or column) of keys; place [m] is that of q."""
    entry = tl.arange(0, REL_TABLE)
    t1, t2 = load_rows(table_ptr, entry * D, entry < 2 * SIZE - 1, 1, D, D1, D2)
    by_offset = products(q1, q2, t1.to(q1.dtype), t2.to(q1.dtype), D2)
    offset = place[:, None] - tl.arange(0, REL_KEYS)[None, :] + SIZE - 1
    offset = tl.where((offset >= 0) & (offset < REL_TABLE), offset, 0)  # such keys are not in the window
    return tl.gather(by_offset, offset, 1).to(q1.dtype)


@triton.jit
def one_hot(place, REL_KEYS: tl.constexpr):
    """[n, REL_KEYS] float32: 1 at the row (or column) of each key."""
    return (place[:, None] == tl.arange(0, REL_KEYS)[None, :]).to(tl.float32)


@triton.jit
def window_logits(
    q1, q2, k1, k2, rel_h, rel_w, query_region, key_region, key_ok, key_row, key_column, scale,
    D2: tl.constexpr, REL_KEYS: tl.constexpr, RELATIVE: tl.constexpr, SHIFTED: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """Logits of the keys of a window."""
    logits = products(q1, q2, k1, k2, D2) * scale
    if RELATIVE:
        logits = dot(rel_h, tl.trans(one_hot(key_row, REL_KEYS).to(rel_h.dtype)), logits)
        logits = dot(rel_w, tl.trans(one_hot(key_column, REL_KEYS).to(rel_w.dtype)), logits)
    if SHIFTED:
        logits = tl.where(query_region[:, None] == key_region[None, :], logits, HIDDEN)
    if not FULL:
        logits = tl.where(key_ok[None, :], logits, HIDDEN)
    return logits


@triton.jit
def attend(logits, v1, v2, top, total, acc1, acc2, D2: tl.constexpr):
    """One step of the running softmax: (largest logit, sum, values) after these keys."""
    new_top = tl.maximum(top, tl.max(logits, 1))
    p = tl.exp2((logits - new_top[:, None]) * LOG2_E)  # the difference first: it is exact where it matters
    shrink = tl.exp2((top - new_top) * LOG2_E)
    total = total * shrink + tl.sum(p, 1)
    p = p.to(v1.dtype)
    acc1 = dot(p, v1, acc1 * shrink[:, None])
    if D2 > 0:
        acc2 = dot(p, v2, acc2 * shrink[:, None])
    return new_top, total, acc1, acc2


@triton.jit
def attention_forward_kernel(
    qkv_ptr, pooled_ptr, rel_h_ptr, rel_w_ptr, out_ptr, lse_ptr,
    rows, columns, windows_y, windows_x, shift_y, shift_x, num_heads, num_pooled, scale,
    stride_b, stride_n, stride_3, stride_h, stride_d,
    stride_pb, stride_pg, stride_p2, stride_ph, stride_pd,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_G: tl.constexpr,
    SHIFTED: tl.constexpr, FULL: tl.constexpr, RELATIVE: tl.constexpr, POOLED: tl.constexpr,
    REL_KEYS: tl.constexpr, REL_TABLE: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(WINDOW_H * WINDOW_W, BLOCK_M)
    pid = tl.program_id(0)
    tile = pid % tiles
    head = (pid // tiles) % num_heads
    window = (pid // (tiles * num_heads)) % (windows_y * windows_x)
    b = (pid // (tiles * num_heads * windows_y * windows_x)).to(tl.int64)
    window_y = window // windows_x
    window_x = window % windows_x
    tokens = rows * columns

    slot = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    y, x, region, ok, row, column = place_of_slot(
        slot, window_y, window_x, rows, columns, windows_y, windows_x, shift_y, shift_x, WINDOW_H, WINDOW_W
    )
    token = y * columns + x
    q_ptr = qkv_ptr + b * stride_b + head * stride_h
    q1, q2 = load_rows(q_ptr, token * stride_n, ok, stride_d, D, D1, D2)
    rel_h = q1
    rel_w = q1
    if RELATIVE:
        rel_h = position_terms(q1, q2, rel_h_ptr, row, WINDOW_H, D, D1, D2, REL_KEYS, REL_TABLE)
        rel_w = position_terms(q1, q2, rel_w_ptr, column, WINDOW_W, D, D1, D2, REL_KEYS, REL_TABLE)

    top = tl.full([BLOCK_M], HIDDEN, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc1 = tl.zeros([BLOCK_M, D1], tl.float32)
    acc2 = tl.zeros([BLOCK_M, D2 if D2 > 0 else 16], tl.float32)
    for start in tl.range(0, WINDOW_H * WINDOW_W, BLOCK_N):
        key_y, key_x, key_region, key_ok, key_row, key_column = place_of_slot(
            start + tl.arange(0, BLOCK_N), window_y, window_x, rows, columns, windows_y, windows_x, shift_y, shift_x,
            WINDOW_H, WINDOW_W,
        )  # fmt: skip
        offset = (key_y * columns + key_x) * stride_n
        k1, k2 = load_rows(q_ptr + stride_3, offset, key_ok, stride_d, D, D1, D2)
        v1, v2 = load_rows(q_ptr + 2 * stride_3, offset, key_ok, stride_d, D, D1, D2)
        logits = window_logits(
            q1, q2, k1, k2, rel_h, rel_w, region, key_region, key_ok, key_row, key_column, scale,
            D2, REL_KEYS, RELATIVE, SHIFTED, FULL,
        )  # fmt: skip
        top, total, acc1, acc2 = attend(logits, v1, v2, top, total, acc1, acc2, D2)
    if POOLED:
        p_ptr = pooled_ptr + b * stride_pb + head * stride_ph
        for start in tl.range(0, num_pooled, BLOCK_G):
            g = start + tl.arange(0, BLOCK_G)
            known = g < num_pooled
            offset_g = g * stride_pg
            pk1, pk2 = load_rows(p_ptr, offset_g, known, stride_pd, D, D1, D2)
            pv1, pv2 = load_rows(p_ptr + stride_p2, offset_g, known, stride_pd, D, D1, D2)
            logits_g = products(q1, q2, pk1.to(q1.dtype), pk2.to(q1.dtype), D2) * scale
            logits_g = tl.where(known[None, :], logits_g, HIDDEN)
            top, total, acc1, acc2 = attend(logits_g, pv1.to(q1.dtype), pv2.to(q1.dtype), top, total, acc1, acc2, D2)
    acc1 = acc1 / total[:, None]
    acc2 = acc2 / total[:, None]
    store_rows(out_ptr + (b * tokens * num_heads + head) * D, token * (num_heads * D), acc1, acc2, ok, D, D1, D2)
    tl.store(lse_ptr + (b * num_heads + head) * tokens + token, top + tl.log(total), ok)


@triton.jit
def pool_kernel(
    qkv_ptr, pooled_ptr, rows, columns, windows_y, windows_x, num_heads,
    stride_b, stride_n, stride_3, stride_h, stride_d,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Mean key and mean value of every unshifted window: one program each."""
    pid = tl.program_id(0)
    head = pid % num_heads
    which = (pid // num_heads) % 2
    window = (pid // (2 * num_heads)) % (windows_y * windows_x)
    b = (pid // (2 * num_heads * windows_y * windows_x)).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    ptr = qkv_ptr + b * stride_b + (1 + which) * stride_3 + head * stride_h
    total = tl.zeros([BLOCK_D], tl.float32)
    for start in tl.range(0, WINDOW_H * WINDOW_W, BLOCK_N):
        y, x, _, ok, _, _ = place_of_slot(
            start + tl.arange(0, BLOCK_N), window // windows_x, window % windows_x, rows, columns, windows_y, windows_x,
            0, 0, WINDOW_H, WINDOW_W,
        )  # fmt: skip
        offset = (y * columns + x) * stride_n
        mask = ok[:, None] & (d < D)[None, :]
        total += tl.sum(tl.load(ptr + offset[:, None] + d[None, :] * stride_d, mask, 0.0).to(tl.float32), 0)
    count = tokens_in_window(window, rows, columns, windows_x, WINDOW_H, WINDOW_W)
    place = ((b * (windows_y * windows_x) + window) * 2 + which) * num_heads + head
    tl.store(pooled_ptr + place * D + d, (total / count).to(pooled_ptr.dtype.element_ty), d < D)


@triton.jit
def tokens_in_window(window, rows, columns, windows_x, WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr):
    """Tokens in an unshifted window: those at the right and lower edge of the map may hold fewer."""
    high = tl.minimum(rows - (window // windows_x) * WINDOW_H, WINDOW_H)
    wide = tl.minimum(columns - (window % windows_x) * WINDOW_W, WINDOW_W)
    return tl.maximum(high * wide, 1).to(tl.float32)  # a slot without a token may ask for a window off the map


def split_width(width: int) -> tuple[int, int]:
    """A head width as two powers of two >= 16 (or 0): 64 -> (64, 0), 80 -> (64, 16)."""
    first = max(16, 1 << (width.bit_length() - 1))
    return (first, 0) if width <= first else (first, block_size(width - first))


def shape_arguments(qkv: Tensor, windows: Windows, scale: float) -> dict:
    """Arguments that forward and backward kernels share."""
    _, _, _, heads, width = qkv.shape
    h, w = windows.window
    first, second = split_width(width)
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
        D1=first,
        D2=second,
        SHIFTED=any(windows.shift),
    )


def extra_arguments(qkv: Tensor, windows: Windows, rel_h: Tensor | None, rel_w: Tensor | None, pooled: Tensor | None):
    """Arguments of relative position and pooled keys; where there are none `qkv` stands in, unread."""
    h, w = windows.window
    relative = rel_h is not None and rel_w is not None
    strides = (0, 0, 0, 0, 0) if pooled is None else pooled.stride()
    count = 0 if pooled is None else pooled.shape[1]
    return dict(
        pooled_ptr=qkv if pooled is None else pooled,
        rel_h_ptr=rel_h.contiguous() if relative and rel_h is not None else qkv,
        rel_w_ptr=rel_w.contiguous() if relative and rel_w is not None else qkv,
        num_pooled=count,
        **dict(zip(("stride_pb", "stride_pg", "stride_p2", "stride_ph", "stride_pd"), strides, strict=True)),
        BLOCK_G=block_size(count, high=64),
        RELATIVE=relative,
        POOLED=count > 0,
        REL_KEYS=block_size(max(h, w)),
        REL_TABLE=block_size(2 * max(h, w) - 1),
    )


def pool(qkv: Tensor, windows: Windows) -> tuple[Tensor, Launch]:
    """Mean keys and values of the unshifted windows, [B, M, 2, H, D], and the launch that fills them."""
    b, _, _, heads, width = qkv.shape
    count = windows.windows[0] * windows.windows[1]
    pooled = qkv.new_empty((b, count, 2, heads, width))
    arguments = shape_arguments(qkv, windows, 0.0)
    for name in ("scale", "shift_y", "shift_x", "SHIFTED", "D1", "D2"):
        del arguments[name]
    arguments |= dict(
        pooled_ptr=pooled,
        BLOCK_D=block_size(width),
        BLOCK_N=block_size(windows.window[0] * windows.window[1], high=64),
    )
    size = num_bytes(qkv) * 2 // 3 + num_bytes(pooled)
    return pooled, Launch(pool_kernel, (b * count * 2 * heads,), arguments, bytes=size)


def is_full(windows: Windows, block: int) -> bool:
    """Whether every slot of every tile holds a token."""
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
    """((out [B, N, C], log-sum-exp of the logits [B, H, N] float32), launches)."""
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
    arguments = shape_arguments(qkv, windows, scale) | extra_arguments(qkv, windows, rel_h, rel_w, pooled)
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
    """(queries, keys, warps, stages) of a program for windows of `length` tokens; spill-free for 16-bit types."""
    if element_size == 4:
        queries = 32 if relative or arch not in (90, 100) else 64
        return min(queries, block_size(length)), min(32, block_size(length)), 4, 1
    if length <= 64:
        return block_size(length), block_size(length), 4, 1
    if arch in (90, 100):
        return (128, 64, 8, 2) if length > 256 else (64, 64, 4, 2 if arch == 90 else 1)
    return 64, 64, 4, 3 if arch == 80 else 2
