"""Autocast for the ops: an op first casts its inputs as autocast would, then runs with autocast disabled.

The docstring of each op says which of its inputs are cast.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def is_autocast(x: Tensor) -> bool:
    """Return whether autocast is enabled for the device of `x`. False on the meta device, which has no autocast."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def autocast_inputs(x: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return (x, *others) with all floating-point tensors, also float64, in the autocast dtype of the device of `x`.

    None and tensors of integers or booleans are returned unchanged. If autocast is off for that device, everything is.
    """
    if not is_autocast(x):
        return (x, *others)
    dtype = torch.get_autocast_dtype(x.device.type)
    return tuple(t.to(dtype) if t is not None and t.is_floating_point() else t for t in (x, *others))


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Return a context manager that disables autocast for the device of `x`; where it is off already, it does nothing.

    Inside it, an op computes in the dtypes of its inputs, which `autocast_inputs` may have cast before.
    """
    return torch.autocast(x.device.type, enabled=False) if is_autocast(x) else nullcontext()


def contiguous_like(x: Tensor, value: Tensor) -> Tensor:
    """Return `value`, a gradient, in the form in which ops return it: contiguous and in the dtype of `x`."""
    return value.to(x.dtype).contiguous()
