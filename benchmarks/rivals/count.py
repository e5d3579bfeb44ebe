"""Parameters and multiply-adds (MACs) of a model, and the ways in which the papers count the latter."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def parameters(model: nn.Module) -> int:
    """All parameters, frozen ones included."""
    return sum(p.numel() for p in model.parameters())


def _meta(model: nn.Module, image_size: tuple[int, int]) -> tuple[nn.Module, Tensor]:
    """A copy of the model and one image, both without memory: the model itself stays where and as it is."""
    dtype = next(model.parameters()).dtype
    return copy.deepcopy(model).to("meta").eval(), torch.empty(1, 3, *image_size, device="meta", dtype=dtype)


def macs(model: nn.Module, image_size: tuple[int, int], attention: bool = True) -> int:
    """Multiply-adds of all matrix products and convolutions for one image.

    Args:
        attention: count the two products of attention, too (the batched ones and PyTorch's fused op).
    """
    model, image = _meta(model, image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    dense = {"convolution", "mm", "addmm"}
    flops = counter.get_flop_counts()["Global"].items()
    return sum(count for op, count in flops if attention or op.__name__ in dense) // 2


def gmacs(model: nn.Module, image_size: tuple[int, int]) -> float:
    """Multiply-adds in units of 10^9."""
    return macs(model, image_size) / 1e9


def binary_gmacs_without_attention(model: nn.Module, image_size: tuple[int, int]) -> float:
    """Multiply-adds of convolutions and linear layers alone, in units of 2^30."""
    return macs(model, image_size, attention=False) / 2**30


def hrnet_tool(model: nn.Module, image_size: tuple[int, int]) -> float:
    """What the counter of the HRNet repository prints as GFLOPs; its descendants TokenPose and others print the same.

    It sums over convolutions and linear layers, in units of 2^30, and has two slips which the published figures carry:
    a transposed convolution is counted at the size of its output (4 times too much at stride 2), a linear layer on
    [B, N, C] as if it had N input channels. It does not see the products of attention.
    """
    total = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Linear):
            total += output.numel() * inputs[0].shape[1]
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            total += module.weight.numel() * output.shape[-2:].numel()

    model, image = _meta(model, image_size)
    for module in model.modules():
        module.register_forward_hook(add)
    with torch.no_grad():
        model(image)
    return total / 2**30
