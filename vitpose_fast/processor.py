"""What the system says about the processor and memory: the model, instructions that matter for speed, cores."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

_FEATURES = {  # as Linux names them in /proc/cpuinfo, on x86 and on ARM -> as they are printed
    **{"avx2": "AVX2", "avx512f": "AVX-512", "avx_vnni": "AVX-VNNI", "avx512_vnni": "AVX-512 VNNI"},
    **{"avx512_bf16": "AVX-512 BF16", "avx512_fp16": "AVX-512 FP16"},
    **{"amx_bf16": "AMX bf16", "amx_int8": "AMX int8", "amx_fp16": "AMX fp16"},
    **{"asimd": "NEON", "asimddp": "dot products", "bf16": "BF16", "i8mm": "I8MM", "sve": "SVE", "sme": "SME"},
}


def _field(file: str, *names: str) -> str:
    """Return the value of the first line `name: value` of a file with one of these names, or "" if there is none."""
    path = Path(file)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() in names), "")


def processor_model() -> str:
    """Return the name of the CPU model, or its architecture if the system does not tell."""
    return _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def processor_features() -> list[str]:
    """Return the vector and matrix instructions of the CPU that matter for speed, such as "AVX2" and "AMX bf16".

    Outside Linux, where /proc/cpuinfo does not exist, this is the widest instruction set that PyTorch found, such as
    "AVX512".
    """
    flags = set(_field("/proc/cpuinfo", "flags", "Features").split())
    return [name for flag, name in _FEATURES.items() if flag in flags] or [torch.backends.cpu.get_cpu_capability()]


def cores() -> int:
    """Return the number of CPU cores, as the system counts them, that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_mib(file: str, name: str) -> float | None:
    """Return an amount of memory in MiB from a file of /proc, or None where the file or the line does not exist.

    Examples are ("/proc/meminfo", "MemAvailable") and, for this process, ("/proc/self/status", "VmRSS").
    """
    value = _field(file, name).removesuffix("kB").strip()
    return int(value) / 1024 if value.isdecimal() else None
