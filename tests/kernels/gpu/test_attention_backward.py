"""The registers to which the window backward kernel is limited, and how the limit reaches a launch."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vitpose_kernels import launch
from vitpose_kernels.calls import calls
from vitpose_kernels.draw import Draw
from vitpose_kernels.gpu.attention_backward import window_backward
from vitpose_kernels.launch import Launch, recording, run
from vitpose_kernels.sizes import MODELS


def limits(name, batch, arch):
    """Return the limits of all launches of the window backward kernel for a model."""
    launches = []
    for call in calls("attention", MODELS[name]._replace(batch=batch), Draw("meta", torch.bfloat16)):
        with recording(arch) as recorded:
            call()
        launches += recorded.launches
    return {x.maxnreg for x in launches if x.kernel is window_backward}


def test_two_programs_of_the_model_s_share_a_multiprocessor_of_hopper():
    """8 warps x 32 threads x 128 registers are half of 65536. Other models and chips would spill at 128."""
    assert limits("S", 64, 90) == {128}
    for other in (("S", 1, 90), ("S", 64, 80), ("S", 64, 100), ("L", 64, 90)):
        assert limits(*other) == {None}


@pytest.mark.parametrize(
    ("maxnreg", "traced", "expected"),
    [
        (128, False, dict(num_warps=8, num_stages=1, maxnreg=128)),
        (None, False, dict(num_warps=8, num_stages=1)),
        (128, True, dict(num_warps=8, num_stages=1)),  # PyTorch records no maxnreg
    ],
)
def test_a_limit_is_an_option_of_the_launch_unless_it_is_traced(monkeypatch, maxnreg, traced, expected):
    seen = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda x_ptr, **options: seen.append(options)

    monkeypatch.setattr(launch, "interpreting", lambda: False)
    monkeypatch.setattr(torch.library, "wrap_triton", lambda kernel: kernel)
    x = torch.zeros(1)
    if traced:
        with FakeTensorMode():
            x = torch.zeros(1)
    run(None, [Launch(Kernel(), (1,), dict(x_ptr=x), 8, 1, maxnreg=maxnreg)])
    assert seen == [expected]
