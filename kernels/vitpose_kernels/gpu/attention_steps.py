"""Types and functions that the forward and backward kernels of `attention` share.

Letters: B batch (samples), N tokens, H heads, D head width, C = H * D, (h, w) window, L = h * w, M windows per sample,
G pooled keys per sample. A tile has m queries and n keys.

Slots: a slot is a position in a window, with the index row * w + column. It holds a token, or padding where the window
extends beyond the map. A tile has consecutive slots of one window; those beyond the last slot of the window count as
padding.

Rows: the query, the key, the value or a gradient of one token (or pooled key) and one head is a row of D numbers.

Parts: rows [n, D] in registers are a tuple of one or two tiles that divide the columns. There is one part if D is a
power of two or below 16, otherwise two. Rows of width 80 thus have 64 + 16 columns instead of the 128 that a single
power of two would need. Columns beyond D are 0. Functions that return parts spell out both cases, because a tuple that
grows in a loop works in Triton's interpreter but not in its compiler.

Kernels build the types below in their first lines from the scalars that they are launched with (see
`gpu/__init__.py`). Constants stay parameters, because a constant in a tuple that is assigned to a name becomes a
tensor.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

HIDDEN = tl.constexpr(-1e30)  # logit of a masked key; finite, because a tile of -inf only would give NaN
LOG2_E = tl.constexpr(1.4426950408889634)


class Grid(NamedTuple):
    """How the map of tokens is cut into windows.

    Attributes:
        rows, columns: size of the map in tokens.
        windows_y, windows_x: number of windows down and across the map.
        shift_y, shift_x: rows and columns by which the windows are moved down and to the right. What leaves the padded
            map at one edge enters it at the opposite edge.
    """

    rows: tl.tensor
    columns: tl.tensor
    windows_y: tl.tensor
    windows_x: tl.tensor
    shift_y: tl.tensor
    shift_x: tl.tensor


class Place(NamedTuple):
    """The tile of slots that a program of a kernel processes: the indices of its sample, window, head and tile.

    `tile` counts the tiles of slots of the window. `sample` is int64, so that offsets computed from it do not overflow.
    (In `pooled_backward`, which has no windows, `window` is a block of pooled keys and `tile` a range of tokens.)
    """

    sample: tl.tensor
    window: tl.tensor
    head: tl.tensor
    tile: tl.tensor


class Slots(NamedTuple):
    """A tile of n slots of one window. Every field is [n].

    Attributes:
        token: index of the token in the map, row-major. Meaningless for padding, as y and x are.
        y, x: row and column of the token in the map.
        valid: whether the slot holds a token, not padding.
        region: 0 to 3; 2 is added if the row of the token, and 1 if its column, wrapped around the edge of the padded
            map because of the shift. A query attends only to keys of its own region.
        row, column: position of the slot in its window.
    """

    token: tl.tensor
    y: tl.tensor
    x: tl.tensor
    valid: tl.tensor
    region: tl.tensor
    row: tl.tensor
    column: tl.tensor


class Rows(NamedTuple):
    """Addresses of rows: row i starts at ptr + i * stride, and its columns are stride_d elements apart."""

    ptr: tl.tensor
    stride: tl.tensor
    stride_d: tl.tensor


class QKV(NamedTuple):
    """`Rows` of the queries, keys and values of one head of one sample; row i belongs to token i."""

    q: Rows
    k: Rows
    v: Rows


class Position(NamedTuple):
    """Numbers for m queries, one for every row and one for every column of keys in their window.

    by_row is [m, rows of the window] and by_column is [m, columns of the window]; both are extended to a width that is
    a power of two of at least 16. In the forward pass the numbers are the position terms of the logits, in the backward
    pass sums of the gradients of the logits.
    """

    by_row: tl.tensor
    by_column: tl.tensor


@triton.constexpr_function
def part_width(width, part):
    """Return the columns of part 0 or 1: a power of two of at least 16, or 0. Width 64 is (64, 0), 80 is (64, 16)."""
    first = max(16, 1 << (width.bit_length() - 1))
    rest = max(0, width - first)
    return first if part == 0 else max(16, 1 << (rest - 1).bit_length()) if rest else 0


@triton.constexpr_function
def power_of_two(size):
    """Return the smallest power of two that is at least `size` and at least 16."""
    return max(16, 1 << (size - 1).bit_length())


@triton.jit
def dot(a, b, acc):
    """Return acc + a @ b with an fp32 accumulator. float32 operands are multiplied as three TF32 products."""
    return tl.dot(a, b, acc, input_precision="tf32x3")


@triton.jit
def place_of_program(windows, num_heads, tiles):
    """Return the `Place` of this program, for samples of `windows` windows with `tiles` tiles each.

    The index of the tile varies fastest from program to program, then the head, the window and the sample. Consecutive
    programs thus process the tiles of one window and head, which read the same keys from L2.
    """
    program = tl.program_id(0)
    sample = (program // (tiles * num_heads * windows)).to(tl.int64)
    return Place(sample, (program // (tiles * num_heads)) % windows, (program // tiles) % num_heads, program % tiles)


@triton.jit
def rows_of(ptr, place, stride_b, stride_n, stride_h, stride_d):
    """Return the `Rows` of the head and sample of `place`, in a tensor with these strides of its axes.

    The axes are the sample (stride_b), the row (stride_n: a token or a pooled key), the head and the head width.
    """
    return Rows(ptr + place.sample * stride_b + place.head * stride_h, stride_n, stride_d)


@triton.jit
def qkv_of(ptr, place, stride_b, stride_n, stride_3, stride_h, stride_d):
    """Return the `QKV` of the head and sample of `place`, in a qkv [B, N, 3, H, D] with these strides."""
    q = rows_of(ptr, place, stride_b, stride_n, stride_h, stride_d)
    return QKV(q, Rows(q.ptr + stride_3, stride_n, stride_d), Rows(q.ptr + 2 * stride_3, stride_n, stride_d))


@triton.jit
def slots_of(slot, window, grid, WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr):
    """Return the `Slots` with the indices `slot` [n] of a window, which is given by its row-major index."""
    row = slot // WINDOW_W
    column = slot % WINDOW_W
    y = (window // grid.windows_x) * WINDOW_H + row + grid.shift_y
    x = (window % grid.windows_x) * WINDOW_W + column + grid.shift_x
    wrapped_y = y >= grid.windows_y * WINDOW_H
    wrapped_x = x >= grid.windows_x * WINDOW_W
    y = tl.where(wrapped_y, y - grid.windows_y * WINDOW_H, y)
    x = tl.where(wrapped_x, x - grid.windows_x * WINDOW_W, x)
    valid = (slot < WINDOW_H * WINDOW_W) & (y < grid.rows) & (x < grid.columns)
    region = 2 * wrapped_y.to(tl.int32) + wrapped_x.to(tl.int32)
    return Slots(y * grid.columns + x, y, x, valid, region, row, column)


@triton.jit
def tokens_in_window(window, grid, WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr):
    """Return the number of tokens in an unshifted window, as a float32 of at least 1, a safe divisor.

    Windows at the right and lower edge of the map may hold fewer than the others.
    """
    high = tl.minimum(grid.rows - (window // grid.windows_x) * WINDOW_H, WINDOW_H)
    wide = tl.minimum(grid.columns - (window % grid.windows_x) * WINDOW_W, WINDOW_W)
    return tl.maximum(high * wide, 1).to(tl.float32)  # a padding slot may have a window outside of the map


@triton.jit
def load_rows(rows, index, valid, D: tl.constexpr):
    """Load the rows `index` [n] as parts, [n, D]. Rows where `valid` [n] is false are 0."""
    first = _load_part(rows, index, valid, D, 0, part_width(D, 0))
    if part_width(D, 1) > 0:
        return (first, _load_part(rows, index, valid, D, part_width(D, 0), part_width(D, 1)))
    else:
        return (first,)


@triton.jit
def _load_part(rows, index, valid, D: tl.constexpr, START: tl.constexpr, WIDTH: tl.constexpr):
    d = START + tl.arange(0, WIDTH)
    mask = valid[:, None]
    if D < START + WIDTH:
        mask = mask & (d < D)[None, :]
    return tl.load(rows.ptr + (index * rows.stride)[:, None] + d[None, :] * rows.stride_d, mask, 0.0)


@triton.jit
def store_rows(rows, index, parts, valid, D: tl.constexpr):
    """Store [n, D], given as parts, to the rows `index` [n] where `valid` [n], converted to the tensor's dtype."""
    for i in tl.static_range(len(parts)):
        d = i * part_width(D, 0) + tl.arange(0, parts[i].shape[1])
        place = rows.ptr + (index * rows.stride)[:, None] + d[None, :] * rows.stride_d
        tl.store(place, parts[i].to(rows.ptr.dtype.element_ty), valid[:, None] & (d < D)[None, :])


