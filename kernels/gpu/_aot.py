"""Ahead-of-time compilation of launches for any chip, without a GPU: registers, spills, shared memory, instructions.

Launches made from meta tensors are compiled for the types, constants and alignments they would have on a GPU. The
compiler and cuobjdump that ship inside the triton package are all it needs. Not in a process with the interpreter on.
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
from triton.compiler import ASTSource

from vitpose_fast.kernels._launch import Launch
from vitpose_fast.kernels.gpu._shapes import Model

_TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float64: "fp64",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
    torch.bool: "i1",
}
_TENSOR_CORES = {"tcgen05.mma": "tcgen05", "wgmma.mma_async": "wgmma", "mma.sync": "mma"}


class Chip(NamedTuple):
    """Ceilings of a chip: dense 16-bit matrix products in FLOP/s, memory in bytes/s.

    H200: measured by others with a large product and a copy. A100 (80 GB): data sheet.
    """

    name: str
    flops: float
    bandwidth: float

    def floor(self, launch: Launch) -> float:
        """Seconds that `launch` takes at least."""
        return max(launch.flops / self.flops, launch.bytes / self.bandwidth)


CHIPS = (Chip("A100", 312e12, 2.0e12), Chip("H200", 790e12, 4.3e12))


# (kernel, chip, constants, bytes, why): spills that we know and keep.
KNOWN_SPILLS: tuple[tuple[str, int, dict[str, Any], int, str], ...] = (
    (
        "attention_backward_kernel",
        80,
        {"D1": 64, "D2": 0, "KEYS": True, "QUERIES": True, "RELATIVE": True, "SHIFTED": True, "POOL": True},
        16,
        "2 registers (4 with triton 3.6), against reading q, k, v and the gradient twice in a kernel bound by memory",
    ),
)


def known_spill(src: Source, arch: int) -> int:
    """Bytes that a kernel is allowed to spill on a chip: 0 for all but those named in `KNOWN_SPILLS`."""
    constants = dict(src.constants)
    for kernel, chip, wanted, size, _ in KNOWN_SPILLS:
        if (src.kernel, arch) == (kernel, chip) and wanted.items() <= constants.items():
            return size
    return 0


def shipped(op: str, model: Model, dtype: torch.dtype, arch: int) -> Iterator[tuple[str, Launch]]:
    """Every launch of an op for the shapes of a model: ("attention window+shift+pool", launch), ..."""
    module = importlib.import_module(f"vitpose_fast.kernels.gpu.{op}")
    for label, launches in module.shipped(model, dtype, arch):
        yield from ((f"{op} {label}".rstrip(), launch) for launch in launches)


class Source(NamedTuple):
    """What decides the code of a kernel; plain data, so that it can be compared and sent to another process."""

    module: str
    kernel: str
    types: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[str, ...]
    num_warps: int
    num_stages: int


class Resources(NamedTuple):
    """What one program of a kernel uses, in registers per thread and bytes."""

    registers: int
    spills: int
    shared: int
    tensor_cores: str  # "mma", "wgmma", "tcgen05", or "" for none
    has_dot: bool


def source(launch: Launch) -> Source:
    """The specialisation that a launch with these arguments would be compiled for."""
    types, constants, aligned = [], [], []
    for parameter in launch.kernel.params:
        name, value = parameter.name, launch.arguments[parameter.name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            types.append((name, "constexpr"))
            constants.append((name, value))
        elif isinstance(value, Tensor):
            types.append((name, "*" + _TYPES[value.dtype]))
            if value.storage_offset() * value.element_size() % 16 == 0:
                aligned.append(name)
        elif isinstance(value, int):
            types.append((name, "i32" if abs(value) < 2**31 else "i64"))
            if value % 16 == 0:
                aligned.append(name)
        elif isinstance(value, float):
            types.append((name, "fp32"))
        else:  # a host tensor descriptor
            block = ",".join(map(str, value.block_shape))
            types.append((name, f"tensordesc<{_TYPES[value.base.dtype]}[{block}]>"))
    unknown = launch.arguments.keys() - {name for name, _ in types}
    assert not unknown, f"{launch.kernel.__name__} has no parameter {unknown}"
    function = launch.kernel.fn
    return Source(
        function.__module__,
        function.__name__,
        tuple(types),
        tuple(constants),
        tuple(aligned),
        launch.num_warps,
        launch.num_stages,
    )


def compile_source(src: Source, arch: int) -> Resources:
    """Compile for a compute capability (80, 90, ...) and read back what the code uses."""
    kernel = getattr(importlib.import_module(src.module), src.kernel)
    place = {name: i for i, name in enumerate(kernel.arg_names)}
    compiled = triton.compile(
        ASTSource(
            fn=kernel,
            signature=dict(src.types),
            constexprs={(place[name],): value for name, value in src.constants},
            attrs={(place[name],): [["tt.divisibility", 16]] for name in src.aligned},
        ),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": src.num_warps, "num_stages": src.num_stages},
    )
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
