"""Triton kernels of `attention`, backward: gradients from qkv, the output and the log-sum-exp, nothing of size L².

Every gradient has one owner, so nothing is added atomically and reruns are equal bit for bit:
  * the keys of a tile are owned by the program that loops over the queries of its window, and the other way round; a
    window that fits one tile does both at once;
  * pooled keys are owned by a program that loops over (a share of) all tokens; it goes first, because the gradient of
    a mean is handed back to the tokens of its window;
  * each program leaves its own sum for the position tables; those are added up at the end.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vitpose_kernels.gpu.attention import (
    HIDDEN,
    LOG2_E,
    dot,
    load_rows,
    one_hot,
    place_of_slot,
    position_terms,
    products,
    store_rows,
    tokens_in_window,
    window_logits,
)


@triton.jit
def row_sums(a1, a2, b1, b2, D2: tl.constexpr):
    """Sum over the head width of a * b, rows [n, D]: [n]."""
    out = tl.sum(a1.to(tl.float32) * b1.to(tl.float32), 1)
    if D2 > 0:
        out += tl.sum(a2.to(tl.float32) * b2.to(tl.float32), 1)
    return out


@triton.jit
def add_rows(p, b1, b2, acc1, acc2, D2: tl.constexpr):
    """acc + p [m, n] times rows b [n, D]."""
    acc1 = dot(p, b1, acc1)
    if D2 > 0:
        acc2 = dot(p, b2, acc2)
    return acc1, acc2


@triton.jit
def zero_rows(ROWS: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr):
    return tl.zeros([ROWS, D1], tl.float32), tl.zeros([ROWS, D2 if D2 > 0 else 16], tl.float32)


@triton.jit
def shares(logits, lse, do1, do2, v1, v2, delta, D2: tl.constexpr):
    """(probabilities, gradients of the logits) [queries, keys] in the dtype of the values."""
    p = tl.exp2((logits - lse[:, None]) * LOG2_E)
    ds = p * (products(do1, do2, v1, v2, D2) - delta[:, None])
    return p.to(v1.dtype), ds.to(v1.dtype)


@triton.jit
def attention_pooled_backward_kernel(
    qkv_ptr, pooled_ptr, out_ptr, lse_ptr, grad_ptr, delta_ptr, d_pooled_ptr,
    tokens, num_heads, num_pooled, num_shares, scale,
    stride_b, stride_n, stride_h, stride_d, stride_pb, stride_pg, stride_p2, stride_ph, stride_pd,
    D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_G: tl.constexpr,
    POOLED: tl.constexpr,
):  # fmt: skip
    """delta = sum of out * its gradient for every token, and what a share of the tokens gives to the pooled keys."""
    blocks = tl.cdiv(num_pooled, BLOCK_G) if POOLED else 1
    pid = tl.program_id(0)
    share = pid % num_shares
    head = (pid // num_shares) % num_heads
    block = (pid // (num_shares * num_heads)) % blocks
    b = (pid // (num_shares * num_heads * blocks)).to(tl.int64)
    g = block * BLOCK_G + tl.arange(0, BLOCK_G)
    known = g < num_pooled
    if POOLED:
        p_ptr = pooled_ptr + b * stride_pb + head * stride_ph
        k1, k2 = load_rows(p_ptr, g * stride_pg, known, stride_pd, D, D1, D2)
        v1, v2 = load_rows(p_ptr + stride_p2, g * stride_pg, known, stride_pd, D, D1, D2)
        dk1, dk2 = zero_rows(BLOCK_G, D1, D2)
        dv1, dv2 = zero_rows(BLOCK_G, D1, D2)
    own = (b * tokens * num_heads + head) * D
    per_share = tl.cdiv(tl.cdiv(tokens, num_shares), BLOCK_M) * BLOCK_M
    for start in tl.range(share * per_share, tl.minimum((share + 1) * per_share, tokens), BLOCK_M):
        token = start + tl.arange(0, BLOCK_M)
        ok = token < tokens
        do1, do2 = load_rows(grad_ptr + own, token * (num_heads * D), ok, 1, D, D1, D2)
        out1, out2 = load_rows(out_ptr + own, token * (num_heads * D), ok, 1, D, D1, D2)
        delta = row_sums(do1, do2, out1, out2, D2)
        if block == 0:
            tl.store(delta_ptr + (b * num_heads + head) * tokens + token, delta, ok)
        if POOLED:
            q1, q2 = load_rows(qkv_ptr + b * stride_b + head * stride_h, token * stride_n, ok, stride_d, D, D1, D2)
            lse = tl.load(lse_ptr + (b * num_heads + head) * tokens + token, ok, float("inf"))
            logits = products(q1, q2, k1.to(q1.dtype), k2.to(q1.dtype), D2) * scale
            logits = tl.where(known[None, :], logits, HIDDEN)
            p, ds = shares(logits, lse, do1, do2, v1.to(q1.dtype), v2.to(q1.dtype), delta, D2)
            dk1, dk2 = add_rows(tl.trans(ds), q1, q2, dk1, dk2, D2)
            dv1, dv2 = add_rows(tl.trans(p), do1, do2, dv1, dv2, D2)
    if POOLED:
        batches = tl.num_programs(0) // (num_shares * num_heads * blocks)
        d_ptr = d_pooled_ptr + ((share * batches.to(tl.int64) + b) * num_pooled * 2 * num_heads + head) * D
        store_rows(d_ptr, 2 * g * (num_heads * D), dk1 * scale, dk2 * scale, known, D, D1, D2)
        store_rows(d_ptr, (2 * g + 1) * (num_heads * D), dv1, dv2, known, D, D1, D2)


@triton.jit
def add_pooled_share(
    d_pooled_ptr, acc1, acc2, b, batches, window, which, head, count, ok, num_windows, num_heads, num_shares,
    D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
):  # fmt: skip
    """acc + each token's share of the gradient of its window's mean key (value); windows [n] of `count` [n] tokens."""
    for share in tl.range(0, num_shares):
        ptr = d_pooled_ptr + (((share * batches + b) * num_windows * 2 + which) * num_heads + head) * D
        mean1, mean2 = load_rows(ptr, window * (2 * num_heads * D), ok, 1, D, D1, D2)
        acc1 += mean1 / count[:, None]
        if D2 > 0:
            acc2 += mean2 / count[:, None]
    return acc1, acc2


@triton.jit
def by_table_entry(by_place, place, SIZE: tl.constexpr, REL_TABLE: tl.constexpr, dtype: tl.constexpr):
    """Sums [m, REL_KEYS] over the keys of a row (column) -> gradients [m, REL_TABLE] of the products with the table."""
    key = place[:, None] + SIZE - 1 - tl.arange(0, REL_TABLE)[None, :]
    known = (key >= 0) & (key < SIZE)
    return tl.where(known, tl.gather(by_place, tl.where(known, key, 0), 1), 0.0).to(dtype)


@triton.jit
def add_table_rows(
    by_entry, table_ptr, acc1, acc2,
    SIZE: tl.constexpr, D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, REL_TABLE: tl.constexpr,
):  # fmt: skip
    entry = tl.arange(0, REL_TABLE)
    t1, t2 = load_rows(table_ptr, entry * D, entry < 2 * SIZE - 1, 1, D, D1, D2)
    return add_rows(by_entry, t1.to(by_entry.dtype), t2.to(by_entry.dtype), acc1, acc2, D2)


@triton.jit
def store_table(
    ptr, by_entry, q1, q2, program,
    SIZE: tl.constexpr, D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, REL_TABLE: tl.constexpr,
):  # fmt: skip
    """What a program's queries give to a position table."""
    entry = tl.arange(0, REL_TABLE)
    sum1, sum2 = zero_rows(REL_TABLE, D1, D2)
    sum1, sum2 = add_rows(tl.trans(by_entry), q1, q2, sum1, sum2, D2)
    own = ptr + program.to(tl.int64) * ((2 * SIZE - 1) * D)
    store_rows(own, entry * D, sum1, sum2, entry < 2 * SIZE - 1, D, D1, D2)


