"""Packed weights compute what `linear` computes, and notice when the weight changes."""

from __future__ import annotations

import pytest
import torch

from vitpose_kernels.linear import linear_reference
from vitpose_kernels.packed import LIBRARIES, PackedWeight, default_library, supports

CASES = [(name, dtype) for name in LIBRARIES for dtype in (torch.float32, torch.bfloat16, torch.float16)]


@pytest.mark.parametrize(("library", "dtype"), CASES)
@pytest.mark.parametrize(("batch", "tokens", "inputs", "outputs"), [(1, 5, 7, 3), (3, 16, 64, 96), (2, 1, 1, 1)])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("added", [False, True])
def test_packed_products_are_as_exact_as_plain_ones(library, dtype, batch, tokens, inputs, outputs, gelu, added):
    if not supports(library, dtype):
        pytest.skip(f"this machine has no {library} for {dtype}")
    noise = torch.Generator().manual_seed(0)
    x, weight, bias, residual = (
        torch.randn(*shape, generator=noise).to(dtype)
        for shape in ((batch, tokens, inputs), (outputs, inputs), (outputs,), (batch, tokens, outputs))
    )
    residual = residual if added else None
    before = None if residual is None else residual.clone()
    exact = linear_reference(
        *(t.double() for t in (x, weight, bias)), gelu, None if residual is None else residual.double()
    )
    plain = linear_reference(x, weight, bias, gelu, residual)
    ours = PackedWeight(weight, library, batch * tokens).linear(x, bias, gelu, residual)
    assert ours.dtype == dtype and ours.shape == (batch, tokens, outputs)
    assert residual is None or torch.equal(residual, before)
    error, usual = ((t.double() - exact).square().mean().sqrt() for t in (ours, plain))
    assert error <= 2 * usual + 1e-7 * exact.square().mean().sqrt()


def test_a_changed_weight_is_noticed():
    if not supports("onednn", torch.float32):
        pytest.skip("this machine has no oneDNN")
    weight = torch.randn(4, 8)
    packed = PackedWeight(weight, "onednn", 2)
    assert packed.is_of(weight) and not packed.is_of(weight.clone())
    weight.add_(1)
    assert not packed.is_of(weight)


def test_a_dtype_without_a_library_has_none():
    assert not supports("onednn", torch.float64) and default_library(torch.float64, 1) is None
    assert not supports("mkl", torch.bfloat16)
