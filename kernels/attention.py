"""Multi-head attention over packed qkv: whole map, windows, shifted windows, pooled windows, relative position.

    logits = scale * q.k + q.rel_h[yq - yk + h - 1] + q.rel_w[xq - xk + w - 1]        (unscaled q in the position terms)
    out    = softmax(logits over the keys of the window, then the pooled keys) . values

Letters: B batch, N tokens (row-major over the grid), H heads, D head width, C = H * D, (h, w) window, L = h * w,
M windows per image, G pooled keys per image.

    qkv     [B, N, 3, H, D] float           pooled [B, G, 2, H, D] float (keys, values)
    rel_h   [2h - 1, D], rel_w [2w - 1, D]  out [B, N, C] in the dtype of qkv

Semantics where the paper is silent (sec. 3.3; SPEC 10):
  * a grid that the windows do not divide is padded right and bottom first; the padded map is rolled and cut; padded
    places are never keys and never count in a mean;
  * shift (sy, sx): the map is rolled by (-sy, -sx); tokens that were not neighbours before do not see each other;
  * pool: one extra key and value per window of the unshifted partition, the mean of its keys and values; every query
    sees those of all windows, without position bias and without mask.

FLOPs forward: 4 B N (L + G) C; bytes: 4 B N C elements (qkv in, out out). Memory-bound at 192 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as nnF
from torch import Tensor
from torch.library import triton_op

from vitpose_fast.kernels._launch import autocast_inputs, check, choose_impl, contiguous_like, without_autocast


class _Windows(NamedTuple):
    """How a grid is cut: all sizes in tokens."""

    grid: tuple[int, int]
    window: tuple[int, int]
    shift: tuple[int, int]

    @property
    def windows(self) -> tuple[int, int]:
        return -(-self.grid[0] // self.window[0]), -(-self.grid[1] // self.window[1])

    @property
    def padded(self) -> tuple[int, int]:
        return self.windows[0] * self.window[0], self.windows[1] * self.window[1]

    def unshifted(self) -> _Windows:
        return self._replace(shift=(0, 0))

    def cut(self, x: Tensor) -> Tensor:
        """[B, N, F] -> [B, M, L, F]: pad with zeros, roll, cut."""
        (gy, gx), (py, px), (h, w), (my, mx) = self.grid, self.padded, self.window, self.windows
        x = x.reshape(x.shape[0], gy, gx, x.shape[-1])
        x = nnF.pad(x, (0, 0, 0, px - gx, 0, py - gy))
        if any(self.shift):
            x = x.roll((-self.shift[0], -self.shift[1]), (1, 2))
        x = x.reshape(x.shape[0], my, h, mx, w, x.shape[-1]).transpose(2, 3)
        return x.reshape(x.shape[0], my * mx, h * w, x.shape[-1])

    def join(self, x: Tensor) -> Tensor:
        """[B, M, L, F] -> [B, N, F]: the inverse of `cut` (and its adjoint: padded places are dropped)."""
        (gy, gx), (py, px), (h, w), (my, mx) = self.grid, self.padded, self.window, self.windows
        x = x.reshape(x.shape[0], my, mx, h, w, x.shape[-1]).transpose(2, 3)
        x = x.reshape(x.shape[0], py, px, x.shape[-1])
        if any(self.shift):
            x = x.roll(self.shift, (1, 2))
        return x[:, :gy, :gx].reshape(x.shape[0], gy * gx, x.shape[-1])

    def is_token(self, device: torch.device) -> Tensor:
        """[M, L] bool: the slot holds a token, not padding."""
        return self.cut(torch.ones(1, self.grid[0] * self.grid[1], 1, device=device))[0, :, :, 0] > 0

    def visible(self, device: torch.device) -> Tensor | None:
        """[M, 1, L, L] bool: query slot sees key slot. None where every slot of a window sees every other."""
        mask = self.is_token(device)[:, None, :] if self.padded != self.grid else None
        if any(self.shift):
            py, px = self.padded
            wrapped_y = torch.arange(py, device=device) + self.shift[0] >= py
            wrapped_x = torch.arange(px, device=device) + self.shift[1] >= px
            region = (2 * wrapped_y[:, None] + wrapped_x[None, :]).reshape(1, py * px, 1).float()
            region = _Windows(self.padded, self.window, (0, 0)).cut(region)[0, :, :, 0]
            same = region[:, :, None] == region[:, None, :]
            mask = same if mask is None else mask & same
        # A padded query is dropped later but must not make NaN: let every slot see itself.
        return None if mask is None else (mask | torch.eye(mask.shape[-1], dtype=torch.bool, device=device))[:, None]


def _split(qkv_windows: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """[B, M, L, 3C] -> three of [B, M, H, L, D]."""
    width = qkv_windows.shape[-1] // (3 * heads)
    q, k, v = qkv_windows.unflatten(-1, (3, heads, width)).permute(3, 0, 1, 4, 2, 5).unbind(0)
    return q, k, v


def _relative(table: Tensor, size: int) -> Tensor:
    """[2 size - 1, D] -> [size (query), size (key), D]."""
    offset = torch.arange(size, device=table.device)
    return table[offset[:, None] - offset[None, :] + size - 1]


def _share(windows: _Windows, like: Tensor) -> Tensor:
    """Weight of each slot in the mean of its window, 0 for padding: [M, L]."""
    is_token = windows.is_token(like.device)
    return is_token.to(like.dtype) / is_token.sum(-1, keepdim=True).to(like.dtype)


def _pooled_keys(qkv: Tensor, windows: _Windows, pool: bool, pooled: Tensor | None) -> Tensor | None:
    """[2, B, H, G, D] keys and values that every query sees, or None."""
    _, _, _, heads, width = qkv.shape
    if pool:
        flat = windows.unshifted()
        pooled = torch.einsum("bmlf,ml->bmf", flat.cut(qkv[:, :, 1:].flatten(2)), _share(flat, qkv))
        pooled = pooled.unflatten(-1, (2, heads, width))
    return None if pooled is None else pooled.permute(2, 0, 3, 1, 4)


def _logit_bias(
    q: Tensor, windows: _Windows, rel_h: Tensor | None, rel_w: Tensor | None, num_extra: int
) -> Tensor | None:
    """What is added to scale * q.k, broadcastable to [B, M, H, L, L + G] with -inf where a key is not seen, or None."""
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
    """Keys or values [B, M, H, L, D] followed by the pooled ones [B, H, G, D]."""
    if extra is None:
        return own
    return torch.cat([own, extra.unsqueeze(1).expand(-1, own.shape[1], -1, -1, -1)], -2)


def attention_reference(
    qkv: Tensor,
    windows: _Windows,
    pool: bool,
    rel_h: Tensor | None,
    rel_w: Tensor | None,
    scale: float,
    pooled: Tensor | None,
) -> Tensor:
    """The specification in plain PyTorch: [B, N, C]."""
    q, k, v = _split(windows.cut(qkv.flatten(2)), qkv.shape[3])
    extra = _pooled_keys(qkv, windows, pool, pooled)
    extra_k, extra_v = (None, None) if extra is None else extra.unbind(0)
    bias = _logit_bias(q, windows, rel_h, rel_w, 0 if extra is None else extra.shape[-2])
    if bias is not None:
        bias = bias.expand(*q.shape[:2], -1, -1, -1).flatten(0, 1)
    q, k, v = (x.flatten(0, 1) for x in (q, _with_extra(k, extra_k), _with_extra(v, extra_v)))
    out = nnF.scaled_dot_product_attention(q, k, v, bias, scale=scale)  # [B * M, H, L, D]
    out = out.unflatten(0, (qkv.shape[0], windows.windows[0] * windows.windows[1]))
    return windows.join(out.transpose(2, 3).flatten(-2)).contiguous()


def attention_backward_reference(
    grad: Tensor,
    qkv: Tensor,
    windows: _Windows,
    pool: bool,
    rel_h: Tensor | None,
    rel_w: Tensor | None,
    scale: float,
    pooled: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of qkv, rel_h, rel_w and pooled; an empty tensor for one that was not given."""
    b, n, _, heads, width = qkv.shape
    h, w = windows.window
    q, k, v = _split(windows.cut(qkv.flatten(2)), heads)
    extra = _pooled_keys(qkv, windows, pool, pooled)
    extra_k, extra_v = (None, None) if extra is None else extra.unbind(0)
    wide = torch.promote_types(q.dtype, torch.float32)  # logits and statistics are not taken in half precision
    logits = (q.to(wide) * scale) @ _with_extra(k, extra_k).transpose(-1, -2).to(wide)
    bias = _logit_bias(q, windows, rel_h, rel_w, 0 if extra is None else extra.shape[-2])
    logits = logits if bias is None else logits + bias
    p = logits.softmax(-1, dtype=wide)
    length = k.shape[-2]
    do = windows.cut(grad.to(q.dtype)).unflatten(-1, (heads, width)).transpose(2, 3)  # [B, M, H, L, D]

    dp = (do @ _with_extra(v, extra_v).transpose(-1, -2)).to(wide)
    ds = (p * (dp - (p * dp).sum(-1, keepdim=True))).to(q.dtype)
    p = p.to(q.dtype)
    dv = p[..., :length].transpose(-1, -2) @ do
    ds_window = ds[..., :length]
    dq = scale * (ds_window @ k)
    dk = scale * (ds_window.transpose(-1, -2) @ q)

    d_rel_h, d_rel_w, d_pooled = (qkv.new_empty(0) for _ in range(3))
    if rel_h is not None and rel_w is not None:
        ds_map = ds_window.reshape(*ds_window.shape[:3], h, w, h, w)
        q_map = q.unflatten(-2, (h, w))
        by_row, by_column = ds_map.sum(-1), ds_map.sum(-2)  # [B, M, H, h, w, key row], [..., key column]
        dq_map = torch.einsum("bmnyxk,ykd->bmnyxd", by_row, _relative(rel_h.to(q.dtype), h))
        dq_map = dq_map + torch.einsum("bmnyxk,xkd->bmnyxd", by_column, _relative(rel_w.to(q.dtype), w))
        dq = dq + dq_map.flatten(-3, -2)
        d_rel_h = _relative_backward(torch.einsum("bmnyxk,bmnyxd->ykd", by_row, q_map), h)
        d_rel_w = _relative_backward(torch.einsum("bmnyxk,bmnyxd->xkd", by_column, q_map), w)

    dqkv = torch.stack([dq, dk, dv], 3).permute(0, 1, 4, 3, 2, 5).flatten(3)  # [B, M, L, 3C]
    dqkv = windows.join(dqkv).reshape(b, n, 3, heads, width)
    if extra is not None:
        ds_extra, p_extra = ds[..., length:], p[..., length:]
        dq_extra = scale * (ds_extra @ extra[0].unsqueeze(1))
        dq_extra = windows.join(dq_extra.transpose(2, 3).flatten(-2)).reshape(b, n, 1, heads, width)
        d_keys = scale * torch.einsum("bmnlg,bmnld->bgnd", ds_extra, q)
        d_values = torch.einsum("bmnlg,bmnld->bgnd", p_extra, do)
        d_pooled = torch.stack([d_keys, d_values], 2)  # [B, G, 2, H, D]
        dqkv = dqkv + nnF.pad(dq_extra, (0, 0, 0, 0, 0, 2))
        if pool:  # the mean hands each token of the window an equal share
            flat = windows.unshifted()
            spread = flat.join(d_pooled.flatten(2).unsqueeze(2) * _share(flat, qkv)[None, :, :, None])
            dqkv = dqkv + nnF.pad(spread.reshape(b, n, 2, heads, width), (0, 0, 0, 0, 1, 0))
            d_pooled = qkv.new_empty(0)
    return dqkv, d_rel_h, d_rel_w, d_pooled


