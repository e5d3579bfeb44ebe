"""What the contenders of single ops are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vitpose_fast import functional as F

TOLERANCE = {torch.float32: 5e-3, torch.bfloat16: 3e-2}  # relative; TF32 products are allowed to rivals in float32


def compiled(function: Callable[..., Any], quick: bool, machine: Any) -> dict[str, Any]:
    """Arguments of a contender for torch.compile; it takes long, and a compiler on a CPU, so not in a quick run."""
    if quick or not machine.cuda:
        return dict(function=None, missing="torch.compile is compared on GPUs, not in quick runs", compiled=True)
    torch._dynamo.reset()  # else the shapes of earlier cases make those of this one dynamic
    return dict(function=torch.compile(function, fullgraph=True, dynamic=False), compiled=True)


def on_gpus_only(function: Callable[..., Any], machine: Any) -> dict[str, Any]:
    """Arguments of a contender that runs the very code of ours on a CPU."""
    return dict(function=function) if machine.cuda else dict(function=None, missing="on a CPU this is ours")


def with_gradients(function: Callable[..., Tensor]) -> Callable[..., Any]:
    """The output and the gradients of all inputs that require one, for a random incoming gradient (the last input)."""

    def both(*inputs: Tensor) -> Any:
        *inputs, grad = inputs
        out = function(*inputs)
        wanted = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
        return out.detach(), torch.autograd.grad(out, wanted, grad)

    return both


def materialised_loss(heatmaps: Tensor, points: Tensor, visible: Tensor) -> Tensor:
    """The loss as it is usually written: the target [B, K, h, w] first, then the weighted mean squared error."""
    target, weight = F.heatmap_target(points, visible, heatmaps.shape[-2:], impl="reference")
    return ((heatmaps.float() - target).square() * weight[..., None, None]).mean()
