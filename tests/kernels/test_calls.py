"""Tests of the table of calls, and of recording and compiling their launches without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec

import pytest
import torch

from benchmarks.harness import tensors_of
from vitpose_fast import functional as F
from vitpose_kernels.calls import OPS, calls
from vitpose_kernels.draw import Draw
from vitpose_kernels.launch import recording
from vitpose_kernels.sizes import MODELS, ODD

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")


@pytest.mark.parametrize("op", OPS)
def test_every_call_has_a_reference_and_random_inputs(op):
    """At the odd shapes, the results that a GPU is compared with exist, are finite, and depend on the seed."""
    labels = []
    for call, other in zip(calls(op, ODD, Draw("cpu", torch.float32)), calls(op, ODD, Draw("cpu", torch.float32, 1))):
        labels.append(call.label)
        outputs, others = tensors_of(call("reference")), tensors_of(other("reference"))
        assert all(t.isfinite().any() and t.dtype.is_floating_point for t in outputs), call.label
        assert not all(torch.equal(a, b) for a, b in zip(outputs, others, strict=True)), call.label
    assert labels and len(set(labels)) == len(labels)
    for model in MODELS.values():
        labels = [call.label for call in calls(op, model, Draw("meta", torch.bfloat16))]
        assert labels and len(set(labels)) == len(labels)


@needs_triton
def test_launches_are_recorded_inside_the_context_only():
    x, weight = torch.empty(2, 192, 64, device="meta"), torch.empty(32, 64, device="meta")
    with recording(90) as outer:
        out = F.linear(x, weight)
        with recording(80) as inner:
            F.linear(x, weight)
        F.layer_norm(x, x[0, 0], x[0, 0])
    assert out.is_meta and out.shape == (2, 192, 32)
    assert [launch.kernel.__name__ for launch in inner.launches] == ["linear_kernel"]
    assert len(outer.launches) == 2 and outer.launches[0].flops == 2 * 384 * 64 * 32
    F.linear(x, weight)  # outside the context the default is the reference
    assert len(outer.launches) == 2 and outer.products == []
    assert outer.flops == outer.launches[0].flops and outer.bytes == sum(launch.bytes for launch in outer.launches)


@needs_triton
def test_products_by_the_library_are_recorded_with_their_op():
    """The backward pass of `split_ffn` has twice the FLOPs of the forward pass, and three products by the library."""
    b, n, c, f, p, t = 2, 8, 64, 256, 16, 3
    shapes = [(b, n, c), (f, c), (f,), (c - p, f), (c - p,), (t, p, f), (t, p)]
    inputs = [torch.empty(*shape, device="meta", requires_grad=True) for shape in shapes]
    with recording(90) as forward:
        out = F.split_ffn(*inputs, torch.zeros(b, dtype=torch.int64, device="meta"))
    assert forward.flops == 2 * 2 * b * n * c * f and forward.products == []
    with recording(90) as backward:
        torch.autograd.grad(out, inputs, torch.empty_like(out))
    assert backward.flops == 2 * forward.flops and len(backward.products) == 3


def python(code, **environment):
    """Run code in a process without Triton's interpreter, which must succeed, and return its standard output."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | environment
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_triton
def test_compiling_ahead_compiles_what_a_launch_compiles():
    """Triton's cache key of every launch equals the key of the examples that are compiled for it."""
    out = python("""
        import torch
        from vitpose_kernels.calls import OPS
        from vitpose_kernels.sizes import MODELS, ODD
        from vitpose_kernels.gpu import aot

        def key(kernel, arguments):
            binder = kernel.device_caches[90][4]
            _, specialization, options = binder(**arguments, debug=False)
            return str(specialization), str(options)

        aot.driver.set_active(aot._Driver(90))
        launches = 0
        for dtype in (torch.bfloat16, torch.float32):
            for model in (MODELS["B"], MODELS["B"]._replace(batch=1), ODD):
                for op in OPS:
                    for label, launch in aot.shipped(op, model, dtype, 90):
                        arguments = {p.name: launch.arguments[p.name] for p in launch.kernel.params}
                        examples = {n: aot._example(v) for n, v in aot.source(launch).arguments}
                        assert key(launch.kernel, arguments) == key(launch.kernel, examples), label
                        launches += 1
        print(launches)
        """)
    assert int(out) > 400


@needs_triton
def test_compiling_ahead_fills_the_cache_that_a_launch_reads(tmp_path):
    """A second process that takes the path of a launch, with the arguments of the launch, compiles nothing."""
    code = """
        import torch, triton
        from vitpose_kernels.sizes import MODELS
        from vitpose_kernels.gpu import aot
        hits = []
        listen = lambda *, cache_hit, **_: hits.append(cache_hit)
        triton.knobs.compilation.listener = listen
        names, model = ("linear", "heatmap_target"), MODELS["S"]
        launches = [x for op in names for _, x in aot.shipped(op, model, torch.bfloat16, 90)]
        {}
        print(hits)
        """
    ahead = "for src in {aot.source(x) for x in launches}: aot.compile_source(src, 90)"
    launch = """
        aot.driver.set_active(aot._Driver(90))
        for x in launches: x.kernel.warmup(
            **x.arguments, grid=x.grid, num_warps=x.num_warps, num_stages=x.num_stages)
        """
    environment = dict(TRITON_CACHE_DIR=str(tmp_path))
    first, second = (python(code.format(part.strip()), **environment) for part in (ahead, launch))
    assert set(eval(first)) == {False} and set(eval(second)) == {True}
    assert len(eval(first)) == len(eval(second)) >= 4
