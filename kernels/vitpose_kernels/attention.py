"""Multi-head attention over packed qkv: whole map or windows, shifted windows, pooled keys, relative position.

    logits = scale * q.k + q.rel_h[yq - yk + h - 1] + q.rel_w[xq - xk + w - 1]        (q unscaled in the position terms)
    out    = softmax(logits over the keys of the window, then the pooled keys) . values

The position terms are optional. (yq, xq) and (yk, xk) are row and column of the query and the key in their window.

Letters: B batch, N tokens (row-major over the grid), H attention heads, D head width, C = H * D, (h, w) window,
L = h * w slots per window, M windows per sample, G pooled keys per sample. A slot is a position in a window; it holds a
token or padding (see `windows.py`).

    qkv     [B, N, 3, H, D] float           pooled [B, G, 2, H, D] float (keys, values)
    rel_h   [2h - 1, D], rel_w [2w - 1, D]  out [B, N, C] in the dtype of qkv

Section 3.3 of the paper leaves some points open. They are settled as follows (docs/numerics.md 10):
  * Padding: a grid that the windows do not divide is first padded at the right and at the bottom. The padded map is
    rolled, then cut into windows. Padding is never a key and does not count in a mean.
  * Shift (sy, sx): the map is rolled by (-sy, -sx). Tokens that share a window only because the roll wraps around do
    not attend to each other.
  * Pool: each window of the unshifted partition adds one key and one value, the means over its tokens, so G = M. Every
    query attends to the pooled keys of all windows of its sample, without position terms and without a mask.

Forward FLOPs: 4 B N (L + G) C. Memory traffic: 4 B N C elements (reads qkv, writes out). Memory-bound at 192 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as nnF
from torch import Tensor

from vitpose_kernels import attention_cpu
from vitpose_kernels.autocast import autocast_inputs, contiguous_like, without_autocast
from vitpose_kernels.checks import check_device, check_reach, choose_impl
from vitpose_kernels.choices import Call, find
from vitpose_kernels.eager import is_eager, triton_op
from vitpose_kernels.launch import architecture, run
from vitpose_kernels.libraries import LIBRARIES, library_attention
from vitpose_kernels.windows import Windows


def _split(qkv_windows: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split windows of packed qkv, [B, M, L, 3C], into q, k and v, [B, M, H, L, D] each."""
    width = qkv_windows.shape[-1] // (3 * heads)
    q, k, v = qkv_windows.unflatten(-1, (3, heads, width)).permute(3, 0, 1, 4, 2, 5).unbind(0)
    return q, k, v


def _relative(table: Tensor, size: int) -> Tensor:
    """Return table[query - key + size - 1] for all positions of query and key along one axis of a window.

    The table is [2 size - 1, D], the result [size (query), size (key), D].
    """
    offset = torch.arange(size, device=table.device)
    return table[offset[:, None] - offset[None, :] + size - 1]


def _share(windows: Windows, like: Tensor) -> Tensor:
    """Return each slot's weight in the mean over the tokens of its window, [M, L], dtype of `like`; padding has 0."""
    is_token = windows.is_token(like.device)
    return is_token.to(like.dtype) / is_token.sum(-1, keepdim=True).to(like.dtype)


def _pooled_keys(qkv: Tensor, windows: Windows, pool: bool, pooled: Tensor | None) -> Tensor | None:
    """Return the keys and values [2 (key, value), B, H, G, D] that every query of a sample also attends to.

    They are means over the windows with `pool`, else the given `pooled` [B, G, 2, H, D]. None if there are neither.
    """
    _, _, _, heads, width = qkv.shape
    if pool:
        flat = windows.unshifted()
        pooled = torch.einsum("bmlf,ml->bmf", flat.cut(qkv[:, :, 1:].flatten(2)), _share(flat, qkv))
        pooled = pooled.unflatten(-1, (2, heads, width))
    return None if pooled is None else pooled.permute(2, 0, 3, 1, 4)


