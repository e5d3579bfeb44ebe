"""Transposed convolution (kernel 4, stride 2, padding 1) with folded BatchNorm and ReLU, optionally with a predictor.

    y[2m + p] = ReLU(bias + sum over taps t in {0, 1} of x[m + t (2p - 1)] weight[p, t])      along rows and columns
    p = 0: (m, kernel row 1), (m - 1, row 3);  p = 1: (m, row 2), (m + 1, row 0);  x is zero outside the map
    heatmaps = y predictorᵀ + predictor bias                                                  y is never stored

The op maps tokens to tokens. With a predictor (the 1x1 convolution that follows the last such layer of a head) it
returns heatmaps instead.

Letters: B batch, (h, w) grid of tokens, Ci input and Co output channels, K keypoints, m position in the input along an
axis. The phase p (0 or 1) says whether an output row or column is even or odd. A tap t (0 or 1) is one of the two
inputs of an output along an axis. In two dimensions there are four phases (py, px) with four taps (ty, tx) each.

    x [B, h w, Ci]  weight [4 phases, 4 taps, Ci, Co]  bias [Co]  predictor ([K, Co], [K])
    out [B, 4 h w, Co] over the grid (2h, 2w), or heatmaps [B, K, 2h, 2w]

FLOPs: 32 B h w Ci Co (+ 8 B h w Co K with a predictor). This is a quarter of the FLOPs of a 4x4 convolution over the
map with zeros between the tokens. Compute-bound. Compared with separate deconvolution, BatchNorm and ReLU the op saves
four of the passes that read or write y in memory, and with the predictor all six (101 MB per pass for batch 64, a 64x48
map and 256 channels in 16 bit). Inference only.
Source: docs/numerics.md 1.3 (classic head).
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

_ROWS = [1, 3, 2, 0]  # kernel row (or column) of each (phase, tap): (0, 0), (0, 1), (1, 0), (1, 1)
_PLACES = [3, 0, 2, 1]  # the inverse: the position of kernel rows 0 to 3 in _ROWS


def _regroup(x: Tensor) -> Tensor:
    """Reorder the first two axes of [4, 4, ...] from (py, ty), (px, tx) to (py, px), (ty, tx), or back."""
    return x.unflatten(1, (2, 2)).unflatten(0, (2, 2)).transpose(1, 2).flatten(2, 3).flatten(0, 1)


@torch.no_grad()
def pack_deconv(
    weight: Tensor,
    bn_weight: Tensor,
    bn_bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Fold a BatchNorm in evaluation mode into the preceding transposed convolution (kernel 4, stride 2, padding 1).

    Args:
        weight: [Ci, Co, 4, 4], the weight of the convolution as in `torch.nn.ConvTranspose2d`, which has no bias.
        bn_weight, bn_bias, running_mean, running_var: [Co], parameters and statistics of the BatchNorm.
        eps: the eps of the BatchNorm.

    Returns:
        (weight [4 phases, 4 taps, Ci, Co], bias [Co]) for `deconv`, computed in float64, in the dtype of `weight`.
    """
    scale = bn_weight.double() / (running_var.double() + eps).sqrt()
    bias = bn_bias.double() - running_mean.double() * scale
    taps = (weight.double() * scale[:, None, None]).permute(2, 3, 0, 1)[_ROWS][:, _ROWS]
    return _regroup(taps).to(weight.dtype).contiguous(), bias.to(weight.dtype)


def unpack_deconv(weight: Tensor) -> Tensor:
    """Return the weight [Ci, Co, 4, 4] of `torch.nn.ConvTranspose2d` whose packed form is `weight`."""
    return _regroup(weight)[_PLACES][:, _PLACES].permute(2, 3, 0, 1)


def deconv_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    grid: tuple[int, int],
    predictor_weight: Tensor | None,
    predictor_bias: Tensor | None,
) -> Tensor:
    """Reference implementation in plain PyTorch, which specifies the op.

    Returns tokens [B, 4 h w, Co], or heatmaps [B, K, 2h, 2w] with a predictor.
    """
    kernel = unpack_deconv(weight)
    features = nnF.conv_transpose2d(x.transpose(1, 2).unflatten(2, grid), kernel, bias, stride=2, padding=1).relu()
    if predictor_weight is None:
        return features.flatten(2).transpose(1, 2).contiguous()
    return nnF.conv2d(features, predictor_weight[:, :, None, None], predictor_bias).contiguous()


