"""Kernel launches as values, and the functions that run or record them.

The kernels are in `gpu/`, one file per op. Each file has functions that turn tensors into outputs and `Launch` values.
The ops run these values, and `gpu/aot.py` compiles the same values ahead of time from meta tensors, so what is checked
without a GPU is what runs on one. Within `recording`, ops on meta tensors record their launches and run nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from vitpose_kernels.chips import ARCHITECTURES, architecture_of, usual_chip

# Why the Triton kernels cannot run in this process, or "" if they can.
NO_TRITON = (
    "triton is not installed"
    if find_spec("triton") is None
    else "torch is built for ROCm, and the kernels are for NVIDIA GPUs"
    if torch.version.hip is not None
    else ""
)
HAS_TRITON = not NO_TRITON
Outputs = TypeVar("Outputs")


def interpreting() -> bool:
    """Return whether Triton's interpreter is on in this process; this is decided when triton is imported."""
    if not HAS_TRITON:
        return False
    import triton

    return not isinstance(triton.language.cdiv, triton.JITFunction)


def architecture(x: Tensor) -> int:
    """Return the compute capability times ten of the device of `x`, as in `architecture_of`.

    For meta tensors that are recorded it is the architecture of the recording, for all other devices 80.
    """
    if _recording is not None and x.is_meta:
        return _recording.arch
    return architecture_of(x.device) if x.is_cuda else ARCHITECTURES[0]


def multiprocessors(x: Tensor, arch: int) -> int:
    """Return the number of multiprocessors of the CUDA device of `x`; elsewhere that of the usual board of `arch`."""
    if x.is_cuda:
        return int(torch.cuda.get_device_properties(x.device).multi_processor_count)
    return usual_chip(arch).multiprocessors


class Launch(NamedTuple):
    """One kernel launch as a value.

    Attributes:
        kernel: a `triton.jit` function.
        grid: number of programs, all on the first axis, which alone has no limit of 65535.
        arguments: name -> tensor, number or compile-time constant, for every parameter of the kernel.
        num_warps, num_stages: launch options of Triton.
        flops: floating-point operations of the matrix products (2 per multiply-add).
        bytes: memory traffic in bytes if every operand is moved once.
    """

    kernel: Any
    grid: tuple[int]
    arguments: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    flops: int = 0
    bytes: int = 0


class Product(NamedTuple):
    """Cost of a matrix product that PyTorch's library computes, in the units of `Launch`."""

    flops: int
    bytes: int


class Recording(NamedTuple):
    """The launches and matrix products of ops, recorded for an architecture `arch` (compute capability times ten)."""

    arch: int
    launches: list[Launch]
    products: list[Product]

    @property
    def flops(self) -> int:
        return sum(launch.flops for launch in self.launches) + sum(product.flops for product in self.products)

    @property
    def bytes(self) -> int:
        return sum(launch.bytes for launch in self.launches) + sum(product.bytes for product in self.products)


_recording: Recording | None = None


@contextmanager
def recording(arch: int) -> Iterator[Recording]:
    """Record what ops would launch on a GPU, without one. Within the context, ops on meta tensors use Triton kernels.

    Args:
        arch: compute capability times ten, one of `chips.ARCHITECTURES`.

    Yields:
        The recording, which fills while the context is open. The tensors in it are on the meta device.
    """
    global _recording
    before, _recording = _recording, Recording(arch, [], [])
    try:
        yield _recording
    finally:
        _recording = before


def is_recorded(x: Tensor) -> bool:
    """Return whether launches for `x` are being recorded: `x` is on the meta device within `recording`."""
    return _recording is not None and x.is_meta


def run(outputs: Outputs, launches: Iterable[Launch]) -> Outputs:
    """Launch kernels in order, on the device of their tensors, and return `outputs`, which they fill.

    A launch with an empty grid is skipped. Launches on meta tensors within `recording` are recorded instead.
    """
    for launch in launches:
        if launch.grid[0] == 0:
            continue
        tensor = next(value for value in launch.arguments.values() if isinstance(value, Tensor))
        if _recording is not None and tensor.is_meta:
            _recording.launches.append(launch)
            continue
        kernel = launch.kernel if interpreting() else torch.library.wrap_triton(launch.kernel)
        with torch.cuda.device_of(tensor):  # Triton launches on the current device
            kernel[launch.grid](**launch.arguments, num_warps=launch.num_warps, num_stages=launch.num_stages)
    return outputs


def product(a: Tensor, b: Tensor) -> Tensor:
    """Compute a [..., M, K] @ b [K, N] by PyTorch's library, as part of an op; `recording` records its cost."""
    out = a @ b
    if _recording is not None and a.is_meta:
        _recording.products.append(Product(2 * a.numel() * b.shape[-1], num_bytes(a, b, out)))
    return out


def num_bytes(*tensors: Tensor | None) -> int:
    """Return the total size of tensors in bytes."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def cdiv(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)


def block_size(n: int, low: int = 16, high: int = 1 << 30) -> int:
    """Return the smallest power of two that is at least `n`, clamped to low..high."""
    return min(max(low, 1 << max(n - 1, 0).bit_length()), high)
