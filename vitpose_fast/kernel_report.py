"""`vitpose-fast kernels`: compile every kernel that the models launch and report what it uses. Needs no GPU.

The report lists registers, register spills, shared memory and tensor cores of each kernel, and the roofline time of
each launch. Needs Triton.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any

import torch

from vitpose_fast.files import write_atomic
from vitpose_kernels.calls import OPS
from vitpose_kernels.chips import ARCHITECTURES, chip_named, usual_chip
from vitpose_kernels.launch import HAS_TRITON, NO_TRITON, interpreting
from vitpose_kernels.sizes import MODELS

if TYPE_CHECKING:
    from vitpose_kernels.gpu.aot import Resources, Source

_FLOORS = [chip for chip in map(chip_named, ("A100", "H200")) if chip]  # chips of the roofline times


def compile_all(
    archs: Iterable[int],
    dtype: torch.dtype,
    models: Iterable[str],
    ops: Iterable[str],
    jobs: int,
    candidates: bool = False,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Compile every kernel that the models launch, and return (kernels, launches).

    Each model is taken with its usual batch size and with batch 1, and with batch 8 too if `candidates`.

    Args:
        archs: compute capabilities times ten, such as 90.
        dtype: the dtype of activations and weights.
        models, ops: names in `MODELS` and `OPS`.
        jobs: number of compiler processes.
        candidates: compile all tiles that a tuner can choose (see `aot.offered`) instead of the usual choice.

    Returns:
        kernels: a row for each architecture and each kernel with distinct compile-time arguments: arch, op, kernel,
            used_by (labels of launches), registers (per thread), spills and shared (bytes), tensor_cores, has_dot
            (whether it multiplies matrices), error, num_warps, num_stages, programs (see
            `programs_per_multiprocessor`), and problem ("" if there is none).
        launches: a row for each launch: model, op, kernel, gflop, mbytes, and floor_us (name of a chip -> roofline time
            in microseconds, a lower bound). There is one row for all architectures, made for the last of `archs`.

    Raises:
        ValueError: a compiler process was killed.
    """
    from vitpose_kernels.gpu.aot import known_spill, measure_source, offered, shipped, source

    wanted: dict[tuple[int, Source], dict[str, Any]] = {}
    launches: dict[tuple[str, str, int], dict[str, Any]] = {}
    batches = (8, 1) if candidates else (1,)
    shapes = [MODELS[name]._replace(batch=batch) for name in models for batch in (MODELS[name].batch, *batches)]
    launches_of = offered if candidates else shipped
    for arch, model, op in itertools.product(archs, shapes, ops):
        for i, (label, launch) in enumerate(launches_of(op, model, dtype, arch)):
            src, label = source(launch), f"{label}, batch {model.batch}"
            row = wanted.setdefault((arch, src), {"arch": arch, "op": op, "kernel": src.kernel, "used_by": []})
            row["used_by"].append(f"{model.name} {label}")
            launches[f"{model.name} {model.batch}", op, i] = {
                "model": model.name,
                "op": label,
                "kernel": src.kernel,
                "gflop": launch.flops / 1e9,
                "mbytes": launch.bytes / 1e6,
                "floor_us": {chip.name: chip.floor(launch.flops, launch.bytes) * 1e6 for chip in _FLOORS},
            }
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        futures = {key: pool.submit(measure_source, key[1], key[0]) for key in wanted}
        for (arch, src), future in futures.items():
            row = wanted[arch, src]
            try:
                used = future.result()
            except BrokenProcessPool:
                raise ValueError(
                    "kernels: a compiler process was killed, perhaps for lack of memory; use fewer --jobs"
                ) from None
            problem = problem_of(used, known_spill(src, arch), arch)
            programs = programs_per_multiprocessor(used, src.num_warps, arch)
            row |= used._asdict() | {"num_warps": src.num_warps, "num_stages": src.num_stages}
            row |= {"programs": programs, "problem": problem}
    return list(wanted.values()), list(launches.values())