def _logit_bias(
    q: Tensor, windows: Windows, rel_h: Tensor | None, rel_w: Tensor | None, num_extra: int
) -> Tensor | None:
    """Return what is added to scale * q.k: the position terms, and -inf where a query does not see a key.

    Broadcastable to [B, M, H, L (query), L + G (key)], or None if nothing is added. The G = `num_extra` pooled keys are
    last and get 0.
    """
    h, w = windows.window
    bias = None
    if rel_h is not None and rel_w is not None:
        q_map = q.unflatten(-2, (h, w))
        bias_h = torch.einsum("bmnyxd,ykd->bmnyxk", q_map, _relative(rel_h.to(q.dtype), h))
        bias_w = torch.einsum("bmnyxd,xkd->bmnyxk", q_map, _relative(rel_w.to(q.dtype), w))
        bias = (bias_h.unsqueeze(-1) + bias_w.unsqueeze(-2)).flatten(-2).flatten(-3, -2)
    visible = windows.visible(q.device)
    if visible is not None:
        bias = q.new_zeros(()) if bias is None else bias
        bias = torch.where(visible, bias, float("-inf"))  # [M, 1, L, L] without relative position
    return None if bias is None else nnF.pad(bias, (0, num_extra))


def _with_extra(own: Tensor, extra: Tensor | None) -> Tensor:
    """Append pooled keys (or values) `extra` [B, H, G, D] to the ones of every window, `own` [B, M, H, L, D]."""
    if extra is None:
        return own
    return torch.cat([own, extra.unsqueeze(1).expand(-1, own.shape[1], -1, -1, -1)], -2)


def _operands(
    qkv: Tensor, windows: Windows, pool: bool, rel_h: Tensor | None, rel_w: Tensor | None, pooled: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return queries [B, M, H, L, D], keys and values [B, M, H, L + G, D], and `_logit_bias`, of every window."""
    q, k, v = _split(windows.cut(qkv.flatten(2)), qkv.shape[3])
    extra = _pooled_keys(qkv, windows, pool, pooled)
    extra_k, extra_v = (None, None) if extra is None else extra.unbind(0)
    bias = _logit_bias(q, windows, rel_h, rel_w, 0 if extra is None else extra.shape[-2])
    return q, _with_extra(k, extra_k), _with_extra(v, extra_v), bias


def _flat(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Merge the batch and the windows, [B, M, ...] -> [B * M, ...], of the results of `_operands`."""
    if bias is not None:
        bias = bias.expand(*q.shape[:2], -1, -1, -1).flatten(0, 1)
    return q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), bias


def _joined(out: Tensor, windows: Windows, batch: int) -> Tensor:
    """Join the outputs of all windows, [B * M, H, L, D] -> [B, N, C]."""
    out = out.unflatten(0, (batch, windows.windows[0] * windows.windows[1]))
    return windows.join(out.transpose(2, 3).flatten(-2)).contiguous()


def _windowed(x: Tensor, windows: Windows, heads: int) -> Tensor:
    """Cut outputs or their gradients into windows and heads, [B, N, C] -> [B, M, H, L, D]."""
    return windows.cut(x).unflatten(-1, (heads, -1)).transpose(2, 3)


def attention_reference(
    qkv: Tensor,
    windows: Windows,
    pool: bool,
    rel_h: Tensor | None,
    rel_w: Tensor | None,
    scale: float,
    pooled: Tensor | None,
) -> Tensor:
    """Reference implementation in plain PyTorch, which specifies the op. Returns [B, N, C] in the dtype of qkv."""
    q, k, v, bias = _flat(*_operands(qkv, windows, pool, rel_h, rel_w, pooled))
    out = nnF.scaled_dot_product_attention(q, k, v, bias, scale=scale)
    return _joined(out, windows, qkv.shape[0])


