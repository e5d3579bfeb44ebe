"""The linear layers of the network with each of our tile shapes, against PyTorch's library and a separate epilogue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.contenders import TOLERANCE
from benchmarks.harness import Case, Contender, close, declared
from benchmarks.models import randn
from benchmarks.tiles import LAYERS, added_by_the_product, library, name_of, ours, tiles_for, with_tiles
from vitpose_kernels.launch import HAS_TRITON
from vitpose_kernels.sizes import MODELS


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("batch", [64, 1, 8])
@pytest.mark.parametrize("size", MODELS.values(), ids=lambda m: m.name)
def test_linear_tiles(compare, machine, quick, dtype, on, size, batch, layer):
    """In `extra`, each record has the shape and the choice (implementation and tiles), for `report.py convert`.

    `impl` is "default", "triton" (with the tiles as integers) or "library".
    """
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

    epilogue = "norm+gelu" if gelu else "norm" if norm else "residual"
    key = dict(op="linear", columns=columns, inputs=inputs, rows=rows, epilogue=epilogue)

    def contender(name: str, function: Callable[..., Any], impl: str, tiles: tuple[int, ...] | None) -> Contender:
        run = torch.no_grad()(lambda *tensors: function(*tensors, norm, gelu))
        if tiles is not None:
            run = with_tiles(run, tiles)
        return Contender(name, run, extra={"choice": key | dict(impl=impl, tiles=tiles)})

    theirs = "cuBLAS" if machine.cuda else "torch"
    contenders = [contender("ours", ours, "default", None), contender(theirs, library, "library", None)]
    if machine.cuda and not norm:
        name = "cuBLAS, adds the residual"
        contenders.append(contender(name, added_by_the_product, "library, beta 1", None))
    example = make(0)
    if machine.cuda and HAS_TRITON and dtype != torch.float32:
        for tiles in tiles_for(*example[:2], gelu)[1:]:  # the first is the default
            contenders.append(contender(f"ours, {name_of(tiles)}", ours, "triton", tiles))
    flops, moved = declared(torch.no_grad()(lambda *tensors: ours(*tensors, norm, gelu)), example)
    name = f"linear tiles {size.name} {layer}"
    compare(Case("ops", name, dtype, batch, make, contenders, close(TOLERANCE[dtype]), flops, moved))
