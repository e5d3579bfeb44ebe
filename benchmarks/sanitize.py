"""Run NVIDIA's compute-sanitizer on the kernels at small shapes: `python -m benchmarks.sanitize [OP ...]`.

memcheck finds out-of-bounds accesses, initcheck reads of uninitialized memory, racecheck races in shared memory, and
synccheck barriers that not all threads reach. One process per tool and op runs `benchmarks/smoke.py --small`. Only the
sanitizer's findings decide the exit code: wrong numbers in the output of a kernel do not.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.processes import start, wait
from vitpose_kernels.calls import OPS

TOOLS = ("memcheck", "initcheck", "racecheck", "synccheck")
_MAX_OUTPUT = 200_000  # bytes kept of the output of one process
_TIME_LIMIT = 3600.0  # seconds per process


def verdict(text: str, code: int | None) -> str:
    """Return what one run of the sanitizer found: "0 errors", "3 errors", or why there is no verdict.

    Args:
        text: the output of the run. The hazards of racecheck count as errors.
        code: its exit code, or None if it was killed at its time limit.
    """
    found = re.findall(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard", text)
    if not found:
        return "did not finish in time" if code is None else f"no verdict, exit code {code}"
    return f"{sum(int(a or b) for a, b in found)} errors"


def main() -> int:
    """Run the command. Return 0 if every run finished without a finding, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sanitize", description=__doc__.splitlines()[0])
    parser.add_argument("ops", nargs="*", default=list(OPS), metavar="OP", help=", ".join(OPS))
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument(
        "--out", type=Path, default=Path("build/sanitizer.txt"), help="file for the output of the sanitizer"
    )
    parser.add_argument("--until", type=float, default=math.inf, help="stop at this time (seconds since 1970)")
    options = parser.parse_args()
    unknown = [op for op in options.ops if op not in OPS]
    if unknown:
        parser.error(f"unknown op {unknown[0]!r}; choose from {', '.join(OPS)}")
    tool_path = shutil.which("compute-sanitizer")
    if tool_path is None:
        parser.error("compute-sanitizer is not on the PATH; it comes with the CUDA toolkit")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.unlink(missing_ok=True)
    clean = True
    # Give each tensor its own allocation, so that accesses next to it are found; this excludes CUDA graphs (`--eager`).
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for tool in options.tools:
        command = [tool_path, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
        command += [sys.executable, "-m", "benchmarks.smoke", "--small", "--eager", "--device", "cuda"]
        with contextlib.ExitStack() as stack:
            files = {op: stack.enter_context(tempfile.TemporaryFile()) for op in options.ops}
            running = {op: start([*command, op], files[op], environment, Path.cwd()) for op in options.ops}
            for op, file in files.items():  # all run at once: a sanitizer keeps one core busy, but hardly the GPU
                code = wait(running[op], min(options.until - time.time(), _TIME_LIMIT))
                file.seek(0)
                text = file.read()[-_MAX_OUTPUT:].decode(errors="replace")
                line = f"== {tool} {op}: {verdict(text, code)}"
                clean = clean and line.endswith(": 0 errors")
                print(line, flush=True)
                with open(options.out, "a", encoding="utf-8") as out:
                    out.write(f"{text}\n{line}\n")
    return int(not clean)


if __name__ == "__main__":
    sys.exit(main())
