"""Check every kernel: call each op at the shapes of `plan` and compare the outputs with its reference in float64.

    python -m benchmarks.smoke OP|all [--small] [--skip N]

Inputs are random, and memory for outputs holds NaN at first, so that unwritten elements show. The device is
synchronized after every call. On a GPU the call is then replayed from a CUDA graph and must give the same bits (except
for `crop`). With `--lines`, which `all` needs, each call is appended to a file as one line of JSON. A call that breaks
the CUDA context ends the process with code 3, and a process whose call hangs is killed. `all` runs each op in its own
process; if a process dies, a new one continues with the next call, up to 20 times per op.

Without a GPU (`--device cpu`) the kernels run in Triton's interpreter, in float32: use `--small` there.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.harness import tensors_of
from benchmarks.processes import die_with_parent, start
from benchmarks.records import append_line, read_lines
from vitpose_kernels.calls import OPS, Call, calls
from vitpose_kernels.draw import Draw
from vitpose_kernels.launch import interpreting
from vitpose_kernels.sizes import MODELS, ODD, Model

LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # of ||out - truth|| / ||truth||
BROKEN, WRONG = 3, 4  # exit codes: the CUDA context is broken; a call is wrong (1 is any Python error)
SMALL = Model(
    "small", 64, 1, 2, 16, batch=2, tasks=3, num_keypoints=5, whole_body=9, decoder_width=32, grid=(6, 4), window=(4, 2)
)
_MAX_DEATHS = 20  # of the processes of one op
_TIME_LIMIT = {"cuda": 45, "cpu": 300}  # seconds per call; a kernel that hangs is killed with its process


def plan(small: bool, cuda: bool) -> list[tuple[Model, torch.dtype]]:
    """Return the (model, dtype) pairs to check, the most important first; the model determines the shapes.

    A CPU gets float32 only: Triton's interpreter is slow, and silently wrong in bfloat16.
    """
    half = [torch.bfloat16] if cuda else []
    if small:
        shapes = (SMALL, ODD) if cuda else (SMALL,)
        return [(model, dtype) for dtype in (*half, torch.float32) for model in shapes]
    s, b = MODELS["S"], MODELS["B"]
    shapes = (b, b._replace(batch=1), s, s._replace(batch=1), ODD)
    exact = (b._replace(batch=8), ODD)
    return [(m, dtype) for dtype in half for m in shapes] + [(m, torch.float32) for m in exact]


def planned(op: str, small: bool, device: torch.device, draw_on: str | None = None) -> Iterator[tuple[dict, Call]]:
    """Yield (row, call) for every call of an op in `plan`.

    The row identifies the call: `index` counts the calls of the op from 0. The tensors are on `draw_on`, by default on
    `device`; "meta" makes calls without data.
    """
    index = 0
    for model, dtype in plan(small, device.type == "cuda"):
        for call in calls(op, model, Draw(draw_on or device, dtype, seed=index)):
            name = str(dtype).removeprefix("torch.")
            yield dict(op=op, index=index, label=call.label, model=model.name, batch=model.batch, dtype=name), call
            index += 1


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Context manager in which new, empty tensors hold NaN (integers: 77), so that unwritten elements show.

    It replaces `torch.empty`, `torch.empty_like` and `Tensor.new_empty`.
    """

    def poison(make: Any) -> Any:
        def made(*arguments: Any, **options: Any) -> Tensor:
            x = make(*arguments, **options)
            return x.fill_(float("nan") if x.is_floating_point() else 77)

        return made

    with contextlib.ExitStack() as stack:
        for place, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
            stack.enter_context(mock.patch.object(place, name, poison(getattr(place, name))))
        yield


def in_float64(value: Any) -> Any:
    """Convert floating-point tensors and dtypes to float64, also inside tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, torch.dtype):
        return torch.float64 if value.is_floating_point else value
    if isinstance(value, dict):
        return {key: in_float64(part) for key, part in value.items()}
    return type(value)(map(in_float64, value)) if type(value) in (list, tuple) else value


def relative_error(out: Tensor, truth: Tensor) -> float:
    """Return ||out - truth|| / ||truth|| (Euclidean norms) over the finite elements of `truth`.

    Returns infinity if the shapes differ, or if `out` is finite in other places than `truth`.
    """
    if out.shape != truth.shape:
        return float("inf")
    known, out, truth = truth.isfinite(), out.detach().double(), truth.detach().double()
    if not torch.equal(known, out.isfinite()):
        return float("inf")
    difference, size = ((x[known]).norm() for x in (out - truth, truth))
    return float(difference / size.clamp(min=1e-30))


def replayed(call: Call, device: torch.device) -> list[Tensor]:
    """Record a call in a CUDA graph, overwrite its outputs with NaN (integers: 77), replay it and return them."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call("triton")
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        out = tensors_of(call("triton"))
    for x in out:
        x.fill_(float("nan") if x.is_floating_point() else 77)
    graph.replay()
    torch.cuda.synchronize(device)
    return out


