"""Triton kernels of `split_ffn`, the feed-forward network with a shared part and one expert per task.

Letters: B samples, N tokens, C channels, F hidden channels, T tasks, P expert channels. The weight of the second layer
(fc2) has C rows: C - P shared rows, shared_weight [C - P, F], then P rows of the expert of the sample's task, from
expert_weight [T, P, F]. `before` [B, N, F] is the input of the GELU, `hidden` [B, N, F] its output.

Forward: two products of `linear`; the second uses the expert of each sample.

Backward: `before_gradient_kernel` propagates the gradient through fc2 and the GELU. `expert_gradient_kernel` sums the
weight gradient of each expert over the samples of its task. The remaining gradients are plain matrix products, left to
PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitpose_kernels.gpu import linear
from vitpose_kernels.gpu.linear import (
    alignment,
    choose_tiles,
    gelu_and_slope,
    in_halves,
    linear_kernel,
    load,
    tile_order,
)
from vitpose_kernels.launch import Launch, cdiv, multiprocessors, num_bytes


@triton.jit
def finish_before_gradient(acc, r, row, left, first_column, num_hidden, before_ptr, d_before_ptr, hidden_ptr):
    """Multiply a tile by the derivative of the GELU, store it as the gradient of `before`; store `hidden` if wanted.

    acc is the tile of the gradient of `hidden`, in fp32. Its rows are `row + r`, of which those with r < left exist.
    Its columns start at first_column; those below num_hidden exist. hidden_ptr is None if `hidden` is not wanted.
    """
    BLOCK_M: tl.constexpr = acc.shape[0]
    HALF: tl.constexpr = acc.shape[1] // 2
    # Half of the columns at a time: the GELU of a whole tile would spill registers.
    left_half, right_half = tl.split(tl.permute(tl.reshape(acc, [BLOCK_M, 2, HALF]), (0, 2, 1)))
    for half in tl.static_range(2):
        column = first_column + half * HALF + tl.arange(0, HALF)
        keep = (r < left)[:, None] & (column < num_hidden)[None, :]
        place = row * num_hidden + (r[:, None] * num_hidden + column[None, :])
        before = tl.load(before_ptr + place, keep, 0.0).to(tl.float32)
        hidden, slope = gelu_and_slope(before)
        if half == 0:
            d_before = left_half * slope
        else:
            d_before = right_half * slope
        tl.store(d_before_ptr + place, d_before.to(d_before_ptr.dtype.element_ty), keep)
        if hidden_ptr is not None:
            tl.store(hidden_ptr + place, hidden.to(hidden_ptr.dtype.element_ty), keep)


@triton.jit
def before_gradient_kernel(
    grad_ptr, shared_weight_ptr, expert_weight_ptr, task_ptr, before_ptr, d_before_ptr, hidden_ptr,
    num_samples, num_tokens, num_channels, num_hidden, num_tasks, part,
    EVEN_K: tl.constexpr, ALIGNMENT: tl.constexpr,
    BLOCK_M: tl.constexpr, TAIL: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of `before` for BLOCK_M + TAIL tokens of one sample and BLOCK_N hidden channels.

    grad_ptr: [B, N, C], the gradient of the output. hidden_ptr: where to store the GELU of `before`, or None. The
    gradient of a sample whose task is outside 0..T - 1 is NaN. `part`: P. EVEN_K: C is a multiple of BLOCK_K.
    ALIGNMENT: bytes to which every row of both weights is aligned.
    """
    blocks = tl.cdiv(num_tokens, BLOCK_M + TAIL)
    block_m, block_n = tile_order(tl.program_id(0), num_samples * blocks, tl.cdiv(num_hidden, BLOCK_N), 8)
    sample = block_m // blocks
    first = (block_m % blocks) * (BLOCK_M + TAIL)
    row = sample.to(tl.int64) * num_tokens + first
    left = num_tokens - first
    column = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    task = tl.load(task_ptr + sample)
    known = (task >= 0) & (task < num_tasks)
    shared = num_channels - part
    expert_ptr = expert_weight_ptr + (tl.where(known, task, 0) * part - shared) * num_hidden
    k = tl.arange(0, BLOCK_K)
    r = tl.arange(0, BLOCK_M)
    tail = BLOCK_M + tl.arange(0, TAIL if TAIL else 1)
    g_tile = grad_ptr + row * num_channels
    g_block = g_tile + (tl.minimum(r, left - 1)[:, None] * num_channels + k[None, :])
    g_tail_block = g_tile + (tl.minimum(tail, left - 1)[:, None] * num_channels + k[None, :])
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    acc_tail = tl.zeros([TAIL if TAIL else 1, BLOCK_N], tl.float32)
    for start in range(0, num_channels, BLOCK_K):
        channel = start + k
        w_row = tl.where(channel < shared, shared_weight_ptr, expert_ptr) + channel.to(tl.int64) * num_hidden
        w_block = tl.multiple_of(w_row, ALIGNMENT)[:, None] + column[None, :]
        inside = channel < num_channels
        w = tl.load(w_block, inside[:, None] & (column < num_hidden)[None, :], 0.0)
        acc = tl.dot(load(g_block, inside[None, :], EVEN_K), w, acc, input_precision="tf32x3")
        if TAIL:
            g_tail = load(g_tail_block, inside[None, :], EVEN_K)
            acc_tail = tl.dot(g_tail, w, acc_tail, input_precision="tf32x3")
        g_block += BLOCK_K
        g_tail_block += BLOCK_K
    poison = tl.where(known, 0.0, float("nan"))  # an unknown task has used expert 0: return NaN instead
    finish_before_gradient(
        acc + poison, r, row, left, block_n * BLOCK_N, num_hidden, before_ptr, d_before_ptr, hidden_ptr
    )
    if TAIL:
        finish_before_gradient(
            acc_tail + poison, tail, row, left, block_n * BLOCK_N, num_hidden, before_ptr, d_before_ptr, hidden_ptr
        )


