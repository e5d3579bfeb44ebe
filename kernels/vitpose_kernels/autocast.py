"""How ops meet autocast: their inputs are cast at the border, and inside it is off."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def is_autocast(x: Tensor) -> bool:
    """Whether autocast is on for the device of `x` (the meta device has none)."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def autocast_inputs(x: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """All floating tensors in the autocast dtype where autocast is on, unchanged where it is off."""
    if not is_autocast(x):
        return (x, *others)
    dtype = torch.get_autocast_dtype(x.device.type)
    return tuple(t.to(dtype) if t is not None and t.is_floating_point() else t for t in (x, *others))


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Context in which an op keeps the dtypes it was given: autocast is decided at its border, not inside."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def contiguous_like(x: Tensor, value: Tensor) -> Tensor:
    """`value` in the dtype of `x` and contiguous: what an op returns as the gradient of `x`."""
    return value.to(x.dtype).contiguous()
