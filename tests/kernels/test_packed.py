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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gelu", [False, True])
def test_int8_has_the_error_of_its_steps(dtype, gelu):
    """Both operands are rounded to steps of max / 127: about 1 % for normal numbers. A channel's scale is its own."""
    if not supports("int8", dtype):
        pytest.skip(f"this machine has no int8 for {dtype}")
    noise = torch.Generator().manual_seed(0)
    x, weight, bias, residual = (
        torch.randn(*s, generator=noise).to(dtype) for s in ((2, 5, 64), (96, 64), (96,), (2, 5, 96))
    )
    weight[3] *= 1000
    exact = linear_reference(x.double(), weight.double(), bias.double(), gelu, residual.double())
    ours = PackedWeight(weight, "int8", 10).linear(x, bias, gelu, residual)
    assert ours.dtype == dtype and ours.shape == exact.shape
    error = (ours.double() - exact).square().mean((0, 1)).sqrt() / exact.square().mean((0, 1)).sqrt()
    assert 1e-4 < error.max() < 0.05, error.max()


def test_int8_of_nothing_and_of_no_number():
    if not supports("int8", torch.float32):
        pytest.skip("this machine has no int8")
    packed, bias = PackedWeight(torch.randn(4, 8), "int8", 2), torch.randn(4)
    assert torch.equal(packed.linear(torch.zeros(2, 8), bias), bias.expand(2, 4))
    assert packed.linear(torch.full((2, 8), float("nan")), bias).isnan().all()
    assert torch.equal(PackedWeight(torch.zeros(4, 8), "int8", 2).linear(torch.randn(2, 8), bias), bias.expand(2, 4))
