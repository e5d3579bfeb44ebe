"""Fixtures for tests of the Triton kernels.

The kernels run on a GPU if one is present, otherwise in Triton's interpreter, which is silently wrong in bfloat16.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from benchmarks import smoke

DTYPES = [
    pytest.param(torch.float32, id="fp32"),
    pytest.param(torch.float16, id="fp16"),
    pytest.param(torch.bfloat16, id="bf16", marks=pytest.mark.cuda),
]


@pytest.fixture(params=DTYPES)
def dtype(request) -> torch.dtype:
    """Each dtype that the kernels support on this machine."""
    return request.param


@pytest.fixture(scope="session")
def device() -> str:
    """Device on which the kernels run: "cuda", or "cpu" in the interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def check_error_rule():
    """Return check(ours, plain, truth, factor), which compares the error of a kernel with the error of PyTorch ops.

    Both errors are taken against the float64 result `truth`; `plain` is the result of PyTorch ops in the precision of
    the kernel. The root mean square error of the kernel may be `factor` times the error of the plain ops, plus a
    quarter of a rounding step. The largest error, which is a single sample of the noise, may be 2 * `factor` times the
    largest error of the plain ops, plus a whole rounding step.
    """

    def check(ours, plain, truth, factor=2.0):
        assert ours.dtype == plain.dtype and ours.shape == plain.shape == truth.shape
        assert ours.isfinite().all()
        if not truth.numel():
            return
        step = torch.finfo(ours.dtype).eps
        ours, plain, truth = (x.detach().double().cpu() for x in (ours, plain, truth))
        mean = [x.square().mean().sqrt().item() for x in (ours - truth, plain - truth, truth)]
        worst = [x.abs().max().item() for x in (ours - truth, plain - truth, truth)]
        assert mean[0] <= factor * mean[1] + 0.25 * step * mean[2], f"error {mean[0]:.3g}, plain ops {mean[1]:.3g}"
        assert worst[0] <= 2 * factor * worst[1] + step * worst[2], f"worst {worst[0]:.3g}, plain ops {worst[1]:.3g}"

    return check


@pytest.fixture
def poisoned():
    """Fill new empty tensors with NaN (integers with 77), so that elements that a kernel does not write show."""
    with smoke.poisoned():
        yield
