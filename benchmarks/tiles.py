"""Ways to compute the linear layers of the network, for the benchmarks that compare them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch.nn.functional as nnF

from vitpose_fast import functional as F

TILES = [  # BLOCK_M, TAIL, BLOCK_N, BLOCK_K, warps, stages; the last is common elsewhere, but our ops never choose it
    (128, 64, 128, 64, 8, 4),
    (128, 0, 128, 64, 8, 4),
    (128, 0, 64, 64, 8, 4),
    (64, 0, 64, 64, 4, 4),
    (128, 0, 256, 64, 8, 3),
]
LAYERS = {  # outputs and inputs / width of the model, whether LayerNorm precedes the layer, whether GELU follows it
    "qkv": (3, 1, True, False),
    "proj": (1, 1, False, False),
    "fc1": (4, 1, True, True),
    "fc2": (1, 4, False, False),
}


def with_tiles(function: Callable[..., Any], tiles: tuple[int, ...], descriptors: bool) -> Callable[..., Any]:
    """Return a function like `function`, but in which our linear kernels use these tiles, in the order of `TILES`.

    The kernels address memory through tensor descriptors or, if `descriptors` is false, through pointers.
    """
    from vitpose_kernels.gpu import linear as gpu

    def run(*inputs: Any) -> Any:
        chosen = mock.patch.object(gpu, "choose_tiles", lambda *_: gpu.Tiles(*tiles))
        way = mock.patch.object(gpu, "takes_descriptors", lambda *_: descriptors)
        with chosen, way:
            return function(*inputs)

    return run


def ours(x, weight, bias, residual, sums, norm: bool, gelu: bool):
    """Compute a layer with our ops, with LayerNorm (without weight and bias) before it if `norm`, and GELU if `gelu`.

    Takes x [B, N, C], weight [F, C], bias [F], residual [B, N, F], and sums [F], the float32 sums of the rows of
    `weight`, for LayerNorm. Returns [B, N, F]. The residual is added unless `norm`.
    """
    if norm:
        return F.linear(x, weight, bias, gelu, None, (*F.layer_norm_statistics(x), sums))
    return F.linear(x, weight, bias, gelu, residual)


def library(x, weight, bias, residual, _sums, norm: bool, gelu: bool):
    """Compute the same as `ours`, from the same arguments, one step after the other with PyTorch's operators."""
    x = nnF.layer_norm(x, x.shape[-1:], eps=1e-6) if norm else x
    y = nnF.linear(x, weight, bias)
    y = nnF.gelu(y) if gelu else y
    return y if norm else y + residual
