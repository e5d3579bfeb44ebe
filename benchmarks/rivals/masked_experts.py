"""The ViTPose++ FFN as the official code and Hugging Face compute it: every expert on every token, then a mask."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def masked_experts(
    x: Tensor, fc1_w: Tensor, fc1_b: Tensor, fc2_w: Tensor, fc2_b: Tensor, expert_w: Tensor, expert_b: Tensor,
    task: Tensor,
) -> Tensor:  # fmt: skip
    """Compute `functional.split_ffn` from the same arguments, with every expert on every sample.

    The expert channels are the sum of the outputs of all experts, each times a 0/1 mask of the samples that use it.
    """
    hidden = F.gelu(F.linear(x, fc1_w, fc1_b))
    chosen = torch.zeros_like(x[..., : expert_w.shape[1]])
    for i, (weight, bias) in enumerate(zip(expert_w, expert_b, strict=True)):
        mask = (task == i).view(-1, 1, 1)
        chosen = chosen + F.linear(hidden, weight, bias) * mask
    return torch.cat([F.linear(hidden, fc2_w, fc2_b), chosen], -1)
