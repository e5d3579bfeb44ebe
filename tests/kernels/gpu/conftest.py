"""The kernels run on the GPU where there is one, else in Triton's interpreter (which is silently wrong in bfloat16)."""

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
    """Every dtype that the kernels take here."""
    return request.param


@pytest.fixture(scope="session")
def device() -> str:
    """Where the kernels run: "cuda", or "cpu" in the interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def check_error_rule():
    """check(ours, plain, truth, factor): the error of a kernel is at most `factor` times that of the same-precision
    PyTorch ops, both against float64, in the mean square, and at most twice that at the worst element (which is one
    draw); a quarter of a rounding step, or a whole one at a single element, is free.
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
    """Memory that a kernel is given to write into holds NaN (integers: a large number): what it leaves out shows."""
    with smoke.poisoned():
        yield
