"""Kernel launches as values (`Launch`), and the functions that run or record them.

The kernels are in `gpu/`. For each op, a function in `gpu/` takes the input tensors, allocates the outputs, and returns
them with a list of `Launch` values, which `run` then launches. For meta tensors inside the context manager `recording`,
`run` records the values instead. `gpu/aot.py` compiles such recorded launches ahead of time, so what is checked without
a GPU is what runs on one.
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
    """Return whether Triton's interpreter is on in this process: TRITON_INTERPRET=1 was set when triton was imported.

    False if the Triton kernels cannot run at all. Imports triton.
    """
    if not HAS_TRITON:
        return False
    import triton

    return not isinstance(triton.language.cdiv, triton.JITFunction)


def architecture(x: Tensor) -> int:
    """Return the compute capability times ten, as in `architecture_of`, that kernels for `x` are chosen for.

    For a CUDA tensor it is that of its device. For a meta tensor inside `recording` it is `Recording.arch`. For all
    other tensors it is 80, the oldest of `ARCHITECTURES`.
    """
    if _recording is not None and x.is_meta:
        return _recording.arch
    return architecture_of(x.device) if x.is_cuda else ARCHITECTURES[0]


def multiprocessors(x: Tensor, arch: int) -> int:
    """Return the number of multiprocessors of the CUDA device of `x`; if `x` is not on CUDA, of `usual_chip(arch)`."""
    if x.is_cuda:
        return int(torch.cuda.get_device_properties(x.device).multi_processor_count)
    return usual_chip(arch).multiprocessors


class Launch(NamedTuple):
    """One kernel launch as a value.

    Attributes:
        kernel: a `triton.jit` function.
        grid: (number of programs,). All programs are on the first axis, because CUDA limits the other two to 65535.
        arguments: name -> tensor, tensor descriptor, number, None or compile-time constant, for every parameter.
        num_warps, num_stages: launch options of Triton.
        flops: floating-point operations of the matrix products in the kernel (2 per multiply-add).
        bytes: memory traffic in bytes if every input is read once and every output written once.
        maxnreg: the most registers that a thread may use, so that more programs fit on a multiprocessor, or None for no
            limit. Not applied while PyTorch traces the launch (`torch.compile`), which has no such option.
    """

    kernel: Any
    grid: tuple[int]
    arguments: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    flops: int = 0
    bytes: int = 0
    maxnreg: int | None = None


class Product(NamedTuple):
    """FLOPs and bytes, as in `Launch`, of a matrix product that an op leaves to PyTorch (see `product`)."""

    flops: int
    bytes: int


class Recording(NamedTuple):
    """What ops on meta tensors would run on a GPU, filled by the context manager `recording`.

    Attributes:
        arch: the architecture of that GPU, compute capability times ten.
        launches: kernel launches in their order.
        products: costs of the matrix products that ops leave to PyTorch, in their order.
        flops, bytes: sums over all launches and products.
    """

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
    """Record what ops would launch on a GPU, without one. A context manager.

    Inside it, ops on meta tensors choose the Triton kernels by default, and record their launches instead of running
    them. In a nested `recording`, only the inner one is filled until it ends.

    Args:
        arch: compute capability times ten of the GPU, one of `chips.ARCHITECTURES`.

    Yields:
        The `Recording`, empty at first. The tensors in its launches are on the meta device.
    """
    global _recording
    before, _recording = _recording, Recording(arch, [], [])
    try:
        yield _recording
    finally:
        _recording = before


def is_recorded(x: Tensor) -> bool:
    """Return whether kernel launches on `x` are recorded instead of run: `x` is a meta tensor inside `recording`."""
    return _recording is not None and x.is_meta


def has_address(x: Tensor) -> bool:
    """Return whether `x` is a plain tensor or parameter (also on the meta device), and not a tensor being traced."""
    return type(x) in (Tensor, torch.nn.Parameter)


def run(outputs: Outputs, launches: Iterable[Launch]) -> Outputs:
    """Launch kernels in order, each on the device of its tensors, and return `outputs` unchanged.

    `outputs` are the tensors that the kernels fill. A launch with zero programs is skipped. Launches on meta tensors
    inside `recording` are recorded instead of run.
    """
    for launch in launches:
        if launch.grid[0] == 0:
            continue
        tensor = next(value for value in launch.arguments.values() if isinstance(value, Tensor))
        if _recording is not None and tensor.is_meta:
            _recording.launches.append(launch)
            continue
        kernel, options = launch.kernel, dict(num_warps=launch.num_warps, num_stages=launch.num_stages)
        if not interpreting():
            if launch.maxnreg is not None and has_address(tensor):
                options["maxnreg"] = launch.maxnreg
            else:  # lets PyTorch trace the launch, but has no option for maxnreg
                kernel = torch.library.wrap_triton(kernel)
        with torch.cuda.device_of(tensor):  # Triton launches on the current device
            kernel[launch.grid](**launch.arguments, **options)
    return outputs


def product(a: Tensor, b: Tensor) -> Tensor:
    """Compute a [..., M, K] @ b [K, N] by PyTorch, as a part of an op. If `a` is recorded, record the cost too."""
    out = a @ b
    if _recording is not None and a.is_meta:
        _recording.products.append(Product(2 * a.numel() * b.shape[-1], num_bytes(a, b, out)))
    return out


def num_bytes(*tensors: Tensor | None) -> int:
    """Return the total size of tensors in bytes. None counts as 0."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def cdiv(a: int, b: int) -> int:
    """Return a / b, rounded up to an integer."""
    return -(-a // b)


def block_size(n: int, low: int = 16, high: int = 1 << 30) -> int:
    """Return the smallest power of two that is at least `n`, clamped to low..high."""
    return min(max(low, 1 << max(n - 1, 0).bit_length()), high)
