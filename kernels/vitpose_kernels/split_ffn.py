"""Feed-forward network (FFN) of ViTPose++: a shared part and one expert per task. A batch may mix tasks.

    hidden = GELU(x fc1ᵀ + b1)                                                         exact (erf) GELU
    out[b] = [ hidden[b] sharedᵀ + bs , hidden[b] expert[task[b]]ᵀ + be[task[b]] ]     shared channels first
    out    = out + residual                                                            if a residual is given

Letters: B batch, N tokens, C channels, F hidden channels (4C in ViTPose++), T tasks, P output channels of an expert.

    x [B, N, C]  fc1_weight [F, C]  shared_weight [C - P, F]  expert_weight [T, P, F]  task int64 [B]  out [B, N, C]

task[b] is the task of sample b, and so the expert that computes its last P channels.

FLOPs: 4 B N C F forward and twice as many backward, as for a dense FFN, for any T. Every sample reads the weights of
one expert. Compute-bound. The only activations saved for the backward pass are x and the fc1 output before the GELU,
each only if a requested gradient needs it.
Source: paper eq. 10 to 12 (which have ReLU; all released weights use GELU), docs/numerics.md 1.4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
import torch.nn.functional as nnF
from torch import Tensor

from vitpose_kernels.autocast import autocast_inputs, contiguous_like, without_autocast
from vitpose_kernels.checks import check_device, choose_impl, may_look_at_values
from vitpose_kernels.eager import is_eager, triton_op
from vitpose_kernels.launch import architecture, product, run


def split_ffn_reference(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    shared_weight: Tensor,
    shared_bias: Tensor,
    expert_weight: Tensor,
    expert_bias: Tensor,
    task: Tensor,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Reference implementation in plain PyTorch, which specifies the op.

    Returns (out [B, N, C], fc1 output before the GELU [B, N, F]).
    """
    before = nnF.linear(x, fc1_weight, fc1_bias)
    hidden = nnF.gelu(before)
    shared = nnF.linear(hidden, shared_weight, shared_bias)
    bias = expert_bias.index_select(0, task).unsqueeze(1)
    expert = torch.baddbmm(bias, hidden, expert_weight.index_select(0, task).transpose(1, 2))
    out = torch.cat([shared, expert], -1)
    return out if residual is None else (out + residual).contiguous(), before


