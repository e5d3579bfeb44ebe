"""Ahead-of-time compilation of launches for any chip, without a GPU: registers, spills, shared memory, instructions.

The calls of `calls.py` are made on the meta device, and their launches take the path that a launch on a GPU
takes (`JITFunction.warmup`), with a stand-in for the driver. The compiler and cuobjdump that ship inside the triton
package are all it needs. Not in a process with the interpreter on.
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


# (kernel, chip, constants, bytes, why): spills that we know and keep.
KNOWN_SPILLS: tuple[tuple[str, int, dict[str, Any], int, str], ...] = (
    (
        "window_backward",
        80,
        {"D": 64, "WINDOW_H": 8, "WINDOW_W": 8, "SHIFTED": True, "FULL": True},
        8,
        "2 registers, against reading q, k, v and the gradient twice in a kernel bound by memory",
    ),
)


def known_spill(src: Source, arch: int) -> int:
    """Bytes that a kernel is allowed to spill on a chip: 0 for all but those named in `KNOWN_SPILLS`."""
    for kernel, chip, wanted, size, _ in KNOWN_SPILLS:
        if (src.kernel, arch) == (kernel, chip) and wanted.items() <= src.constants.items():
            return size
    return 0


def shipped(op: str, model: Model, dtype: torch.dtype, arch: int) -> Iterator[tuple[str, Launch]]:
    """Every launch of an op for the shapes of a model: ("attention window+shift+pool", launch), ...

    Two calls share a launch where training does what inference does: it comes once.
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
    """A tensor, to the compiler: its dtype, and whether it starts at a multiple of 16 bytes."""

    dtype: torch.dtype
    aligned: bool


class Descriptor(NamedTuple):
    """A host tensor descriptor, to the compiler."""

    dtype: torch.dtype
    block_shape: tuple[int, ...]


class Source(NamedTuple):
    """What decides the code of a kernel; plain data, so that it can be compared and sent to another process.

    Attributes:
        arguments: (name, value) for every parameter: constants as they are, tensors as `Pointer` or `Descriptor`, and
            of numbers one that stands for all that are compiled alike.
    """

    module: str
    kernel: str
    arguments: tuple[tuple[str, Any], ...]
    num_warps: int
    num_stages: int

    @property
    def constants(self) -> dict[str, Any]:
        """Values of the compile-time parameters."""
        kernel = _kernel(self)
        constant = {p.name for p in kernel.params if p.is_constexpr}
        return {n: v for n, v in self.arguments if n in constant or v is None or (type(v) is int and v == 1)}


class Resources(NamedTuple):
    """What one program of a kernel uses, in registers per thread and bytes.

    Attributes:
        tensor_cores: "mma", "wgmma", "tcgen05", or "" for none.
        error: why it does not compile; the numbers are 0 then.
    """

    registers: int = 0
    spills: int = 0
    shared: int = 0
    tensor_cores: str = ""
    has_dot: bool = False
    error: str = ""


def source(launch: Launch) -> Source:
    """The specialisation that a launch with these arguments is compiled for."""
    parameters = launch.kernel.params
    unknown = launch.arguments.keys() - {p.name for p in parameters}
    assert not unknown, f"{launch.kernel.__name__} has no parameter {unknown}"
    values = ((p.name, launch.arguments[p.name], p.is_constexpr) for p in parameters)
    arguments = tuple((name, value if constant else _typical(value)) for name, value, constant in values)
    function = launch.kernel.fn
    return Source(function.__module__, function.__name__, arguments, launch.num_warps, launch.num_stages)


def _typical(value: Any) -> Any:
    """What stands for an argument and all others that the compiler makes no difference between."""
    if isinstance(value, Tensor):
        return Pointer(value.dtype, value.storage_offset() * value.element_size() % 16 == 0)
    if isinstance(value, TensorDescriptor):
        return Descriptor(value.base.dtype, tuple(value.block_shape))
    if isinstance(value, float):
        return 0.5
    if isinstance(value, int) and not isinstance(value, bool) and value != 1:
        wide = 0 if abs(value) < 2**31 else 2**32  # 64 bits
        return wide + (16 if value % 16 == 0 else 17)
    return value


def _example(value: Any) -> Any:
    """An argument that the compiler takes for what `value` stands for."""
    if isinstance(value, Pointer):
        return torch.empty(32, dtype=value.dtype)[0 if value.aligned else 1 :]
    if isinstance(value, Descriptor):
        return TensorDescriptor.from_tensor(torch.empty(value.block_shape, dtype=value.dtype), [*value.block_shape])
    return value


class _Driver:
    """Stands in for the driver of a chip that is not there: all that the path of a launch asks before it launches."""

    launcher_cls = None

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_device(self) -> int:
        return self.arch  # compiled kernels are kept by device: those of two chips apart

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def _kernel(src: Source) -> Any:
    return getattr(importlib.import_module(src.module), src.kernel)


def compile_source(src: Source, arch: int) -> CompiledKernel:
    """Compile for a compute capability (80, 90, ...), by the very code that compiles when a kernel is launched.

    So this is the program that will run, and Triton's cache on disk holds it from now on. Every call in a process
    compiles for real or takes it from that cache; nothing is launched and no GPU is needed.
    """
    before = getattr(driver, "_active", None)  # reading `driver.active` would look for a GPU
    driver.set_active(_Driver(arch))
    try:
        arguments = {name: _example(value) for name, value in src.arguments}
        return _kernel(src).warmup(**arguments, grid=(1,), num_warps=src.num_warps, num_stages=src.num_stages)
    finally:
        driver.set_active(before)


def build_launcher(compiled: CompiledKernel) -> bool:
    """Build the C function that launches a kernel, where this version of Triton has one for each signature.

    Triton 3.6 does so (gcc, a quarter of a second) when a kernel is launched first; later versions have one for all.
    Needs the CUDA driver's library, not a GPU.

    Returns:
        whether there was something to build.
    """
    nvidia = importlib.import_module("triton.backends.nvidia.driver")
    if not hasattr(nvidia, "make_launcher"):
        return False
    nvidia.CudaLauncher(compiled.src, compiled.metadata)
    return True


def measure_source(src: Source, arch: int) -> Resources:
    """Compile a kernel and read back what it uses, or why it does not compile."""
    try:
        compiled = compile_source(src, arch)
    except Exception as error:  # whatever a compiler raises, or the code that it traces
        return Resources(error=" ".join(str(error).split())[-300:])
    registers, spills = _registers_and_spills(compiled.asm["cubin"])
    cores = next((short for name, short in _TENSOR_CORES.items() if name in compiled.asm["ptx"]), "")
    return Resources(registers, spills, compiled.metadata.shared, cores, "tt.dot" in compiled.asm["ttir"])


def _registers_and_spills(cubin: bytes) -> tuple[int, int]:
    """(registers per thread, bytes of stack if an instruction touches it: ptxas reserves some that it never uses)."""
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
