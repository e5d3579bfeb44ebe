"""How weights are optimized: AdamW with layer-wise learning rates, and the learning rate's schedule (SPEC 6.4, 6.5)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import torch

from vitpose_fast.models.vitpose import ViTPose


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, with a learning rate that is lower in the first layers of the backbone.

    Raises:
        ValueError: a value outside its range.
    """

    lr: float = 5e-4
    """Learning rate of the last layers, after the warm-up."""
    weight_decay: float = 0.1
    """Weight decay of AdamW; biases, norms and the position embedding have none."""
    layer_decay: float = 0.75
    """Factor on the learning rate from each layer to the one before it; 1: all layers alike."""
    clip: float = 1.0
    """Largest norm of the gradient of all parameters; a larger gradient is scaled down to it."""

    def __post_init__(self) -> None:
        for name in ("lr", "layer_decay", "clip"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"got optimizer.{name}={value}, expected a positive number")
        if self.layer_decay > 1:
            raise ValueError(f"got optimizer.layer_decay={self.layer_decay}, expected at most 1")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"got optimizer.weight_decay={self.weight_decay}, expected a finite number, at least 0")


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate during a run: a linear warm-up, then a decay.

    Raises:
        ValueError: a value outside its range.
    """

    decay: Literal["cosine"] | tuple[float, ...] = (170 / 210, 200 / 210)
    """cosine: down to 0 at the end. Or fractions of the run where the rate drops to a tenth each time; may be empty."""
    warmup: int = 500
    """Updates in which the rate rises from a thousandth of its value to all of it."""

    def __post_init__(self) -> None:
        rising = isinstance(self.decay, tuple) and list(self.decay) == sorted(self.decay)
        if self.decay != "cosine" and not (rising and all(0 < m <= 1 for m in self.decay)):
            raise ValueError(
                f"got schedule.decay={self.decay}, expected cosine or rising fractions of the run, such as 0.8 0.95"
            )
        if self.warmup < 0:
            raise ValueError(f"got schedule.warmup={self.warmup}, expected at least 0")


def layer_of(name: str, depth: int) -> int:
    """0 for the embeddings, i + 1 for block i, depth + 1 for everything after the blocks."""
    if name.startswith(("backbone.pos_embed", "backbone.patch_embed")):
        return 0
    match = re.match(r"backbone\.blocks\.(\d+)\.", name)
    return int(match[1]) + 1 if match else depth + 1


def make_optimizer(model: ViTPose, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters: rates decay by layer, vectors and the position embedding are not decayed."""
    depth = model.config.depth
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = layer_of(name, depth)
        # expert_bias is a stack of vectors, so it counts as one
        decayed = parameter.dim() > 1 and not name.endswith(("bias", "pos_embed"))
        scale = config.layer_decay ** (depth + 1 - layer)
        group = groups.setdefault(
            (layer, decayed),
            {"params": [], "lr_scale": scale, "weight_decay": config.weight_decay if decayed else 0.0},
        )
        group["params"].append(parameter)
    return torch.optim.AdamW(list(groups.values()), lr=config.lr, betas=(0.9, 0.999))


def lr_factor(schedule: ScheduleConfig, step: int, progress: float) -> float:
    """Factor on the learning rate at a step; `progress` is the share of the run that is over, 0 to 1."""
    if isinstance(schedule.decay, tuple):
        factor = 0.1 ** sum(progress >= m for m in schedule.decay)
    else:
        factor = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    if step < schedule.warmup:
        factor *= 1 - (1 - step / schedule.warmup) * (1 - 0.001)
    return factor


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every group: `lr` x the scale of its layer."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


class Ema:
    """A moving average of parameters, float32, shared out as they are.

    Args:
        parameters: those that are trained.
        decay: share of the old average; in the first updates less, (1 + n) / (10 + n), so that it forgets the start.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], decay: float) -> None:
        self.parameters, self.decay, self.updates = parameters, decay, 0
        self.average = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Count the present parameters in."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange parameters and average; done twice, nothing has changed."""
        for parameter, average in zip(self.parameters, self.average):
            now = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(now)
