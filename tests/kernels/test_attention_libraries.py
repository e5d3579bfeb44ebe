"""Tests of attention by other libraries: the same results and gradients as the reference, and refusals in one line."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn.attention import _cur_sdpa_kernel_backends

import vitpose_fast as vp
from vitpose_fast import functional as F
from vitpose_fast.modules import LayerNorm, WindowAttention
from vitpose_kernels import attention_cpu, libraries

ON_CPU = ("sdpa", "sdpa:flash", "sdpa:math", "products")


def plain(qkv, scale):
    """Compute attention [B, N, H * D] in float64 from qkv [B, N, 3, H, D]."""
    q, k, v = qkv.double().permute(2, 0, 3, 1, 4)
    return ((scale * q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).flatten(2)


def draw(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("impl", [None, *ON_CPU])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_outputs_and_gradients_are_those_of_the_formula(impl, dtype, scale):
    qkv, grad = draw(2, 12, 3, 2, 8, dtype=dtype).requires_grad_(), draw(2, 12, 16)
    wide = qkv.detach().double().requires_grad_()
    out = F.attention(qkv, (4, 3), scale=scale, impl=impl)
    expected = plain(wide, 8**-0.5 if scale is None else scale)
    out.backward(grad.to(dtype))
    expected.backward(grad.to(dtype).double())
    assert out.dtype == dtype and out.shape == (2, 12, 16) and out.is_contiguous()
    tolerance = 40 * torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(qkv.grad.double(), wide.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("heads", [1, 5, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_of_products_cover_all_heads(monkeypatch, heads, dtype):
    """With few scores at a time, several pieces are computed, and the last may be smaller."""
    monkeypatch.setattr(attention_cpu, "_SCORES", 2 * 12 * 12)
    qkv = draw(3, 12, 3, heads, 4, dtype=dtype)
    tolerance = 40 * torch.finfo(dtype).eps
    out = F.attention(qkv, (4, 3), impl="products")
    torch.testing.assert_close(out.double(), plain(qkv, 0.5), rtol=tolerance, atol=tolerance)
    wide = qkv.double().requires_grad_()
    plain(wide, 0.5).sum().backward()
    qkv.requires_grad_()
    F.attention(qkv, (4, 3)).sum().backward()
    torch.testing.assert_close(qkv.grad.double(), wide.grad, rtol=tolerance, atol=tolerance)


def test_a_back_end_is_pinned_for_the_call_only(monkeypatch):
    during = []
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def spy(*arguments, **options):
        during.append([backend.name for backend in _cur_sdpa_kernel_backends()])
        return sdpa(*arguments, **options)

    before = _cur_sdpa_kernel_backends()
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    for impl in ("sdpa:flash", "sdpa:math"):
        F.attention(draw(1, 4, 3, 1, 8), (2, 2), impl=impl)
    with pytest.raises(ValueError, match="does not take"):
        F.attention(draw(1, 4, 3, 1, 8), (2, 2), impl="sdpa:efficient")
    assert during == [["FLASH_ATTENTION"], ["MATH"], ["EFFICIENT_ATTENTION"]]
    assert _cur_sdpa_kernel_backends() == before


@pytest.mark.parametrize("impl", ["sdpa:efficient", "sdpa:cudnn"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_back_end_that_cannot_take_the_call_is_refused_in_one_line(impl, grad):
    if torch.cuda.is_available():
        pytest.skip("the message is that of torch without CUDA")
    match = (
        f"attention: impl='{impl}' does not take torch.float32 tensors of head width 8 on cpu; use impl='sdpa' or None"
    )
    with pytest.raises(ValueError, match=match) as error:
        F.attention(draw(1, 4, 3, 1, 8).requires_grad_(grad), (2, 2), impl=impl)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("package", ["flash_attn", "xformers"])
def test_packages_get_tokens_before_heads_and_the_scale(monkeypatch, package):
    """Stub modules with the signatures of the packages compute attention from q, k and v [B, N, H, D]."""
    seen = []

    def attend(q, k, v, scale):
        seen.append([tuple(x.shape) for x in (q, k, v)])
        return plain(torch.stack([q, k, v], 2), scale).unflatten(-1, q.shape[2:]).to(q.dtype)

    main, ops = ModuleType(package), ModuleType("xformers.ops")
    main.__spec__ = ModuleSpec(package, None)
    main.flash_attn_func = lambda q, k, v, softmax_scale: attend(q, k, v, softmax_scale)
    ops.memory_efficient_attention = lambda q, k, v, scale: attend(q, k, v, scale)
    monkeypatch.setitem(sys.modules, package, main)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    qkv = draw(2, 12, 3, 5, 8)
    out = libraries._call(qkv, 0.3, package)
    torch.testing.assert_close(out.double(), plain(qkv, 0.3), rtol=1e-5, atol=1e-5)
    assert seen == [[(2, 12, 5, 8)] * 3]
    with pytest.raises(ValueError, match=f"got impl='{package}' for tensors on cpu; it needs CUDA tensors"):
        F.attention(qkv, (4, 3), impl=package)


def test_use_impl_sets_a_library_where_attention_takes_it():
    whole, windows = WindowAttention(16, 2, (4, 4)), WindowAttention(16, 2, (4, 4), (2, 2))
    norm = LayerNorm(16)
    model = nn.Sequential(norm, whole, windows)
    assert vp.use_impl(model, "sdpa:math") is model
    assert [m.impl for m in model] == [None, "sdpa:math", None]
    vp.use_impl(model, "reference")
    assert [m.impl for m in model] == ["reference"] * 3
    x = torch.randn(1, 16, 16)
    expected = whole(x)
    for impl in ON_CPU:
        torch.testing.assert_close(vp.use_impl(whole, impl)(x), expected)


@pytest.mark.parametrize("impl", ["sdpa:flash", "cuda", "sdpa:new"])
def test_use_impl_refuses_what_no_module_takes(impl):
    model = nn.Sequential(LayerNorm(16), WindowAttention(16, 2, (4, 4), rel_pos=True))
    with pytest.raises(ValueError, match=f"use_impl: got impl='{impl}', which no module of Sequential takes") as error:
        vp.use_impl(model, impl)
    assert "\n" not in str(error.value) and [m.impl for m in model] == [None, None]