@triton.jit
def zero_rows(ROWS: tl.constexpr, D: tl.constexpr):
    """Return an fp32 accumulator [ROWS, D] of zeros, as parts."""
    first = tl.zeros([ROWS, part_width(D, 0)], tl.float32)
    if part_width(D, 1) > 0:
        return (first, tl.zeros([ROWS, part_width(D, 1)], tl.float32))
    else:
        return (first,)


@triton.jit
def rows_as(parts, dtype: tl.constexpr):
    """Return rows, given as parts, converted to another dtype."""
    if len(parts) > 1:
        return (parts[0].to(dtype), parts[1].to(dtype))
    else:
        return (parts[0].to(dtype),)


@triton.jit
def times(parts, factor):
    """Return rows [n, D], given as parts, times `factor`: a number, or [n, 1] with one factor per row."""
    if len(parts) > 1:
        return (parts[0] * factor, parts[1] * factor)
    else:
        return (parts[0] * factor,)


@triton.jit
def divided(parts, count):
    """Return rows [n, D], given as parts, divided by `count` [n], one number per row."""
    if len(parts) > 1:
        return (parts[0] / count[:, None], parts[1] / count[:, None])
    else:
        return (parts[0] / count[:, None],)


@triton.jit
def products(a, b):
    """Return the dot products of rows a [m, D] with rows b [n, D], both given as parts: [m, n] float32."""
    out = tl.zeros([a[0].shape[0], b[0].shape[0]], tl.float32)
    for i in tl.static_range(len(a)):
        out = dot(a[i], tl.trans(b[i]), out)
    return out


