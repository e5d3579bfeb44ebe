"""Count the parameters and the multiply-adds (MACs) of a model, the MACs also as the rivals' papers count them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def parameters(model: nn.Module) -> int:
    """Return the number of parameters, frozen ones included."""
    return sum(p.numel() for p in model.parameters())


def _meta(model: nn.Module, image_size: tuple[int, int]) -> tuple[nn.Module, Tensor]:
    """Return a copy of the model and one image on the meta device; the model itself is not changed."""
    dtype = next(model.parameters()).dtype
    return copy.deepcopy(model).to("meta").eval(), torch.empty(1, 3, *image_size, device="meta", dtype=dtype)


def macs(model: nn.Module, image_size: tuple[int, int], attention: bool = True) -> int:
    """Return the multiply-adds of all matrix products and convolutions for one image.

    Args:
        image_size: (H, W).
        attention: also count the two products of attention (batched products and PyTorch's fused op).
    """
    model, image = _meta(model, image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    dense = {"convolution", "mm", "addmm"}
    flops = counter.get_flop_counts()["Global"].items()
    return sum(count for op, count in flops if attention or op.__name__ in dense) // 2


def gmacs(model: nn.Module, image_size: tuple[int, int]) -> float:
    """Return `macs` for one image in units of 10^9."""
    return macs(model, image_size) / 1e9


def binary_gmacs_without_attention(model: nn.Module, image_size: tuple[int, int]) -> float:
    """Return the multiply-adds of convolutions and linear layers alone, for one image in units of 2^30."""
    return macs(model, image_size, attention=False) / 2**30


def hrnet_tool(model: nn.Module, image_size: tuple[int, int]) -> float:
    """Return what the counter of the HRNet repository, also used by TokenPose and others, prints as GFLOPs.

    The counter sums the multiply-adds of convolutions and linear layers for one image in units of 2^30, and does not
    see the products of attention. The published figures include its two errors: it counts a transposed convolution at
    the size of its output (4 times too much at stride 2), and a linear layer on [B, N, C] as if it had N input
    channels.
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
