"""Tests of the split FFN: the reference against the equivalent dense FFN, gradients, registration and errors."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as nnF

from vitpose_fast import functional as F

OP = torch.ops.vitpose_fast.split_ffn


def make(dtype=torch.float64, b=4, n=3, c=8, p=2, t=3, task=(0, 2, 2, 1)):
    g = torch.Generator().manual_seed(0)
    shapes = [(b, n, c), (4 * c, c), (4 * c,), (c - p, 4 * c), (c - p,), (t, p, 4 * c), (t, p)]
    return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes] + [torch.tensor(task)]


def test_each_sample_gets_the_dense_ffn_of_its_task():
    x, w1, b1, ws, bs, we, be, task = make()
    out = F.split_ffn(x, w1, b1, ws, bs, we, be, task)
    for i, t in enumerate(task):
        dense = nnF.linear(nnF.gelu(nnF.linear(x[i], w1, b1)), torch.cat([ws, we[t]]), torch.cat([bs, be[t]]))
        torch.testing.assert_close(out[i], dense)


def test_equal_experts_are_the_dense_ffn():
    x, w1, b1, ws, bs, we, be, task = make()
    we, be = we[:1].expand(3, -1, -1), be[:1].expand(3, -1)
    out = F.split_ffn(x, w1, b1, ws, bs, we, be, task)
    torch.testing.assert_close(out, F.split_ffn(x, w1, b1, ws, bs, we, be, torch.zeros_like(task)))


def test_gradcheck_and_idle_experts_get_zero():
    inputs = make(b=2, n=2, c=4, p=1, t=3, task=(0, 2))
    tensors = [t.requires_grad_() for t in inputs[:7]]
    assert torch.autograd.gradcheck(lambda *a: F.split_ffn(*a, inputs[7]), tensors)
    F.split_ffn(*tensors, inputs[7]).sum().backward()
    assert torch.equal(tensors[5].grad[1], torch.zeros_like(tensors[5][1])) and tensors[5].grad[0].abs().sum() > 0


def test_residual_is_added_and_its_gradient_is_the_incoming_one():
    inputs = make()
    residual = torch.randn(4, 3, 8, dtype=torch.float64, requires_grad=True)
    out = F.split_ffn(*inputs, residual=residual)
    torch.testing.assert_close(out, F.split_ffn(*inputs) + residual)
    grad = torch.randn_like(out)
    assert torch.equal(torch.autograd.grad(out, residual, grad)[0], grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("task", [(0, 2, 2, 1), (1, 1, 1, 1), (2, 0, 2, 0), ()])
@pytest.mark.parametrize("wide_residual", [None, False, True])
def test_inference_on_the_cpu_gives_the_outputs_of_the_registered_op(dtype, task, wide_residual):
    """It computes consecutive samples of one task together; the op selects the weights of every sample."""
    inputs = make(dtype, b=len(task), task=task)
    inputs[7] = inputs[7].long()  # torch.tensor(()) is float32
    inputs[0] = inputs[0].transpose(0, 1).contiguous().transpose(0, 1)
    residual = None
    if wide_residual is not None:
        exact = torch.promote_types(dtype, torch.float32)
        residual = torch.randn(inputs[0].shape).to(exact if wide_residual else dtype)
    out = F.split_ffn(*inputs, residual=residual)
    expected = OP(*inputs, residual, False, False)[0]
    assert out.is_contiguous() and out.dtype == expected.dtype
    tolerance = 16 * torch.finfo(dtype).eps * (1 + float(expected.abs().max() if len(task) else 0))
    torch.testing.assert_close(out, expected, rtol=0, atol=tolerance)


def test_a_float32_residual_stays_float32_under_autocast():
    inputs = make(torch.float32)
    leaves = [t.requires_grad_() for t in (torch.randn(4, 3, 8), inputs[0])]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = F.split_ffn(*inputs, residual=leaves[0])
        torch.testing.assert_close(out, F.split_ffn(*inputs) + leaves[0], rtol=0, atol=0)
    assert out.dtype == torch.float32
    assert [g.dtype for g in torch.autograd.grad(out.sum(), leaves)] == [torch.float32] * 2


WANTED = {"x": (0,), "fc1": (1, 2), "experts": (5, 6), "last biases": (4, 6), "shared": (3,), "x and experts": (0, 5)}


@pytest.mark.parametrize("wanted", WANTED.values(), ids=WANTED)
def test_a_gradient_does_not_depend_on_which_others_are_wanted(wanted):
    inputs = make(torch.float32)
    every = [t.clone().requires_grad_() for t in inputs[:7]]
    expected = torch.autograd.grad(F.split_ffn(*every, inputs[7]).sin().sum(), every)
    some = [t.clone().requires_grad_(i in wanted) for i, t in enumerate(inputs[:7])]
    F.split_ffn(*some, inputs[7]).sin().sum().backward()
    for i, t in enumerate(some):
        assert torch.equal(t.grad, expected[i]) if i in wanted else t.grad is None


def test_saves_what_the_wanted_gradients_need():
    inputs = make(torch.float32)
    sizes = {"x": (4, 3, 8), "before": (4, 3, 32)}

    def saved(*wanted):
        leaves = [t.clone().requires_grad_(i in wanted) for i, t in enumerate(inputs[:7])]
        shapes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(tuple(t.shape)), lambda t: t):
            F.split_ffn(*leaves, inputs[7])
        return [name for name, size in sizes.items() for shape in shapes if shape == size]

    assert saved(*range(7)) == ["x", "before"]
    assert saved(0) == saved(5) == ["before"]  # only x needs a gradient, as in a frozen FFN; only the experts do
    assert saved(4, 6) == []


def test_empty_batch_and_single_expert():
    assert F.split_ffn(*make(b=0, task=())[:7], torch.zeros(0, dtype=torch.int64)).shape == (0, 3, 8)
    assert F.split_ffn(*make(t=1, task=(0, 0, 0, 0))).shape == (4, 3, 8)


def test_opcheck():
    args = make(torch.float32)
    floats, task, residual = args[:7], args[7], torch.randn(4, 3, 8)
    assert set(torch.library.opcheck(OP, (*floats, task, None, False, False)).values()) == {"SUCCESS"}
    floats = [a.requires_grad_() for a in (*floats, residual)]
    assert set(torch.library.opcheck(OP, (*floats[:7], task, floats[7], True, False)).values()) == {"SUCCESS"}


def test_compiles_in_one_graph_with_gradients():
    inputs = make(torch.float32)
    x = inputs[0].clone().requires_grad_()
    y = inputs[0].clone().requires_grad_()
    F.split_ffn(x, *inputs[1:]).square().sum().backward()
    compiled = torch.compile(lambda z: F.split_ffn(z, *inputs[1:]).square().sum(), fullgraph=True, backend="aot_eager")
    compiled(y).backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-3)


def test_autocast_casts_the_weights_too():
    inputs = make(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert F.split_ffn(*inputs).dtype == torch.bfloat16


def test_refuses_in_one_line():
    inputs = make(torch.float32)
    with pytest.raises(ValueError, match=r"task ids run from 0 to 3, expected 0..2 for 3 experts"):
        F.split_ffn(*inputs[:7], torch.tensor([0, 1, 2, 3]))
    with pytest.raises(ValueError, match=r"task has shape \[3\], expected \[4\]"):
        F.split_ffn(*inputs[:7], torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="expected torch.int64"):
        F.split_ffn(*inputs[:7], torch.zeros(4))
    with pytest.raises(ValueError, match=r"residual has shape \[3, 8\], expected \[4, 3, 8\]"):
        F.split_ffn(*inputs, residual=torch.zeros(3, 8))
    with pytest.raises(ValueError, match=r"fc1_weight has dtype torch.float64, expected torch.float32 as x"):
        F.split_ffn(inputs[0], inputs[1].double(), *inputs[2:])
    with pytest.raises(ValueError, match=r"got no experts"):
        F.split_ffn(*inputs[:5], inputs[5][:0], inputs[6][:0], inputs[7])
    with pytest.raises(ValueError, match=r"shared_weight has shape \[5, 32\], expected \[6, 32\]"):
        F.split_ffn(*inputs[:3], inputs[3][:5], *inputs[4:])
