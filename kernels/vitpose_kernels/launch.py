"""Which implementation of an op runs, the checks that every op shares, and what a kernel launch is.

One rule for all ops: CUDA tensors -> Triton kernels, anything else -> the reference. `impl="triton" | "reference"`
overrides it and is never overruled; nothing falls back silently. On the CPU `impl="triton"` runs in Triton's
interpreter (TRITON_INTERPRET=1 set before triton is imported) and is refused without it. Where triton is not
installed (macOS, Windows) the references run everywhere.

The kernels stand in `gpu/`, one file per op. A file there turns tensors into outputs and `Launch` values; the
same values are run by the ops and compiled ahead of time by `gpu/aot.py` (from meta tensors), so what is checked
without a GPU is what runs on one. `recording` is how: ops on meta tensors hand their launches over.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

HAS_TRITON = find_spec("triton") is not None
ARCHITECTURES = (80, 86, 89, 90, 100, 120)  # compute capability x 10: A100, 30xx, 40xx / L4, H100 / H200, B200, 50xx
SHARED_MEMORY = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}  # bytes a program may use


def interpreting() -> bool:
    """Whether Triton's interpreter is on in this process (decided when triton was imported)."""
    if not HAS_TRITON:
        return False
    import triton

    return not isinstance(triton.language.cdiv, triton.JITFunction)


def choose_impl(op: str, impl: str | None, x: Tensor, others: Sequence[str] = ()) -> str:
    """Name of the implementation to run on `x`: "triton", "reference" or one of `others` (which only this op has).

    Raises:
        ValueError: an unknown name, or "triton" where Triton cannot run.
    """
    on_gpu = x.is_cuda or _is_recorded(x)
    if impl is None:
        impl = "triton" if on_gpu and HAS_TRITON else "reference"
    elif impl not in ("triton", "reference", *others):
        valid = " or ".join(["None", *map(repr, ("triton", "reference", *others))])
        raise ValueError(f"{op}: got impl={impl!r}, expected {valid}")
    elif impl == "triton" and not on_gpu:
        check(HAS_TRITON, op, "got impl='triton', but triton is not installed; use impl='reference'")
        check(
            interpreting(),
            op,
            f"got impl='triton' for tensors on {x.device}; hand in CUDA tensors, or use impl='reference' (tests: set "
            "TRITON_INTERPRET=1 before triton is imported)",
        )
    if impl == "triton":
        given = x.dtype if x.is_floating_point() else torch.float32
        allowed = (torch.float32, torch.float16, torch.bfloat16) if on_gpu else (torch.float32, torch.float16)
        check(
            given in allowed,
            op,
            f"got {given} on {x.device}, the Triton kernels take {', '.join(map(str, allowed))} there; convert it, or "
            "use impl='reference'",
        )
    return impl


def architecture(x: Tensor) -> int:
    """Compute capability times ten of the device of `x`, the newest known one at most; 80 in the interpreter."""
    if _recording is not None and x.is_meta:
        return _recording.arch
    if not x.is_cuda:
        return ARCHITECTURES[0]
    major, minor = torch.cuda.get_device_capability(x.device)
    return max((a for a in ARCHITECTURES if a <= 10 * major + minor), default=ARCHITECTURES[0])


class Launch(NamedTuple):
    """One kernel launch as a value.

    Attributes:
        kernel: a `triton.jit` function.
        grid: programs; all of them on the first axis, the only one without a limit of 65535.
        arguments: name -> tensor, number or compile-time constant, for every parameter of the kernel.
        flops: floating-point operations of matrix products (2 per multiply-add).
        bytes: bytes that must cross the memory bus if every operand is moved once.
    """

    kernel: Any
    grid: tuple[int]
    arguments: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    flops: int = 0
    bytes: int = 0


class _Recording(NamedTuple):
    """The chip that launches are recorded for, and what was launched."""

    arch: int
    launches: list[Launch]


_recording: _Recording | None = None


@contextmanager
def recording(arch: int) -> Iterator[list[Launch]]:
    """Collect what ops would launch on a chip, without one: within it ops on meta tensors take their Triton kernels.

    Args:
        arch: compute capability times ten, one of `ARCHITECTURES`.

    Yields:
        the list that the launches go to; their tensors are on the meta device.
    """
    global _recording
    before, _recording = _recording, _Recording(arch, [])
    try:
        yield _recording.launches
    finally:
        _recording = before


def _is_recorded(x: Tensor) -> bool:
    return _recording is not None and x.is_meta


def run(launches: Iterable[Launch]) -> None:
    """Launch kernels in order, on the device of their tensors. An empty grid is no launch."""
    for launch in launches:
        if launch.grid[0] == 0:
            continue
        tensor = next(value for value in launch.arguments.values() if isinstance(value, Tensor))
        if _recording is not None and tensor.is_meta:
            _recording.launches.append(launch)
            continue
        kernel = launch.kernel if interpreting() else torch.library.wrap_triton(launch.kernel)
        with torch.cuda.device_of(tensor):  # Triton launches on the current device, which may be another
            kernel[launch.grid](**launch.arguments, num_warps=launch.num_warps, num_stages=launch.num_stages)


def num_bytes(*tensors: Tensor | None) -> int:
    """Sum of the sizes of tensors in bytes."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def cdiv(a: int, b: int) -> int:
    """Quotient rounded up."""
    return -(-a // b)


def block_size(n: int, low: int = 16, high: int = 1 << 30) -> int:
    """Smallest power of two that holds `n`, within low..high."""
    return min(max(low, 1 << max(n - 1, 0).bit_length()), high)


def check(condition: bool, op: str, message: str) -> None:
    """Raise `ValueError("<op>: <message>")` unless `condition` holds."""
    if not condition:
        raise ValueError(f"{op}: {message}")


def check_device(op: str, x: Tensor, **others: Tensor | None) -> None:
    """Raise ValueError that names the first tensor which is not on the device of `x`."""
    for name, other in others.items():
        if other is not None:
            check(other.device == x.device, op, f"{name} is on {other.device}, expected {x.device} like the others")


def refuse_grad(op: str, **tensors: Tensor | None) -> None:
    """Raise ValueError for an op without backward if a tensor requires grad while grad mode is on."""
    for name, value in tensors.items():
        check(
            value is None or not (torch.is_grad_enabled() and value.requires_grad),
            op,
            f"{name} requires grad, but there is no backward; call it under torch.no_grad() or detach it",
        )


def check_reach(op: str, **tensors: Tensor | None) -> None:
    """Raise ValueError where one sample (all dims but the first) spans more than the kernels' 32-bit offsets reach."""
    for name, x in tensors.items():
        if x is not None:
            span = sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True))
            check(span < 2**31, op, f"{name} has strides {x.stride()}: one sample spans 2^31 elements or more; copy it")


def may_look_at_values(x: Tensor) -> bool:
    """Whether a check may read values of `x`: not while tracing, on CUDA (it waits) only with VITPOSE_FAST_DEBUG=1."""
    if torch.compiler.is_compiling() or x.is_meta:
        return False
    return not x.is_cuda or os.environ.get("VITPOSE_FAST_DEBUG") == "1"


def contiguous_like(x: Tensor, value: Tensor) -> Tensor:
    """`value` in the dtype of `x` and contiguous: what an op returns as the gradient of `x`."""
    return value.to(x.dtype).contiguous()


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
