"""The Triton kernels of split_ffn against the float64 reference: values, gradients, invariants, memory safety."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitpose_fast import functional as F
from vitpose_kernels.gpu import linear, split_ffn
from vitpose_kernels.launch import run

HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16
NAMES = ("x", "fc1_weight", "fc1_bias", "shared_weight", "shared_bias", "expert_weight", "expert_bias")


def make(dtype=torch.float32, b=3, n=5, c=24, p=8, t=3, f=40, task=None, seed=0):
    """Return random (the seven floating-point inputs, task, residual, incoming gradient)."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(b, n, c), (f, c), (f,), (c - p, f), (c - p,), (t, p, f), (t, p)]
    scales = [1, c**-0.5, 0.1, f**-0.5, 0.1, f**-0.5, 0.1]
    floats = [(torch.randn(*s, generator=g) * scale).to(dtype) for s, scale in zip(shapes, scales)]
    residual, grad = (torch.randn(b, n, c, generator=g).to(dtype) for _ in range(2))
    return floats, torch.randint(0, t, (b,), generator=g) if task is None else torch.tensor(task), residual, grad


def run_all(floats, task, residual, grad, impl, device="cpu", dtype=None):
    """Return [out, gradients of the seven inputs, gradient of the residual]."""
    leaves = [t.to(device, dtype).detach().requires_grad_() for t in (*floats, residual)]
    out = F.split_ffn(*leaves[:7], task.to(device), residual=leaves[7], impl=impl)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out))]


@settings(max_examples=25)
@given(
    dtype=st.sampled_from([torch.float32, HALF]),
    b=st.integers(1, 3),
    n=st.sampled_from([1, 5, 70, 200]),  # 200: more than one tile of 192
    sizes=st.sampled_from([(8, 8), (24, 8), (9, 3), (40, 12), (72, 1), (16, 0)]),  # channels, and expert channels
    f=st.sampled_from([8, 40, 67]),
    t=st.integers(1, 4),
    tail=st.sampled_from([0, 64]),
    seed=st.integers(0, 2**16),
)
def test_any_shape_equals_the_reference(device, check_error_rule, dtype, b, n, sizes, f, t, tail, seed):
    inputs = make(dtype, b, n, *sizes, t, f, seed=seed)
    truth = run_all(*inputs, "reference", dtype=torch.float64)
    plain = run_all(*inputs, "reference", device)
    with pytest.MonkeyPatch.context() as patch:
        for module in (linear, split_ffn):
            tiles = linear.Tiles(128 if tail else 64, tail, 64, 32, 8 if tail else 4, 2)
            patch.setattr(module, "choose_tiles", lambda *_, tiles=tiles: tiles)
        ours = run_all(*inputs, "triton", device)
    for i, (a, b, c) in enumerate(zip(ours, plain, truth, strict=True)):
        if c.numel() >= 100:
            check_error_rule(a, b, c, 2.0 if i == 0 else 3.0)
        elif c.numel():  # too few numbers: the error of the plain ops is chance
            bound = 32 * torch.finfo(dtype).eps * c.abs().max().item()
            torch.testing.assert_close(a.double().cpu(), c, rtol=0, atol=bound)


def test_equal_experts_are_the_dense_ffn(device, dtype):
    floats, task, residual, grad = make(dtype)
    floats[5], floats[6] = floats[5][:1].expand(3, -1, -1), floats[6][:1].expand(3, -1)
    mixed = run_all(floats, task, residual, grad, "triton", device)
    dense = run_all(floats, torch.zeros_like(task), residual, grad, "triton", device)
    assert all(torch.equal(a, b) for a, b in zip(mixed[:6], dense[:6], strict=True))
    for ours, whole in zip(mixed[6:8], dense[6:8], strict=True):  # expert gradients add up to that of the single expert
        bound = 4 * torch.finfo(dtype).eps * whole.abs().max().item()
        torch.testing.assert_close(ours.sum(0), whole.sum(0), rtol=0, atol=bound)


