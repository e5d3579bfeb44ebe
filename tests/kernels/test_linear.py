"""Tests of the linear layer for inference: reference, folded LayerNorm, registration and errors."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as nnF

from vitpose_fast import functional as F

OP = torch.ops.vitpose_fast.linear


def draw(rows=(2, 3), c=8, f=5, dtype=torch.float32, seed=0):
    """Draw x [*rows, c], weight [f, c], bias [f] and residual [*rows, f]."""
    g = torch.Generator().manual_seed(seed)
    shapes = (*rows, c), (f, c), (f,), (*rows, f)
    return [torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes]


def test_bias_gelu_and_residual_in_this_order():
    x, weight, bias, residual = draw()
    assert torch.equal(F.linear(x, weight), nnF.linear(x, weight))
    expected = nnF.gelu(nnF.linear(x, weight, bias)) + residual
    assert torch.equal(F.linear(x, weight, bias, gelu=True, residual=residual), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_folded_layer_norm_is_layer_norm_then_linear(dtype):
    g = torch.Generator().manual_seed(1)
    x, weight, bias, _ = draw(rows=(40,), c=64, f=48, dtype=torch.float64)
    x = (x + 3.0).to(dtype)  # a common offset, so that the mean cancels most of the product
    gamma, beta = torch.rand(64, generator=g).double() + 0.5, torch.randn(64, generator=g).double()
    expected = nnF.linear(nnF.layer_norm(x.double(), (64,), gamma, beta), weight, bias)
    folded = (weight * gamma).to(dtype)
    exact = torch.promote_types(dtype, torch.float32)
    mean, var = x.to(exact).mean(-1), x.to(exact).var(-1, unbiased=False)
    norm = (mean, (var + 1e-5).rsqrt(), folded.to(exact).sum(1))
    out = F.linear(x, folded, (weight @ beta + bias).to(dtype), norm=norm)
    assert out.dtype == dtype
    assert (out.double() - expected).norm() / expected.norm() < 8 * torch.finfo(dtype).eps


def test_a_float32_residual_stays_float32_under_autocast():
    x, weight, bias, residual = draw()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert F.linear(x, weight, bias).dtype == torch.bfloat16
        out = F.linear(x, weight, bias, residual=residual)
    assert out.dtype == torch.float32
    plain = nnF.linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16())
    assert torch.equal(out, plain + residual)


def test_output_is_contiguous_whatever_the_strides():
    x, weight, bias, residual = draw(rows=(4, 3))
    turned = residual.transpose(0, 1).contiguous().transpose(0, 1)
    assert F.linear(x.transpose(0, 1), weight, bias, residual=turned.transpose(0, 1)).is_contiguous()


def test_opcheck():
    x, weight, bias, residual = draw()
    rows, columns = x.mean(-1), weight.sum(1)
    for args in ((bias, True, residual, rows, rows, columns), (None, False, None, None, None, None)):
        assert set(torch.library.opcheck(OP, (x, weight, *args, False, ())).values()) == {"SUCCESS"}


def test_compiles_in_one_graph():
    x, weight, bias, residual = draw()
    compiled = torch.compile(lambda x: F.linear(x, weight, bias, True, residual), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), F.linear(x, weight, bias, True, residual))


def test_refuses_in_one_line():
    x, weight, bias, residual = draw()
    rows, columns = x.mean(-1), weight.sum(1)
    with pytest.raises(ValueError, match=r"linear: weight has shape \[5, 7\], expected \[F, 8\] for x with 8 channels"):
        F.linear(x, weight[:, :7])
    with pytest.raises(ValueError, match=r"bias has shape \[4\], expected \[5\]"):
        F.linear(x, weight, bias[:4])
    with pytest.raises(ValueError, match=r"residual has shape \[1, 2, 3, 5\], expected \[2, 3, 5\]"):
        F.linear(x, weight, residual=residual[None])
    with pytest.raises(ValueError, match=r"weight has dtype torch.bfloat16, expected torch.float32"):
        F.linear(x, weight.bfloat16())
    with pytest.raises(ValueError, match=r"rstd has shape \[6\], expected \[2, 3\]"):
        F.linear(x, weight, norm=(rows, rows.flatten(), columns))
    with pytest.raises(ValueError, match=r"mean has dtype torch.bfloat16, expected torch.float32"):
        F.linear(x, weight, norm=(rows.bfloat16(), rows, columns))
    with pytest.raises(ValueError, match=r"got impl='fast'"):
        F.linear(x, weight, impl="fast")


def test_refuses_to_drop_a_gradient():
    x, weight, bias, _ = draw()
    weight.requires_grad_()
    with pytest.raises(ValueError, match=r"linear: weight requires grad, .* call it under torch.no_grad\(\)"):
        F.linear(x, weight, bias)
    with torch.no_grad():
        assert not F.linear(x, weight, bias).requires_grad
