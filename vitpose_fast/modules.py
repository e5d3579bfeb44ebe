"""The fast ops as nn.Modules, with the parameter names of the official code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitpose_fast import functional as F


class WindowAttention(nn.Module):
    """Multi-head attention over a grid of tokens: whole map, windows, shifted and pooled windows (SPEC 10).

    Parameters are named as in the official code: `qkv`, `proj`; with relative position `rel_pos_h` [2h - 1, D] and
    `rel_pos_w` [2w - 1, D] (zeros at first), shared by the heads.

    Args:
        width: channels C; heads: H, with C = H * D.
        grid: (rows, columns) of tokens.
        window: (rows, columns) of a window, None: the whole map. shift, pool: as in `functional.attention`.
        rel_pos: learn a decomposed relative position of the window.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        grid: tuple[int, int],
        window: tuple[int, int] | None = None,
        shift: tuple[int, int] = (0, 0),
        pool: bool = False,
        rel_pos: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.grid, self.window, self.shift, self.pool = heads, grid, window, shift, pool
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = self.rel_pos_w = None
        if rel_pos:
            h, w = window or grid
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * h - 1, width // heads))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * w - 1, width // heads))

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C], N the tokens of the grid, row-major."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        rel_pos = None if self.rel_pos_h is None or self.rel_pos_w is None else (self.rel_pos_h, self.rel_pos_w)
        return self.proj(F.attention(qkv, self.grid, self.window, self.shift, self.pool, rel_pos))


class FFN(nn.Module):
    """Dense feed-forward network with exact GELU: `fc1` C -> 4C, `fc2` 4C -> C."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, task: Tensor | None = None) -> Tensor:
        """[B, N, C] -> [B, N, C]; `task` is taken and unused, so that dense and split FFN are called alike."""
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class SplitFFN(nn.Module):
    """ViTPose++ FFN: `fc2` gives the first C - P channels for every task, one of T experts the last P (SPEC 1.4).

    The experts are stacked in `expert_weight` [T, P, 4C] and `expert_bias` [T, P]; state dicts carry the official
    names `experts.<i>.weight`, `experts.<i>.bias`.
    """

    def __init__(self, width: int, part_features: int, num_tasks: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width - part_features)
        self.expert_weight = nn.Parameter(torch.empty(num_tasks, part_features, 4 * width))
        self.expert_bias = nn.Parameter(torch.zeros(num_tasks, part_features))
        nn.init.trunc_normal_(self.expert_weight, std=0.02)
        self.register_state_dict_post_hook(_unstack_experts)
        self.register_load_state_dict_pre_hook(_stack_experts)

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        """[B, N, C], task int64 [B] -> [B, N, C]."""
        fc1, fc2 = self.fc1, self.fc2
        return F.split_ffn(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias, self.expert_weight, self.expert_bias, task)

    def merged(self, task: int) -> FFN:
        """The dense FFN that gives the same outputs for one task."""
        dense = FFN(self.fc1.in_features).to(self.fc1.weight)
        with torch.no_grad():
            dense.fc1.load_state_dict(self.fc1.state_dict())
            dense.fc2.weight.copy_(torch.cat([self.fc2.weight, self.expert_weight[task]]))
            dense.fc2.bias.copy_(torch.cat([self.fc2.bias, self.expert_bias[task]]))
        return dense


def _unstack_experts(module: SplitFFN, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    for kind in ("weight", "bias"):
        for i, value in enumerate(state.pop(f"{prefix}expert_{kind}").unbind(0)):
            state[f"{prefix}experts.{i}.{kind}"] = value


def _stack_experts(module: SplitFFN, state: dict[str, Any], prefix: str, *_: Any) -> None:
    count = module.expert_weight.shape[0]
    for kind in ("weight", "bias"):
        names = [f"{prefix}experts.{i}.{kind}" for i in range(count)]
        if all(name in state for name in names):
            state[f"{prefix}expert_{kind}"] = torch.stack([state.pop(name) for name in names])
