"""Ways to compute the linear layers of the network, for the benchmarks that compare them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as nnF
from torch import Tensor

from vitpose_fast import functional as F
from vitpose_kernels.choices import Call, Choice, to_rows
from vitpose_kernels.launch import architecture, multiprocessors

LAYERS = {  # outputs and inputs / width of the model, whether LayerNorm precedes the layer, whether GELU follows it
    "qkv": (3, 1, True, False),
    "proj": (1, 1, False, False),
    "fc1": (4, 1, True, True),
    "fc2": (1, 4, False, False),
}


def tiles_for(x: Tensor, weight: Tensor, gelu: bool) -> list[tuple[int, ...]]:
    """Return the tiles that our kernels offer for x [B, N, C] times weight [F, C], in 16 bit; the default is first."""
    from vitpose_kernels.gpu.tiles import candidates

    arch = architecture(x)
    rows = x.shape[0] * x.shape[1]
    return [*candidates(rows, *weight.shape, x.dtype, arch, gelu, multiprocessors(x, arch))]


def with_tiles(function: Callable[..., Any], tiles: tuple[int, ...]) -> Callable[..., Any]:
    """Return a function like `function`, but in which our linear kernels use these tiles, one of `tiles_for`."""
    from vitpose_kernels.gpu import linear as gpu

    def run(*inputs: Any) -> Any:
        with mock.patch.object(gpu, "choose_tiles", lambda *_: gpu.Tiles(*tiles)):
            return function(*inputs)

    return run


def name_of(tiles: tuple[int, ...]) -> str:
    """Name tiles in the records, for example "128+64x128, 8 warps" or "64x64, 4 warps, 3 slices, pointers"."""
    m, tail, n, _, warps, _, split, residents, descriptors = tiles
    name = f"{m}{f'+{tail}' if tail else ''}x{n}, {warps} warps" + f", {split} slices" * (split > 1)
    return name + ", two at a time" * (residents > 1) + ", pointers" * (not descriptors)


def choice(call: Call, rows: int, impl: str, tiles: tuple[int, ...] = ()) -> dict[str, Any]:
    """Return `extra` of a contender that computes a call as a choice would, for `report.py convert`.

    `impl` is `choices.DEFAULT` for the contender that does what is done without choices.
    """
    return {"choice": to_rows({call: {rows: Choice(impl, tiles)}})[0]}


def ours(x, weight, bias, residual, sums, norm: bool, gelu: bool, impl: str | None = None):
    """Compute a layer with our ops, with LayerNorm (without weight and bias) before it if `norm`, and GELU if `gelu`.

    Takes x [B, N, C], weight [F, C], bias [F], residual [B, N, F], and sums [F], the float32 sums of the rows of
    `weight`, for LayerNorm. Returns [B, N, F]. The residual is added unless `norm`. `impl` is that of `linear`.
    """
    if norm:
        return F.linear(x, weight, bias, gelu, None, (*F.layer_norm_statistics(x), sums), impl=impl)
    return F.linear(x, weight, bias, gelu, residual, impl=impl)


def by_library(x, weight, bias, residual, _sums, norm: bool, gelu: bool):
    """Compute the same as `ours`, as a frozen model does with the choice "library"."""
    x = F.layer_norm(x, None, None) if norm else x
    return F.linear(x, weight, bias, gelu, None if norm else residual, impl="library")


def library(x, weight, bias, residual, _sums, norm: bool, gelu: bool):
    """Compute the same as `ours`, from the same arguments, one step after the other with PyTorch's operators."""
    x = nnF.layer_norm(x, x.shape[-1:], eps=1e-6) if norm else x
    y = nnF.linear(x, weight, bias)
    y = nnF.gelu(y) if gelu else y
    return y if norm else y + residual


def added_by_the_product(x, weight, bias, residual, _sums, norm: bool, gelu: bool):
    """Compute proj or fc2 as `library` does, but let the product add the residual (beta = 1 in cuBLAS).

    PyTorch cannot let a product add both, so the bias is added in a second pass, in place, which reads and writes the
    result. The second pass of `library` also reads the residual.
    """
    assert not norm and not gelu
    return torch.addmm(residual.flatten(0, -2), x.flatten(0, -2), weight.T).add_(bias).view_as(residual)
