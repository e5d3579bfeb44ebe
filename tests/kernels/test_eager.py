"""Tests of the short way past the dispatcher: the same results as the registered ops, and when it is taken."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from vitpose_fast import functional as F
from vitpose_kernels import eager


class Watch(TorchDispatchMode):
    """Record the names of our ops that are dispatched."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "vitpose_fast":
            self.seen.append(function.name().removeprefix("vitpose_fast::"))
        return function(*args, **(kwargs or {}))


def draw(*shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def attention(dtype, **options):
    tables = tuple(draw(2 * s - 1, 8, dtype=dtype, seed=s) for s in (2, 3))
    rel_pos = tables if options.pop("rel", False) else None
    return [draw(2, 24, 3, 2, 8, dtype=dtype)], lambda x: F.attention(x, (4, 6), rel_pos=rel_pos, **options)


def split_ffn(dtype):
    shapes = [(4, 3, 8), (32, 8), (32,), (6, 32), (6,), (3, 2, 32), (3, 2)]
    task = torch.tensor([1, 1, 0, 1])  # task 1 in two runs, task 2 absent
    return [draw(*s, dtype=dtype, seed=i) for i, s in enumerate(shapes)], lambda *x: F.split_ffn(*x, task, x[0])


def layer_norm(dtype):
    return [draw(4, 3, 8, dtype=dtype), draw(8, dtype=dtype), draw(8, dtype=dtype)], F.layer_norm


def heatmap_loss(dtype):
    keypoints, visible, mask = 60 * torch.rand(2, 3, 2), torch.tensor([[1.0, 0, 1]] * 2), torch.rand(2, 16, 12)
    return [draw(2, 3, 16, 12, dtype=dtype)], lambda x: F.heatmap_loss(x, keypoints, visible, mask=mask)


CALLS = {
    "whole map": (attention, {}),
    "windows": (attention, dict(window=(2, 3))),
    "padded and shifted windows": (attention, dict(window=(3, 4), shift=(1, 2))),
    "pooled keys": (attention, dict(window=(2, 3), pool=True)),
    "relative position": (attention, dict(window=(2, 3), rel=True)),
    "split_ffn": (split_ffn, {}),
    "layer_norm": (layer_norm, {}),
    "heatmap_loss": (heatmap_loss, {}),
}


def results(make, options, dtype):
    """Return the output and the gradients of a call in `dtype`, whose inputs are the same each time."""
    torch.manual_seed(0)
    inputs, function = make(dtype, **options)
    inputs = [x.requires_grad_() for x in inputs]
    out = function(*inputs)
    grad = draw(*out.shape, dtype=out.dtype, seed=9)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_and_gradients_are_those_of_the_registered_op(call, dtype):
    make, options = CALLS[call]
    short = results(make, options, dtype)
    with Watch() as watch:
        registered = results(make, options, dtype)
    name = make.__name__
    assert watch.seen == [name, f"{name}_backward"]
    tolerance = 20 * torch.finfo(dtype).eps
    for a, b in zip(short, registered, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_more_is_saved_than_by_the_registered_op(call, dtype):
    """Beyond inputs and outputs, which exist anyway: at most a log-sum-exp per query, or one map per heatmap."""
    make, options = CALLS[call]
    inputs, function = make(dtype, **options)
    inputs = [x.requires_grad_() for x in inputs]

    def saved(context):
        found = {}

        def pack(x):
            found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with context, torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            out = function(*inputs)
        for x in (*inputs, out):
            found.pop(x.untyped_storage().data_ptr(), None)
        return sum(found.values())

    allowed = {"attention": 2 * 2 * 2 * 24 * 4, "heatmap_loss": 2 * 3 * 16 * 12 * 4 + 16}.get(make.__name__, 0)
    assert saved(torch.enable_grad()) <= saved(Watch()) + allowed


def test_the_short_way_is_for_plain_tensors_on_the_cpu_that_nobody_watches():
    x = torch.zeros(2)
    assert eager.is_eager((x, torch.nn.Parameter(x), None, 1, [2]))
    assert eager.is_eager(([x, x], [])) and not eager.is_eager(([x, x.to("meta")],))
    assert not eager.is_eager((x, x.to("meta")))
    assert not eager.is_eager((x, x.as_subclass(type("Other", (torch.Tensor,), {}))))
    with Watch():
        assert not eager.is_eager((x,))
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
    assert not eager.is_eager((fake,))
    seen = []
    torch.func.vmap(lambda y: (seen.append(eager.is_eager((y,))), y)[1])(x)
    torch.compile(lambda y: y + eager.is_eager((y,)), backend="eager", fullgraph=True)(x)
    assert seen == [False]
    assert torch.compile(lambda y: y + eager.is_eager((y,)), backend="eager", fullgraph=True)(x).sum() == 0


def test_second_derivatives_are_refused():
    """As by the registered ops: their backward passes have none."""
    x = torch.randn(1, 24, 3, 2, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(F.attention(x, (4, 6), (2, 3)).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice|once_differentiable"):
        grad.sum().backward()