@torch.no_grad()
def check(row: dict[str, Any], call: Call, device: torch.device, eager: bool) -> dict[str, Any]:
    """Run a call and return its row with these fields added; what the call raises becomes its `problem`.

    They are `error` (None if infinite or unknown), its `limit`, `same_bits` of the replayed graph (None without a
    graph), `problem` ("" if nothing is wrong) and `seconds`. With `eager`, for sanitizers, there is no graph and no
    memory full of NaN.
    """
    started = time.perf_counter()
    limit = LIMITS[getattr(torch, row["dtype"])]
    found: dict[str, Any] = dict(error=None, limit=limit, same_bits=None, problem="")
    try:
        # A sanitizer (`eager`) finds reads of unwritten memory by itself.
        with contextlib.nullcontext() if eager else poisoned():
            out = tensors_of(call("triton"))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        exact = Call(call.label, call.function, in_float64(call.arguments), in_float64(call.options))
        truth = tensors_of(exact("reference"))
        found["error"] = max(relative_error(a, b) for a, b in zip(out, truth, strict=True))
        if not found["error"] <= limit:
            found["problem"] = f"error {found['error']:.1e}, {limit:.0e} allowed"
        if device.type == "cuda" and not eager and row["op"] != "crop":  # crop makes its table of images on the host
            again = replayed(call, device)
            found["same_bits"] = all(
                torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(out, again, strict=True)
            )
            if not found["same_bits"]:
                found["problem"] += "; " * bool(found["problem"]) + "its CUDA graph gives different bits"
    except Exception as error:  # a call that fails is one row
        found["problem"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if found["error"] is not None and found["error"] == float("inf"):
        found["error"] = None  # JSON has no infinity
    return row | found | dict(seconds=round(time.perf_counter() - started, 3))


def check_op(op: str, device: torch.device, small: bool, skip: int, lines: Path | None, eager: bool) -> int:
    """Check the calls of an op, beginning with the one whose `index` is `skip`. Append their rows to `lines`.

    Wrong calls are printed, and without `lines` all calls are. Return BROKEN as soon as the CUDA context is broken,
    WRONG if a call was wrong, else 0. A call that hangs ends this process by SIGALRM, unless `eager`.
    """
    wrong = False
    for row, call in planned(op, small, device):
        if row["index"] < skip:
            continue
        if hasattr(signal, "alarm") and not eager:  # no time limit under a sanitizer
            signal.alarm(_TIME_LIMIT[device.type])
        row = check(row, call, device, eager)
        wrong = wrong or bool(row["problem"])
        if lines is not None:
            append_line(lines, row)
        if lines is None or row["problem"]:
            print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
        if device.type == "cuda":
            try:
                torch.cuda.synchronize(device)
            except RuntimeError:
                return BROKEN
    if hasattr(signal, "alarm"):
        signal.alarm(0)
    return WRONG if wrong else 0


def rows_of(lines: Path) -> list[dict[str, Any]]:
    """Return the rows of checked calls in a file that `check_all` wrote, without its row `planned`."""
    return [row for row in read_lines(lines) if "op" in row]


def check_all(device: torch.device, small: bool, jobs: int, lines: Path) -> int:
    """Check all ops, `jobs` at a time, each in its own process. Return 1 if a call is wrong, else 0.

    Appends to `lines` the number of calls, {"planned": number}, and then a row per call, also for a call in which a
    process died. After the 20th death in an op its remaining calls have no row.
    """
    append_line(lines, {"planned": sum(1 for op in OPS for _ in planned(op, small, device, "meta"))})
    waiting, running, deaths = [(op, 0) for op in OPS], {}, dict.fromkeys(OPS, 0)
    options = ["--device", device.type, "--lines", str(lines), *(["--small"] if small else [])]
    while waiting or running:
        while waiting and len(running) < jobs:
            op, skip = waiting.pop(0)
            command = [sys.executable, "-m", "benchmarks.smoke", op, "--skip", str(skip), *options]
            running[op] = start(command, sys.stdout.buffer, os.environ, Path.cwd())
        for op, process in list(running.items()):
            code = process.poll()
            if code is None:
                continue
            del running[op]
            if code in (0, WRONG):
                continue
            deaths[op] += 1
            reason = "took too long" if hasattr(signal, "SIGALRM") and code == -signal.SIGALRM else "ended its process"
            done = [row["index"] for row in rows_of(lines) if row["op"] == op]
            following = max(done, default=-1) + 1
            if code != BROKEN:  # it died in a call that it had not reported yet
                rows = [row for row, _ in planned(op, small, device, "meta")]
                if following < len(rows):
                    append_line(lines, rows[following] | dict(problem=f"{reason}, code {code}"))
                following += 1
            if deaths[op] < _MAX_DEATHS:  # otherwise the remaining calls are "not reached"
                waiting.append((op, following))
        time.sleep(0.05)
    return int(any(row.get("problem") for row in rows_of(lines)))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.smoke", description=__doc__.splitlines()[0])
    parser.add_argument("op", choices=[*OPS, "all"])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="small shapes: seconds in the interpreter or a sanitizer")
    parser.add_argument("--skip", type=int, default=0, metavar="N", help="start with call number N of the op")
    parser.add_argument("--lines", type=Path, help="append rows of JSON to this file, print only wrong calls")
    parser.add_argument(
        "--eager", action="store_true", help="no CUDA graphs, NaN-filled memory or time limit, for sanitizers"
    )
    parser.add_argument(
        "--jobs", type=int, default=min(5, os.cpu_count() or 1), help="number of ops at a time, for `all`"
    )
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cpu" and not interpreting():
        parser.error("without a GPU the kernels run in Triton's interpreter: set TRITON_INTERPRET=1")
    if options.op != "all":
        die_with_parent()  # the parent may be a sanitizer that is killed
        return check_op(options.op, device, options.small, options.skip, options.lines, options.eager)
    if options.lines is None:
        parser.error("all: give a file with --lines")
    return check_all(device, options.small, options.jobs, options.lines)


if __name__ == "__main__":
    sys.exit(main())
