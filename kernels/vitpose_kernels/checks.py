"""Checks that several ops make before they launch a kernel: which implementation runs, and whether tensors are valid.

All ops follow one rule: CUDA tensors (and meta tensors inside the context manager `launch.recording`) run the Triton
kernels, all other tensors run the PyTorch reference. `impl="triton"` or `impl="reference"` overrides the rule. If the
implementation that was given or chosen cannot run, the op raises an error; it never falls back to another one.

On the CPU `impl="triton"` runs in Triton's interpreter, which needs TRITON_INTERPRET=1 to be set before triton is
imported. Without the interpreter it raises an error. If triton is not installed (macOS, Windows), or torch is built for
ROCm, the default is the reference on every device and `impl="triton"` raises an error.

A check is written as `if not ...: raise ValueError(f"...")`, so that its message is built only if the check fails.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from vitpose_kernels.launch import HAS_TRITON, NO_TRITON, interpreting, is_recorded


def choose_impl(op: str, impl: str | None, x: Tensor, others: Sequence[str] = ()) -> str:
    """Return the name of the implementation to run on `x`: "triton", "reference" or one of `others`.

    Args:
        op: name of the op, for error messages.
        impl: the caller's choice. None means "triton" for a CUDA tensor (and for a meta tensor that is recorded) if
            Triton can run in this process, otherwise "reference".
        x: a tensor with the device and the dtype that the op computes in. Tensors of integers count as float32.
        others: further names that the caller may pass as `impl` to this op. This function does not check whether they
            can run.

    Raises:
        ValueError: `impl` is unknown; or "triton" was given or is the default, and Triton cannot run on this device or
            does not support this dtype (float32, float16 and bfloat16 on a GPU, float32 and float16 in the
            interpreter).
    """
    on_gpu = x.is_cuda or is_recorded(x)
    if impl is None:
        impl = "triton" if on_gpu and HAS_TRITON else "reference"
    elif impl not in ("triton", "reference", *others):
        valid = " or ".join(["None", *map(repr, ("triton", "reference", *others))])
        raise ValueError(f"{op}: got impl={impl!r}, expected {valid}")
    elif impl == "triton" and not HAS_TRITON:
        raise ValueError(f"{op}: got impl='triton', but {NO_TRITON}; use impl='reference'")
    elif impl == "triton" and not on_gpu and not interpreting():
        raise ValueError(
            f"{op}: got impl='triton' for tensors on {x.device}; pass CUDA tensors, or use impl='reference' "
            "(tests: set TRITON_INTERPRET=1 before triton is imported)"
        )
    if impl == "triton":
        given = x.dtype if x.is_floating_point() else torch.float32
        allowed = (torch.float32, torch.float16, torch.bfloat16) if on_gpu else (torch.float32, torch.float16)
        if given not in allowed:
            raise ValueError(
                f"{op}: got {given} on {x.device}, the Triton kernels take {', '.join(map(str, allowed))} on "
                "this device; convert the tensors, or use impl='reference'"
            )
    return impl


def check_device(op: str, x: Tensor, **others: Tensor | None) -> None:
    """Raise a ValueError that names the first tensor of `others` that is not on the device of `x`; None is skipped."""
    for name, other in others.items():
        if other is not None and other.device != x.device:
            raise ValueError(f"{op}: {name} is on {other.device}, expected {x.device} like the others")


def refuse_grad(op: str, **tensors: Tensor | None) -> None:
    """Raise a ValueError if a tensor requires grad while grad mode is on. For ops that have no backward pass."""
    for name, value in tensors.items():
        if value is not None and value.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{op}: {name} requires grad, but this op has no backward pass; call it under torch.no_grad() or "
                f"detach {name}"
            )


def check_reach(op: str, **tensors: Tensor | None) -> None:
    """Raise a ValueError if one sample of a tensor (all dims but the first) spans 2^31 elements of memory or more.

    Kernels address the elements of a sample by 32-bit offsets, so strides count, not only the number of elements.
    """
    for name, x in tensors.items():
        if x is not None:
            span = sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True))
            if span >= 2**31:
                raise ValueError(
                    f"{op}: {name} has strides {x.stride()}, so one sample spans 2^31 elements or more; pass a "
                    "contiguous copy"
                )


def may_look_at_values(x: Tensor) -> bool:
    """Return whether a check may read the values of `x`.

    False while torch.compile or torch.export traces, and on the meta device. On CUDA, where a read waits for the
    device, True only if the environment variable VITPOSE_FAST_DEBUG is 1. On all other devices True.
    """
    if torch.compiler.is_compiling() or x.is_meta:
        return False
    return not x.is_cuda or os.environ.get("VITPOSE_FAST_DEBUG") == "1"
