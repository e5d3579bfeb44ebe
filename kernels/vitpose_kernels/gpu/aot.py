"""Ahead-of-time compilation of kernel launches for any GPU architecture, without a GPU.

Measures what each kernel uses: registers, register spills, shared memory and tensor-core instructions. The calls of
`calls.py` run on the meta device, and their launches take the same path as on a GPU (`JITFunction.warmup`), with a stub
in place of the GPU driver. The compiler, cuobjdump and nvdisasm inside the triton package are all that is needed.
Does not work in a process that runs Triton's interpreter.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.tools.tensor_descriptor import TensorDescriptor

from vitpose_kernels.calls import calls
from vitpose_kernels.draw import Draw
from vitpose_kernels.launch import Launch, recording
from vitpose_kernels.sizes import Model

_TENSOR_CORES = {"tcgen05.mma": "tcgen05", "wgmma.mma_async": "wgmma", "mma.sync": "mma"}


# (kernel, arch, constants, bytes, reason): register spills that are known and accepted.
KNOWN_SPILLS: tuple[tuple[str, int, dict[str, Any], int, str], ...] = (
    (
        "window_backward",
        80,
        {"D": 64, "WINDOW_H": 8, "WINDOW_W": 8, "SHIFTED": True, "FULL": True},
        8,
        "2 registers; as two kernels this memory-bound work would read q, k, v and the gradient twice",
    ),
)


def known_spill(src: Source, arch: int) -> int:
    """Return how many bytes a kernel may spill on an architecture: 0 unless `KNOWN_SPILLS` lists it."""
    for kernel, chip, wanted, size, _ in KNOWN_SPILLS:
        if (src.kernel, arch) == (kernel, chip) and wanted.items() <= src.constants.items():
            return size
    return 0


def shipped(op: str, model: Model, dtype: torch.dtype, arch: int) -> Iterator[tuple[str, Launch]]:
    """Yield every distinct launch of an op for the shapes of a model, as ("attention window+shift+pool", launch).

    A launch that several calls share (training repeats launches of inference) is yielded once.
    """
    seen = set()
    for call in calls(op, model, Draw("meta", dtype)):
        with recording(arch) as recorded:
            call()
        for launch in recorded.launches:
            identity = source(launch), launch.grid, launch.flops, launch.bytes
            if identity not in seen:
                seen.add(identity)
                yield f"{op} {call.label}", launch


class Pointer(NamedTuple):
    """A tensor as the compiler sees it: its dtype, and whether its address is a multiple of 16 bytes."""

    dtype: torch.dtype
    aligned: bool


class Descriptor(NamedTuple):
    """A host-side tensor descriptor as the compiler sees it."""

    dtype: torch.dtype
    block_shape: tuple[int, ...]


class Source(NamedTuple):
    """Everything that determines the compiled code of a kernel.

    Plain data, so that it can be compared and sent to another process.

    Attributes:
        arguments: (name, value) for every parameter. Constants keep their values, tensors become `Pointer` or
            `Descriptor`, and a number is replaced by one representative of all numbers that give the same code.
    """

    module: str
    kernel: str
    arguments: tuple[tuple[str, Any], ...]
    num_warps: int
    num_stages: int

    @property
    def constants(self) -> dict[str, Any]:
        """Compile-time constants by name: `tl.constexpr` parameters, None, and integers equal to 1."""
        kernel = _kernel(self)
        constant = {p.name for p in kernel.params if p.is_constexpr}
        return {n: v for n, v in self.arguments if n in constant or v is None or (type(v) is int and v == 1)}


class Resources(NamedTuple):
    """Resources that one program of a kernel uses.

    Attributes:
        registers: per thread.
        spills: bytes per thread of spilled registers.
        shared: bytes of shared memory.
        tensor_cores: the instruction that feeds them: "mma", "wgmma", "tcgen05", or "" for none.
        has_dot: whether the kernel contains a `tl.dot`.
        error: why the kernel does not compile (all other fields keep their defaults then), or "".
    """

    registers: int = 0
    spills: int = 0
    shared: int = 0
    tensor_cores: str = ""
    has_dot: bool = False
    error: str = ""


def source(launch: Launch) -> Source:
    """Return the specialization that Triton compiles for the arguments of a launch."""
    parameters = launch.kernel.params
    unknown = launch.arguments.keys() - {p.name for p in parameters}
    assert not unknown, f"{launch.kernel.__name__} has no parameter {unknown}"
    values = ((p.name, launch.arguments[p.name], p.is_constexpr) for p in parameters)
    arguments = tuple((name, value if constant else _representative(value)) for name, value, constant in values)
    function = launch.kernel.fn
    return Source(function.__module__, function.__name__, arguments, launch.num_warps, launch.num_stages)


def _representative(value: Any) -> Any:
    """Map an argument to one representative of all arguments for which Triton generates the same code."""
    if isinstance(value, Tensor):
        return Pointer(value.dtype, value.storage_offset() * value.element_size() % 16 == 0)
    if isinstance(value, TensorDescriptor):
        return Descriptor(value.base.dtype, tuple(value.block_shape))
    if isinstance(value, float):
        return 0.5
    if isinstance(value, int) and not isinstance(value, bool) and value != 1:
        wide = 0 if abs(value) < 2**31 else 2**32  # passed as int64
        return wide + (16 if value % 16 == 0 else 17)
    return value


def _example(value: Any) -> Any:
    """Return an actual argument of the kind that `value` represents."""
    if isinstance(value, Pointer):
        return torch.empty(32, dtype=value.dtype)[0 if value.aligned else 1 :]
    if isinstance(value, Descriptor):
        return TensorDescriptor.from_tensor(torch.empty(value.block_shape, dtype=value.dtype), [*value.block_shape])
    return value


class _Driver:
    """Stub for the driver of a GPU that is not present: answers everything that Triton asks before a launch."""

    launcher_cls = None

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_device(self) -> int:
        return self.arch  # Triton caches compiled kernels per device: one device index per architecture

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def _kernel(src: Source) -> Any:
    return getattr(importlib.import_module(src.module), src.kernel)


def compile_source(src: Source, arch: int) -> CompiledKernel:
    """Compile a kernel for a compute capability (80, 90, ...) through the code path of a launch.

    The result is therefore the program that runs on the GPU, and Triton's on-disk cache keeps it. The kernel is
    compiled, or read from that cache; nothing is launched and no GPU is needed.
    """
    before = getattr(driver, "_active", None)  # `driver.active` itself would search for a GPU
    driver.set_active(_Driver(arch))
    try:
        arguments = {name: _example(value) for name, value in src.arguments}
        return _kernel(src).warmup(**arguments, grid=(1,), num_warps=src.num_warps, num_stages=src.num_stages)
    finally:
        driver.set_active(before)


def build_launcher(compiled: CompiledKernel) -> bool:
    """Build the C function that launches a kernel, if this version of Triton compiles one per signature.

    Triton 3.6 compiles it at the first launch of a kernel (gcc, a quarter of a second); later versions use one function
    for all kernels. Needs the CUDA driver library, but no GPU.

    Returns:
        Whether a launcher was built.
    """
    nvidia = importlib.import_module("triton.backends.nvidia.driver")
    if not hasattr(nvidia, "make_launcher"):
        return False
    nvidia.CudaLauncher(compiled.src, compiled.metadata)
    return True


def measure_source(src: Source, arch: int) -> Resources:
    """Compile a kernel and return what it uses; a compile error is returned in `Resources.error`."""
    try:
        compiled = compile_source(src, arch)
    except Exception as error:  # the compiler and the traced code may raise anything
        return Resources(error=" ".join(str(error).split())[-300:])
    registers, spills = _registers_and_spills(compiled.asm["cubin"])
    cores = next((short for name, short in _TENSOR_CORES.items() if name in compiled.asm["ptx"]), "")
    return Resources(registers, spills, compiled.metadata.shared, cores, "tt.dot" in compiled.asm["ttir"])


def _registers_and_spills(cubin: bytes) -> tuple[int, int]:
    """Return (registers per thread, spilled bytes per thread).

    ptxas may reserve a stack that no instruction uses. The stack counts as spilled only if one accesses it (STL, LDL).
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        instructions = _tool("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    assert "EXIT" in instructions, "nvdisasm printed no instructions"
    return int(found[1]), int(found[2]) if re.search(r"\b(STL|LDL)\b", instructions) else 0


def _tool(name: str, *arguments: str) -> str:
    path = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", name)
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout
