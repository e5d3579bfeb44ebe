"""The linear layers of the network with each of our tile shapes, against PyTorch's library and a separate epilogue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.contenders import TOLERANCE
from benchmarks.harness import Case, Contender, close, declared
from benchmarks.models import randn
from benchmarks.tiles import (
    LAYERS,
    added_by_the_product,
    by_library,
    choice,
    library,
    name_of,
    ours,
    tiles_for,
    with_tiles,
)
from vitpose_kernels.choices import DEFAULT
from vitpose_kernels.launch import HAS_TRITON
from vitpose_kernels.linear import linear_call
from vitpose_kernels.sizes import MODELS


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("batch", [64, 1, 8])
@pytest.mark.parametrize("size", MODELS.values(), ids=lambda m: m.name)
def test_linear_tiles(compare, machine, quick, dtype, on, size, batch, layer):
    """The records of what a model may choose have the choice in `extra`, see `tiles.choice`."""
    if not machine.cuda and (size.name, batch) != ("B", 1):
        pytest.skip("on a CPU only B at batch 1 is measured")
    more_out, more_in, norm, gelu = LAYERS[layer]
    columns, inputs, rows = more_out * size.width, more_in * size.width, batch * 192

    def make(seed):
        x = randn(seed, batch, 192, inputs, device=on, dtype=dtype)
        weight = randn(seed + 1, columns, inputs, device=on, dtype=dtype) * inputs**-0.5
        bias = randn(seed + 2, columns, device=on, dtype=dtype)
        residual = randn(seed + 3, batch, 192, columns, device=on, dtype=dtype)
        return x, weight, bias, residual, weight.float().sum(1)

    example = make(0)
    call = linear_call(*example[:2], gelu, not norm, norm)
    kernels = machine.cuda and HAS_TRITON and dtype != torch.float32
    default = dict(impl="triton") if kernels else {}  # not the choices that this package ships

    def contender(name: str, function: Callable[..., Any], extra: dict[str, Any], **options: Any) -> Contender:
        run = torch.no_grad()(lambda *tensors: function(*tensors, norm, gelu, **options))
        return Contender(name, run, extra=extra)

    contenders = [contender("ours", ours, choice(call, rows, DEFAULT), **default)]
    theirs = "cuBLAS" if machine.cuda else "torch"
    contenders.append(contender(theirs, by_library, choice(call, rows, "library")))
    if machine.cuda:
        contenders.append(contender("cuBLAS, all by PyTorch", library, {}))
        if not norm:
            contenders.append(contender("cuBLAS, adds the residual", added_by_the_product, {}))
    if kernels:
        for tiles in tiles_for(*example[:2], gelu)[1:]:  # the first is the default
            run, extra = with_tiles(ours, tiles), choice(call, rows, "triton", tiles)
            contenders.append(contender(f"ours, {name_of(tiles)}", run, extra, **default))
    flops, moved = declared(torch.no_grad()(lambda *tensors: ours(*tensors, norm, gelu)), example)
    name = f"linear tiles {size.name} {layer}"
    compare(Case("ops", name, dtype, batch, make, contenders, close(TOLERANCE[dtype]), flops, moved))
