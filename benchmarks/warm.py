"""Compile the kernels that the other steps of `bench --budget` launch, ahead of time and in parallel, without a GPU.

    python -m benchmarks.warm --out compile.json [--arch sm_90]

The list of kernels is recorded on the meta device from the calls that the steps make: the calls of
`benchmarks/smoke.py`, frozen models, and all that tuning may choose. The binaries go to Triton's cache on disk, where
every later process finds them. Triton 3.6 needs a C function for each signature of a kernel to launch it, which is
built too.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

import vitpose_fast as vp
from benchmarks.models import TASKS
from benchmarks.processes import Clock, die_with_parent
from benchmarks.smoke import SMALL, plan
from vitpose_fast.files import write_atomic
from vitpose_fast.frozen import FrozenBackbone
from vitpose_fast.runtime import FrozenViTPose
from vitpose_fast.switches import launches_of, switches
from vitpose_kernels.calls import OPS
from vitpose_kernels.chips import ARCHITECTURES
from vitpose_kernels.gpu.aot import Source, build_launcher, compile_source, shipped, source
from vitpose_kernels.launch import Launch, architecture, interpreting, recording
from vitpose_kernels.sizes import PAPER

BATCHES = (64, 1, 8, 72)  # the batch sizes of benchmarks/test_model.py


def model_launches(name: str, batch: int, arch: int, mixed: bool = False) -> list[Launch]:
    """Return the launches of a frozen bfloat16 model for one forward pass and decoding, recorded on the meta device.

    Args:
        name: name of the model for `create_model`.
        batch: samples in the batch.
        arch: compute capability times ten.
        mixed: give the model the experts of six tasks, as ++ models need for mixed batches.
    """
    options: dict[str, Any] = dict(tasks=TASKS, head_tasks=("coco",)) if mixed else {}
    with torch.device("meta"):
        model = vp.create_model(name, **options).eval()
    frozen = FrozenViTPose(model, torch.bfloat16, True, True)
    assert isinstance(frozen.backbone, FrozenBackbone)
    images = torch.empty(batch, 3, *model.config.image_size, dtype=torch.bfloat16, device="meta")
    place = torch.empty(batch, 2, device="meta")
    with recording(arch) as recorded:
        maps = frozen.heads["coco"](frozen.backbone(images, torch.empty(batch, dtype=torch.int64, device="meta")))
        vp.functional.heatmap_decode(maps, centers=place, scales=place)
    return recorded.launches


def tuning_launches(arch: int) -> Iterator[Launch]:
    """Yield the launches of a block of ViTPose-B under every choice of the step `tune`, and so of `test_tiles.py`."""
    with torch.device("meta"):
        frozen = FrozenViTPose(vp.create_model("vitpose-b").eval(), torch.bfloat16, True, True)
    for batch in (64, 1, 8):
        for launches in launches_of(frozen, switches(frozen, batch, arch), batch, arch).values():
            yield from launches


def wanted(arch: int, small: bool) -> dict[Source, str]:
    """Return the kernels to compile, the most urgent first, each with a label that says what needs it first.

    `small` selects a few kernels only.
    """
    out: dict[Source, str] = {}

    def add(label: str, launches: Any) -> None:
        for launch in launches:
            out.setdefault(source(launch), label)

    if small:
        for op in ("layer_norm", "linear", "heatmap_decode"):
            add(f"{op}, small", (launch for _, launch in shipped(op, SMALL, torch.bfloat16, arch)))
        return out
    for name in sorted((f"vitpose-{size}" for size in PAPER), key=lambda name: name != "vitpose-b"):
        for batch in BATCHES:
            add(f"{name} {batch}", model_launches(name, batch, arch))
    for batch in (64, 8):
        add(f"vitpose++-b mixed {batch}", model_launches("vitpose++-b", batch, arch, mixed=True))
    for model, dtype in plan(False, True):
        for op in OPS:
            add(f"{op}, {model.name} {model.batch}", (launch for _, launch in shipped(op, model, dtype, arch)))
    add("tuning", tuning_launches(arch))
    return out


class Done(NamedTuple):
    """Result of compiling one kernel; `error` is "" if it compiled."""

    seconds: float
    launcher: str  # "built", "not needed", or the reason why there is none
    error: str = ""


def compile_one(src: Source, arch: int) -> Done:
    """Compile a kernel and build its launcher if there is one. Runs in a worker process, and reports every error."""
    started = time.perf_counter()
    try:
        compiled = compile_source(src, arch)
    except Exception as error:  # a compiler may raise anything
        return Done(time.perf_counter() - started, "", " ".join(str(error).split())[-300:])
    try:
        launcher = "built" if build_launcher(compiled) else "not needed"
    except Exception as error:  # no driver library or C compiler: the first launch will report it
        launcher = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return Done(time.perf_counter() - started, launcher)


def compile_some(
    sources: list[Source], arch: int, jobs: int, clock: Clock, done: dict[Source, Done], save: Callable[[], None]
) -> None:
    """Compile sources into `done` with `jobs` worker processes, until all are compiled, time is over or a worker dies.

    A dead worker does not tell which kernel killed it, so the first 2 * jobs of the remaining kernels are then compiled
    one at a time, and the others are left to the caller. A kernel that kills its worker when compiled alone has failed.
    `save` is called after every result, or every two seconds.
    """
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=die_with_parent) as pool:
        pending = {pool.submit(compile_one, src, arch): src for src in sources}
        try:
            while pending and clock.left > 0:
                ready, _ = wait(pending, timeout=min(2.0, max(clock.left, 0.0)), return_when=FIRST_COMPLETED)
                for future in ready:
                    done[pending[future]] = future.result()
                    del pending[future]
                save()
        except BrokenProcessPool:
            if len(sources) == 1:
                done[sources[0]] = Done(0.0, "", "the process that compiled it died")
            for src in list(pending.values())[: 2 * jobs] if len(sources) > 1 else ():
                if clock.left > 0:
                    compile_some([src], arch, 1, clock, done, save)
        if pending:  # time is over or a worker died: do not wait for running compilations
            for process in multiprocessing.active_children():
                process.kill()
            pool.shutdown(wait=False, cancel_futures=True)


def report(sources: dict[Source, str], done: dict[Source, Done], arch: int, seconds: float) -> dict[str, Any]:
    """Return the content of compile.json for `sources` (kernel -> label), of which `done` were compiled or failed."""
    failed = {f"{s.kernel} ({sources[s]})": d.error for s, d in done.items() if d.error}
    slowest = sorted(done.items(), key=lambda item: -item[1].seconds)[:10]
    return {
        "arch": f"sm_{arch}",
        "triton": triton.__version__,
        "kernels": len(sources),
        "compiled": len(done) - len(failed),
        "failed": failed,
        "seconds": round(seconds, 1),
        "launchers": dict(Counter(d.launcher for d in done.values() if d.launcher)),
        "slowest": [f"{d.seconds:.1f} s {s.kernel} ({sources[s]})" for s, d in slowest],
    }


def main() -> int:
    """Run the command. Return 1 if a kernel failed to compile, else 0, even if time ran out before some compiled."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.warm", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="file for the report of what was compiled")
    parser.add_argument(
        "--arch", choices=[f"sm_{a}" for a in ARCHITECTURES], help="default: of the GPU, or sm_90 without one"
    )
    parser.add_argument("--until", type=float, default=math.inf, help="stop at this time (seconds since 1970)")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) - 2))
    parser.add_argument("--small", action="store_true", help="only a few kernels, to see if compiling works")
    options = parser.parse_args()
    if interpreting():
        parser.error("TRITON_INTERPRET is set, so nothing can be compiled; unset it")
    clock = Clock(options.until - time.time())
    if options.arch:
        arch = int(options.arch.removeprefix("sm_"))
    else:
        arch = architecture(torch.empty(0, device="cuda")) if torch.cuda.is_available() else 90
    sources = wanted(arch, options.small)
    done: dict[Source, Done] = {}

    def save() -> None:
        text = json.dumps(report(sources, done, arch, clock.used), indent=1) + "\n"
        write_atomic(options.out, lambda path: path.write_text(text, encoding="utf-8"))

    save()
    while (left := [src for src in sources if src not in done]) and clock.left > 0:
        compile_some(left, arch, options.jobs, clock, done, save)
    save()
    failed = report(sources, done, arch, clock.used)["failed"]
    print(f"{len(done) - len(failed)} of {len(sources)} kernels compiled for sm_{arch} in {clock.used:.0f} s")
    for name, error in failed.items():
        print(f"failed: {name}: {error}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