def _relative_backward(d_pairs: Tensor, size: int) -> Tensor:
    """[size, size, D] -> [2 size - 1, D]: sum over the pairs of equal offset (the adjoint of `_relative`)."""
    offset = torch.arange(size, device=d_pairs.device)
    index = (offset[:, None] - offset[None, :] + size - 1).flatten()
    return d_pairs.new_zeros(2 * size - 1, d_pairs.shape[-1]).index_add(0, index, d_pairs.flatten(0, 1))


@triton_op("vitpose_fast::attention", mutates_args=())
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
) -> Tensor:
    windows = _Windows((grid[0], grid[1]), (window[0], window[1]), (shift[0], shift[1]))
    return attention_reference(qkv, windows, pool, rel_h, rel_w, scale, pooled)


@triton_op("vitpose_fast::attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor,
    qkv: Tensor,
    grid: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int],
    pool: bool,
    rel_h: Tensor | None,
    rel_w: Tensor | None,
    scale: float,
    pooled: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    windows = _Windows((grid[0], grid[1]), (window[0], window[1]), (shift[0], shift[1]))
    grads = attention_backward_reference(grad, qkv, windows, pool, rel_h, rel_w, scale, pooled)
    dqkv, d_rel_h, d_rel_w, d_pooled = (contiguous_like(qkv, g) for g in grads)
    return dqkv, d_rel_h, d_rel_w, d_pooled


