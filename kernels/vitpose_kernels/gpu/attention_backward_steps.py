"""Functions that the `attention` backward kernels share. What the forward kernel uses too is in `attention_steps`.

The letters, and the terms slot, rows and parts, are defined in `attention_steps`. Names of gradients: dq, dk and dv are
the gradients of the queries, keys and values, ds [m, n] is the gradient of the logits (which include the factor
`scale`), and d_pooled is the gradient of the pooled keys and values. delta [m] is, for every query, the dot product of
its output and the gradient of its output; ds = p (dp - delta), where p are the softmax probabilities and dp [m, n] are
the dot products of the gradient of the output with the values.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from vitpose_kernels.gpu.attention_steps import (
    LOG2_E,
    Position,
    Rows,
    add_rows,
    divided,
    dot,
    load_rows,
    load_table,
    one_hot,
    pooled_logits,
    power_of_two,
    products,
    rows_as,
    store_rows,
    tokens_in_window,
    zero_rows,
)


class Queries(NamedTuple):
    """What the backward pass needs of a tile of m queries.

    Attributes:
        q: the queries, [m, D] as parts.
        grad: the gradients of their outputs, [m, D] as parts.
        lse: [m], the log-sum-exp of the logits of each query; infinity for padding.
    """

    q: tl.tensor
    grad: tl.tensor
    lse: tl.tensor


@triton.jit
def dense_rows_of(ptr, place, count, PARTS: tl.constexpr, num_heads, D: tl.constexpr):
    """Return the `Rows` of the head and sample of `place` in a contiguous tensor [B, count, PARTS, H, D].

    Row PARTS * i + j is entry j of token (or pooled key) i. PARTS is 3 for q, k and v, 2 for key and value, or 1; it is
    unrelated to the parts of a row.
    """
    stride = num_heads * D
    return Rows(ptr + (place.sample * count * PARTS * stride + place.head * D), stride, 1)


@triton.jit
def load_queries(q_rows, grad_rows, lse_ptr, query, D: tl.constexpr):
    """Load the `Queries` of the `Slots` query. lse_ptr points to the [N] numbers of one head of one sample."""
    q = load_rows(q_rows, query.token, query.valid, D)
    grad = load_rows(grad_rows, query.token, query.valid, D)
    lse = tl.load(lse_ptr + query.token, query.valid, float("inf"))  # exp(logit - inf) = 0: no probability for padding
    return Queries(q, grad, lse)


@triton.jit
def row_sums(a, b):
    """Return the sum of a * b over the head width, [n] float32, for rows a and b [n, D], both given as parts."""
    out = tl.sum(a[0].to(tl.float32) * b[0].to(tl.float32), 1)
    for i in tl.static_range(1, len(a)):
        out += tl.sum(a[i].to(tl.float32) * b[i].to(tl.float32), 1)
    return out


@triton.jit
def shares(logits, queries, v, delta):
    """Return (softmax probabilities p, gradients of the logits ds), both [m, n] in the dtype of the values.

    They are recomputed from the logits [m, n] of the `Queries` and the values v, [n, D] as parts.

    delta: [m], see the module docstring. None if the tile holds all keys of the queries: delta is then computed from
    the probabilities, without the rounding error of the stored output.
    """
    p = tl.exp2((logits - queries.lse[:, None]) * LOG2_E)
    dp = products(queries.grad, v)
    if delta is None:
        delta = tl.sum(p * dp, 1)
    return p.to(v[0].dtype), (p * (dp - delta[:, None])).to(v[0].dtype)


@triton.jit
def add_pooled_keys(
    dq, queries, delta, k_rows, v_rows, num_pooled, scale, D: tl.constexpr, BLOCK_G: tl.constexpr
):  # fmt: skip
    """Return dq, [m, D] as parts, plus the contribution of all pooled keys, both before multiplication by `scale`.

    k_rows and v_rows are the `Rows` of the pooled keys and values, which are loaded BLOCK_G at a time.
    """
    for start in tl.range(0, num_pooled, BLOCK_G):
        g = start + tl.arange(0, BLOCK_G)
        known = g < num_pooled
        k = rows_as(load_rows(k_rows, g, known, D), queries.q[0].dtype)
        v = rows_as(load_rows(v_rows, g, known, D), queries.q[0].dtype)
        _, ds = shares(pooled_logits(queries.q, k, known, scale), queries, v, delta)
        dq = add_rows(ds, k, dq)
    return dq


@triton.jit
def zero_position(QUERIES: tl.constexpr, WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr):
    """Return a `Position` of fp32 zeros for a number of queries, the initial sums for `add_position`."""
    by_row = tl.zeros([QUERIES, power_of_two(WINDOW_H)], tl.float32)
    return Position(by_row, tl.zeros([QUERIES, power_of_two(WINDOW_W)], tl.float32))


@triton.jit
def add_position(sums, ds, key):
    """Return the `Position` sums plus the gradients ds [m, n] of the logits of n more keys, whose `Slots` are `key`.

    Each sum runs over the keys in one row, or in one column, of the window. The sums are computed as products with
    one-hot matrices, so that they run on the tensor cores.
    """
    by_row = dot(ds, one_hot(key.row, sums.by_row.shape[1], ds.dtype), sums.by_row)
    return Position(by_row, dot(ds, one_hot(key.column, sums.by_column.shape[1], ds.dtype), sums.by_column))


@triton.jit
def by_table_entry(sums, place, SIZE: tl.constexpr, dtype: tl.constexpr):
    """Reorder the sums [m, keys] for each key row (or column) into the gradients of the products q . table.

    place: [m], the row (or column) of each query in the window, which has SIZE of them.

    Returns [m, power_of_two(2 SIZE - 1)] in `dtype`, one column per table entry. This is the inverse of the gather in
    `attention_steps`: key row `key` uses table entry place - key + SIZE - 1. Entries without a key are 0.
    """
    key = place[:, None] + SIZE - 1 - tl.arange(0, power_of_two(2 * SIZE - 1))[None, :]
    known = (key >= 0) & (key < SIZE)
    return tl.where(known, tl.gather(sums, tl.where(known, key, 0), 1), 0.0).to(dtype)


@triton.jit
def store_table(ptr, by_entry, q, SIZE: tl.constexpr, D: tl.constexpr):
    """Store the gradient of a position table [2 SIZE - 1, D] that the queries of this program contribute.

    ptr: [programs, 2 SIZE - 1, D], of which this program writes its own slice. by_entry: from `by_table_entry`.
    q: the queries, [m, D] as parts.
    """
    entry = tl.arange(0, power_of_two(2 * SIZE - 1))
    d_table = add_rows(tl.trans(by_entry), q, zero_rows(power_of_two(2 * SIZE - 1), D))
    own = ptr + tl.program_id(0).to(tl.int64) * ((2 * SIZE - 1) * D)
    store_rows(Rows(own, D, 1), entry, d_table, entry < 2 * SIZE - 1, D)


@triton.jit
def position_backward(
    dq, sums, q, query, rel_h_ptr, rel_w_ptr, d_rel_h_ptr, d_rel_w_ptr,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Return dq plus the contribution of relative position, and store the partial gradients of the tables.

    dq: [m, D] as parts, already multiplied by `scale` (the position terms do not have this factor).
    sums: `Position` of the gradients of the logits, from `add_position` for all keys of the window.
    q: the queries, [m, D] as parts; `query` are their `Slots`.
    d_rel_h_ptr, d_rel_w_ptr: where `store_table` stores; None if the gradients of the tables are not wanted.
    """
    by_row = by_table_entry(sums.by_row, query.row, WINDOW_H, q[0].dtype)
    by_column = by_table_entry(sums.by_column, query.column, WINDOW_W, q[0].dtype)
    dq = add_rows(by_row, load_table(rel_h_ptr, WINDOW_H, D, q[0].dtype), dq)
    dq = add_rows(by_column, load_table(rel_w_ptr, WINDOW_W, D, q[0].dtype), dq)
    if d_rel_h_ptr is not None:
        store_table(d_rel_h_ptr, by_row, q, WINDOW_H, D)
        store_table(d_rel_w_ptr, by_column, q, WINDOW_W, D)
    return dq