def attention_backward_reference(
    grad: Tensor,
    qkv: Tensor,
    windows: Windows,
    pool: bool,
    rel_h: Tensor | None,
    rel_w: Tensor | None,
    scale: float,
    pooled: Tensor | None,
    want_tables: bool,
    want_pooled: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Compute the gradients of (qkv, rel_h, rel_w, pooled), given the gradient `grad` [B, N, C] of the output.

    The arguments are the same as in `attention_reference`; `pool` and `pooled` exclude each other. The gradients of
    both tables are None without `want_tables` or without tables, and the gradient of pooled is None without
    `want_pooled` or without `pooled`. With `pool`, the pooled keys and values are means of those in qkv, and the
    gradient of qkv includes the one through these means.
    """
    h, w = windows.window
    q, k, v, bias = _operands(qkv, windows, pool, rel_h, rel_w, pooled)
    wide = torch.promote_types(q.dtype, torch.float32)  # logits and softmax in at least float32
    logits = (q.to(wide) * scale) @ k.transpose(-1, -2).to(wide)
    logits = logits if bias is None else logits + bias
    p = logits.softmax(-1, dtype=wide)
    do = _windowed(grad.to(q.dtype), windows, qkv.shape[3])

    dp = (do @ v.transpose(-1, -2)).to(wide)
    ds = (p * (dp - (p * dp).sum(-1, keepdim=True))).to(q.dtype)
    dv = p.to(q.dtype).transpose(-1, -2) @ do
    dq = scale * (ds @ k)
    dk = scale * (ds.transpose(-1, -2) @ q)

    d_rel_h, d_rel_w = None, None
    if rel_h is not None and rel_w is not None:
        ds_map = ds[..., : h * w].reshape(*ds.shape[:3], h, w, h, w)
        q_map = q.unflatten(-2, (h, w))
        by_row, by_column = ds_map.sum(-1), ds_map.sum(-2)  # [B, M, H, h, w, key row], [..., key column]
        dq_map = torch.einsum("bmnyxk,ykd->bmnyxd", by_row, _relative(rel_h.to(q.dtype), h))
        dq_map = dq_map + torch.einsum("bmnyxk,xkd->bmnyxd", by_column, _relative(rel_w.to(q.dtype), w))
        dq = dq + dq_map.flatten(-3, -2)
        if want_tables:
            d_rel_h = _relative_backward(torch.einsum("bmnyxk,bmnyxd->ykd", by_row, q_map), h)
            d_rel_w = _relative_backward(torch.einsum("bmnyxk,bmnyxd->xkd", by_column, q_map), w)
    dqkv, d_pooled = _qkv_gradient(dq, dk, dv, qkv, windows, pool)
    return dqkv, d_rel_h, d_rel_w, d_pooled if want_pooled else None


def _qkv_gradient(
    dq: Tensor, dk: Tensor, dv: Tensor, qkv: Tensor, windows: Windows, pool: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of qkv, and of `pooled` [B, G, 2, H, D] if there is one, from those of `_operands`."""
    length = dq.shape[-2]
    dqkv = torch.stack([dq, dk[..., :length, :], dv[..., :length, :]], 3)  # [B, M, H, 3, L, D]
    dqkv = windows.join(dqkv.permute(0, 1, 4, 3, 2, 5).flatten(3)).reshape(qkv.shape)
    if dk.shape[-2] == length:
        return dqkv, None
    d_pooled = torch.stack([x[..., length:, :].sum(1) for x in (dk, dv)], 1).permute(0, 3, 1, 2, 4)
    if not pool:
        return dqkv, d_pooled
    flat = windows.unshifted()  # backward of the mean: every token gets an equal share
    spread = flat.join(d_pooled.flatten(2).unsqueeze(2) * _share(flat, qkv)[None, :, :, None])
    return dqkv + nnF.pad(spread.unflatten(-1, (2, *qkv.shape[3:])), (0, 0, 0, 0, 1, 0)), None


def _relative_backward(d_pairs: Tensor, size: int) -> Tensor:
    """Sum over pairs with the same query - key, [size, size, D] -> [2 size - 1, D]: the adjoint of `_relative`."""
    offset = torch.arange(size, device=d_pairs.device)
    index = (offset[:, None] - offset[None, :] + size - 1).flatten()
    return d_pairs.new_zeros(2 * size - 1, d_pairs.shape[-1]).index_add(0, index, d_pairs.flatten(0, 1))


def _partition(grid: Sequence[int], window: Sequence[int], shift: Sequence[int]) -> Windows:
    return Windows((grid[0], grid[1]), (window[0], window[1]), (shift[0], shift[1]))


def _attention_on_cpu(
    qkv: Tensor,
    grid: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int],
    pool: bool,
    rel_h: Tensor | None,
    rel_w: Tensor | None,
    scale: float,
    pooled: Tensor | None,
    triton: bool,
) -> tuple[Tensor, Tensor]:
    """Compute the op `_attention` in eager mode. What is saved for the backward pass differs: see `attention_cpu`."""
    if triton or rel_h is not None or not qkv.numel():
        return _attention.body(qkv, grid, window, shift, pool, rel_h, rel_w, scale, pooled, triton)
    windows = _partition(grid, window, shift)
    out, lse = attention_cpu.forward(*_flat(*_operands(qkv, windows, pool, None, None, pooled)), scale)
    return _joined(out, windows, qkv.shape[0]), lse