def test_permuted_samples_give_permuted_outputs(device, dtype):
    floats, task, residual, grad = make(dtype, b=4, task=(2, 0, 1, 0))
    order = torch.tensor([3, 1, 0, 2])
    out, dx, *_ = run_all(floats, task, residual, grad, "triton", device)
    floats[0] = floats[0][order]
    turned, turned_dx, *_ = run_all(floats, task[order], residual[order], grad[order], "triton", device)
    torch.testing.assert_close(turned, out[order])
    torch.testing.assert_close(turned_dx, dx[order])


def test_a_task_learns_from_its_own_samples_only(device, dtype):
    floats, task, residual, grad = make(dtype, b=4, t=4, task=(2, 0, 2, 1))
    weight, bias = run_all(floats, task, residual, grad, "triton", device)[6:8]
    assert not weight[3].any() and not bias[3].any()  # exact zeros, not uninitialized memory
    floats[0][[0, 2]] += 1.0
    grad[[0, 2]] = math.nan
    other_weight, other_bias = run_all(floats, task, residual, grad, "triton", device)[6:8]
    for t in (0, 1, 3):
        assert torch.equal(other_weight[t], weight[t]) and torch.equal(other_bias[t], bias[t])
    assert other_weight[2].isnan().all() and other_bias[2].isnan().all()


def test_residual_is_added(device, dtype):
    floats, task, residual, _ = make(dtype)
    floats, task, residual = [t.to(device) for t in floats], task.to(device), residual.to(device)
    plain = F.split_ffn(*floats, task, impl="triton")
    ours = F.split_ffn(*floats, task, residual, impl="triton")
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(ours, plain + residual, rtol=step, atol=4 * step)
    exact = F.split_ffn(*floats, task, residual.float(), impl="triton")
    assert exact.dtype == torch.float32
    torch.testing.assert_close(exact.to(dtype), ours, rtol=0, atol=0)


def test_a_nan_affects_no_other_sample(device):
    floats, task, residual, grad = make()
    good = run_all(floats, task, residual, grad, "triton", device)
    floats[0][1, 2, 3] = math.nan
    broken = run_all(floats, task, residual, grad, "triton", device)
    for i in (0, 1):  # the output and the gradient of x
        assert torch.equal(broken[i][[0, 2]], good[i][[0, 2]])
        assert broken[i][1, 2].isnan().all() and torch.equal(broken[i][1, [0, 1, 3, 4]], good[i][1, [0, 1, 3, 4]])


def test_an_unknown_task_gives_nan_and_reads_nothing_outside_the_experts(device, monkeypatch):
    """As on CUDA, where task ids are not checked. The memory around the expert weights holds infinities."""
    monkeypatch.setattr("vitpose_kernels.split_ffn.may_look_at_values", lambda x: False)
    floats, task, residual, grad = make(b=4, task=(0, 3, -1, 2))
    good = run_all(floats, torch.tensor([0, 0, 0, 2]), residual, grad, "triton", device)
    for i in (5, 6):
        buffer = torch.full((5, *floats[i].shape[1:]), math.inf)
        buffer[1:4] = floats[i]
        floats[i] = buffer[1:4]
    out, dx, *grads = run_all(floats, task, residual, grad, "triton", device)
    assert torch.equal(out[..., :16], good[0][..., :16])
    assert torch.equal(out[[0, 3]], good[0][[0, 3]]) and out[[1, 2], :, 16:].isnan().all()
    assert torch.equal(dx[[0, 3]], good[1][[0, 3]]) and dx[[1, 2]].isnan().all()
    alone = run_all([floats[0][:1], *floats[1:]], task[:1], residual[:1], grad[:1], "triton", device)
    assert torch.equal(grads[4][0], alone[6][0]) and torch.equal(grads[5][0], alone[7][0])  # unknown tasks add nothing


def beside(x, fill):
    """Return a contiguous copy of `x` in the middle of a larger buffer of `fill`."""
    buffer = torch.full((x.numel() + 256,), fill, dtype=x.dtype, device=x.device)
    buffer[128:-128] = x.flatten()
    return buffer[128:-128].view(x.shape)


