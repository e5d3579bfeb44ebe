"""ViTPose++ feed-forward network: one shared part, one expert per task, mixed tasks in one batch.

    hidden = GELU(x fc1ᵀ + b1)                                                         exact (erf) GELU
    out[b] = [ hidden[b] sharedᵀ + bs , hidden[b] expert[task[b]]ᵀ + be[task[b]] ]     shared channels first

Letters: B batch, N tokens, C channels, F = hidden channels (4C), T tasks, P expert channels.

    x [B, N, C]  fc1_weight [F, C]  shared_weight [C - P, F]  expert_weight [T, P, F]  task int64 [B]  out [B, N, C]

Cost is that of the dense FFN whatever T is: 4 B N C F FLOPs, compute-bound; every sample reads one expert's rows.
Source: paper eq. 10 to 12 (ReLU there, GELU in every released weight), SPEC 1.4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnF
from torch import Tensor
from torch.library import triton_op

from vitpose_fast.kernels._launch import (
    autocast_inputs,
    check,
    choose_impl,
    contiguous_like,
    may_look_at_values,
    without_autocast,
)


def split_ffn_reference(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    shared_weight: Tensor,
    shared_bias: Tensor,
    expert_weight: Tensor,
    expert_bias: Tensor,
    task: Tensor,
) -> tuple[Tensor, Tensor]:
    """The specification in plain PyTorch: (out [B, N, C], fc1 output before the GELU [B, N, F])."""
    before = nnF.linear(x, fc1_weight, fc1_bias)
    hidden = nnF.gelu(before)
    shared = nnF.linear(hidden, shared_weight, shared_bias)
    bias = expert_bias.index_select(0, task).unsqueeze(1)
    expert = torch.baddbmm(bias, hidden, expert_weight.index_select(0, task).transpose(1, 2))
    return torch.cat([shared, expert], -1), before


def split_ffn_backward_reference(
    grad: Tensor,
    x: Tensor,
    before: Tensor,
    fc1_weight: Tensor,
    shared_weight: Tensor,
    expert_weight: Tensor,
    task: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of (x, fc1 weight and bias, shared weight and bias, expert weight and bias); idle experts get zeros."""
    hidden = nnF.gelu(before)
    d_shared, d_expert = grad.split([shared_weight.shape[0], expert_weight.shape[1]], -1)
    d_hidden = d_shared @ shared_weight + torch.bmm(d_expert, expert_weight.index_select(0, task))
    d_before = torch.ops.aten.gelu_backward(d_hidden, before)
    per_sample = torch.bmm(d_expert.transpose(1, 2), hidden)  # [B, P, F]
    return (
        d_before @ fc1_weight,
        torch.einsum("bnf,bnc->fc", d_before, x),
        d_before.sum((0, 1)),
        torch.einsum("bns,bnf->sf", d_shared, hidden),
        d_shared.sum((0, 1)),
        torch.zeros_like(expert_weight).index_add(0, task, per_sample),
        expert_weight.new_zeros(expert_weight.shape[:2]).index_add(0, task, d_expert.sum(1)),
    )


@triton_op("vitpose_fast::split_ffn", mutates_args=())
def _split_ffn(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    shared_weight: Tensor,
    shared_bias: Tensor,
    expert_weight: Tensor,
    expert_bias: Tensor,
    task: Tensor,
) -> tuple[Tensor, Tensor]:
    return split_ffn_reference(x, fc1_weight, fc1_bias, shared_weight, shared_bias, expert_weight, expert_bias, task)


@triton_op("vitpose_fast::split_ffn_backward", mutates_args=())
def _split_ffn_backward(
    grad: Tensor,
    x: Tensor,
    before: Tensor,
    fc1_weight: Tensor,
    shared_weight: Tensor,
    expert_weight: Tensor,
    task: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    grads = split_ffn_backward_reference(grad, x, before, fc1_weight, shared_weight, expert_weight, task)
    dx, d_fc1, d_fc1_bias, d_shared, d_shared_bias, d_expert, d_expert_bias = (contiguous_like(x, g) for g in grads)
    return dx, d_fc1, d_fc1_bias, d_shared, d_shared_bias, d_expert, d_expert_bias


def _setup_context(ctx, inputs, output) -> None:
    x, fc1_weight, _, shared_weight, _, expert_weight, _, task = inputs
    ctx.save_for_backward(x, output[1], fc1_weight, shared_weight, expert_weight, task)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad: Tensor, _grad_before: Tensor | None):
    return (*_split_ffn_backward(grad.contiguous(), *ctx.saved_tensors), None)


_split_ffn.register_autograd(_backward, setup_context=_setup_context)


def split_ffn(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    shared_weight: Tensor,
    shared_bias: Tensor,
    expert_weight: Tensor,
    expert_bias: Tensor,
    task: Tensor,
    impl: str | None = None,
) -> Tensor:
    """Shared and task-specific FFN; see the head of this file for formula and shapes.

    Args:
        task: int64 [B], the expert of each sample, on the device of `x`.
        impl: None or "reference".

    Returns:
        [B, N, C]; differentiable in everything but `task`. All floating inputs share one dtype (autocast casts them).

    Raises:
        ValueError: shapes that do not fit each other; a task id outside 0..T-1 (on the CPU always, on CUDA only with
            VITPOSE_FAST_DEBUG=1).
    """
    op = "split_ffn"
    choose_impl(op, impl, x)
    check(x.dim() == 3, op, f"x has shape {list(x.shape)}, expected [B, N, C]")
    b, _, c = x.shape
    check(expert_weight.dim() == 3, op, f"expert_weight has shape {list(expert_weight.shape)}, expected [T, P, F]")
    t, p, f = expert_weight.shape
    expected = {
        "fc1_weight": (fc1_weight, (f, c)),
        "fc1_bias": (fc1_bias, (f,)),
        "shared_weight": (shared_weight, (c - p, f)),
        "shared_bias": (shared_bias, (c - p,)),
        "expert_bias": (expert_bias, (t, p)),
        "task": (task, (b,)),
    }
    for name, (value, shape) in expected.items():
        check(tuple(value.shape) == shape, op, f"{name} has shape {list(value.shape)}, expected {list(shape)}")
    check(task.dtype == torch.int64, op, f"task has dtype {task.dtype}, expected torch.int64")
    if may_look_at_values(task) and task.numel():
        low, high = int(task.min()), int(task.max())
        check(low >= 0 and high < t, op, f"task ids run from {low} to {high}, expected 0..{t - 1} for {t} experts")
    weights = autocast_inputs(x, fc1_weight, fc1_bias, shared_weight, shared_bias, expert_weight, expert_bias)
    with without_autocast(x):
        out, _ = _split_ffn(*weights, task)
    return out