@triton_op("vitpose_fast::attention", _attention_on_cpu)
def _attention(
    qkv: Tensor,
    grid: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int],
    pool: bool,
    rel_h: Tensor | None,
    rel_w: Tensor | None,
    scale: float,
    pooled: Tensor | None,
    triton: bool,
) -> tuple[Tensor, Tensor]:
    """Return out [B, N, C] and, for the backward pass, the log-sum-exp of each query's logits, [B, H, N] float32.

    The log-sum-exp is natural and includes the pooled keys. The reference returns an empty tensor instead.
    """
    windows = _partition(grid, window, shift)
    if not triton:
        out = attention_reference(qkv, windows, pool, rel_h, rel_w, scale, pooled)
        return out, qkv.new_empty(0, dtype=torch.float32)
    from vitpose_kernels.gpu import attention as gpu

    return run(*gpu.forward(qkv, windows, pool, rel_h, rel_w, scale, pooled, architecture(qkv)))


def _attention_backward_on_cpu(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    qkv: Tensor,
    grid: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int],
    pool: bool,
    rel_h: Tensor | None,
    rel_w: Tensor | None,
    scale: float,
    pooled: Tensor | None,
    want_tables: bool,
    want_pooled: bool,
    triton: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the op `_attention_backward` in eager mode, from what `_attention_on_cpu` or the op itself has saved."""
    windows, (b, _, _, heads, _) = _partition(grid, window, shift), qkv.shape
    if not triton and rel_h is None and qkv.numel():
        q, k, v, bias = _flat(*_operands(qkv, windows, pool, None, None, pooled))
        kept = lse.dim() > 1
        if kept or attention_cpu.by_products(q, bias):
            do = _windowed(grad.to(qkv.dtype), windows, heads).flatten(0, 1)
            o = _windowed(out, windows, heads).flatten(0, 1) if kept else None
            dq, dk, dv = (x.unflatten(0, (b, -1)) for x in attention_cpu.backward(do, q, k, v, bias, scale, o, lse))
            dqkv, d_pooled = _qkv_gradient(dq, dk, dv, qkv, windows, pool)
            nothing = qkv.new_empty(0)
            d_pooled = nothing if d_pooled is None or pooled is None else contiguous_like(pooled, d_pooled)
            return contiguous_like(qkv, dqkv), nothing, nothing, d_pooled
    return _attention_backward.body(
        grad, out, lse, qkv, grid, window, shift, pool, rel_h, rel_w, scale, pooled, want_tables, want_pooled, triton
    )


@triton_op("vitpose_fast::attention_backward", _attention_backward_on_cpu)
def _attention_backward(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    qkv: Tensor,
    grid: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int],
    pool: bool,
    rel_h: Tensor | None,
    rel_w: Tensor | None,
    scale: float,
    pooled: Tensor | None,
    want_tables: bool,
    want_pooled: bool,
    triton: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of qkv, rel_h, rel_w and pooled; one that is not wanted is an empty tensor.

    `out` and `lse` (log-sum-exp) are the results of the forward pass; the reference does not use them.
    """
    windows = _partition(grid, window, shift)
    grads: tuple[Tensor | None, ...]
    if triton:
        from vitpose_kernels.gpu import attention_backward as gpu

        arguments = (qkv, windows, pool, rel_h, rel_w, scale, pooled, want_tables, want_pooled, architecture(qkv))
        grads = run(*gpu.backward(grad.to(qkv.dtype).contiguous(), out, lse, *arguments)).summed()
    else:
        grads = attention_backward_reference(
            grad, qkv, windows, pool, rel_h, rel_w, scale, pooled, want_tables, want_pooled
        )
    dqkv, d_rel_h, d_rel_w, d_pooled = (
        qkv.new_empty(0) if g is None or x is None else contiguous_like(x, g)
        for x, g in zip((qkv, rel_h, rel_w, pooled), grads, strict=True)
    )
    return dqkv, d_rel_h, d_rel_w, d_pooled


