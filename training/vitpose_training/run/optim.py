"""AdamW groups with layer-wise learning rates, and the schedules (SPEC 6.4, 6.5)."""

from __future__ import annotations

import math
import re
from typing import Any

import torch

from vitpose_fast.models.vitpose import ViTPose
from vitpose_training.run.config import TrainConfig


def layer_of(name: str, depth: int) -> int:
    """0 for the embeddings, i + 1 for block i, depth + 1 for everything after the blocks."""
    if name.startswith(("backbone.pos_embed", "backbone.patch_embed")):
        return 0
    match = re.match(r"backbone\.blocks\.(\d+)\.", name)
    return int(match[1]) + 1 if match else depth + 1


def make_optimizer(model: ViTPose, config: TrainConfig) -> torch.optim.AdamW:
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


def lr_factor(config: TrainConfig, step: int, progress: float) -> float:
    """Factor on the learning rate at a step; `progress` is the share of the run that is over, 0 to 1."""
    if config.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    else:
        factor = 0.1 ** sum(progress >= m for m in config.milestones)
    if step < config.warmup:
        factor *= 1 - (1 - step / config.warmup) * (1 - 0.001)
    return factor


def set_lr(optimizer: torch.optim.Optimizer, config: TrainConfig, factor: float) -> None:
    """Set the rate of every group: base rate x factor x layer scale."""
    for group in optimizer.param_groups:
        group["lr"] = config.lr * factor * group["lr_scale"]


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
