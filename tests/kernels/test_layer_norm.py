"""Tests of LayerNorm with and without residual, against torch.nn.functional.layer_norm."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitpose_fast import functional as F
from vitpose_kernels import layer_norm as op_file


def draw(*shape, seed=0, dtype=torch.float32):
    """Draw x of this shape [..., C], weight [C], bias [C] and a residual like x."""
    g = torch.Generator().manual_seed(seed)
    c = shape[-1:]
    return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in (shape, c, c, shape)]


@settings(max_examples=25)
@given(
    shape=st.sampled_from([(7,), (2, 3, 5), (1, 1), (0, 4), (3, 0, 4), (2, 17)]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 2**16),
)
def test_equals_torch(shape, dtype, seed):
    x, weight, bias, residual = draw(*shape, seed=seed, dtype=dtype)
    expected = torch.nn.functional.layer_norm(x, shape[-1:], weight, bias, 1e-6)
    torch.testing.assert_close(F.layer_norm(x, weight, bias), expected)
    s, y = F.layer_norm(x, weight, bias, 1e-5, residual)
    assert torch.equal(s, x + residual)
    torch.testing.assert_close(y, torch.nn.functional.layer_norm(s, shape[-1:], weight, bias, 1e-5))
    torch.testing.assert_close(F.layer_norm(x), torch.nn.functional.layer_norm(x, shape[-1:], eps=1e-6))
    s, y = F.layer_norm(x, residual=residual)
    torch.testing.assert_close(y, torch.nn.functional.layer_norm(s, shape[-1:], eps=1e-6))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_is_the_rounded_float32_of_the_rounded_sum(dtype):
    x, weight, bias, residual = draw(4, 33)
    x, residual = x.to(dtype), residual.to(dtype)
    s, y = F.layer_norm(x, weight, bias, residual=residual)
    assert torch.equal(s, x + residual)
    expected = torch.nn.functional.layer_norm(s.float(), (33,), weight, bias, 1e-6).to(dtype)
    torch.testing.assert_close(y, expected, rtol=torch.finfo(dtype).eps, atol=0)
    own = F.layer_norm(x, weight.to(dtype), bias.to(dtype))
    wide = torch.nn.functional.layer_norm(x.float(), (33,), weight.to(dtype).float(), bias.to(dtype).float(), 1e-6)
    torch.testing.assert_close(own, wide.to(dtype), rtol=torch.finfo(dtype).eps, atol=0)


def test_autocast_leaves_the_dtype_alone():
    x, weight, bias, _ = draw(3, 8)
    expected = F.layer_norm(x.bfloat16(), weight, bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert F.layer_norm(x, weight, bias).dtype == torch.float32
        assert torch.equal(F.layer_norm(x.bfloat16(), weight, bias), expected)


def test_gradcheck():
    x, weight, bias, residual = (t.requires_grad_() for t in draw(2, 3, 5, dtype=torch.float64))
    assert torch.autograd.gradcheck(F.layer_norm, (x, weight, bias))
    assert torch.autograd.gradcheck(lambda *t: F.layer_norm(*t[:3], residual=t[3]), (x, weight, bias, residual))
    assert torch.autograd.gradcheck(F.layer_norm, (x,))
    assert torch.autograd.gradcheck(lambda *t: F.layer_norm(t[0], residual=t[1]), (x, residual))


@pytest.mark.parametrize("output", [0, 1])
def test_one_output_alone_differentiates(output):
    """If only s or only y is used, the gradient of the other output is None rather than zeros."""
    x, weight, bias, residual = (t.requires_grad_() for t in draw(3, 5, dtype=torch.float64))
    F.layer_norm(x, weight, bias, residual=residual)[output].sin().sum().backward()
    s = (x + residual).detach().requires_grad_()
    (s, torch.nn.functional.layer_norm(s, (5,), weight, bias, 1e-6))[output].sin().sum().backward()
    torch.testing.assert_close(x.grad, s.grad)
    torch.testing.assert_close(residual.grad, s.grad)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (0, 3), (1, 2)])
def test_unrequested_gradients_are_not_computed(monkeypatch, wanted):
    needs = []
    backward = op_file.layer_norm_backward_reference
    monkeypatch.setattr(op_file, "layer_norm_backward_reference", lambda *a: needs.append(a[-2:]) or backward(*a))
    leaves = draw(3, 5, dtype=torch.float64)
    every = [t.clone().requires_grad_() for t in leaves]
    some = [t.requires_grad_(i in wanted) for i, t in enumerate(leaves)]
    for x, weight, bias, residual in (every, some):
        s, y = F.layer_norm(x, weight, bias, residual=residual)
        (s.cos() + y.sin()).sum().backward()
    for i in range(4):
        if i in wanted:
            torch.testing.assert_close(some[i].grad, every[i].grad, rtol=1e-12, atol=1e-12)
        else:
            assert some[i].grad is None
    assert needs == [(True, True), (bool({0, 3} & {*wanted}), bool({1, 2} & {*wanted}))]


@pytest.mark.parametrize("with_residual", [False, True])
def test_compiles_and_exports(with_residual):
    x, weight, bias, residual = draw(2, 3, 8)
    norm = torch.nn.LayerNorm(8, 1e-6)
    norm.load_state_dict({"weight": weight, "bias": bias})

    def forward(self, x, residual):
        y = F.layer_norm(x, self.weight, self.bias, residual=residual if with_residual else None)
        return sum(t.sin() for t in y) if with_residual else y

    norm.forward = forward.__get__(norm)
    grads = []
    for module in (norm, torch.compile(norm, backend="aot_eager", fullgraph=True)):
        out = module(x.requires_grad_(), residual)
        grads.append(torch.autograd.grad(out.square().sum(), (x, norm.weight, norm.bias)))
    torch.testing.assert_close(*grads)
    exported = torch.export.export(norm, (x, residual), dynamic_shapes=({0: torch.export.Dim("b")},) * 2)
    wide = torch.cat([x, x]).detach()
    torch.testing.assert_close(exported.module()(wide, wide), norm(wide, wide))


def test_opcheck():
    x, weight, bias, residual = (t.requires_grad_() for t in draw(3, 5))
    for other, gain, shift in ((None, weight, bias), (residual, weight, bias), (residual, None, None)):
        done = torch.library.opcheck(torch.ops.vitpose_fast.layer_norm, (x, other, gain, shift, 1e-6, False))
        assert set(done.values()) == {"SUCCESS"}
    x, weight, statistic = x.detach(), weight.detach(), torch.rand(3)
    for grad_s, gain, *need in (
        (None, weight, True, True), (x, weight, True, False), (x, weight, False, True), (x, None, True, False),
    ):  # fmt: skip
        args = (x, grad_s, x, gain, statistic, statistic, *need, False)
        assert set(torch.library.opcheck(torch.ops.vitpose_fast.layer_norm_backward, args).values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(x=torch.tensor(1.0)), r"x has shape \[\], expected \[..., C\] with C >= 1"),
        (dict(x=torch.ones(2, 0)), r"x has shape \[2, 0\], expected \[..., C\] with C >= 1"),
        (dict(weight=torch.ones(3)), r"weight has shape \[3\], expected \[4\]"),
        (dict(bias=None), "got weight without bias, expected both or neither"),
        (dict(weight=None), "got bias without weight, expected both or neither"),
        (dict(bias=torch.ones(1, 4)), r"bias has shape \[1, 4\], expected \[4\]"),
        (dict(bias=torch.ones(4).half()), "bias is torch.float16, expected weight and bias both torch.float32"),
        (dict(weight=torch.ones(4).half(), bias=torch.ones(4).half()), "weight is torch.float16"),
        (dict(residual=torch.ones(4)), r"residual is torch.float32 \[4\], expected torch.float32 \[2, 4\] as x"),
        (dict(residual=torch.ones(2, 4).half()), r"residual is torch.float16 \[2, 4\], expected torch.float32"),
        (dict(weight=torch.ones(4, device="meta")), "weight is on meta, expected cpu"),
        (dict(impl="cudnn"), "got impl='cudnn'"),
    ],
)
def test_refuses_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        F.layer_norm(**{"x": torch.ones(2, 4), "weight": torch.ones(4), "bias": torch.ones(4), **options})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7,), (2, 3, 5), (0, 4)])
def test_statistics_equal_those_of_the_norm(dtype, shape):
    x = draw(*shape, dtype=dtype)[0]
    mean, rstd = F.layer_norm_statistics(x, 1e-3)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert mean.shape == rstd.shape == shape[:-1] and mean.dtype == rstd.dtype == wide
    unit = torch.ones(shape[-1], dtype=wide)
    expected = torch.nn.functional.layer_norm(x.to(wide), shape[-1:], unit, 0 * unit, 1e-3)
    torch.testing.assert_close((x.to(wide) - mean[..., None]) * rstd[..., None], expected)
    with pytest.raises(ValueError, match="layer_norm_statistics: x requires grad"):
        F.layer_norm_statistics(x.requires_grad_())
