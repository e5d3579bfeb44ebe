"""Layers that several rivals share: convolution with BatchNorm, attention written out, sine positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_bn(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, relu: bool = True, groups: int = 1
) -> nn.Module:
    """Build a convolution without bias, BatchNorm and optionally ReLU.

    It is padded by half the kernel, so that an odd kernel with stride 1 keeps the size of the map.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))


class Attend(nn.Module):
    """softmax(scale * q k^T + bias) v, written out as in the papers' code or, with `sdpa`, by PyTorch's fused op.

    `scale` is 1 / sqrt(channels of a head). It is a module, though without parameters, so that `use_sdpa` can find
    every attention of a model.
    """

    def __init__(self, sdpa: bool = False) -> None:
        super().__init__()
        self.sdpa = sdpa

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """Map q [B, H, L, D], k and v [B, H, S, D], and bias broadcastable to [B, H, L, S], to [B, H, L, D].

        H are attention heads of D channels, L the queries, and S the keys.
        """
        scale = q.shape[-1] ** -0.5
        if self.sdpa:
            return F.scaled_dot_product_attention(q, k, v, None if bias is None else bias.to(q.dtype), scale=scale)
        logits = (q * scale) @ k.transpose(-2, -1)
        return (logits if bias is None else logits + bias).softmax(-1).to(v.dtype) @ v


def use_sdpa(model: nn.Module, sdpa: bool = True) -> nn.Module:
    """Switch every `Attend` in a model to PyTorch's fused op, or back with `sdpa=False`. Returns the model."""
    for module in model.modules():
        if isinstance(module, Attend):
            module.sdpa = sdpa
    return model


def sine_positions(rows: int, columns: int, width: int) -> Tensor:
    """Return the fixed 2D sine position embedding of DETR, [rows * columns, width]: y in the first half, then x."""

    def axis(size: int) -> Tensor:
        frequency = 10000.0 ** (-2 * torch.arange(width // 4) / (width // 2))
        angle = torch.arange(1, size + 1)[:, None] * (2 * math.pi / size) * frequency
        return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)  # [size, width / 2]

    y = axis(rows)[:, None].expand(-1, columns, -1)
    x = axis(columns)[None].expand(rows, -1, -1)
    return torch.cat([y, x], -1).flatten(0, 1)