@triton_op("vitpose_fast::deconv")
def _deconv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    grid: Sequence[int],
    predictor_weight: Tensor | None,
    predictor_bias: Tensor | None,
    triton: bool,
    tiles: Sequence[int],
) -> Tensor:
    arguments = x, weight, bias, (grid[0], grid[1]), predictor_weight, predictor_bias
    if not triton:
        return deconv_reference(*arguments)
    from vitpose_kernels.gpu import deconv as gpu

    return run(*gpu.forward(*arguments, architecture(x), gpu.Tiles(*tiles) if tiles else None))


def deconv_call(x: Tensor, grid: Sequence[int], channels: int, predictor: bool) -> Call:
    """Return the key of measured choices for a call: shape (Ci, Co, h, w); its rows are B."""
    shape = (x.shape[-1], channels, *grid)
    return Call.of("deconv", shape, x.dtype, "predictor" if predictor else "")


def deconv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    grid: tuple[int, int],
    predictor: tuple[Tensor, Tensor] | None = None,
    impl: str | None = None,
) -> Tensor:
    """Double the token grid: transposed convolution, BatchNorm and ReLU. The module docstring has the formula.

    Args:
        x: [B, h w, Ci], row-major over the grid; any strides (a copy is made if the channels are not contiguous).
        weight, bias: [4, 4, Ci, Co] and [Co], with the BatchNorm folded in, from `pack_deconv`.
        grid: (h, w), rows and columns of tokens.
        predictor: (weight [K, Co], bias [K]) of the 1x1 convolution to heatmaps. Default: return tokens.
        impl: None (chosen by device and measured choices), "triton" or "reference".

    Returns:
        Tokens [B, 4 h w, Co] over the grid (2h, 2w), or heatmaps [B, K, 2h, 2w] with a predictor; contiguous, in the
        dtype of `x`. Autocast casts all inputs.

    Raises:
        ValueError: shapes, dtypes or devices do not fit each other, an input requires grad while grad mode is on (this
            op has no backward pass), `impl` does not support the call, or Co is above 256 with a predictor in the
            Triton kernel.
    """
    op = "deconv"
    if x.dim() != 3:
        raise ValueError(f"{op}: x has shape {list(x.shape)}, expected [B, h * w, Ci]")
    if not (len(grid) == 2 and min(grid) >= 1 and grid[0] * grid[1] == x.shape[1]):
        raise ValueError(
            f"{op}: got grid={tuple(grid)} for {x.shape[1]} tokens, expected (rows, columns) with that product"
        )
    if not (weight.dim() == 4 and tuple(weight.shape[:3]) == (4, 4, x.shape[2])):
        raise ValueError(
            f"{op}: weight has shape {list(weight.shape)}, expected [4, 4, {x.shape[2]}, Co] (see pack_deconv)"
        )
    channels = weight.shape[3]
    if tuple(bias.shape) != (channels,):
        raise ValueError(f"{op}: bias has shape {list(bias.shape)}, expected [{channels}]")
    predictor_weight, predictor_bias = predictor or (None, None)
    if predictor_weight is not None and predictor_bias is not None:
        k = predictor_bias.shape[0] if predictor_bias.dim() == 1 else "K"
        if list(predictor_weight.shape) != [k, channels]:
            raise ValueError(
                f"{op}: predictor has shapes {list(predictor_weight.shape)} and {list(predictor_bias.shape)}, "
                f"expected [K, {channels}] and [K]"
            )
    others = dict(weight=weight, bias=bias, predictor_weight=predictor_weight, predictor_bias=predictor_bias)
    check_device(op, x, **others)
    refuse_grad(op, x=x, **others)
    tensors = autocast_inputs(x, *others.values())
    x, weight, bias, predictor_weight, predictor_bias = tensors  # type: ignore[assignment]
    for name, tensor in zip(others, tensors[1:], strict=True):
        if tensor is not None and tensor.dtype != x.dtype:
            raise ValueError(f"{op}: {name} is {tensor.dtype}, x is {x.dtype}; cast one of them")
    tiles: tuple[int, ...] = ()
    if impl is None and (x.is_cuda or is_recorded(x)):
        choice = find(deconv_call(x, grid, channels, predictor is not None), x.shape[0], x)
        impl, tiles = (None, ()) if choice is None else choice
    triton = choose_impl(op, impl, x) == "triton"
    if triton and predictor is not None and channels > 256:
        raise ValueError(
            f"{op}: got {channels} channels before the predictor, the Triton kernel takes 256 at most; leave the "
            "predictor out and apply it to the tokens, or use impl='reference'"
        )
    with without_autocast(x):
        return _deconv(x, weight, bias, list(grid), predictor_weight, predictor_bias, triton, tiles)