@triton.jit
def add_rows(p, b, acc):
    """Return acc + p @ b for p [m, n], rows b [n, D] and fp32 rows acc [m, D]; b, acc and the result are parts."""
    first = dot(p, b[0], acc[0])
    if len(b) > 1:
        return (first, dot(p, b[1], acc[1]))
    else:
        return (first,)


@triton.jit
def load_table(ptr, SIZE: tl.constexpr, D: tl.constexpr, dtype: tl.constexpr):
    """Load a contiguous table [2 SIZE - 1, D] as parts in `dtype`, with rows of zeros appended up to a power of two."""
    entry = tl.arange(0, power_of_two(2 * SIZE - 1))
    return rows_as(load_rows(Rows(ptr, D, 1), entry, entry < 2 * SIZE - 1, D), dtype)


@triton.jit
def _position_terms(q, table_ptr, place, SIZE: tl.constexpr, D: tl.constexpr):
    """Return the terms q . table[place - key + SIZE - 1] for every row (or column) `key` of a window with SIZE of them.

    q is [m, D] as parts, and place [m] is the row (or column) of each query in the window. The result is
    [m, power_of_two(SIZE)] in the dtype of q; its columns from SIZE on are meaningless. The product with the whole
    table is computed once on the tensor cores; a gather then picks the entry for every key.
    """
    by_offset = products(q, load_table(table_ptr, SIZE, D, q[0].dtype))
    offset = place[:, None] - tl.arange(0, power_of_two(SIZE))[None, :] + SIZE - 1
    offset = tl.where((offset >= 0) & (offset < by_offset.shape[1]), offset, 0)  # padding, not in the window
    return tl.gather(by_offset, offset, 1).to(q[0].dtype)


@triton.jit
def position_terms(
    q, query, rel_h_ptr, rel_w_ptr, WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, D: tl.constexpr
):  # fmt: skip
    """Return the terms that relative position adds to the logits of the queries q, [m, D] as parts, as a `Position`.

    query: the `Slots` of the queries. rel_h_ptr, rel_w_ptr: the tables [2 WINDOW_H - 1, D] and [2 WINDOW_W - 1, D].
    """
    by_row = _position_terms(q, rel_h_ptr, query.row, WINDOW_H, D)
    return Position(by_row, _position_terms(q, rel_w_ptr, query.column, WINDOW_W, D))


@triton.jit
def one_hot(place, KEYS: tl.constexpr, dtype: tl.constexpr):
    """Return [n, KEYS], zero except for a 1 at column place[i] of row i. place [n]: the row (or column) of each key."""
    return (place[:, None] == tl.arange(0, KEYS)[None, :]).to(tl.float32).to(dtype)


@triton.jit
def window_logits(q, k, position, query, key, scale, SHIFTED: tl.constexpr, FULL: tl.constexpr):
    """Return the logits [m, n] in fp32 of queries q [m, D] and keys k [n, D] of one window, both given as parts.

    query, key: the `Slots` of the queries and of the keys.
    position: the `Position` terms of the queries, or None. They are broadcast over the keys by products with one-hot
    matrices, which the tensor cores add to the accumulator of the logits.
    SHIFTED: mask the keys of another region than the query's. FULL: no key is padding; otherwise padding is masked.
    """
    logits = products(q, k) * scale
    if position is not None:
        rows = one_hot(key.row, position.by_row.shape[1], position.by_row.dtype)
        logits = dot(position.by_row, tl.trans(rows), logits)
        columns = one_hot(key.column, position.by_column.shape[1], position.by_column.dtype)
        logits = dot(position.by_column, tl.trans(columns), logits)
    if SHIFTED:
        logits = tl.where(query.region[:, None] == key.region[None, :], logits, HIDDEN)
    if not FULL:
        logits = tl.where(key.valid[None, :], logits, HIDDEN)
    return logits


@triton.jit
def pooled_logits(q, k, known, scale):
    """Return the logits [m, n] in fp32 of queries q [m, D] and pooled keys k [n, D], both given as parts.

    Every query attends to all pooled keys. `known` [n] is false for rows of k beyond the last pooled key.
    """
    return tl.where(known[None, :], products(q, k) * scale, HIDDEN)
