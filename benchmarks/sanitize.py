"""NVIDIA's compute-sanitizer over the kernels at small shapes: `python -m benchmarks.sanitize [OP ...]`.

memcheck finds accesses out of bounds, initcheck reads of memory that nothing wrote, racecheck races in shared memory,
synccheck barriers that not all threads reach. One process for each tool and op runs `benchmarks/smoke.py --small`; what
is counted are the sanitizer's findings (whether the numbers are right is for the smoke run itself to say).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from pathlib import Path

from benchmarks.processes import Clock, start, wait
from vitpose_fast.kernels._calls import OPS

TOOLS = ("memcheck", "initcheck", "racecheck", "synccheck")
_MOST = 200_000  # bytes kept of what one process prints


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
    parser.add_argument("--seconds", type=float, default=3600.0, help="for all together")
    options = parser.parse_args()
    unknown = [op for op in options.ops if op not in OPS]
    if unknown:
        parser.error(f"no op {unknown[0]!r}; expected some of {', '.join(OPS)}")
    tool_path = shutil.which("compute-sanitizer")
    if tool_path is None:
        parser.error("compute-sanitizer is not on the PATH; it comes with the CUDA toolkit")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    clock, clean = Clock(options.seconds), True
    # Every tensor is an allocation of its own: what is read beside it is found. Graphs cannot be captured then.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    part = options.out.with_suffix(".part")
    for tool in options.tools:
        for op in options.ops:
            command = [tool_path, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
            command += [sys.executable, "-m", "benchmarks.smoke", op, "--small", "--eager", "--device", "cuda"]
            code = None
            with open(part, "wb") as file:
                if clock.left > 5:
                    code = wait(start(command, file, environment, Path.cwd()), clock.left)
            text = part.read_bytes()[-_MOST:].decode(errors="replace")
            line = f"== {tool} {op}: {verdict(text, code)}"
            clean = clean and line.endswith(": 0 errors")
            print(line, flush=True)
            with open(options.out, "a", encoding="utf-8") as file:
                file.write(f"{text}\n{line}\n")
    part.unlink()
    return int(not clean)


if __name__ == "__main__":
    sys.exit(main())
