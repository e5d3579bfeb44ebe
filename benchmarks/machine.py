"""The machine under test: a clock, measured compute and bandwidth ceilings, and hardware and software versions."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from vitpose_fast.files import write_atomic
from vitpose_fast.processor import cores, processor_features, processor_model

ROOT = Path(__file__).resolve().parents[1]
_CEILING_ROUNDS = 5


class Machine:
    """Clock and measured ceilings of one device.

    Args:
        device: "cuda" or "cpu".
        quick: on a CPU, measure `tflops` with smaller matrices; no effect on a GPU.

    Attributes:
        tflops: speed of products of random matrices in 10^12 FLOP/s, for float32 (on a GPU with TF32 allowed) and
            bfloat16.
        copy_tb_s: bandwidth of a large copy, bytes read plus bytes written, in 10^12 bytes/s.
        most_believable: fraction of the roofline above which a timing is refused; higher on a CPU, whose caches are
            faster than the copy.
    """

    def __init__(self, device: str, quick: bool = False) -> None:
        self.device = torch.device(device)
        self.cuda = self.device.type == "cuda"
        self._stream: Any = None
        self.most_believable = 1.2 if self.cuda else 4.0
        side = 8192 if self.cuda else (768 if quick else 1536)
        self.tflops = {d: self._matmul(side, d) for d in (torch.float32, torch.bfloat16)}
        self.copy_tb_s = self._copy((1 << 30) if self.cuda else (128 << 20))

    def _matmul(self, side: int, dtype: torch.dtype) -> float:
        allowed = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            a, b = (torch.randn(side, side, device=self.device).to(dtype) for _ in range(2))
            return 2 * side**3 / self._best(lambda: a @ b) / 1e9
        finally:
            torch.backends.cuda.matmul.allow_tf32 = allowed

    def _copy(self, size: int) -> float:
        a = torch.randint(0, 127, (size,), dtype=torch.int8, device=self.device)
        b = torch.empty_like(a)
        return 2 * size / self._best(lambda: b.copy_(a)) / 1e9

    def _best(self, function: Callable[[], Any]) -> float:
        """Return the milliseconds of one call after a warm-up call, as the median of a few rounds of two calls."""
        function()
        return statistics.median(self.time([function] * 2) / 2 for _ in range(_CEILING_ROUNDS))

    def time(self, calls: Sequence[Callable[[], Any]]) -> float:
        """Return the milliseconds that all calls together take, one after the other, until the device has finished.

        Measured with CUDA events on a GPU. AssertionError if they contradict the clock of the CPU.
        """
        if not self.cuda:
            started = time.perf_counter()
            for call in calls:
                call()
            return (time.perf_counter() - started) * 1e3
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        started = time.perf_counter()
        begin.record()
        for call in calls:
            call()
        end.record()
        torch.cuda.synchronize(self.device)
        wall, events = (time.perf_counter() - started) * 1e3, begin.elapsed_time(end)
        assert events <= wall * 1.05 + 0.05, (
            f"CUDA events give {events} ms, the clock {wall} ms: the device was not synchronized"
        )
        return max(events, 1e-6)

    def record(self, calls: Sequence[Callable[[], Any]], together: bool) -> list[Callable[[], Any]]:
        """Record calls in CUDA graphs and return one function per graph, which replays it.

        The function returns the outputs of the graph's first call.

        Every replay writes the outputs to the same memory. The graphs of one `record` share one memory pool, so that
        many input sets take the activation memory of one; replay them one after the other. They also share one stream,
        on which the calls are warmed up, so that libraries do not allocate their workspaces inside a graph.

        Args:
            together: record one graph of all calls, so that short kernels follow each other as in a model; otherwise
                one graph per call.
        """
        self._stream = self._stream or torch.cuda.Stream(self.device)
        pool = torch.cuda.graph_pool_handle()
        groups = [list(calls)] if together else [[call] for call in calls]
        return [self._record_one(group, pool) for group in groups]

    def _record_one(self, calls: list[Callable[[], Any]], pool: Any) -> Callable[[], Any]:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for call in [calls[0]] * 2 + calls:
                call()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool, self._stream):
            outputs = [call() for call in calls]

        def replay() -> Any:
            graph.replay()
            return outputs[0]

        return replay

    def is_lost(self) -> bool:
        """Return whether the CUDA context is broken, so that this process cannot use the GPU any more."""
        try:
            if self.cuda:
                torch.cuda.synchronize(self.device)
        except RuntimeError:
            return True
        return False

    def extra_mib(self, call: Callable[[], Any]) -> float | None:
        """Return the peak GPU memory in MiB that a call allocates on top of what is allocated before; None on a CPU."""
        if not self.cuda:
            return None
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        call()
        torch.cuda.synchronize(self.device)
        return (torch.cuda.max_memory_allocated(self.device) - before) / 2**20

    def roofline_fraction(
        self, flops: int | None, size: int | None, dtype: torch.dtype, seconds: float
    ) -> float | None:
        """Return the shortest time that the ceilings allow, divided by `seconds`, the time taken.

        Args:
            flops, size: floating-point operations, and bytes moved; None counts as 0.
            dtype: float32 or bfloat16, selects the ceiling of `flops`.

        Returns:
            None if both `flops` and `size` are None or 0.
        """
        if not flops and not size:
            return None
        best = max((flops or 0) / (self.tflops[dtype] * 1e12), (size or 0) / (self.copy_tb_s * 1e12))
        return best / seconds

    def details(self) -> dict[str, Any]:
        """Return facts that a result file leaves out but that may explain surprising numbers.

        They are the cores, packages, tools, names of environment variables and properties of the GPU.
        """
        query = "name,memory.total,clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.limit,mig.mode.current"
        packages = ("numpy", "hypothesis", "pytest", "pytest-xdist", "pytest-timeout", "pytest-benchmark", "flash-attn")
        out: dict[str, Any] = {
            "cores": os.cpu_count(),
            "platform": f"{platform.system()} {platform.machine()}",
            "packages": {name: _version(name) for name in packages},
            "tools": {name: shutil.which(name) is not None for name in ("gcc", "nvcc", "compute-sanitizer")},
            "variables": sorted(k for k in os.environ if k.startswith(("TRITON_", "TORCH_", "PYTORCH_", "CUDA_"))),
        }
        if self.cuda:
            properties = torch.cuda.get_device_properties(self.device)
            out["gpu"] = {
                "capability": list(torch.cuda.get_device_capability(self.device)),
                "multiprocessors": properties.multi_processor_count,
                "memory_gib": properties.total_memory / 2**30,
                "cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version(),
                "nvidia-smi": _run("nvidia-smi", f"--query-gpu={query}", "--format=csv"),
            }
        return out

    def environment(self, commit: str | None, command: str, quick: bool) -> dict[str, Any]:
        """Return the `environment` of a result file: the device, versions, commit, ceilings, date and `command`.

        `commit` replaces the commit that git reports, and then `dirty` is None, which means unknown.
        """
        found, dirty = _git_state()
        return {
            "device": torch.cuda.get_device_name(self.device) if self.cuda else _processor(),
            "driver": _driver() if self.cuda else None,
            "processor": processor_model(),
            "features": processor_features(),
            "cores": cores(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version("triton"),
            **{name: _version(name) for name in ("transformers", "onnxruntime", "openvino")},
            "commit": commit or found,
            "dirty": dirty if commit is None else None,
            "matmul_tflops": self.tflops[torch.bfloat16],
            "matmul_tflops_by_dtype": {str(d).removeprefix("torch."): v for d, v in self.tflops.items()},
            "copy_tb_s": self.copy_tb_s,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "command": command,
            "quick": quick,
        }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    return f"{processor_model()}, {torch.get_num_threads()} threads"


def _run(*command: str) -> str | None:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _driver() -> str | None:
    found = _run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return found.splitlines()[0] if found else None


def _git_state() -> tuple[str | None, bool | None]:
    """Return (commit, whether files outside benchmarks/results differ from it or are untracked).

    Both are None if this is not the top folder of a git checkout, and each is None if git fails to tell.
    """
    top = _run("git", "rev-parse", "--show-toplevel")
    if top is None or not Path(top).samefile(ROOT):  # a copy without its own git, inside another repository
        return None, None
    commit, changes = (
        _run("git", "rev-parse", "HEAD"),
        _run("git", "status", "--porcelain", "--", ".", ":!benchmarks/results"),
    )
    return commit, None if commit is None or changes is None else bool(changes)


def main() -> None:
    """Write `Machine.environment` and `Machine.details` to a JSON file and to standard output."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.machine", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", help="commit to record if git is not available")
    parser.add_argument("--quick", action="store_true", help="quick run: smaller matrix products, on a CPU only")
    options = parser.parse_args()
    machine = Machine(options.device, options.quick)
    found = machine.environment(options.commit, "python -m benchmarks.machine", options.quick) | machine.details()
    text = json.dumps(found, indent=1) + "\n"
    write_atomic(options.out, lambda path: path.write_text(text, encoding="utf-8"))
    print(text, end="")


if __name__ == "__main__":
    main()