@triton.jit
def add_pooled_shares(
    dk, dv, key, grid, place, d_pooled_ptr, num_heads, num_shares, stride_share,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Return dk and dv, [n, D] as parts, plus the gradients through the mean key and the mean value of a window.

    The window of a token is its unshifted window here. A token receives the gradient of the mean, divided by the number
    of tokens in the window. key: the `Slots` of the n tokens. d_pooled_ptr: [num_shares, B, M, 2, H, D] partial sums,
    stride_share elements apart.
    """
    home = (key.y // WINDOW_H) * grid.windows_x + key.x // WINDOW_W
    count = tokens_in_window(home, grid, WINDOW_H, WINDOW_W)
    d_mean = dense_rows_of(d_pooled_ptr, place, grid.windows_y * grid.windows_x, 2, num_heads, D)
    dk = _add_pooled_shares(dk, d_mean, 2 * home, key.valid, count, num_shares, stride_share, D)
    return dk, _add_pooled_shares(dv, d_mean, 2 * home + 1, key.valid, count, num_shares, stride_share, D)


@triton.jit
def _add_pooled_shares(parts, d_mean, index, valid, count, num_shares, stride_share, D: tl.constexpr):
    """Return rows [n, D], given as parts, plus the rows `index` [n] of the gradient of the means over `count` [n].

    d_mean: the `Rows` of the first of `num_shares` partial sums of this gradient, stride_share elements apart.
    """
    for _ in tl.range(0, num_shares):
        parts = sum_of(parts, divided(load_rows(d_mean, index, valid, D), count))
        d_mean = Rows(d_mean.ptr + stride_share, d_mean.stride, d_mean.stride_d)
    return parts


@triton.jit
def sum_of(a, b):
    """Return a + b for rows [n, D] given as parts."""
    if len(a) > 1:
        return (a[0] + b[0], a[1] + b[1])
    else:
        return (a[0] + b[0],)