@triton.jit
def attention_backward_kernel(
    qkv_ptr, pooled_ptr, rel_h_ptr, rel_w_ptr, lse_ptr, grad_ptr, delta_ptr, d_pooled_ptr,
    d_qkv_ptr, d_rel_h_ptr, d_rel_w_ptr,
    rows, columns, windows_y, windows_x, shift_y, shift_x, num_heads, num_pooled, num_shares, scale,
    stride_b, stride_n, stride_3, stride_h, stride_d,
    stride_pb, stride_pg, stride_p2, stride_ph, stride_pd,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_G: tl.constexpr,
    KEYS: tl.constexpr, QUERIES: tl.constexpr, STORED_DELTA: tl.constexpr, POOL: tl.constexpr,
    SHIFTED: tl.constexpr, FULL: tl.constexpr, RELATIVE: tl.constexpr, TABLES: tl.constexpr, POOLED: tl.constexpr,
    REL_KEYS: tl.constexpr, REL_TABLE: tl.constexpr,
):  # fmt: skip
    """A tile of BLOCK_M slots of a window: as keys (KEYS: dk, dv), as queries (QUERIES: dq, tables), or, where the
    window fits the tile, as both."""
    tiles = tl.cdiv(WINDOW_H * WINDOW_W, BLOCK_M)
    num_windows = windows_y * windows_x
    pid = tl.program_id(0)
    tile = pid % tiles
    head = (pid // tiles) % num_heads
    window = (pid // (tiles * num_heads)) % num_windows
    b = (pid // (tiles * num_heads * num_windows)).to(tl.int64)
    tokens = rows * columns
    q_ptr = qkv_ptr + b * stride_b + head * stride_h
    row_stride = num_heads * D  # of out, its gradient, and each third of d_qkv
    own = b * tokens * row_stride + head * D
    stats = (b * num_heads + head) * tokens

    window_y = window // windows_x
    window_x = window % windows_x
    slot = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    y, x, region, ok, row, column = place_of_slot(
        slot, window_y, window_x, rows, columns, windows_y, windows_x, shift_y, shift_x, WINDOW_H, WINDOW_W
    )
    token = y * columns + x
    dq1, dq2 = zero_rows(BLOCK_M, D1, D2)
    dk1, dk2 = zero_rows(BLOCK_M, D1, D2)
    dv1, dv2 = zero_rows(BLOCK_M, D1, D2)
    by_row = tl.zeros([BLOCK_M, REL_KEYS], tl.float32)
    by_column = tl.zeros([BLOCK_M, REL_KEYS], tl.float32)
    if KEYS:
        k1, k2 = load_rows(q_ptr + stride_3, token * stride_n, ok, stride_d, D, D1, D2)
        v1, v2 = load_rows(q_ptr + 2 * stride_3, token * stride_n, ok, stride_d, D, D1, D2)
    if QUERIES:
        q1, q2 = load_rows(q_ptr, token * stride_n, ok, stride_d, D, D1, D2)
        do1, do2 = load_rows(grad_ptr + own, token * row_stride, ok, 1, D, D1, D2)
        lse = tl.load(lse_ptr + stats + token, ok, float("inf"))  # a place without a token gets no probability
        if STORED_DELTA:
            delta = tl.load(delta_ptr + stats + token, ok, 0.0)
        rel_h = q1
        rel_w = q1
        if RELATIVE:
            rel_h = position_terms(q1, q2, rel_h_ptr, row, WINDOW_H, D, D1, D2, REL_KEYS, REL_TABLE)
            rel_w = position_terms(q1, q2, rel_w_ptr, column, WINDOW_W, D, D1, D2, REL_KEYS, REL_TABLE)

    if KEYS and QUERIES:
        logits = window_logits(
            q1, q2, k1, k2, rel_h, rel_w, region, region, ok, row, column, scale,
            D2, REL_KEYS, RELATIVE, SHIFTED, FULL,
        )  # fmt: skip
        if STORED_DELTA:
            p, ds = shares(logits, lse, do1, do2, v1, v2, delta, D2)
        else:  # all keys are here: delta without the rounding of the stored output, and without reading it
            p_exact = tl.exp2((logits - lse[:, None]) * LOG2_E)
            dp = products(do1, do2, v1, v2, D2)
            ds = (p_exact * (dp - tl.sum(p_exact * dp, 1)[:, None])).to(v1.dtype)
            p = p_exact.to(v1.dtype)
        dv1, dv2 = add_rows(tl.trans(p), do1, do2, dv1, dv2, D2)
        dk1, dk2 = add_rows(tl.trans(ds), q1, q2, dk1, dk2, D2)
        dq1, dq2 = add_rows(ds, k1, k2, dq1, dq2, D2)
        if RELATIVE:
            by_row = dot(ds, one_hot(row, REL_KEYS).to(ds.dtype), by_row)
            by_column = dot(ds, one_hot(column, REL_KEYS).to(ds.dtype), by_column)
    elif KEYS:
        for start in tl.range(0, WINDOW_H * WINDOW_W, BLOCK_N):
            oy, ox, other_region, other_ok, other_row, other_column = place_of_slot(
                start + tl.arange(0, BLOCK_N), window_y, window_x, rows, columns, windows_y, windows_x,
                shift_y, shift_x, WINDOW_H, WINDOW_W,
            )  # fmt: skip
            other = oy * columns + ox
            q1, q2 = load_rows(q_ptr, other * stride_n, other_ok, stride_d, D, D1, D2)
            do1, do2 = load_rows(grad_ptr + own, other * row_stride, other_ok, 1, D, D1, D2)
            lse = tl.load(lse_ptr + stats + other, other_ok, float("inf"))
            delta = tl.load(delta_ptr + stats + other, other_ok, 0.0)
            rel_h = q1
            rel_w = q1
            if RELATIVE:
                rel_h = position_terms(q1, q2, rel_h_ptr, other_row, WINDOW_H, D, D1, D2, REL_KEYS, REL_TABLE)
                rel_w = position_terms(q1, q2, rel_w_ptr, other_column, WINDOW_W, D, D1, D2, REL_KEYS, REL_TABLE)
            logits = window_logits(
                q1, q2, k1, k2, rel_h, rel_w, other_region, region, ok, row, column, scale,
                D2, REL_KEYS, RELATIVE, SHIFTED, FULL,
            )  # fmt: skip
            p, ds = shares(logits, lse, do1, do2, v1, v2, delta, D2)
            dv1, dv2 = add_rows(tl.trans(p), do1, do2, dv1, dv2, D2)
            dk1, dk2 = add_rows(tl.trans(ds), q1, q2, dk1, dk2, D2)
    else:
        for start in tl.range(0, WINDOW_H * WINDOW_W, BLOCK_N):
            oy, ox, other_region, other_ok, other_row, other_column = place_of_slot(
                start + tl.arange(0, BLOCK_N), window_y, window_x, rows, columns, windows_y, windows_x,
                shift_y, shift_x, WINDOW_H, WINDOW_W,
            )  # fmt: skip
            other = oy * columns + ox
            k1, k2 = load_rows(q_ptr + stride_3, other * stride_n, other_ok, stride_d, D, D1, D2)
            v1, v2 = load_rows(q_ptr + 2 * stride_3, other * stride_n, other_ok, stride_d, D, D1, D2)
            logits = window_logits(
                q1, q2, k1, k2, rel_h, rel_w, region, other_region, other_ok, other_row, other_column, scale,
                D2, REL_KEYS, RELATIVE, SHIFTED, FULL,
            )  # fmt: skip
            p, ds = shares(logits, lse, do1, do2, v1, v2, delta, D2)
            dq1, dq2 = add_rows(ds, k1, k2, dq1, dq2, D2)
            if RELATIVE:
                by_row = dot(ds, one_hot(other_row, REL_KEYS).to(ds.dtype), by_row)
                by_column = dot(ds, one_hot(other_column, REL_KEYS).to(ds.dtype), by_column)

    d_ptr = d_qkv_ptr + b * tokens * 3 * row_stride + head * D
    if KEYS:
        dk1 *= scale
        dk2 *= scale
        if POOL:
            home = (y // WINDOW_H) * windows_x + x // WINDOW_W
            count = tokens_in_window(home, rows, columns, windows_x, WINDOW_H, WINDOW_W)
            batches = (tl.num_programs(0) // (tiles * num_heads * num_windows)).to(tl.int64)
            dk1, dk2 = add_pooled_share(
                d_pooled_ptr, dk1, dk2, b, batches, home, 0, head, count, ok, num_windows, num_heads, num_shares,
                D, D1, D2,
            )  # fmt: skip
            dv1, dv2 = add_pooled_share(
                d_pooled_ptr, dv1, dv2, b, batches, home, 1, head, count, ok, num_windows, num_heads, num_shares,
                D, D1, D2,
            )  # fmt: skip
        store_rows(d_ptr, (3 * token + 1) * row_stride, dk1, dk2, ok, D, D1, D2)
        store_rows(d_ptr, (3 * token + 2) * row_stride, dv1, dv2, ok, D, D1, D2)
    if QUERIES:
        if POOLED:
            p_ptr = pooled_ptr + b * stride_pb + head * stride_ph
            for start in tl.range(0, num_pooled, BLOCK_G):
                g = start + tl.arange(0, BLOCK_G)
                known = g < num_pooled
                offset = g * stride_pg
                pk1, pk2 = load_rows(p_ptr, offset, known, stride_pd, D, D1, D2)
                pv1, pv2 = load_rows(p_ptr + stride_p2, offset, known, stride_pd, D, D1, D2)
                logits_g = products(q1, q2, pk1.to(q1.dtype), pk2.to(q1.dtype), D2) * scale
                logits_g = tl.where(known[None, :], logits_g, HIDDEN)
                _, ds_g = shares(logits_g, lse, do1, do2, pv1.to(q1.dtype), pv2.to(q1.dtype), delta, D2)
                dq1, dq2 = add_rows(ds_g, pk1.to(q1.dtype), pk2.to(q1.dtype), dq1, dq2, D2)
        dq1 *= scale
        dq2 *= scale
        if RELATIVE:
            by_row_entry = by_table_entry(by_row, row, WINDOW_H, REL_TABLE, q1.dtype)
            by_column_entry = by_table_entry(by_column, column, WINDOW_W, REL_TABLE, q1.dtype)
            dq1, dq2 = add_table_rows(by_row_entry, rel_h_ptr, dq1, dq2, WINDOW_H, D, D1, D2, REL_TABLE)
            dq1, dq2 = add_table_rows(by_column_entry, rel_w_ptr, dq1, dq2, WINDOW_W, D, D1, D2, REL_TABLE)
            if TABLES:
                store_table(d_rel_h_ptr, by_row_entry, q1, q2, pid, WINDOW_H, D, D1, D2, REL_TABLE)
                store_table(d_rel_w_ptr, by_column_entry, q1, q2, pid, WINDOW_W, D, D1, D2, REL_TABLE)
        store_rows(d_ptr, 3 * token * row_stride, dq1, dq2, ok, D, D1, D2)