@triton.jit
def expert_gradient_kernel(
    grad_ptr, hidden_ptr, order_ptr, starts_ptr, d_weight_ptr, num_tokens, num_channels, num_hidden, part,
    BLOCK_M: tl.constexpr, TAIL: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Compute the weight gradient of one expert for BLOCK_M + TAIL of its channels and BLOCK_N hidden channels.

    order_ptr: [B], the samples sorted by task. starts_ptr: [T + 1]; the samples of task t are order[starts[t]] to
    order[starts[t + 1] - 1]. The gradient is 0 if there are none. `part`: P.
    """
    blocks_m = tl.cdiv(part, BLOCK_M + TAIL)
    blocks_n = tl.cdiv(num_hidden, BLOCK_N)
    task = tl.program_id(0) // (blocks_m * blocks_n)
    tile = tl.program_id(0) % (blocks_m * blocks_n)
    first = (tile % blocks_m) * (BLOCK_M + TAIL)
    column = (tile // blocks_m) * BLOCK_N + tl.arange(0, BLOCK_N)
    r = first + tl.arange(0, BLOCK_M)
    tail = first + BLOCK_M + tl.arange(0, TAIL if TAIL else 1)
    k = tl.arange(0, BLOCK_K)
    grad_ptr += num_channels - part
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    acc_tail = tl.zeros([TAIL if TAIL else 1, BLOCK_N], tl.float32)
    # One loop over all tokens of all samples of the task, so that loads are pipelined across samples.
    steps = tl.cdiv(num_tokens, BLOCK_K)
    begin = tl.load(starts_ptr + task).to(tl.int32)
    end = tl.load(starts_ptr + task + 1).to(tl.int32)
    for step in range(begin * steps, end * steps):
        token = (step % steps) * BLOCK_K + k
        row = tl.load(order_ptr + step // steps) * num_tokens + token
        inside = token < num_tokens
        h_block = hidden_ptr + row[:, None] * num_hidden + column[None, :]
        h = tl.load(h_block, inside[:, None] & (column < num_hidden)[None, :], 0.0)
        g_row = grad_ptr + row * num_channels
        g = tl.load(g_row[None, :] + r[:, None], inside[None, :] & (r < part)[:, None], 0.0)
        acc = tl.dot(g, h, acc, input_precision="tf32x3")
        if TAIL:
            g_tail = tl.load(g_row[None, :] + tail[:, None], inside[None, :] & (tail < part)[:, None], 0.0)
            acc_tail = tl.dot(g_tail, h, acc_tail, input_precision="tf32x3")
    d_weight_ptr += task.to(tl.int64) * part * num_hidden
    tl.store(
        d_weight_ptr + (r[:, None] * num_hidden + column[None, :]),
        acc.to(d_weight_ptr.dtype.element_ty),
        (r < part)[:, None] & (column < num_hidden)[None, :],
    )
    if TAIL:
        tl.store(
            d_weight_ptr + (tail[:, None] * num_hidden + column[None, :]),
            acc_tail.to(d_weight_ptr.dtype.element_ty),
            (tail < part)[:, None] & (column < num_hidden)[None, :],
        )


def forward(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    shared_weight: Tensor,
    shared_bias: Tensor,
    expert_weight: Tensor,
    expert_bias: Tensor,
    task: Tensor,
    residual: Tensor | None,
    save: bool,
    arch: int,
) -> tuple[tuple[Tensor, Tensor], list[Launch]]:
    """Return ((out [B, N, C], `before` [B, N, F]), launches). All tensors must be contiguous.

    Args:
        x: [B, N, C].
        fc1_weight, fc1_bias: [F, C] and [F].
        shared_weight, shared_bias: [C - P, F] and [C - P].
        expert_weight, expert_bias: [T, P, F] and [T, P].
        task: int64 [B].
        residual: [B, N, C], added to the output, which takes its dtype; or None.
        save: whether to store `before`; otherwise an empty tensor is returned for it.
    """
    (b, n, c), (t, p, f) = x.shape, expert_weight.shape
    before = x.new_empty((b, n, f) if save else 0)
    rows = x.view(b * n, c)
    hidden, launches = linear.forward(rows, fc1_weight, fc1_bias, True, None, None, arch, before if save else None)
    out = torch.empty_like(x if residual is None else residual)
    tiles = choose_tiles(b, n, c, x.dtype, arch, multiprocessors(x, arch))
    arguments = dict(
        x_ptr=hidden,
        weight_ptr=shared_weight,
        bias_ptr=shared_bias,
        expert_weight_ptr=expert_weight,
        expert_bias_ptr=expert_bias,
        task_ptr=task,
        mean_ptr=None,
        rstd_ptr=None,
        weight_sums_ptr=None,
        residual_ptr=residual,
        before_ptr=None,
        out_ptr=out,
        num_samples=b,
        num_tokens=n,
        num_columns=c,
        num_inputs=f,
        num_tasks=t,
        part=p,
        stride_x=f,
        stride_weight=f,
        stride_residual=c,
        GELU=False,
        EVEN_K=f % tiles.BLOCK_K == 0,
        ALIGNMENT=alignment(shared_weight, expert_weight),
        SPLIT=1,
        HALVES=in_halves(tiles, arch),
        **tiles.shape,
    )
    grid = (b * cdiv(n, tiles.BLOCK_M + tiles.TAIL) * cdiv(c, tiles.BLOCK_N),)
    weights = (shared_weight, shared_bias, expert_weight, expert_bias, task)
    fc2 = Launch(
        linear_kernel,
        grid,
        arguments,
        tiles.num_warps,
        tiles.num_stages,
        flops=2 * b * n * c * f,
        bytes=num_bytes(hidden, *weights, residual, out),
    )
    return (out, before), [*launches, fc2]


def backward(
    grad: Tensor,
    before: Tensor,
    shared_weight: Tensor,
    expert_weight: Tensor,
    task: Tensor,
    wanted: Sequence[bool],
    arch: int,
) -> tuple[tuple[Tensor | None, Tensor | None, Tensor | None], list[Launch]]:
    """Return ((gradient of `before`, GELU of `before`, gradient of expert_weight), launches).

    Args:
        grad: [B, N, C], the gradient of the output.
        before: [B, N, F], from the forward pass.
        shared_weight, expert_weight, task: as in the forward pass.
        wanted: whether to compute each of the three results; None is returned for the others. The third is computed
            only if the second is wanted too.
    """
    (b, n, c), (t, p, f) = grad.shape, expert_weight.shape
    processors = multiprocessors(grad, arch)
    launches = []
    d_before = d_expert = hidden = None
    if wanted[0]:
        d_before = torch.empty_like(before)
        hidden = torch.empty_like(before) if wanted[1] else None
        tiles = choose_tiles(b, n, f, grad.dtype, arch, processors)
        arguments = dict(
            grad_ptr=grad,
            shared_weight_ptr=shared_weight,
            expert_weight_ptr=expert_weight,
            task_ptr=task,
            before_ptr=before,
            d_before_ptr=d_before,
            hidden_ptr=hidden,
            num_samples=b,
            num_tokens=n,
            num_channels=c,
            num_hidden=f,
            num_tasks=t,
            part=p,
            EVEN_K=c % tiles.BLOCK_K == 0,
            ALIGNMENT=alignment(shared_weight, expert_weight),
            **tiles.shape,
        )
        launches.append(
            Launch(
                before_gradient_kernel,
                (b * cdiv(n, tiles.BLOCK_M + tiles.TAIL) * cdiv(f, tiles.BLOCK_N),),
                arguments,
                tiles.num_warps,
                tiles.num_stages,
                flops=2 * b * n * c * f,
                bytes=num_bytes(grad, shared_weight, expert_weight, task, before, d_before, hidden),
            )
        )
    elif wanted[1]:
        hidden = torch.nn.functional.gelu(before)
    if wanted[2] and hidden is not None:
        in_order, order = torch.sort(task, stable=True)
        starts = torch.searchsorted(in_order, torch.arange(t + 1, device=task.device))
        d_expert = torch.empty_like(expert_weight)
        tiles = choose_tiles(t, p, f, grad.dtype, arch, processors)
        arguments = dict(
            grad_ptr=grad,
            hidden_ptr=hidden,
            order_ptr=order,
            starts_ptr=starts,
            d_weight_ptr=d_expert,
            num_tokens=n,
            num_channels=c,
            num_hidden=f,
            part=p,
            **tiles.shape,
        )
        launches.append(
            Launch(
                expert_gradient_kernel,
                (t * cdiv(p, tiles.BLOCK_M + tiles.TAIL) * cdiv(f, tiles.BLOCK_N),),
                arguments,
                tiles.num_warps,
                2 * tiles.num_stages - 1,  # a row is loaded half of the stages after its index
                flops=2 * b * n * p * f,
                bytes=num_bytes(grad) * p // c + num_bytes(hidden, d_expert),
            )
        )
    return (d_before, hidden, d_expert), launches
