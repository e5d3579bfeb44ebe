"""What every op asks before it launches: which implementation runs, and whether its tensors fit.

One rule for all ops: CUDA tensors -> Triton kernels, anything else -> the reference. `impl="triton" | "reference"`
overrides it and is never overruled; nothing falls back silently. On the CPU `impl="triton"` runs in Triton's
interpreter (TRITON_INTERPRET=1 set before triton is imported) and is refused without it. Where triton is not
installed (macOS, Windows) the references run everywhere.

Messages are built only when they are needed: a check is `if not ...: raise ValueError(f"...")`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from vitpose_kernels.launch import HAS_TRITON, interpreting, is_recorded


def choose_impl(op: str, impl: str | None, x: Tensor, others: Sequence[str] = ()) -> str:
    """Name of the implementation to run on `x`: "triton", "reference" or one of `others` (which only this op has).

    Raises:
        ValueError: an unknown name, or "triton" where Triton cannot run.
    """
    on_gpu = x.is_cuda or is_recorded(x)
    if impl is None:
        impl = "triton" if on_gpu and HAS_TRITON else "reference"
    elif impl not in ("triton", "reference", *others):
        valid = " or ".join(["None", *map(repr, ("triton", "reference", *others))])
        raise ValueError(f"{op}: got impl={impl!r}, expected {valid}")
    elif impl == "triton" and not on_gpu:
        if not HAS_TRITON:
            raise ValueError(f"{op}: got impl='triton', but triton is not installed; use impl='reference'")
        if not interpreting():
            raise ValueError(
                f"{op}: got impl='triton' for tensors on {x.device}; hand in CUDA tensors, or use impl='reference' "
                "(tests: set TRITON_INTERPRET=1 before triton is imported)"
            )
    if impl == "triton":
        given = x.dtype if x.is_floating_point() else torch.float32
        allowed = (torch.float32, torch.float16, torch.bfloat16) if on_gpu else (torch.float32, torch.float16)
        if given not in allowed:
            raise ValueError(
                f"{op}: got {given} on {x.device}, the Triton kernels take {', '.join(map(str, allowed))} there; "
                "convert it, or use impl='reference'"
            )
    return impl


def check_device(op: str, x: Tensor, **others: Tensor | None) -> None:
    """Raise ValueError that names the first tensor which is not on the device of `x`."""
    for name, other in others.items():
        if other is not None and other.device != x.device:
            raise ValueError(f"{op}: {name} is on {other.device}, expected {x.device} like the others")


def refuse_grad(op: str, **tensors: Tensor | None) -> None:
    """Raise ValueError for an op without backward if a tensor requires grad while grad mode is on."""
    for name, value in tensors.items():
        if value is not None and value.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{op}: {name} requires grad, but there is no backward; call it under torch.no_grad() or detach it"
            )


def check_reach(op: str, **tensors: Tensor | None) -> None:
    """Raise ValueError where one sample (all dims but the first) spans more than the kernels' 32-bit offsets reach."""
    for name, x in tensors.items():
        if x is not None:
            span = sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True))
            if span >= 2**31:
                raise ValueError(
                    f"{op}: {name} has strides {x.stride()}: one sample spans 2^31 elements or more; copy it"
                )


def may_look_at_values(x: Tensor) -> bool:
    """Whether a check may read values of `x`: not while tracing, on CUDA (it waits) only with VITPOSE_FAST_DEBUG=1."""
    if torch.compiler.is_compiling() or x.is_meta:
        return False
    return not x.is_cuda or os.environ.get("VITPOSE_FAST_DEBUG") == "1"
