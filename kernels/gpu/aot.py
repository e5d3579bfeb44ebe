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
from vitpose_fast.kernels.gpu.shapes import Model

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
    """Ceilings of a chip: dense 16-bit matrix products in FLOP/s, memory in bytes/s (H200: measured; A100: data sheet)."""

    name: str
    flops: float
    bandwidth: float

    def floor(self, launch: Launch) -> float:
        """Seconds that `launch` takes at least."""
        return max(launch.flops / self.flops, launch.bytes / self.bandwidth)


CHIPS = (Chip("A100", 312e12, 2.0e12), Chip("H200", 790e12, 4.3e12))


OPS = (
    "attention",
    "split_ffn",
    "layer_norm",
    "linear",
    "patch_embed",
    "deconv",
    "crop",
    "heatmap_target",
    "heatmap_loss",
    "heatmap_decode",
)


def shipped(model: Model, dtype: torch.dtype, arch: int, ops: tuple[str, ...] = OPS) -> Iterator[tuple[str, Launch]]:
    """Every launch of `ops` for the shapes of a model: ("attention window+shift+pool", launch), ..."""
    for op in ops:
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
    tensor_cores: str


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
    registers, spills = _registers_and_stack(compiled.asm["cubin"])
    cores = next((short for name, short in _TENSOR_CORES.items() if name in compiled.asm["ptx"]), "")
    return Resources(registers, spills, compiled.metadata.shared, cores)


def _registers_and_stack(cubin: bytes) -> tuple[int, int]:
    tool = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found, text
    return int(found[1]), int(found[2])