def _setup_context(ctx, inputs, output) -> None:
    qkv, grid, window, shift, pool, rel_h, rel_w, scale, pooled = inputs
    ctx.save_for_backward(qkv, rel_h, rel_w, pooled)
    ctx.options = (grid, window, shift, pool, scale)


def _backward(ctx, grad: Tensor):
    qkv, rel_h, rel_w, pooled = ctx.saved_tensors
    grid, window, shift, pool, scale = ctx.options
    dqkv, d_rel_h, d_rel_w, d_pooled = _attention_backward(
        grad, qkv, grid, window, shift, pool, rel_h, rel_w, scale, pooled
    )
    d_rel_h, d_rel_w = (None, None) if rel_h is None else (d_rel_h, d_rel_w)
    return dqkv, None, None, None, None, d_rel_h, d_rel_w, None, None if pooled is None else d_pooled


_attention.register_autograd(_backward, setup_context=_setup_context)


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
    """Attention over packed qkv; see the head of this file for the formula.

    Args:
        qkv: [B, N, 3, H, D], tokens row-major over `grid`, any strides.
        grid: (rows, columns) of tokens, rows * columns = N.
        window: (rows, columns) of a window; None: the whole map is one window.
        shift: roll of the windows, 0 <= shift < window.
        pool: append the mean key and value of every unshifted window for every query.
        rel_pos: (rel_h [2h - 1, D], rel_w [2w - 1, D]), decomposed relative position of the window.
        scale: factor of q.k; None: D ** -0.5.
        pooled: [B, G, 2, H, D] keys and values handed in, instead of `pool=True`.
        impl: None or "reference".

    Returns:
        [B, N, H * D], contiguous, dtype of `qkv`; differentiable in qkv, rel_pos and pooled.

    Raises:
        ValueError: shapes that do not fit each other, a shift outside its window, `pool` together with `pooled`.
    """
    op = "attention"
    choose_impl(op, impl, qkv)
    check(qkv.dim() == 5 and qkv.shape[2] == 3, op, f"qkv has shape {list(qkv.shape)}, expected [B, N, 3, H, D]")
    b, n, _, heads, width = qkv.shape
    check(len(grid) == 2 and grid[0] * grid[1] == n, op, f"grid {tuple(grid)} does not hold the {n} tokens of qkv")
    window = (grid[0], grid[1]) if window is None else (window[0], window[1])
    for name, g, w, s in zip(("rows", "columns"), grid, window, shift, strict=True):
        check(1 <= w <= g, op, f"window {window} does not fit grid {tuple(grid)}: need 1 <= window <= grid for {name}")
        check(0 <= s < w, op, f"shift {tuple(shift)} does not fit window {window}: need 0 <= shift < window for {name}")
    check(not (pool and pooled is not None), op, "got pool=True and pooled; hand in one of them")
    if pooled is not None:
        fits = pooled.dim() == 5 and pooled.shape[0] == b and tuple(pooled.shape[2:]) == (2, heads, width)
        check(fits, op, f"pooled has shape {list(pooled.shape)}, expected [{b}, G, 2, {heads}, {width}]")
    rel_h, rel_w = (None, None) if rel_pos is None else rel_pos
    check((rel_h is None) == (rel_w is None), op, "rel_pos holds one table, expected (rel_h, rel_w)")
    for name, table, size in (("rel_h", rel_h, window[0]), ("rel_w", rel_w, window[1])):
        if table is not None:
            fits = tuple(table.shape) == (2 * size - 1, width)
            check(
                fits,
                op,
                f"{name} has shape {list(table.shape)}, expected [{2 * size - 1}, {width}] for window {window}",
            )
    scale = width**-0.5 if scale is None else float(scale)
    qkv, rel_h, rel_w, pooled = autocast_inputs(qkv, rel_h, rel_w, pooled)  # type: ignore[assignment]
    with without_autocast(qkv):
        return _attention(qkv, list(grid), list(window), list(shift), bool(pool), rel_h, rel_w, scale, pooled)
