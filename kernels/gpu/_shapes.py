"""The shapes that the kernels ship for: those of ViTPose++-S, B, L and H at the batch of the paper's Table 12."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Model(NamedTuple):
    """What the shapes of a model's launches follow from."""

    name: str
    width: int
    heads: int
    part_features: int
    batch: int = 64
    tasks: int = 6
    keypoints: int = 17
    decoder_width: int = 256


MODELS = (
    Model("S", 384, 12, 96),
    Model("B", 768, 12, 192),
    Model("L", 1024, 16, 256),
    Model("H", 1280, 16, 320),
)


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    """A tensor with a shape and no data."""
    return torch.empty(shape, dtype=dtype, device="meta")
