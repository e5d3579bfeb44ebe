"""AdamW with layer-wise learning rates, the learning rate schedule, and EMA (docs/numerics.md 6.4, 6.5)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import torch

from vitpose_fast.models.vitpose import ViTPose


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with layer-wise learning rate decay: the first layers of the backbone learn slowest.

    Raises:
        ValueError: `lr`, `layer_decay` or `clip` is not a positive number, `layer_decay` is above 1, or `weight_decay`
            is negative or not finite.
    """

    lr: float = 5e-4
    """Learning rate of the heads after the warm-up and before the decay."""
    weight_decay: float = 0.1
    """Weight decay of AdamW. Not applied to biases, norms and the position embedding."""
    layer_decay: float = 0.75
    """Factor between the learning rates of a layer and the layer after it.
    1 gives all layers the same learning rate."""
    clip: float = 1.0
    """Gradient clipping: largest L2 norm of the gradient over all parameters."""

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
    """Learning rate schedule: a linear warm-up, then a decay.

    Raises:
        ValueError: `decay` is neither "cosine" nor fractions in ascending order, above 0 and at most 1, or `warmup` is
            negative.
    """

    decay: Literal["cosine"] | tuple[float, ...] = (170 / 210, 200 / 210)
    """cosine: decay to 0 at the end of the run.
    Or rising fractions of the run, for example 0.8 0.95, at each of which the learning rate is divided by 10.
    Without any fraction it stays constant after the warm-up."""
    warmup: int = 500
    """Optimizer steps in which the learning rate rises linearly, from a thousandth of its full value."""

    def __post_init__(self) -> None:
        rising = isinstance(self.decay, tuple) and list(self.decay) == sorted(self.decay)
        if self.decay != "cosine" and not (rising and all(0 < m <= 1 for m in self.decay)):
            raise ValueError(
                f"got schedule.decay={self.decay}, expected cosine or rising fractions of the run, such as 0.8 0.95"
            )
        if self.warmup < 0:
            raise ValueError(f"got schedule.warmup={self.warmup}, expected at least 0")


def layer_of(name: str, depth: int) -> int:
    """Return the layer number of a parameter of a `ViTPose`, given its name and the number of blocks.

    0 for the patch and position embeddings, i + 1 for block i (from 0), depth + 1 for the last norm and the heads.
    """
    if name.startswith(("backbone.pos_embed", "backbone.patch_embed")):
        return 0
    match = re.match(r"backbone\.blocks\.(\d+)\.", name)
    return int(match[1]) + 1 if match else depth + 1


def make_optimizer(model: ViTPose, config: OptimizerConfig) -> torch.optim.AdamW:
    """Build AdamW over the trainable parameters.

    Each layer (see `layer_of`) has up to two parameter groups, one with weight decay and one without. Biases, norms and
    the position embedding have no weight decay. The `lr_scale` of a group is layer_decay ** (depth + 1 - layer), where
    depth is the number of blocks; `set_lr` multiplies it into the learning rate.
    """
    depth = model.config.depth
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = layer_of(name, depth)
        # expert_bias has two dimensions, but it is a stack of bias vectors
        decayed = parameter.dim() > 1 and not name.endswith(("bias", "pos_embed"))
        scale = config.layer_decay ** (depth + 1 - layer)
        group = groups.setdefault(
            (layer, decayed),
            {"params": [], "lr_scale": scale, "weight_decay": config.weight_decay if decayed else 0.0},
        )
        group["params"].append(parameter)
    return torch.optim.AdamW(list(groups.values()), lr=config.lr, betas=(0.9, 0.999))


def lr_factor(schedule: ScheduleConfig, step: int, progress: float) -> float:
    """Return the factor, from 0 to 1, that the schedule applies to the learning rate.

    Args:
        step: optimizer steps done, skipped ones included. It determines the warm-up.
        progress: fraction of the run that is done, from 0. It determines the decay; above 1 it counts as 1.
    """
    if isinstance(schedule.decay, tuple):
        factor = 0.1 ** sum(progress >= m for m in schedule.decay)
    else:
        factor = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    if step < schedule.warmup:
        factor *= 1 - (1 - step / schedule.warmup) * (1 - 0.001)
    return factor


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group to `lr` times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


class Ema:
    """Exponential moving average of parameters, with the dtype and sharding of the parameters.

    It starts with a copy of the parameters.

    Args:
        parameters: the trainable parameters.
        decay: factor of the old average in an update; the current parameters get 1 - decay. Update n, counted from 1,
            uses at most (1 + n) / (10 + n), so that the initial parameters are forgotten quickly.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], decay: float) -> None:
        self.parameters, self.decay, self.updates = parameters, decay, 0
        self.average = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the current parameters."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the parameters with their averages, in place. Calling it twice restores both."""
        for parameter, average in zip(self.parameters, self.average):
            now = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(now)
