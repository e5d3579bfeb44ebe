"""A kernel launch as a value, and what runs such values.

The kernels stand in `gpu/`, one file per op. A file there turns tensors into outputs and `Launch` values; the same
values are run by the ops and compiled ahead of time by `gpu/aot.py` (from meta tensors), so what is checked without a
GPU is what runs on one. `recording` is how: ops on meta tensors hand their launches over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from vitpose_kernels.chips import ARCHITECTURES, architecture_of, usual_chip

HAS_TRITON = find_spec("triton") is not None
Outputs = TypeVar("Outputs")


def interpreting() -> bool:
    """Whether Triton's interpreter is on in this process (decided when triton was imported)."""
    if not HAS_TRITON:
        return False
    import triton

    return not isinstance(triton.language.cdiv, triton.JITFunction)


def architecture(x: Tensor) -> int:
    """Compute capability times ten of the device of `x`, the newest known one at most; 80 in the interpreter."""
    if _recording is not None and x.is_meta:
        return _recording.arch
    return architecture_of(x.device) if x.is_cuda else ARCHITECTURES[0]


def multiprocessors(x: Tensor, arch: int) -> int:
    """Multiprocessors of the device of `x`; where it is none, those of the usual board of an architecture."""
    if x.is_cuda:
        return int(torch.cuda.get_device_properties(x.device).multi_processor_count)
    return usual_chip(arch).multiprocessors


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


class Product(NamedTuple):
    """What a matrix product by PyTorch's library costs, in the units of `Launch`."""

    flops: int
    bytes: int


class Recording(NamedTuple):
    """What ops did while they were recorded for a chip (compute capability times ten)."""

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
    """Collect what ops would launch on a chip, without one: within it ops on meta tensors take their Triton kernels.

    Args:
        arch: compute capability times ten, one of `chips.ARCHITECTURES`.

    Yields:
        the recording, which fills; its tensors are on the meta device.
    """
    global _recording
    before, _recording = _recording, Recording(arch, [], [])
    try:
        yield _recording
    finally:
        _recording = before


def is_recorded(x: Tensor) -> bool:
    """Whether launches for `x`, on the meta device, are being collected."""
    return _recording is not None and x.is_meta


def run(outputs: Outputs, launches: Iterable[Launch]) -> Outputs:
    """Launch kernels in order, on the device of their tensors; returns the outputs that they fill.

    An empty grid is no launch.
    """
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
    return outputs


def product(a: Tensor, b: Tensor) -> Tensor:
    """a [M, K] @ b [K, N] (or a [..., M, K]) by PyTorch's library, as part of an op: its cost is recorded too."""
    out = a @ b
    if _recording is not None and a.is_meta:
        _recording.products.append(Product(2 * a.numel() * b.shape[-1], num_bytes(a, b, out)))
    return out


def num_bytes(*tensors: Tensor | None) -> int:
    """Sum of the sizes of tensors in bytes."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def cdiv(a: int, b: int) -> int:
    """Quotient rounded up."""
    return -(-a // b)


def block_size(n: int, low: int = 16, high: int = 1 << 30) -> int:
    """Smallest power of two that holds `n`, within low..high."""
    return min(max(low, 1 << max(n - 1, 0).bit_length()), high)
