"""Linear layer for inference, fused with the LayerNorm before it and the GELU and residual addition after it.

    y = act(LN(x) Wᵀ + b) + residual

    x [..., C]   weight W [F, C]   bias b [F]   residual, y [..., F]            act: none or exact (erf) GELU

C input and F output channels. LN is a LayerNorm over C or, without `norm`, the identity. The weight gamma [C] and the
bias beta [C] of the LayerNorm are folded into W and b beforehand. With LN(x) = (x - mean) rstd gamma + beta,

    LN(x) Wᵀ + b = rstd (x W'ᵀ - mean s) + b',     W' = W diag(gamma),  s[f] = Σ_c W'[f, c],  b' = W beta + b

so the matrix product takes x without normalization, and the epilogue needs mean and rstd of each row of x, and s [F].
These three float32 tensors are the argument `norm`; `weight` and `bias` are W' and b'. s must be summed from the stored
W', after rounding to its dtype. Then what mean adds to the product is subtracted again up to rounding.

2 M F C FLOPs for M rows; compute-bound from C = F = 384 on. Accumulation and epilogue are in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as nnF
from torch import Tensor

from vitpose_kernels.autocast import autocast_inputs, without_autocast
from vitpose_kernels.checks import check_device, choose_impl, refuse_grad
from vitpose_kernels.choices import Call, find
from vitpose_kernels.eager import triton_op
from vitpose_kernels.launch import architecture, is_recorded, run


def linear_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gelu: bool = False,
    residual: Tensor | None = None,
    norm: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """Reference implementation in plain PyTorch, which specifies the op. Returns [..., F]."""
    if norm is None:
        y = nnF.linear(x, weight, bias)
    else:
        mean, rstd, weight_sums = norm
        exact = mean.dtype  # mean * s may cancel most of the product
        y = rstd[..., None] * (nnF.linear(x.to(exact), weight.to(exact)) - mean[..., None] * weight_sums)
        y = (y if bias is None else y + bias).to(x.dtype)
    if gelu:
        y = torch.ops.aten.gelu_(y)  # in place: on a CPU fresh memory costs more than the GELU
    if residual is None:
        return y
    return y.add_(residual) if y.dtype == residual.dtype else y + residual


def linear_call(x: Tensor, weight: Tensor, gelu: bool, residual: bool, norm: bool) -> Call:
    """Return the key under which measured choices for a call are stored: shape (F, C) and the epilogue."""
    epilogue = "+".join([name for name, on in (("norm", norm), ("gelu", gelu), ("residual", residual)) if on])
    return Call.of("linear", weight.shape, x.dtype, epilogue)


def _by_library(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gelu: bool,
    residual: Tensor | None,
    norm: tuple[Tensor, Tensor, Tensor] | None,
) -> Tensor:
    """Compute the op by PyTorch's operators, the product in the dtype of x (on a GPU by cuBLAS)."""
    if norm is not None:
        mean, rstd, _ = norm
        x = ((x - mean[..., None]) * rstd[..., None]).to(x.dtype)
    return linear_reference(x, weight, bias, gelu, residual)


@triton_op("vitpose_fast::linear")
def _linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gelu: bool,
    residual: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    weight_sums: Tensor | None,
    triton: bool,
    tiles: Sequence[int],
) -> Tensor:
    norm = None if mean is None or rstd is None or weight_sums is None else (mean, rstd, weight_sums)
    if not triton:
        return linear_reference(x, weight, bias, gelu, residual, norm)
    from vitpose_kernels.gpu import linear as gpu

    if norm is not None:
        norm = (norm[0].reshape(-1), norm[1].reshape(-1), norm[2].contiguous())
    bias = None if bias is None else bias.contiguous()
    residual = None if residual is None else _as_rows(residual)
    chosen = gpu.Tiles(*tiles) if tiles else None
    out = run(*gpu.forward(_as_rows(x), _as_rows(weight), bias, gelu, residual, norm, architecture(x), tiles=chosen))
    return out.view(*x.shape[:-1], weight.shape[0])