def programs_per_multiprocessor(used: Resources, num_warps: int, arch: int) -> int:
    """Return how many programs of a kernel fit on a multiprocessor at a time: 0 if it does not compile.

    A multiprocessor has 65536 registers, which warps get in units of 256. Every program needs 1 KiB of shared memory
    besides its own; the multiprocessor has 1 KiB more than one program may use.

    Args:
        used: the result of compiling the kernel.
        num_warps: warps of a program.
        arch: compute capability times ten.
    """
    chip = usual_chip(arch)
    if used.error:
        return 0
    registers = -(-used.registers * 32 // 256) * 256 * num_warps
    return min(65536 // registers, (chip.shared_memory + 1024) // (used.shared + 1024), chip.max_warps // num_warps)


def problem_of(used: Resources, allowed_spills: int, arch: int) -> str:
    """Return the first problem of a kernel, or "" if it has none.

    The problems are, in this order: it does not compile, it spills more than `allowed_spills` bytes of registers, it
    needs more shared memory than the chip has, or it multiplies matrices without tensor cores.

    Args:
        used: the result of compiling the kernel.
        allowed_spills: bytes of register spills that are known and accepted.
        arch: compute capability times ten, such as 90.
    """
    if used.error:
        return f"does not compile: {used.error}"
    if used.spills > allowed_spills:
        return f"spills {used.spills} bytes"
    limit = usual_chip(arch).shared_memory
    if used.shared > limit:
        return f"needs {used.shared} bytes of shared memory, the chip has {limit}"
    return "multiplies matrices without tensor cores" if used.has_dot and not used.tensor_cores else ""


def table(rows: list[list[str]]) -> str:
    """Format rows as a text table. The first row is the header; columns are as wide as their widest cell."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def main(args: list[str]) -> int:
    """Run the command and return its exit code: 1 if any kernel has a problem (see `problem_of`), else 0.

    Args:
        args: the arguments after `kernels`.

    Raises:
        ValueError: Triton is not installed, TRITON_INTERPRET is set, or a compiler process was killed.
        OSError: the file for --json cannot be written.
    """
    known = [f"sm_{arch}" for arch in ARCHITECTURES]
    parser = argparse.ArgumentParser(prog="vitpose-fast kernels", description=__doc__)
    parser.add_argument("--arch", nargs="+", default=known, choices=known, metavar="sm_XX", help=", ".join(known))
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS, type=str.upper)
    parser.add_argument("--ops", nargs="+", default=list(OPS), choices=OPS, metavar="OP", help=", ".join(OPS))
    parser.add_argument(
        "--candidates",
        action="store_true",
        help="instead of what is launched by default, compile all tiles that a tuner can choose (of linear and deconv)",
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="number of compiler processes; default: all cores"
    )
    parser.add_argument("--json", metavar="FILE", help="also write both tables to this file")
    options = parser.parse_args(args)
    if not HAS_TRITON:
        raise ValueError(f"kernels: {NO_TRITON}; on Linux, with a CPU or CUDA build of torch, run pip install triton")
    if interpreting():
        raise ValueError("kernels: TRITON_INTERPRET is set, which disables the compiler; unset it")
    archs = [int(name.removeprefix("sm_")) for name in options.arch]
    wanted = (archs, getattr(torch, options.dtype), options.models, options.ops, options.jobs, options.candidates)
    kernels, launches = compile_all(*wanted)
    head = ["chip", "kernel", "used by", "warps", "stages", "registers", "spills", "shared", "programs"]
    head += ["tensor cores", ""]
    rows = [head]
    for k in kernels:
        more = f" and {len(k['used_by']) - 1} more" if len(k["used_by"]) > 1 else ""
        numbers = (k[name] for name in ("num_warps", "num_stages", "registers", "spills", "shared", "programs"))
        cells = (k["used_by"][0] + more, *map(str, numbers), k["tensor_cores"] or "-", k["problem"])
        rows.append([f"sm_{k['arch']}", k["kernel"], *cells])
    print(table(rows), end="\n\n")
    rows = [["model", "launch", "kernel", "GFLOP", "MB", "floor A100 us", "floor H200 us"]]
    for n in launches:
        costs = (n["gflop"], n["mbytes"], n["floor_us"]["A100"], n["floor_us"]["H200"])
        rows.append([n["model"], n["op"], n["kernel"], *(f"{x:.1f}" for x in costs)])
    print(table(rows))
    if options.json:
        text = json.dumps({"kernels": kernels, "launches": launches}, indent=1)
        write_atomic(options.json, lambda path: path.write_text(text, encoding="utf-8"))
    bad = [k for k in kernels if k["problem"]]
    for k in bad:
        print(f"problem: sm_{k['arch']} {k['kernel']} ({k['used_by'][0]}): {k['problem']}")
    print(f"{len(kernels)} kernels compiled, {len(bad)} with a problem")
    return 1 if bad else 0