def hidden_gradients_reference(
    grad: Tensor, before: Tensor, shared_weight: Tensor, expert_weight: Tensor, task: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Compute those parts of the backward pass that concern the hidden layer, before further matrix products.

    Args:
        grad: [B, N, C], the gradient of the output.
        before: [B, N, F], the fc1 output before the GELU.
        shared_weight, expert_weight, task: as in `split_ffn`.
        wanted: three booleans, one for each result.

    Returns:
        The gradient of `before` [B, N, F], the GELU of `before` [B, N, F], and the gradient of `expert_weight`
        [T, P, F], which is 0 for an expert without samples. A result that is not wanted is None. The third is also None
        if the second is not wanted.
    """
    d_before = hidden = d_weight = None
    d_shared, d_expert = grad.split([shared_weight.shape[0], expert_weight.shape[1]], -1)
    if wanted[0]:
        d_hidden = d_shared @ shared_weight + torch.bmm(d_expert, expert_weight.index_select(0, task))
        d_before = torch.ops.aten.gelu_backward(d_hidden, before)
    if wanted[1]:
        hidden = nnF.gelu(before)
        if wanted[2]:
            per_sample = torch.bmm(d_expert.transpose(1, 2), hidden)  # [B, P, F]
            d_weight = torch.zeros_like(expert_weight).index_add(0, task, per_sample)
    return d_before, hidden, d_weight


def runs_of(task: Tensor) -> Iterator[tuple[int, slice]]:
    """Yield the id of a task and the samples, for each run of consecutive samples with the same task."""
    start = 0
    for expert, same in groupby(task.tolist()):
        end = start + len(list(same))
        yield expert, slice(start, end)
        start = end


def _split_ffn_on_cpu(
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
    triton: bool,
) -> tuple[Tensor, Tensor]:
    """Compute the op `_split_ffn` in eager mode, without a copy of expert weights per sample.

    Each run of consecutive samples with the same task is computed together.
    """
    if triton:
        return _split_ffn.body(
            x,
            fc1_weight,
            fc1_bias,
            shared_weight,
            shared_bias,
            expert_weight,
            expert_bias,
            task,
            residual,
            save,
            triton,
        )
    before = nnF.linear(x, fc1_weight, fc1_bias)
    hidden = nnF.gelu(before) if save else torch.ops.aten.gelu_(before)
    out = torch.empty_like(x if residual is None else residual, memory_format=torch.contiguous_format)
    shared = shared_weight.shape[0]
    out[..., :shared] = nnF.linear(hidden, shared_weight, shared_bias)
    for expert, samples in runs_of(task):
        out[samples, :, shared:] = nnF.linear(hidden[samples], expert_weight[expert], expert_bias[expert])
    return out if residual is None else out.add_(residual), before if save else x.new_empty(0)


def _hidden_gradients_on_cpu(
    grad: Tensor, before: Tensor, shared_weight: Tensor, expert_weight: Tensor, task: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Compute `hidden_gradients_reference` in eager mode, each run of samples with the same task together."""
    d_before = hidden = d_weight = None
    shared, runs = shared_weight.shape[0], list(runs_of(task))
    d_shared, d_expert = grad.split([shared, expert_weight.shape[1]], -1)
    if wanted[0]:
        d_hidden = d_shared @ shared_weight
        for expert, samples in runs:
            d_hidden[samples] += d_expert[samples] @ expert_weight[expert]
        d_before = torch.ops.aten.gelu_backward(d_hidden, before)
    if wanted[1]:
        hidden = nnF.gelu(before)
        if wanted[2]:
            d_weight = torch.zeros_like(expert_weight)
            for expert, samples in runs:
                d_weight[expert] += d_expert[samples].flatten(0, 1).t() @ hidden[samples].flatten(0, 1)
    return d_before, hidden, d_weight


@triton_op("vitpose_fast::split_ffn", _split_ffn_on_cpu)
def _split_ffn(
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
    triton: bool,
) -> tuple[Tensor, Tensor]:
    if not triton:
        out, before = split_ffn_reference(
            x, fc1_weight, fc1_bias, shared_weight, shared_bias, expert_weight, expert_bias, task, residual
        )
        return out, before if save else x.new_empty(0)
    from vitpose_kernels.gpu import split_ffn as gpu

    return run(
        *gpu.forward(
            x.contiguous(),
            fc1_weight.contiguous(),
            fc1_bias.contiguous(),
            shared_weight.contiguous(),
            shared_bias.contiguous(),
            expert_weight.contiguous(),
            expert_bias.contiguous(),
            task.contiguous(),
            None if residual is None else residual.contiguous(),
            save,
            architecture(x),
        )
    )


@triton_op("vitpose_fast::split_ffn_backward")
def _split_ffn_backward(
    grad: Tensor,
    x: Tensor | None,
    before: Tensor,
    fc1_weight: Tensor,
    shared_weight: Tensor,
    expert_weight: Tensor,
    task: Tensor,
    wanted: Sequence[bool],
    triton: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x and of weight and bias of fc1, shared part and experts, in the order of `split_ffn`.

    `wanted` has a boolean for each of the seven; a gradient that is not wanted is an empty tensor. `grad` [B, N, C] is
    the gradient of the output, `before` [B, N, F] the fc1 output before the GELU. `x` is None if the gradient of
    `fc1_weight` is not wanted.
    """
    grad = contiguous_like(fc1_weight, grad)
    shared = shared_weight.shape[0]
    parts = (any(wanted[:3]), wanted[3] or wanted[5], wanted[5])
    if triton:
        from vitpose_kernels.gpu import split_ffn as gpu

        weights = shared_weight.contiguous(), expert_weight.contiguous()
        arguments = (grad, before, *weights, task.contiguous(), parts, architecture(grad))
        d_before, hidden, d_expert_weight = run(*gpu.backward(*arguments))
    else:
        gradients = _hidden_gradients_on_cpu if is_eager((grad, before, task)) else hidden_gradients_reference
        d_before, hidden, d_expert_weight = gradients(grad, before, shared_weight, expert_weight, task, parts)
    grads: list[Tensor | None] = [None] * 7
    rows = grad.flatten(0, 1)
    if d_before is not None:
        d_rows = d_before.flatten(0, 1)
        grads[0] = product(d_before, fc1_weight) if wanted[0] else None
        grads[1] = product(d_rows.t(), x.flatten(0, 1)) if wanted[1] and x is not None else None
        grads[2] = d_rows.sum(0) if wanted[2] else None
    if hidden is not None and wanted[3]:
        grads[3] = product(rows[:, :shared].t(), hidden.flatten(0, 1))
    if wanted[4]:
        grads[4] = rows[:, :shared].sum(0)
    grads[5] = d_expert_weight
    if wanted[6]:
        # Select the samples of a task, rather than multiply by zeros and ones, so that a NaN affects only its own task.
        exact = torch.promote_types(grad.dtype, torch.float32)
        per_sample = grad[..., shared:].sum(1, dtype=exact)
        mine = task == torch.arange(expert_weight.shape[0], device=task.device).unsqueeze(1)
        grads[6] = torch.where(mine.unsqueeze(2), per_sample, 0).sum(1)
    nothing = grad.new_empty(0)
    a, b, c, d, e, f, g = (nothing.clone() if x is None else contiguous_like(grad, x) for x in grads)
    return a, b, c, d, e, f, g


def _setup_context(ctx, inputs, output) -> None:
    x, fc1_weight, _, shared_weight, _, expert_weight, _, task, _, _, ctx.triton = inputs
    ctx.wanted = list(ctx.needs_input_grad[:7])
    ctx.save_for_backward(x if ctx.wanted[1] else None, output[1], fc1_weight, shared_weight, expert_weight, task)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad: Tensor, _grad_before: Tensor | None):
    grads: list[Tensor | None] = [None] * 7
    if any(ctx.wanted):
        found = _split_ffn_backward(grad, *ctx.saved_tensors, ctx.wanted, ctx.triton)
        grads = [g if w else None for g, w in zip(found, ctx.wanted, strict=True)]
    return (*grads, None, grad if ctx.needs_input_grad[8] else None, None, None)


_split_ffn.register_autograd(_backward, setup_context=_setup_context)


def check_tasks(op: str, task: Tensor, batch: int, experts: int) -> None:
    """Raise a ValueError unless `task` is int64 [batch] and, where a check may read values, within 0..experts - 1."""
    if tuple(task.shape) != (batch,):
        raise ValueError(f"{op}: task has shape {list(task.shape)}, expected [{batch}]")
    if task.dtype != torch.int64:
        raise ValueError(f"{op}: task has dtype {task.dtype}, expected torch.int64")
    if may_look_at_values(task) and task.numel():
        low, high = int(task.min()), int(task.max())
        if not (low >= 0 and high < experts):
            raise ValueError(
                f"{op}: task ids run from {low} to {high}, expected 0..{experts - 1} for {experts} experts"
            )


def split_ffn(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    shared_weight: Tensor,
    shared_bias: Tensor,
    expert_weight: Tensor,
    expert_bias: Tensor,
    task: Tensor,
    residual: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """Compute the FFN with shared and task-specific outputs. The module docstring has the formula and all shapes.

    Args:
        x, fc1_weight, fc1_bias, shared_weight, shared_bias, expert_weight, expert_bias: must share one dtype (autocast
            casts them).
        task: int64 [B], the index of each sample's expert, 0..T - 1, on the device of `x`.
        residual: [B, N, C] in the dtype of `x` (under autocast, in the autocast dtype) or in float32. It is added to
            the output, which takes its dtype.
        impl: None (chosen by device), "triton" or "reference".

    Returns:
        [B, N, C] in the dtype of `residual`, or without it in that of `x`; differentiable in all inputs except `task`.

    Raises:
        ValueError: shapes, dtypes or devices do not fit each other, there are no experts (T = 0), a task id is outside
            0..T - 1, or `impl` does not support the call.

    Task ids on CUDA are checked only with VITPOSE_FAST_DEBUG=1, and none are checked while torch.compile or
    torch.export traces. Without the check, an id out of range makes the expert channels of its sample NaN in the Triton
    kernel.
    """
    op = "split_ffn"
    if x.dim() != 3:
        raise ValueError(f"{op}: x has shape {list(x.shape)}, expected [B, N, C]")
    b, n, c = x.shape
    if expert_weight.dim() != 3:
        raise ValueError(f"{op}: expert_weight has shape {list(expert_weight.shape)}, expected [T, P, F]")
    t, p, f = expert_weight.shape
    expected = {
        "fc1_weight": (fc1_weight, (f, c)),
        "fc1_bias": (fc1_bias, (f,)),
        "shared_weight": (shared_weight, (c - p, f)),
        "shared_bias": (shared_bias, (c - p,)),
        "expert_weight": (expert_weight, (t, p, f)),
        "expert_bias": (expert_bias, (t, p)),
        "task": (task, (b,)),
    }
    if residual is not None:
        expected["residual"] = (residual, (b, n, c))
    for name, (value, shape) in expected.items():
        if tuple(value.shape) != shape:
            raise ValueError(f"{op}: {name} has shape {list(value.shape)}, expected {list(shape)}")
    check_device(op, x, **{name: value for name, (value, _) in expected.items()})
    if t == 0:
        raise ValueError(f"{op}: got no experts, expected expert_weight [T, P, F] with T >= 1")
    check_tasks(op, task, b, t)
    given = autocast_inputs(x, fc1_weight, fc1_bias, shared_weight, shared_bias, expert_weight, expert_bias)
    tensors = [value for value in given if value is not None]
    dtype = tensors[0].dtype
    for name, value in zip(expected, tensors[1:]):
        if value.dtype != dtype:
            raise ValueError(f"{op}: {name} has dtype {value.dtype}, expected {dtype} as x")
    if residual is not None:
        exact = torch.promote_types(dtype, torch.float32)
        if residual.dtype not in (dtype, exact):
            raise ValueError(f"{op}: residual has dtype {residual.dtype}, expected {dtype} or {exact}")
    triton = choose_impl(op, impl, tensors[0]) == "triton"
    # The backward pass needs the fc1 output, unless only the last biases and the residual require gradients.
    save = torch.is_grad_enabled() and any(tensors[i].requires_grad for i in (0, 1, 2, 3, 5))
    with without_autocast(x):
        out, _ = _split_ffn(*tensors, task, residual, save, triton)
    return out
