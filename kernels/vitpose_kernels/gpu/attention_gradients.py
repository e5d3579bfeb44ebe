"""Triton kernels of the `attention` backward pass. `attention_backward` chooses and launches them.

The softmax is recomputed from qkv and the log-sum-exp, tile by tile: nothing of size L x L is stored in memory.

Every element of a gradient or of a partial sum is written by one program, so there are no atomics and reruns are equal
bit for bit:
  * A program of `key_backward` computes dk and dv of a tile of keys and loops over the queries of their window. A
    program of `query_backward` computes dq of a tile of queries and loops over the keys of their window. If a window
    fits in one tile, `window_backward` takes the place of both: a program computes all gradients of one window.
  * A program of `pooled_backward` computes the gradients of a block of pooled keys from one share of the tokens. The
    N tokens of a sample are divided into `num_shares` consecutive ranges, the shares. The kernel runs first, because
    the others read delta, and because they add the gradient of a window's mean to the tokens of that window. It does
    not run if `window_backward` is used and there are no pooled keys.
  * Each program stores its own partial sum for the position tables. PyTorch adds up the partial sums at the end.

The letters, and the terms slot, rows and parts, are defined in `attention_steps`; delta and the names of the gradients
are defined in `attention_backward_steps`. SHIFTED and FULL are as in `attention_steps.window_logits`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vitpose_kernels.gpu.attention_backward_steps import (
    Queries,
    add_pooled_keys,
    add_pooled_shares,
    add_position,
    dense_rows_of,
    load_queries,
    position_backward,
    row_sums,
    shares,
    zero_position,
)
from vitpose_kernels.gpu.attention_steps import (
    Grid,
    Rows,
    add_rows,
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
    window_logits,
    zero_rows,
)


@triton.jit
def window_backward(
    qkv_ptr, pooled_ptr, rel_h_ptr, rel_w_ptr, lse_ptr, grad_ptr, delta_ptr, d_pooled_ptr,
    d_qkv_ptr, d_rel_h_ptr, d_rel_w_ptr,
    rows, columns, windows_y, windows_x, shift_y, shift_x, num_heads, num_pooled, num_shares, scale,
    stride_b, stride_n, stride_3, stride_h, stride_d,
    stride_pb, stride_pg, stride_p2, stride_ph, stride_pd, stride_share,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_G: tl.constexpr, SHIFTED: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """Compute all gradients of one window, head and sample: dq, dk, dv and the partial gradients of the tables.

    BLOCK_M is at least the number of slots of the window. delta_ptr is None if there are no pooled keys: delta is then
    computed here. d_pooled_ptr is None unless the pooled keys are the means of the windows; if they are, their gradient
    is added to dk and dv. pooled_ptr is None without pooled keys, d_rel_h_ptr and d_rel_w_ptr if not wanted.
    """
    grid = Grid(rows, columns, windows_y, windows_x, shift_y, shift_x)
    place = place_of_program(windows_y * windows_x, num_heads, 1)
    tokens = rows * columns
    lse_ptr += (place.sample * num_heads + place.head) * tokens
    qkv = qkv_of(qkv_ptr, place, stride_b, stride_n, stride_3, stride_h, stride_d)
    grad_rows = dense_rows_of(grad_ptr, place, tokens, 1, num_heads, D)

    slots = slots_of(tl.arange(0, BLOCK_M), place.window, grid, WINDOW_H, WINDOW_W)
    k = load_rows(qkv.k, slots.token, slots.valid, D)
    v = load_rows(qkv.v, slots.token, slots.valid, D)
    queries = load_queries(qkv.q, grad_rows, lse_ptr, slots, D)
    delta = None
    if delta_ptr is not None:
        delta_ptr += (place.sample * num_heads + place.head) * tokens
        delta = tl.load(delta_ptr + slots.token, slots.valid, 0.0)
    position = None
    if rel_h_ptr is not None:
        position = position_terms(queries.q, slots, rel_h_ptr, rel_w_ptr, WINDOW_H, WINDOW_W, D)
    logits = window_logits(queries.q, k, position, slots, slots, scale, SHIFTED, FULL)
    p, ds = shares(logits, queries, v, delta)
    dv = add_rows(tl.trans(p), queries.grad, zero_rows(BLOCK_M, D))
    dk = add_rows(tl.trans(ds), queries.q, zero_rows(BLOCK_M, D))
    dq = add_rows(ds, k, zero_rows(BLOCK_M, D))
    if rel_h_ptr is not None:
        sums = add_position(zero_position(BLOCK_M, WINDOW_H, WINDOW_W), ds, slots)
    d_rows = dense_rows_of(d_qkv_ptr, place, tokens, 3, num_heads, D)
    dk = times(dk, scale)
    if d_pooled_ptr is not None:
        dk, dv = add_pooled_shares(
            dk, dv, slots, grid, place, d_pooled_ptr, num_heads, num_shares, stride_share, WINDOW_H, WINDOW_W, D
        )
    store_rows(d_rows, 3 * slots.token + 1, dk, slots.valid, D)
    store_rows(d_rows, 3 * slots.token + 2, dv, slots.valid, D)

    if pooled_ptr is not None:
        k_rows = rows_of(pooled_ptr, place, stride_pb, stride_pg, stride_ph, stride_pd)
        v_rows = rows_of(pooled_ptr + stride_p2, place, stride_pb, stride_pg, stride_ph, stride_pd)
        dq = add_pooled_keys(dq, queries, delta, k_rows, v_rows, num_pooled, scale, D, BLOCK_G)
    dq = times(dq, scale)
    if rel_h_ptr is not None:
        dq = position_backward(
            dq, sums, queries.q, slots, rel_h_ptr, rel_w_ptr, d_rel_h_ptr, d_rel_w_ptr, WINDOW_H, WINDOW_W, D
        )
    store_rows(d_rows, 3 * slots.token, dq, slots.valid, D)


@triton.jit
def key_backward(
    qkv_ptr, rel_h_ptr, rel_w_ptr, lse_ptr, grad_ptr, delta_ptr, d_pooled_ptr, d_qkv_ptr,
    rows, columns, windows_y, windows_x, shift_y, shift_x, num_heads, num_shares, scale,
    stride_b, stride_n, stride_3, stride_h, stride_d, stride_share,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SHIFTED: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """Compute dk and dv of BLOCK_M keys of a window, looping over the queries of the window BLOCK_N at a time.

    d_pooled_ptr is None unless the pooled keys are the means of the windows; if they are, their gradient is added.
    """
    grid = Grid(rows, columns, windows_y, windows_x, shift_y, shift_x)
    place = place_of_program(windows_y * windows_x, num_heads, tl.cdiv(WINDOW_H * WINDOW_W, BLOCK_M))
    tokens = rows * columns
    lse_ptr += (place.sample * num_heads + place.head) * tokens
    delta_ptr += (place.sample * num_heads + place.head) * tokens
    qkv = qkv_of(qkv_ptr, place, stride_b, stride_n, stride_3, stride_h, stride_d)
    grad_rows = dense_rows_of(grad_ptr, place, tokens, 1, num_heads, D)

    key = slots_of(place.tile * BLOCK_M + tl.arange(0, BLOCK_M), place.window, grid, WINDOW_H, WINDOW_W)
    k = load_rows(qkv.k, key.token, key.valid, D)
    v = load_rows(qkv.v, key.token, key.valid, D)
    dk = zero_rows(BLOCK_M, D)
    dv = zero_rows(BLOCK_M, D)
    for start in tl.range(0, WINDOW_H * WINDOW_W, BLOCK_N):
        query = slots_of(start + tl.arange(0, BLOCK_N), place.window, grid, WINDOW_H, WINDOW_W)
        queries = load_queries(qkv.q, grad_rows, lse_ptr, query, D)
        delta = tl.load(delta_ptr + query.token, query.valid, 0.0)
        position = None
        if rel_h_ptr is not None:
            position = position_terms(queries.q, query, rel_h_ptr, rel_w_ptr, WINDOW_H, WINDOW_W, D)
        logits = window_logits(queries.q, k, position, query, key, scale, SHIFTED, FULL)
        p, ds = shares(logits, queries, v, delta)
        dv = add_rows(tl.trans(p), queries.grad, dv)
        dk = add_rows(tl.trans(ds), queries.q, dk)
    d_rows = dense_rows_of(d_qkv_ptr, place, tokens, 3, num_heads, D)
    dk = times(dk, scale)
    if d_pooled_ptr is not None:
        dk, dv = add_pooled_shares(
            dk, dv, key, grid, place, d_pooled_ptr, num_heads, num_shares, stride_share, WINDOW_H, WINDOW_W, D
        )
    store_rows(d_rows, 3 * key.token + 1, dk, key.valid, D)
    store_rows(d_rows, 3 * key.token + 2, dv, key.valid, D)


@triton.jit
def query_backward(
    qkv_ptr, pooled_ptr, rel_h_ptr, rel_w_ptr, lse_ptr, grad_ptr, delta_ptr, d_qkv_ptr, d_rel_h_ptr, d_rel_w_ptr,
    rows, columns, windows_y, windows_x, shift_y, shift_x, num_heads, num_pooled, scale,
    stride_b, stride_n, stride_3, stride_h, stride_d,
    stride_pb, stride_pg, stride_p2, stride_ph, stride_pd,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_G: tl.constexpr, SHIFTED: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """Compute dq and the partial gradients of the tables for BLOCK_M queries of a window.

    The program loops over the keys of the window BLOCK_N at a time, then over the pooled keys BLOCK_G at a time.
    """
    grid = Grid(rows, columns, windows_y, windows_x, shift_y, shift_x)
    place = place_of_program(windows_y * windows_x, num_heads, tl.cdiv(WINDOW_H * WINDOW_W, BLOCK_M))
    tokens = rows * columns
    lse_ptr += (place.sample * num_heads + place.head) * tokens
    delta_ptr += (place.sample * num_heads + place.head) * tokens
    qkv = qkv_of(qkv_ptr, place, stride_b, stride_n, stride_3, stride_h, stride_d)
    grad_rows = dense_rows_of(grad_ptr, place, tokens, 1, num_heads, D)

    query = slots_of(place.tile * BLOCK_M + tl.arange(0, BLOCK_M), place.window, grid, WINDOW_H, WINDOW_W)
    queries = load_queries(qkv.q, grad_rows, lse_ptr, query, D)
    delta = tl.load(delta_ptr + query.token, query.valid, 0.0)
    position = None
    if rel_h_ptr is not None:
        position = position_terms(queries.q, query, rel_h_ptr, rel_w_ptr, WINDOW_H, WINDOW_W, D)
        sums = zero_position(BLOCK_M, WINDOW_H, WINDOW_W)
    dq = zero_rows(BLOCK_M, D)
    for start in tl.range(0, WINDOW_H * WINDOW_W, BLOCK_N):
        key = slots_of(start + tl.arange(0, BLOCK_N), place.window, grid, WINDOW_H, WINDOW_W)
        k = load_rows(qkv.k, key.token, key.valid, D)
        v = load_rows(qkv.v, key.token, key.valid, D)
        logits = window_logits(queries.q, k, position, query, key, scale, SHIFTED, FULL)
        _, ds = shares(logits, queries, v, delta)
        dq = add_rows(ds, k, dq)
        if rel_h_ptr is not None:
            sums = add_position(sums, ds, key)
    d_rows = dense_rows_of(d_qkv_ptr, place, tokens, 3, num_heads, D)
    if pooled_ptr is not None:
        k_rows = rows_of(pooled_ptr, place, stride_pb, stride_pg, stride_ph, stride_pd)
        v_rows = rows_of(pooled_ptr + stride_p2, place, stride_pb, stride_pg, stride_ph, stride_pd)
        dq = add_pooled_keys(dq, queries, delta, k_rows, v_rows, num_pooled, scale, D, BLOCK_G)
    dq = times(dq, scale)
    if rel_h_ptr is not None:
        dq = position_backward(
            dq, sums, queries.q, query, rel_h_ptr, rel_w_ptr, d_rel_h_ptr, d_rel_w_ptr, WINDOW_H, WINDOW_W, D
        )
    store_rows(d_rows, 3 * query.token, dq, query.valid, D)


@triton.jit
def pooled_backward(
    qkv_ptr, pooled_ptr, out_ptr, lse_ptr, grad_ptr, delta_ptr, d_pooled_ptr,
    tokens, num_heads, num_pooled, num_shares, scale,
    stride_b, stride_n, stride_h, stride_d, stride_pb, stride_pg, stride_p2, stride_ph, stride_pd, stride_share,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """Compute delta of a share of the tokens, and the partial gradients of BLOCK_G pooled keys from these tokens.

    All programs compute delta, and those of the first block of pooled keys store it. pooled_ptr is None if only delta
    is wanted. The tokens of the share are processed BLOCK_M at a time.
    """
    blocks = tl.cdiv(num_pooled, BLOCK_G) if pooled_ptr is not None else 1
    place = place_of_program(blocks, num_heads, num_shares)
    share = place.tile
    lse_ptr += (place.sample * num_heads + place.head) * tokens
    delta_ptr += (place.sample * num_heads + place.head) * tokens
    q_rows = rows_of(qkv_ptr, place, stride_b, stride_n, stride_h, stride_d)
    grad_rows = Rows(grad_ptr + (place.sample * tokens * num_heads + place.head) * D, num_heads * D, 1)
    out_rows = Rows(out_ptr + (place.sample * tokens * num_heads + place.head) * D, num_heads * D, 1)
    g = place.window * BLOCK_G + tl.arange(0, BLOCK_G)
    known = g < num_pooled
    if pooled_ptr is not None:
        dtype: tl.constexpr = qkv_ptr.dtype.element_ty
        k_rows = rows_of(pooled_ptr, place, stride_pb, stride_pg, stride_ph, stride_pd)
        v_rows = rows_of(pooled_ptr + stride_p2, place, stride_pb, stride_pg, stride_ph, stride_pd)
        k = rows_as(load_rows(k_rows, g, known, D), dtype)
        v = rows_as(load_rows(v_rows, g, known, D), dtype)
        dk = zero_rows(BLOCK_G, D)
        dv = zero_rows(BLOCK_G, D)
    per_share = tl.cdiv(tl.cdiv(tokens, num_shares), BLOCK_M) * BLOCK_M
    for start in tl.range(share * per_share, tl.minimum((share + 1) * per_share, tokens), BLOCK_M):
        token = start + tl.arange(0, BLOCK_M)
        valid = token < tokens
        grad = load_rows(grad_rows, token, valid, D)
        delta = row_sums(grad, load_rows(out_rows, token, valid, D))
        if place.window == 0:
            tl.store(delta_ptr + token, delta, valid)
        if pooled_ptr is not None:
            q = load_rows(q_rows, token, valid, D)
            lse = tl.load(lse_ptr + token, valid, float("inf"))
            p, ds = shares(pooled_logits(q, k, known, scale), Queries(q, grad, lse), v, delta)
            dk = add_rows(tl.trans(ds), q, dk)
            dv = add_rows(tl.trans(p), grad, dv)
    if pooled_ptr is not None:
        own_ptr = d_pooled_ptr + share.to(tl.int64) * stride_share
        d_rows = dense_rows_of(own_ptr, place, num_pooled, 2, num_heads, D)
        store_rows(d_rows, 2 * g, times(dk, scale), known, D)
        store_rows(d_rows, 2 * g + 1, dv, known, D)