def test_nothing_outside_is_read_or_written(device, poisoned):
    floats, task, residual, grad = make(HALF, n=70, c=40, p=12)
    results = []
    for place in (lambda t: t, lambda t: beside(t, math.nan)):
        x, *weights, r, g = (place(t.to(device)) for t in (*floats, residual, grad))
        ids = task.to(device) if not results else beside(task.to(device), 2**40)
        written = []
        (out, before), launches = split_ffn.forward(x, *weights, ids, r, True, 80)
        run(out, guarded(launches, ("out_ptr", "before_ptr"), (out, before), written))
        found, launches = split_ffn.backward(g, written[1], weights[2], weights[4], ids, (True, True, True), 80)
        run(found, guarded(launches, ("d_before_ptr", "hidden_ptr", "d_weight_ptr"), found, written))
        for t in written:
            assert t.isfinite().all()
            edges = t.new_empty(0).set_(t.untyped_storage())
            assert (edges[:128] == 7).all() and (edges[-128:] == 7).all()
        results.append(written)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def guarded(launches, names, outputs, written):
    """Yield the launches with `outputs` replaced by copies with a margin of sevens, which are appended to `written`."""
    copies = {id(t): beside(t, 7.0) for t in outputs}
    written += copies.values()
    for launch in launches:
        arguments = {name: copies.get(id(value), value) for name, value in launch.arguments.items()}
        assert any(name in names for name in arguments)
        yield launch._replace(arguments=arguments)


WANTED = {"x": (0,), "fc1": (1, 2), "experts": (5, 6), "last biases": (4, 6), "x and experts": (0, 5)}


@pytest.mark.parametrize("wanted", WANTED.values(), ids=WANTED)
def test_a_gradient_does_not_depend_on_which_others_are_wanted(device, poisoned, wanted):
    floats, task, residual, grad = make(torch.float32)
    every = run_all(floats, task, residual, grad, "triton", device)[1:8]
    some = [t.to(device).requires_grad_(i in wanted) for i, t in enumerate(floats)]
    F.split_ffn(*some, task.to(device), residual.to(device), impl="triton").backward(grad.to(device))
    for i, t in enumerate(some):
        if i in wanted:  # PyTorch computes the GELU if no gradient passes through it
            torch.testing.assert_close(t.grad, every[i], rtol=1e-5, atol=1e-6)
        else:
            assert t.grad is None


def test_strides_do_not_matter(device):
    floats, task, residual, grad = make()
    expected = run_all(floats, task, residual, grad, "triton", device)
    turned = [t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.dim() > 1 else t for t in (*floats, residual)]
    ours = run_all(turned[:7], task.repeat_interleave(2)[::2], turned[7], grad.mT.contiguous().mT, "triton", device)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_empty_batch(device):
    floats, task, residual, grad = make(b=0, task=())
    task = task.long()
    out, dx, *grads = run_all(floats, task, residual, grad, "triton", device)
    assert out.shape == dx.shape == (0, 5, 24) and not any(g.any() for g in grads)


@pytest.mark.cuda
@pytest.mark.parametrize("residual", [False, True])
def test_opcheck(residual):
    floats, task, r, _ = make()
    floats = [t.cuda().requires_grad_() for t in floats]
    args = (*floats, task.cuda(), r.cuda().requires_grad_() if residual else None, True, True)
    assert set(torch.library.opcheck(torch.ops.vitpose_fast.split_ffn, args).values()) == {"SUCCESS"}


@pytest.mark.cuda
def test_compiles_in_one_graph_with_gradients():
    inputs = make(torch.bfloat16, n=192, c=128, p=64)
    expected = run_all(*inputs, "triton", "cuda")
    leaves = [t.cuda().requires_grad_() for t in (*inputs[0], inputs[2])]
    compiled = torch.compile(lambda *a: F.split_ffn(*a[:7], inputs[1].cuda(), a[7]), fullgraph=True)
    out = compiled(*leaves)
    grads = torch.autograd.grad(out, leaves, inputs[3].cuda())
    for a, b in zip((out, *grads), expected, strict=True):
        torch.testing.assert_close(a, b)
