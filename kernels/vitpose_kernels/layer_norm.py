"""LayerNorm over the last dimension, optionally fused with the residual addition before it.

    s = x + residual                                               rounded to the dtype of x; s = x without a residual
    y = (s - mean(s)) / sqrt(var(s) + eps) * weight + bias         var divides by C; statistics in float32

Letters: R rows (all leading dimensions, flattened), C channels. rstd = 1 / sqrt(var(s) + eps).

    x, residual, s, y [..., C]   weight, bias [C]   mean, rstd float32 [R] (float64 for float64 x)

Memory-bound: the forward pass reads x (and residual) and writes y (and s). The backward pass reads s, mean and rstd,
which the forward pass saved, and the gradients of s and y. It writes one gradient of s, which is also that of x and of
residual. The gradients of weight and bias are partial sums that are added in a fixed order, so every run gives the same
result. Source: docs/numerics.md 1.2 (pre-norm blocks, eps 1e-6).

Without weight and bias y is the normalized s, for a matrix product into whose weights they are folded.

`layer_norm_statistics` returns only mean and rstd, for a `linear` into whose weights the weight and bias of the
LayerNorm are folded. It reads x once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnF
from torch import Tensor

from vitpose_kernels.autocast import without_autocast
from vitpose_kernels.checks import check_device, choose_impl, refuse_grad
from vitpose_kernels.eager import is_eager, triton_op
from vitpose_kernels.launch import run

MAX_CHANNELS = 8192  # limit of the Triton kernels, which keep a row in registers


def layer_norm_reference(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reference implementation in plain PyTorch, which specifies the op, for x and residual [R, C].

    Returns (s [R, C], y [R, C], mean [R], rstd [R]). Without a residual s is an empty tensor.
    """
    s = x if residual is None else x + residual
    wide = torch.promote_types(s.dtype, torch.float32)
    gain, shift = (None if t is None else t.to(wide) for t in (weight, bias))
    # On a CPU PyTorch takes 16-bit values beside float32 weights, and computes in float32.
    values = s if s.device.type == "cpu" and weight is not None else s.to(wide)
    y, mean, rstd = torch.native_layer_norm(values, s.shape[-1:], gain, shift, eps)
    return x.new_empty(0) if residual is None else s, y.to(s.dtype), mean[:, 0], rstd[:, 0]


