"""Ahead-of-time compilation of kernel launches for any GPU architecture, without a GPU.

Measures what each kernel uses: registers, register spills, shared memory and tensor-core instructions. The calls of
`calls.py` run on the meta device, which records their launches. A recorded kernel is then compiled by the code
that a launch on a GPU goes through (`JITFunction.warmup`), with a stub in place of the GPU driver. This needs only the
compiler, cuobjdump and nvdisasm, which are inside the triton package. It does not work in a process that runs Triton's
interpreter.

Everywhere in this module, `arch` is a compute capability times ten (80, 90, ...).
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
from vitpose_kernels.gpu import deconv, linear
from vitpose_kernels.gpu.tiles import candidates
from vitpose_kernels.launch import Launch, recording
from vitpose_kernels.sizes import Model

_TENSOR_CORES = {"tcgen05.mma": "tcgen05", "wgmma.mma_async": "wgmma", "mma.sync": "mma"}


# Register spills that are known and accepted: (kernel, arch, constants, bytes per thread, reason). An entry applies to
# every specialization of the kernel whose compile-time constants include `constants`.
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
    """Return how many bytes per thread a kernel may spill on an architecture: 0 unless `KNOWN_SPILLS` lists it."""
    for kernel, chip, wanted, size, _ in KNOWN_SPILLS:
        if (src.kernel, arch) == (kernel, chip) and wanted.items() <= src.constants.items():
            return size
    return 0


def shipped(op: str, model: Model, dtype: torch.dtype, arch: int) -> Iterator[tuple[str, Launch]]:
    """Yield every distinct launch of an op for the shapes of a model, as ("attention window+shift+pool 8x8", launch).

    Launches with equal `Source`, grid, FLOPs and bytes (training repeats launches of inference) are yielded once, with
    the label of the first call that makes them. `dtype` is the dtype of the network's tensors. Nothing is compiled.
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


def offered(op: str, model: Model, dtype: torch.dtype, arch: int) -> Iterator[tuple[str, Launch]]:
    """Yield the launches of all tiles that a tuner can choose for the calls of an op at the shapes of a model.

    Each has a label, such as "linear fc2 192 (64, 0, 64, 64, 4, 4, 3, 2, 1)", which ends with the tiles. Only "linear"
    and "deconv" have a choice.
    """
    for call in calls(op, model, Draw("meta", dtype)):
        tried: dict[tuple[int, ...], list[Launch]] = {}
        if op == "linear":
            (x, weight, bias), options = call.arguments, call.options or {}
            x, gelu = x.flatten(0, -2), options["gelu"]
            residual, norm = options.get("residual"), options.get("norm")
            residual = None if residual is None else residual.flatten(0, -2)
            norm = norm and (norm[0].flatten(), norm[1].flatten(), norm[2])
            for tiles in candidates(x.shape[0], weight.shape[0], x.shape[1], dtype, arch, gelu):
                tried[tiles] = linear.forward(x, weight, bias, gelu, residual, norm, arch, None, tiles)[1]
        elif op == "deconv":
            x, weight, bias, grid, predictor = call.arguments
            k, k_bias = predictor or (None, None)
            for some in deconv.candidates(x.shape[0] * x.shape[1], weight.shape[-1], k is not None, dtype, arch):
                tried[some] = deconv.forward(x, weight, bias, grid, k, k_bias, arch, some)[1]
        for values, launches in tried.items():
            for launch in launches:
                yield f"{op} {call.label} {tuple(values)}", launch


class Pointer(NamedTuple):
    """A tensor as the compiler sees it: its dtype, and whether its address is a multiple of 16 bytes.

    The address is judged by the offset of the tensor in its storage, because meta tensors have none.
    """

    dtype: torch.dtype
    aligned: bool


class Descriptor(NamedTuple):
    """A tensor descriptor made on the host (for TMA loads) as the compiler sees it: its dtype and the tile it loads."""

    dtype: torch.dtype
    block_shape: tuple[int, ...]


class Source(NamedTuple):
    """Everything that determines the compiled code of a kernel, except for the architecture.

    Plain data, so that it can be compared and sent to another process.

    Attributes:
        module, kernel: names of the module and of the kernel in it.
        arguments: (name, value) for every parameter of the kernel, in order. `tl.constexpr` parameters keep their
            values; the other arguments are replaced by `_representative`: a tensor by a `Pointer`, a tensor descriptor
            by a `Descriptor`, a number by one number for which Triton generates the same code.
        num_warps, num_stages, maxnreg: launch options of Triton, as in `Launch`.
    """

    module: str
    kernel: str
    arguments: tuple[tuple[str, Any], ...]
    num_warps: int
    num_stages: int
    maxnreg: int | None = None

    @property
    def constants(self) -> dict[str, Any]:
        """Compile-time constants by name: `tl.constexpr` parameters, and arguments that are None or the integer 1.

        An integer 1 is included even if the kernel excludes its parameter from specialization (`do_not_specialize`).
        """
        kernel = _kernel(self)
        constant = {p.name for p in kernel.params if p.is_constexpr}
        return {n: v for n, v in self.arguments if n in constant or v is None or (type(v) is int and v == 1)}


