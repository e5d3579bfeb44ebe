"""Building blocks for the contenders of the benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vitpose_fast import functional as F

TOLERANCE = {torch.float32: 5e-3, torch.bfloat16: 3e-2}  # relative error; rivals may use TF32 for float32


def compiled(function: Callable[..., Any], quick: bool, machine: Any) -> dict[str, Any]:
    """Return keyword arguments of `Contender` for `function` under torch.compile.

    On a CPU and in quick runs the contender is missing, because compilation takes long and, on a CPU, needs a C++
    compiler.
    """
    if quick or not machine.cuda:
        return dict(function=None, missing="torch.compile is compared on GPUs, not in quick runs", compiled=True)
    torch._dynamo.reset()  # forget what was compiled for the shapes of earlier cases
    return dict(function=torch.compile(function, fullgraph=True, dynamic=False), compiled=True)


def on_gpus_only(function: Callable[..., Any], machine: Any) -> dict[str, Any]:
    """Return keyword arguments of `Contender` for a function that is compared on GPUs only.

    It is for the references of our ops, because on a CPU our ops run the same code.
    """
    return dict(function=function) if machine.cuda else dict(function=None, missing="on a CPU this is ours")


def with_gradients(function: Callable[..., Tensor]) -> Callable[..., Any]:
    """Return a function that computes the output of `function` and the gradients of all inputs that require one.

    It takes the inputs of `function` and then the gradient of the output, and returns (output, gradients).
    """

    def both(*inputs: Tensor) -> Any:
        *inputs, grad = inputs
        out = function(*inputs)
        wanted = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
        return out.detach(), torch.autograd.grad(out, wanted, grad)

    return both


def materialized_loss(heatmaps: Tensor, points: Tensor, visible: Tensor) -> Tensor:
    """Compute the heatmap loss as usual implementations do, with the whole target in memory.

    Takes heatmaps [B, K, h, w], points [B, K, 2] in pixels of the crop (4 times the size of the heatmaps) and visible
    [B, K]. Draws the target [B, K, h, w] and returns the mean of weight * (heatmaps - target)^2.
    """
    target, weight = F.heatmap_target(points, visible, heatmaps.shape[-2:], impl="reference")
    return ((heatmaps.float() - target).square() * weight[..., None, None]).mean()