def layer_norm_backward_reference(
    grad_y: Tensor,
    grad_s: Tensor | None,
    s: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    need_input: bool,
    need_parameters: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of (s, weight, bias) from `grad_y` and `grad_s` (None means 0), those of both outputs.

    The gradient of s is an empty tensor without `need_input`, the other two are without `need_parameters`. Without a
    weight `need_parameters` is False.
    """
    wide = mean.dtype
    gain = None if weight is None else weight.to(wide)
    grad, d_weight, d_bias = torch.ops.aten.native_layer_norm_backward(
        grad_y.to(wide), s.to(wide), s.shape[-1:], mean[:, None], rstd[:, None], gain, gain,
        [need_input, need_parameters, need_parameters],
    )  # fmt: skip
    if need_input and grad_s is not None:
        grad = grad + grad_s
    parameters = s if weight is None else weight
    out = [(grad, need_input, s), (d_weight, need_parameters, parameters), (d_bias, need_parameters, parameters)]
    grad, d_weight, d_bias = (g.to(x.dtype) if needed else x.new_empty(0) for g, needed, x in out)
    return grad, d_weight, d_bias


@triton_op("vitpose_fast::layer_norm")
def _layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float, triton: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if not triton:
        return layer_norm_reference(x, residual, weight, bias, eps)
    from vitpose_kernels.gpu import layer_norm as gpu

    return run(*gpu.forward(x, residual, weight, bias, eps))


@triton_op("vitpose_fast::layer_norm_backward")
def _layer_norm_backward(
    grad_y: Tensor,
    grad_s: Tensor | None,
    s: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    need_input: bool,
    need_parameters: bool,
    triton: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = (grad_y, grad_s, s, weight, mean, rstd, need_input, need_parameters)
    if not triton:
        return layer_norm_backward_reference(*arguments)
    from vitpose_kernels.gpu import layer_norm as gpu

    grad, partial = run(*gpu.backward(*arguments))
    parameters = s if weight is None else weight
    d_weight, d_bias = (
        part.sum(0).to(parameters.dtype) if need_parameters else parameters.new_empty(0) for part in partial
    )
    return grad, d_weight, d_bias


def _setup_context(ctx, inputs, output) -> None:
    x, residual, weight, _, _, ctx.triton = inputs
    s, _, mean, rstd = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x if residual is None else s, weight, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd, *([s] if residual is None else []))


def _backward(ctx, grad_s: Tensor | None, grad_y: Tensor | None, *_):
    if grad_y is None:
        return grad_s, grad_s, None, None, None, None
    need_x, need_residual, need_weight, need_bias, *_ = ctx.needs_input_grad
    need = need_x or need_residual, need_weight or need_bias
    grad, d_weight, d_bias = _layer_norm_backward(grad_y, grad_s, *ctx.saved_tensors, *need, ctx.triton)
    return (
        grad if need_x else None,
        grad if need_residual else None,
        d_weight if need_weight else None,
        d_bias if need_bias else None,
        None,
        None,
    )


_layer_norm.register_autograd(_backward, setup_context=_setup_context)


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    residual: Tensor | None = None,
    impl: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Apply LayerNorm over the last dimension. The module docstring has the formula.

    Under autocast the result still has the dtype of `x`, whereas PyTorch's LayerNorm would return float32. Statistics
    are at least float32, and weight and bias may be float32 with a 16-bit `x`.

    Args:
        x: [..., C], any strides; no copy if rows have a constant stride and channels are contiguous.
        weight, bias: [C], both in the dtype of `x` or both float32. Default: neither of them, y is normalized only.
        eps: added to the variance.
        residual: [..., C] in the dtype of `x`, added before the norm.
        impl: None (chosen by device), "triton" or "reference".

    Returns:
        y [..., C], or with a residual (s, y), where s [..., C] = x + residual. In the dtype of `x`; differentiable in
        x, weight, bias and residual.

    Raises:
        ValueError: shapes, dtypes or devices do not fit each other, `impl` does not support the call, or C is above
            8192 in the Triton kernels.
    """
    op = "layer_norm"
    triton = choose_impl(op, impl, x) == "triton"
    if not (x.dim() >= 1 and x.shape[-1] >= 1):
        raise ValueError(f"{op}: x has shape {list(x.shape)}, expected [..., C] with C >= 1")
    c = x.shape[-1]
    if triton and c > MAX_CHANNELS:
        raise ValueError(
            f"{op}: x has {c} channels, the Triton kernels take {MAX_CHANNELS} at most; use impl='reference'"
        )
    if (weight is None) != (bias is None):
        present, absent = ("weight", "bias") if bias is None else ("bias", "weight")
        raise ValueError(f"{op}: got {present} without {absent}, expected both or neither")
    for name, value in {"weight": weight, "bias": bias}.items():
        if weight is None or value is None:
            continue
        if tuple(value.shape) != (c,):
            raise ValueError(f"{op}: {name} has shape {list(value.shape)}, expected [{c}]")
        fits = value.dtype == weight.dtype and value.dtype in (x.dtype, torch.float32)
        if not fits:
            raise ValueError(
                f"{op}: {name} is {value.dtype}, expected weight and bias both {x.dtype} as x or both torch.float32"
            )
    if residual is not None:
        given, expected = ((list(t.shape), t.dtype) for t in (residual, x))
        if given != expected:
            raise ValueError(f"{op}: residual is {given[1]} {given[0]}, expected {expected[1]} {expected[0]} as x")
    check_device(op, x, weight=weight, bias=bias, residual=residual)
    exact = weight is not None and x.dtype == weight.dtype == torch.float32
    if exact and not triton and is_eager((x, weight, bias, residual)):  # PyTorch's own autograd saves the same
        with without_autocast(x):
            s = x if residual is None else x + residual
            y = nnF.layer_norm(s, (c,), weight, bias, eps)
            return y if residual is None else (s, y)
    shape = x.shape
    x, residual = _rows(x), None if residual is None else _rows(residual)
    with without_autocast(x):
        s, y, _, _ = _layer_norm(x, residual, weight, bias, eps, triton)
    return y.view(shape) if residual is None else (s.view(shape), y.view(shape))


def _rows(x: Tensor) -> Tensor:
    """Flatten [..., C] to [R, C] with contiguous channels. Copies only if necessary."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()


@triton_op("vitpose_fast::layer_norm_statistics")
def _layer_norm_statistics(x: Tensor, eps: float, triton: bool) -> tuple[Tensor, Tensor]:
    if not triton:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        _, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
        return mean[:, 0].contiguous(), rstd[:, 0].contiguous()
    from vitpose_kernels.gpu import layer_norm as gpu

    _, _, mean, rstd = run(*gpu.forward(x, None, None, None, eps, statistics_only=True))
    return mean, rstd


def layer_norm_statistics(x: Tensor, eps: float = 1e-6, impl: str | None = None) -> tuple[Tensor, Tensor]:
    """Compute the mean and the reciprocal standard deviation by which `layer_norm` normalizes, for `linear(norm=...)`.

    Args:
        x: [..., C], any strides.
        eps: added to the variance.
        impl: None (chosen by device), "triton" or "reference".

    Returns:
        mean and 1 / sqrt(var + eps) over the C channels, [...] each, float32 (float64 for a float64 `x`).

    Raises:
        ValueError: x has no channels or requires grad while grad mode is on (this op has no backward pass), `impl` does
            not support the call, or C is above 8192 in the Triton kernel.
    """
    op = "layer_norm_statistics"
    triton = choose_impl(op, impl, x) == "triton"
    if not (x.dim() >= 1 and x.shape[-1] >= 1):
        raise ValueError(f"{op}: x has shape {list(x.shape)}, expected [..., C] with C >= 1")
    fits = not triton or x.shape[-1] <= MAX_CHANNELS
    if not fits:
        raise ValueError(f"{op}: x has {x.shape[-1]} channels, the Triton kernels take {MAX_CHANNELS} at most")
    refuse_grad(op, x=x)
    with without_autocast(x):
        mean, rstd = _layer_norm_statistics(_rows(x), eps, triton)
    return mean.view(x.shape[:-1]), rstd.view(x.shape[:-1])