class Resources(NamedTuple):
    """Resources that a compiled kernel uses.

    Attributes:
        registers: registers per thread.
        spills: bytes of spilled registers per thread.
        shared: bytes of shared memory per program.
        tensor_cores: the kernel's matrix instruction, "mma", "wgmma" or "tcgen05"; "" if it does not use tensor cores.
        has_dot: whether the kernel contains a `tl.dot`.
        error: the end of the error message if the kernel does not compile; all other fields keep their defaults then.
            Otherwise "".
    """

    registers: int = 0
    spills: int = 0
    shared: int = 0
    tensor_cores: str = ""
    has_dot: bool = False
    error: str = ""


def source(launch: Launch) -> Source:
    """Return the `Source` of a launch: the specialization that Triton compiles for its arguments.

    Raises AssertionError if an argument is not a parameter of the kernel.
    """
    parameters = launch.kernel.params
    unknown = launch.arguments.keys() - {p.name for p in parameters}
    assert not unknown, f"{launch.kernel.__name__} has no parameter {unknown}"
    values = ((p.name, launch.arguments[p.name], p.is_constexpr) for p in parameters)
    arguments = tuple((name, value if constant else _representative(value)) for name, value, constant in values)
    function = launch.kernel.fn
    options = launch.num_warps, launch.num_stages, launch.maxnreg
    return Source(function.__module__, function.__name__, arguments, *options)


def _representative(value: Any) -> Any:
    """Map an argument to a representative of arguments for which Triton generates the same code.

    Two floats always have the same representative. Two integers have the same one if both are 1, or if neither is 1,
    both or neither are multiples of 16, and both or neither need 64 bits. Booleans and None stay as they are.
    """
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
    """Return an actual argument whose `_representative` is `value`.

    A small CPU tensor for a `Pointer`, a tensor descriptor for a `Descriptor`, and `value` itself otherwise.
    """
    if isinstance(value, Pointer):
        return torch.empty(32, dtype=value.dtype)[0 if value.aligned else 1 :]
    if isinstance(value, Descriptor):
        return TensorDescriptor.from_tensor(torch.empty(value.block_shape, dtype=value.dtype), [*value.block_shape])
    return value


class _Driver:
    """Stub for the driver of a GPU that is not present. It has everything that Triton calls before a launch."""

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
    """Compile a kernel for an architecture as a launch would, or read it from Triton's on-disk cache.

    The result is the code that a launch would run, and is stored in the cache, where a launch finds it. Nothing is
    launched and no GPU is needed. Errors of the compiler are raised.
    """
    before = getattr(driver, "_active", None)  # `driver.active` itself would search for a GPU
    driver.set_active(_Driver(arch))
    try:
        arguments = {name: _example(value) for name, value in src.arguments}
        options = dict(num_warps=src.num_warps, num_stages=src.num_stages)
        options |= {} if src.maxnreg is None else dict(maxnreg=src.maxnreg)
        return _kernel(src).warmup(**arguments, grid=(1,), **options)
    finally:
        driver.set_active(before)


def build_launcher(compiled: CompiledKernel) -> bool:
    """Build the C function that launches a kernel, if this version of Triton needs one for each kernel signature.

    Triton 3.6 otherwise builds this function at the first launch of the kernel (with gcc, in a quarter of a second).
    Later versions use one function for all kernels: then nothing is done. Needs the CUDA driver library, but no GPU.

    Returns:
        Whether a function was built.
    """
    nvidia = importlib.import_module("triton.backends.nvidia.driver")
    if not hasattr(nvidia, "make_launcher"):
        return False
    nvidia.CudaLauncher(compiled.src, compiled.metadata)
    return True


def measure_source(src: Source, arch: int) -> Resources:
    """Compile a kernel for an architecture and return what it uses; `Resources.error` says why it does not compile."""
    try:
        compiled = compile_source(src, arch)
    except Exception as error:  # the compiler and the traced code may raise anything
        return Resources(error=" ".join(str(error).split())[-300:])
    registers, spills = _registers_and_spills(compiled.asm["cubin"])
    cores = next((short for name, short in _TENSOR_CORES.items() if name in compiled.asm["ptx"]), "")
    return Resources(registers, spills, compiled.metadata.shared, cores, "tt.dot" in compiled.asm["ttir"])


def _registers_and_spills(cubin: bytes) -> tuple[int, int]:
    """Return (registers per thread, spilled bytes per thread) of the compiled code `cubin`.

    The spilled bytes are the size of the stack if an instruction accesses it (STL, LDL), otherwise 0: ptxas may reserve
    a stack that no instruction uses.
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