def _setup_context(ctx, inputs, output) -> None:
    qkv, grid, window, shift, pool, rel_h, rel_w, scale, pooled, triton = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(qkv, rel_h, rel_w, pooled, *((None, None) if lse.dim() == 1 else (out, lse)))
    ctx.options = (grid, window, shift, pool, scale, triton)


def _backward(ctx, grad: Tensor, _grad_lse: Tensor | None):
    qkv, rel_h, rel_w, pooled, out, lse = ctx.saved_tensors
    grid, window, shift, pool, scale, triton = ctx.options
    wanted = ctx.needs_input_grad  # qkv, grid, window, shift, pool, rel_h, rel_w, scale, pooled, triton
    out, lse = (qkv.new_empty(0), qkv.new_empty(0)) if out is None else (out, lse)
    dqkv, d_rel_h, d_rel_w, d_pooled = _attention_backward(
        grad, out, lse, qkv, grid, window, shift, pool, rel_h, rel_w, scale, pooled,
        wanted[5] or wanted[6], wanted[8], triton,
    )  # fmt: skip
    tables = (d_rel_h if wanted[5] else None, d_rel_w if wanted[6] else None)
    return dqkv, None, None, None, None, *tables, None, d_pooled if wanted[8] else None, None


_attention.register_autograd(_backward, setup_context=_setup_context)


def attention_call(qkv: Tensor, backward: bool) -> Call:
    """Return the key of measured choices for whole-map attention, also `backward`: shape (N, H, D); its rows are B."""
    shape = (qkv.shape[1], qkv.shape[3], qkv.shape[4])
    return Call.of("attention", shape, qkv.dtype, "forward+backward" if backward else "forward")


