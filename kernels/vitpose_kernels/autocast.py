"""Autocast for the ops: an op casts its inputs when it is called, and runs with autocast disabled."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def is_autocast(x: Tensor) -> bool:
    """Return whether autocast is enabled for the device of `x`; the meta device has no autocast."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def autocast_inputs(x: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """Cast all floating tensors to the autocast dtype; return everything unchanged if autocast is off."""
    if not is_autocast(x):
        return (x, *others)
    dtype = torch.get_autocast_dtype(x.device.type)
    return tuple(t.to(dtype) if t is not None and t.is_floating_point() else t for t in (x, *others))


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Return a context that disables autocast, so that an op computes in the dtypes of its (cast) inputs."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def contiguous_like(x: Tensor, value: Tensor) -> Tensor:
    """Convert `value` to what an op returns as the gradient of `x`: contiguous and in the dtype of `x`."""
    return value.to(x.dtype).contiguous()
