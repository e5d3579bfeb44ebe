"""Building blocks for the contenders of the op benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vitpose_fast import functional as F

TOLERANCE = {torch.float32: 5e-3, torch.bfloat16: 3e-2}  # relative error; rivals may use TF32 for float32


def compiled(function: Callable[..., Any], quick: bool, machine: Any) -> dict[str, Any]:
    """Return the `Contender` arguments for `function` under torch.compile; it is missing on a CPU and in quick runs.

    Compilation takes long and, on a CPU, needs a C++ compiler.
    """
    if quick or not machine.cuda:
        return dict(function=None, missing="torch.compile is compared on GPUs, not in quick runs", compiled=True)
    torch._dynamo.reset()  # forget what was compiled for the shapes of earlier cases
    return dict(function=torch.compile(function, fullgraph=True, dynamic=False), compiled=True)


def on_gpus_only(function: Callable[..., Any], machine: Any) -> dict[str, Any]:
    """Return the `Contender` arguments for a function that is missing on a CPU, where ours runs the same code."""
    return dict(function=function) if machine.cuda else dict(function=None, missing="on a CPU this is ours")


def with_gradients(function: Callable[..., Tensor]) -> Callable[..., Any]:
    """Return a function that computes the output and the gradients of all inputs that require one.

    Its last input is the incoming gradient of the output, random in the benchmarks.
    """

    def both(*inputs: Tensor) -> Any:
        *inputs, grad = inputs
        out = function(*inputs)
        wanted = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
        return out.detach(), torch.autograd.grad(out, wanted, grad)

    return both


def materialized_loss(heatmaps: Tensor, points: Tensor, visible: Tensor) -> Tensor:
    """Compute the loss as usual implementations do: the target [B, K, h, w], then the weighted mean squared error."""
    target, weight = F.heatmap_target(points, visible, heatmaps.shape[-2:], impl="reference")
    return ((heatmaps.float() - target).square() * weight[..., None, None]).mean()