def attention(
    qkv: Tensor,
    grid: tuple[int, int],
    window: tuple[int, int] | None = None,
    shift: tuple[int, int] = (0, 0),
    pool: bool = False,
    rel_pos: tuple[Tensor, Tensor] | None = None,
    scale: float | None = None,
    pooled: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """Compute multi-head attention over packed qkv. The module docstring has the formula.

    Args:
        qkv: [B, N, 3, H, D], queries, keys and values of H attention heads of width D. The N tokens are row-major over
            `grid`; any strides.
        grid: (rows, columns) of tokens, rows * columns = N.
        window: (rows, columns) of a window in tokens, at most those of `grid`. Tokens attend only to tokens of their
            window. None means that the whole map is one window.
        shift: (rows, columns) in tokens by which the windows are shifted, 0 <= shift < window.
        pool: let every query also attend to the mean key and the mean value of each window of the unshifted partition.
        rel_pos: tables of decomposed relative position, (rel_h [2h - 1, D], rel_w [2w - 1, D]) for an (h, w) window.
        scale: factor on q.k. Default: D ** -0.5.
        pooled: [B, G, 2, H, D], G keys and values (in this order) that every query also attends to, instead of those
            that `pool=True` computes.
        impl: None (by device and measured choices), "triton" or "reference". For attention over the whole map without
            shift, pooled keys and relative position also: "sdpa" (PyTorch's), or pinned to one of its back ends
            "sdpa:flash", "sdpa:efficient", "sdpa:cudnn" or "sdpa:math"; "products" (two batched matrix products around
            a softmax); and, on a GPU, "flash_attn" or "xformers" if they are installed.

    Returns:
        [B, N, H * D], contiguous, in the dtype of `qkv`; differentiable in qkv, rel_pos and pooled. Autocast casts all
        inputs.

    Raises:
        ValueError: shapes or devices do not fit each other, window or shift is out of range, both `pool` and `pooled`
            are given, or `impl` does not support the call. The Triton kernels also refuse a head width above 128, and
            qkv or pooled with strides by which one sample spans 2^31 elements or more.
    """
    op = "attention"
    if not (qkv.dim() == 5 and qkv.shape[2] == 3):
        raise ValueError(f"{op}: qkv has shape {list(qkv.shape)}, expected [B, N, 3, H, D]")
    b, n, _, heads, width = qkv.shape
    if not (len(grid) == 2 and grid[0] * grid[1] == n):
        raise ValueError(f"{op}: grid {tuple(grid)} does not hold the {n} tokens of qkv")
    window = (grid[0], grid[1]) if window is None else (window[0], window[1])
    for name, g, w, s in zip(("rows", "columns"), grid, window, shift, strict=True):
        if not 1 <= w <= g:
            raise ValueError(
                f"{op}: window {window} does not fit grid {tuple(grid)}: need 1 <= window <= grid for {name}"
            )
        if not 0 <= s < w:
            raise ValueError(
                f"{op}: shift {tuple(shift)} does not fit window {window}: need 0 <= shift < window for {name}"
            )
    if pool and pooled is not None:
        raise ValueError(f"{op}: got pool=True and pooled; pass only one of them")
    if pooled is not None:
        fits = pooled.dim() == 5 and pooled.shape[0] == b and tuple(pooled.shape[2:]) == (2, heads, width)
        if not fits:
            raise ValueError(f"{op}: pooled has shape {list(pooled.shape)}, expected [{b}, G, 2, {heads}, {width}]")
    rel_h, rel_w = (None, None) if rel_pos is None else rel_pos
    if (rel_h is None) != (rel_w is None):
        raise ValueError(f"{op}: rel_pos holds one table, expected (rel_h, rel_w)")
    for name, table, size in (("rel_h", rel_h, window[0]), ("rel_w", rel_w, window[1])):
        if table is not None:
            fits = tuple(table.shape) == (2 * size - 1, width)
            if not fits:
                raise ValueError(
                    f"{op}: {name} has shape {list(table.shape)}, expected [{2 * size - 1}, {width}] for window "
                    f"{window}"
                )
    check_device(op, qkv, rel_h=rel_h, rel_w=rel_w, pooled=pooled)
    scale = width**-0.5 if scale is None else float(scale)
    qkv, rel_h, rel_w, pooled = autocast_inputs(qkv, rel_h, rel_w, pooled)  # type: ignore[assignment]
    plain = window == tuple(grid) and not any(shift) and not pool and rel_pos is None and pooled is None
    if impl is None and plain:
        choice = find(attention_call(qkv, qkv.requires_grad and torch.is_grad_enabled()), b, qkv)
        impl = None if choice is None else choice.impl
    impl = choose_impl(op, impl, qkv, others=LIBRARIES)
    if impl in LIBRARIES:
        if not plain:
            raise ValueError(
                f"{op}: impl={impl!r} supports only the whole map, without window, shift, pool, pooled and rel_pos"
            )
        with without_autocast(qkv):
            return library_attention(qkv, scale, impl).contiguous()
    if impl == "triton":
        if width > 128:
            raise ValueError(f"{op}: qkv has head width {width}, the Triton kernel takes at most 128")
        check_reach(op, qkv=qkv, pooled=pooled)
    with without_autocast(qkv):
        if plain and impl == "reference" and not attention_cpu.by_products(qkv, None) and is_eager((qkv,)):
            windows = _partition(grid, window, shift)  # PyTorch's own autograd saves and computes the same
            return attention_reference(qkv, windows, False, None, None, scale, None)
        options = (list(grid), list(window), list(shift), bool(pool), rel_h, rel_w, scale, pooled)
        return _attention(qkv, *options, impl == "triton")[0]