def _as_rows(x: Tensor) -> Tensor:
    """Flatten [..., C] to [M, C] with contiguous channels and a row stride below 2^23. Copies only if necessary.

    With this limit 32-bit offsets suffice in a tile of the kernel.
    """
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 and x.stride(0) < 2**23 else x.contiguous()


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gelu: bool = False,
    residual: Tensor | None = None,
    norm: tuple[Tensor, Tensor, Tensor] | None = None,
    impl: str | None = None,
) -> Tensor:
    """Compute act(LN(x) weightᵀ + bias) + residual, without gradients. The module docstring has the details.

    Args:
        x: [..., C], any strides; no copy if rows have a constant stride and channels are contiguous.
        weight: [F, C] in the dtype of `x`.
        bias: [F] in the dtype of `x`. Default: no bias.
        gelu: apply the exact GELU before the residual is added.
        residual: [..., F] in the dtype of `x` or in float32; the output takes its dtype. Default: no residual.
        norm: (mean [...], rstd [...], weight_sums [F]) in float32 (float64 for a float64 `x`), to normalize the rows of
            `x`. mean and rstd are those of `layer_norm_statistics`, weight_sums is `weight` summed over C. The weight
            and bias of this LayerNorm must already be folded into `weight` and `bias`. Default: no LayerNorm.
        impl: None (chosen by device and measured choices), "triton", "reference" or "library". "library" is a product
            in the dtype of `x` by PyTorch (cuBLAS on a GPU), with the other steps before and after it.

    Returns:
        [..., F], contiguous, in the dtype of `residual`, or without it in that of `x`. Autocast casts x, weight and
        bias.

    Raises:
        ValueError: shapes, dtypes or devices do not fit each other, an input requires grad while grad mode is on (this
            op has no backward pass), or `impl` does not support the call.
    """
    op = "linear"
    x, weight, bias = autocast_inputs(x, weight, bias)  # type: ignore[assignment]
    if not (x.dim() >= 1 and x.shape[-1] > 0):
        raise ValueError(f"{op}: x has shape {list(x.shape)}, expected [..., C]")
    if not (weight.dim() == 2 and weight.shape[1] == x.shape[-1]):
        raise ValueError(
            f"{op}: weight has shape {list(weight.shape)}, expected [F, {x.shape[-1]}] for x with {x.shape[-1]} "
            "channels"
        )
    rows, f = tuple(x.shape[:-1]), weight.shape[0]
    mean, rstd, weight_sums = norm or (None, None, None)
    exact = torch.promote_types(x.dtype, torch.float32)
    expected = {
        "bias": (bias, (f,), (x.dtype,)),
        "weight": (weight, tuple(weight.shape), (x.dtype,)),
        "residual": (residual, (*rows, f), (x.dtype, exact)),
        "mean": (mean, rows, (exact,)),
        "rstd": (rstd, rows, (exact,)),
        "weight_sums": (weight_sums, (f,), (exact,)),
    }
    given = {name: value for name, (value, *_) in expected.items() if value is not None}
    for name, value in given.items():
        _, shape, dtypes = expected[name]
        if tuple(value.shape) != shape:
            raise ValueError(f"{op}: {name} has shape {list(value.shape)}, expected {list(shape)}")
        if value.dtype not in dtypes:
            raise ValueError(f"{op}: {name} has dtype {value.dtype}, expected {' or '.join(map(str, dtypes))}")
    check_device(op, x, **given)
    refuse_grad(op, x=x, **given)
    tiles: tuple[int, ...] = ()
    if impl is None and (x.is_cuda or is_recorded(x)):
        choice = find(linear_call(x, weight, gelu, residual is not None, norm is not None), x.numel() // x.shape[-1], x)
        impl, tiles = (None, ()) if choice is None else choice
    impl = choose_impl(op, impl, x, others=("library",))
    with without_autocast(x):
        if impl == "library":
            return _by_library(x, weight, bias, gelu, residual, norm)
        return _linear(x, weight, bias, gelu, residual, mean, rstd, weight_sums, impl == "triton", tiles)
