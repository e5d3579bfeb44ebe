"""NVIDIA's compute-sanitizer over the kernels at small shapes: `python -m benchmarks.sanitize [OP ...]`.

memcheck finds accesses out of bounds, initcheck reads of memory that nothing wrote, racecheck races in shared memory,
synccheck barriers that not all threads reach. One process for each tool and op runs `benchmarks/smoke.py --small`; what
is counted are the sanitizer's findings (whether the numbers are right is for the smoke run itself to say).
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
_MOST = 200_000  # bytes kept of what one process prints
_LONGEST = 3600.0  # seconds of one process


def verdict(text: str, code: int | None) -> str:
    """What one run of the sanitizer found: "0 errors", "3 errors", or why it says nothing."""
    found = re.findall(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard", text)
    if not found:
        return "did not finish in its time" if code is None else f"no verdict, exit code {code}"
    return f"{sum(int(a or b) for a, b in found)} errors"


def main() -> int:
    """0 where every run ended without a finding, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sanitize", description=__doc__.splitlines()[0])
    parser.add_argument("ops", nargs="*", default=list(OPS), metavar="OP", help=", ".join(OPS))
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--out", type=Path, default=Path("build/sanitizer.txt"), help="file for what it prints")
    parser.add_argument("--until", type=float, default=math.inf, help="stop then (seconds since 1970)")
    options = parser.parse_args()
    unknown = [op for op in options.ops if op not in OPS]
    if unknown:
        parser.error(f"no op {unknown[0]!r}; expected some of {', '.join(OPS)}")
    tool_path = shutil.which("compute-sanitizer")
    if tool_path is None:
        parser.error("compute-sanitizer is not on the PATH; it comes with the CUDA toolkit")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.unlink(missing_ok=True)
    clean = True
    # Every tensor is an allocation of its own: what is read beside it is found. Graphs cannot be captured then.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for tool in options.tools:
        command = [tool_path, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
        command += [sys.executable, "-m", "benchmarks.smoke", "--small", "--eager", "--device", "cuda"]
        with contextlib.ExitStack() as stack:
            files = {op: stack.enter_context(tempfile.TemporaryFile()) for op in options.ops}
            running = {op: start([*command, op], files[op], environment, Path.cwd()) for op in options.ops}
            for op, file in files.items():  # all at once: a sanitizer keeps one core busy and the GPU hardly
                code = wait(running[op], min(options.until - time.time(), _LONGEST))
                file.seek(0)
                text = file.read()[-_MOST:].decode(errors="replace")
                line = f"== {tool} {op}: {verdict(text, code)}"
                clean = clean and line.endswith(": 0 errors")
                print(line, flush=True)
                with open(options.out, "a", encoding="utf-8") as out:
                    out.write(f"{text}\n{line}\n")
    return int(not clean)


if __name__ == "__main__":
    sys.exit(main())
