"""Which implementation of an op runs, and the checks that every op shares.

One rule for all ops: `impl=None` picks the implementation by device, `impl="..."` overrides it and is never overruled.
So far every op has its reference only, so `None` means the reference on every device.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor


def choose_impl(op: str, impl: str | None, available: tuple[str, ...] = ("reference",)) -> str:
    """Name of the implementation to run.

    Raises:
        ValueError: `impl` is neither None nor one of `available`.
    """
    if impl is None:
        return available[0]
    if impl not in available:
        valid = " or ".join(["None", *map(repr, available)])
        raise ValueError(
            f"{op}: got impl={impl!r}, expected {valid} (this version has no other implementation of {op})"
        )
    return impl


def check(condition: bool, op: str, message: str) -> None:
    """Raise `ValueError("<op>: <message>")` unless `condition` holds."""
    if not condition:
        raise ValueError(f"{op}: {message}")


def may_look_at_values(x: Tensor) -> bool:
    """Whether a check may read values of `x`: not while tracing, on CUDA (it waits) only with VITPOSE_FAST_DEBUG=1."""
    if torch.compiler.is_compiling():
        return False
    return not x.is_cuda or os.environ.get("VITPOSE_FAST_DEBUG") == "1"


def contiguous_like(x: Tensor, value: Tensor) -> Tensor:
    """`value` in the dtype of `x` and contiguous: what an op returns as the gradient of `x`."""
    return value.to(x.dtype).contiguous()


def autocast_inputs(x: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """All floating tensors in the autocast dtype where autocast is on, unchanged where it is off."""
    if not torch.is_autocast_enabled(x.device.type):
        return (x, *others)
    dtype = torch.get_autocast_dtype(x.device.type)
    return tuple(t.to(dtype) if t is not None and t.is_floating_point() else t for t in (x, *others))


def without_autocast(x: Tensor) -> torch.autocast:
    """Context in which an op keeps the dtypes it was given: autocast is decided at its border, not inside."""
    return torch.autocast(x.device.type, enabled=False)
