"""The Triton kernels of layer_norm against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitpose_fast import functional as F
from vitpose_kernels.gpu import layer_norm as gpu


def draw(*shape, seed=0, offset=0.0, dtype=torch.float32):
    """Return random [x, weight, bias, residual]; rows offset from zero are where careless statistics cancel."""
    g = torch.Generator().manual_seed(seed)
    c = shape[-1:]
    x, weight, bias, residual = (torch.randn(s, generator=g) for s in (shape, c, c, shape))
    return [(x + offset).to(dtype), weight, bias, residual.to(dtype)]


def outputs_and_grads(x, weight, bias, residual, impl):
    """Return the outputs (s, y) or (y,), and the gradients of all inputs for random incoming gradients.

    Smooth incoming gradients would make the errors of a row add up to a single sample of the rounding noise; random
    ones average over many. They are rounded to bfloat16, so that they are the same in every dtype.
    """
    given = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias, residual)]
    leaves = [t for t in given if t is not None]
    out = F.layer_norm(*given[:3], residual=given[3], impl=impl)
    out = out if isinstance(out, tuple) else (out,)
    g = torch.Generator().manual_seed(1)
    grads = [torch.randn(y.shape, generator=g).bfloat16().to(x.dtype).to(y.device) for y in out]
    return out, torch.autograd.grad(out, leaves, grads)


@settings(max_examples=40)
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16 if torch.cuda.is_available() else torch.float16]),
    rows=st.sampled_from([(9,), (2, 7), (70,)]),  # 70: programs loop over several blocks
    c=st.sampled_from([48, 384, 1030]),
    with_residual=st.booleans(),
    parameters=st.sampled_from(["float32", "dtype of x", "none"]),
    offset=st.sampled_from([0.0, 30.0]),
    seed=st.integers(0, 2**16),
)
def test_any_shape_equals_the_reference(
    device, dtype, check_error_rule, rows, c, with_residual, parameters, offset, seed
):
    x, weight, bias, residual = draw(*rows, c, seed=seed, offset=offset, dtype=dtype)
    chosen = {"float32": lambda t: t, "dtype of x": lambda t: t.to(dtype), "none": lambda t: None}[parameters]
    weight, bias = chosen(weight), chosen(bias)
    inputs = [x, weight, bias, residual if with_residual else None]
    truth = outputs_and_grads(*(t if t is None else t.double() for t in inputs), impl="reference")
    plain = outputs_and_grads(*inputs, impl="reference")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "_WARPS", 8)
        ours = outputs_and_grads(*(t if t is None else t.to(device) for t in inputs), impl="triton")
    for values, factor in zip(range(2), (2.0, 3.0), strict=True):
        for a, b, c in zip(ours[values], plain[values], truth[values], strict=True):
            check_error_rule(a, b, c, factor)


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("shape", [(1,), (5,), (1, 7), (3, 1), (2, 5), (33, 3)], ids=str)
def test_small_shapes(device, shape, with_residual):
    """Too few elements to compare mean errors: each element may be off by a few rounding steps."""
    inputs = draw(*shape)[: 4 if with_residual else 3] + [None] * (not with_residual)
    expected = outputs_and_grads(*(t if t is None else t.double() for t in inputs), impl="reference")
    ours = outputs_and_grads(*(t if t is None else t.to(device) for t in inputs), impl="triton")
    for a, b in zip(ours[0] + ours[1], expected[0] + expected[1], strict=True):
        torch.testing.assert_close(a.cpu(), b.float(), rtol=1e-5, atol=1e-5)


def test_y_is_the_norm_of_the_s_that_is_returned(device, dtype):
    """Not of the unrounded sum, because the backward pass only has the rounded one."""
    x, weight, bias, residual = (t.to(device) for t in draw(5, 40, dtype=dtype))
    s, y = F.layer_norm(x, weight, bias, residual=residual, impl="triton")
    assert torch.equal(s, x + residual) and torch.equal(y, F.layer_norm(s, weight, bias, impl="triton"))


def inside(x, fill=float("nan")):
    """Return a copy of `x` [R, C] as a view into a larger buffer of `fill`."""
    buffer = torch.full((x.shape[0] + 2, x.shape[1] + 6), fill, dtype=x.dtype, device=x.device)
    buffer[1:-1, 3:-3] = x
    return buffer[1:-1, 3:-3]


def test_without_weight_and_bias_the_bits_are_those_of_ones_and_zeros(device, dtype, poisoned):
    x, weight, bias, residual = (t.to(device) for t in draw(9, 40, dtype=dtype))
    plain, (grad, _) = outputs_and_grads(x, None, None, residual, "triton")
    expected, (expected_grad, *_) = outputs_and_grads(x, 0 * weight + 1, 0 * bias, residual, "triton")
    assert all(torch.equal(*pair) for pair in zip((*plain, grad), (*expected, expected_grad), strict=True))


def test_strided_rows_give_the_same_bits(device, poisoned):
    x, weight, bias, residual = (t.to(device) for t in draw(7, 40))
    expected, grads = outputs_and_grads(x, weight, bias, residual, "triton")
    assert all(t.isfinite().all() for t in (*expected, *grads))
    turned = x.T.contiguous().T, residual.T.contiguous().T
    for a, b in ((inside(x), inside(residual)), turned, (inside(x), residual)):
        assert not a.is_contiguous()
        for ours, contiguous in zip(outputs_and_grads(a, weight, bias, b, "triton"), (expected, grads), strict=True):
            assert all(torch.equal(*pair) for pair in zip(ours, contiguous, strict=True))


def test_incoming_gradients_of_any_strides(device):
    leaves = [t.to(device).requires_grad_() for t in draw(7, 40)]
    s, y = F.layer_norm(*leaves[:3], residual=leaves[3], impl="triton")
    grad = torch.randn(7, 40, generator=torch.Generator().manual_seed(1)).to(device)
    expected = torch.autograd.grad((s, y), leaves, (grad, grad), retain_graph=True)
    for other in (inside(grad), grad.T.contiguous().T):
        ours = torch.autograd.grad((s, y), leaves, (other, other), retain_graph=True)
        assert all(torch.equal(*pair) for pair in zip(ours, expected, strict=True))
    ones = torch.autograd.grad((s, y), leaves, (torch.ones_like(s), torch.ones_like(y)), retain_graph=True)
    broadcast = torch.autograd.grad((s.sum() + y.sum(),), leaves)
    assert all(torch.equal(*pair) for pair in zip(broadcast, ones, strict=True))


@pytest.mark.parametrize("wanted", [(0,), (1,), (3, 2)])
def test_a_gradient_does_not_depend_on_which_others_are_wanted(device, poisoned, wanted):
    leaves = [t.to(device).requires_grad_() for t in draw(9, 40)]
    s, y = F.layer_norm(*leaves[:3], residual=leaves[3], impl="triton")
    every = torch.autograd.grad((s.sin() + y.cos()).sum(), leaves)
    some = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(leaves)]
    s, y = F.layer_norm(*some[:3], residual=some[3], impl="triton")
    grads = torch.autograd.grad((s.sin() + y.cos()).sum(), [some[i] for i in wanted])
    assert all(torch.equal(grad, every[i]) for i, grad in zip(wanted, grads, strict=True))


def test_a_nan_row_affects_no_other_row(device):
    x, weight, bias, _ = (t.to(device) for t in draw(5, 40))
    (y,), (grad, *_) = outputs_and_grads(x, weight, bias, None, "triton")
    x[2, 7] = float("nan")
    (broken,), (broken_grad, *_) = outputs_and_grads(x, weight, bias, None, "triton")
    others = [0, 1, 3, 4]
    assert broken[2].isnan().all() and torch.equal(broken[others], y[others])
    assert torch.equal(broken_grad[others], grad[others])


def test_extreme_rows_stay_finite(device):
    """Constant rows (no variance), the largest float16, a mean far from zero, values whose squares barely fit."""
    weight, bias = torch.ones(40, device=device), torch.full((40,), 0.5, device=device)
    half = torch.full((2, 40), 65504.0, dtype=torch.float16, device=device)
    half[1, ::2] = -65504.0
    y = F.layer_norm(half, weight, bias, impl="triton")
    assert torch.equal(y[0], torch.full_like(y[0], 0.5)), "a constant row gives the bias"
    torch.testing.assert_close(y[1].abs(), torch.tensor([0.5, 1.5], device=device).half().repeat(20))
    large = torch.tensor([1e18, -1e18], device=device).repeat(1, 20)
    torch.testing.assert_close(F.layer_norm(large, weight, bias, impl="triton"), large / 1e18 + 0.5)
    far, _, _, _ = (t.to(device) for t in draw(9, 40, offset=1e6))
    expected = F.layer_norm(far.double(), weight.double(), bias.double(), impl="reference").float()
    torch.testing.assert_close(F.layer_norm(far, weight, bias, impl="triton"), expected, rtol=1e-5, atol=1e-5)


def test_the_widest_row(device, check_error_rule):
    x, weight, bias, _ = draw(2, 8192)
    ours = F.layer_norm(x.to(device), weight.to(device), bias.to(device), impl="triton")
    check_error_rule(ours, F.layer_norm(x, weight, bias), F.layer_norm(x.double(), weight.double(), bias.double()))
    with pytest.raises(ValueError, match="layer_norm: x has 8193 channels, the Triton kernels take 8192 at most"):
        F.layer_norm(*(torch.ones(size, device=device) for size in ((1, 8193), 8193, 8193)), impl="triton")


def test_no_rows(device):
    x, weight, bias, residual = (t.to(device) for t in draw(0, 40))
    (s, y), (grad, d_weight, d_bias, _) = outputs_and_grads(x, weight, bias, residual, "triton")
    assert s.shape == y.shape == grad.shape == (0, 40)
    assert not d_weight.any() and not d_bias.any()


def test_float64_is_refused_in_one_line(device):
    x, weight, bias, _ = (t.to(device).double() for t in draw(2, 4))
    with pytest.raises(ValueError, match=r"layer_norm: got torch.float64 .*, the Triton kernels take"):
        F.layer_norm(x, weight, bias, impl="triton")


@pytest.mark.cuda
def test_opcheck():
    x, weight, bias, residual = (t.cuda().requires_grad_() for t in draw(3, 40))
    for other in (None, residual):
        done = torch.library.opcheck(torch.ops.vitpose_fast.layer_norm, (x, other, weight, bias, 1e-6, True))
        assert set(done.values()) == {"SUCCESS"}


@pytest.mark.cuda
def test_parameter_gradients_of_many_rows_are_deterministic():
    x, weight, bias, residual = (t.cuda() for t in draw(64 * 192, 768, dtype=torch.bfloat16))
    first, again = (outputs_and_grads(x, weight, bias, residual, "triton")[1] for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))


@pytest.mark.parametrize("rows, c", [((9,), 48), ((2, 5), 1030)])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_statistics_alone(device, dtype, poisoned, rows, c, offset):
    x = draw(*rows, c, offset=offset, dtype=dtype)[0]
    step = torch.finfo(torch.float32).eps
    mean, rstd = (t.double().cpu() for t in F.layer_norm_statistics(x.to(device), impl="triton"))
    exact_mean, exact_rstd = F.layer_norm_statistics(x.double())
    assert (mean - exact_mean).abs().max() <= step * x.double().abs().max()  # a mean near zero cancels
    assert (rstd / exact_rstd - 1).abs().max() <= 4 * step
