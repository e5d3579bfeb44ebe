"""The machine under test: its clock, its ceilings, its name and the versions of everything."""

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

ROOT = Path(__file__).resolve().parents[1]
_CEILING_ROUNDS = 5


class Machine:
    """Clock and ceilings of one device.

    Args:
        device: "cuda" or "cpu". quick: small matrices for the ceilings.

    Attributes:
        tflops: dtype -> matrix products in 10^12 FLOP/s, measured with random data. On a GPU float32 may use TF32.
        copy_tb_s: bytes read and written by a large copy, in 10^12 per second.
        most_believable: fraction of the roofline above which a timing is refused; caches help a CPU over the copy.
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
        """Milliseconds, median of a few."""
        function()
        return statistics.median(self.time([function] * 2) / 2 for _ in range(_CEILING_ROUNDS))

    def time(self, calls: Sequence[Callable[[], Any]]) -> float:
        """Milliseconds for all calls in a row, until the device has finished them."""
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
        assert events <= wall * 1.05 + 0.05, f"events say {events} ms, the clock {wall}: the device was not waited for"
        return max(events, 1e-6)

    def record(self, calls: Sequence[Callable[[], Any]], together: bool) -> list[Callable[[], Any]]:
        """Functions that replay calls from CUDA graphs and return the outputs of the first, which stay in their place.

        `together`: one graph of all calls, so that short kernels follow each other as in a model; else one for each.
        The graphs share one pool of memory, so that many sets of inputs cost the activations of one; replay them one
        after the other. One stream for all: libraries get their work space when it warms up, not inside a graph.
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
        """Whether the GPU's context is broken, so that nothing more can be computed in this process."""
        try:
            if self.cuda:
                torch.cuda.synchronize(self.device)
        except RuntimeError:
            return True
        return False

    def extra_mib(self, call: Callable[[], Any]) -> float | None:
        """Most memory allocated by a call on a GPU beyond what was there before; None on a CPU, which does not say."""
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
        """Time that the ceilings allow at best, over the time taken; None where the work is unknown."""
        if not flops and not size:
            return None
        best = max((flops or 0) / (self.tflops[dtype] * 1e12), (size or 0) / (self.copy_tb_s * 1e12))
        return best / seconds

    def details(self) -> dict[str, Any]:
        """More of the machine than a result file needs: what a surprising number may come from."""
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
        """What a result file says about where it comes from."""
        found, dirty = _git_state()
        return {
            "device": torch.cuda.get_device_name(self.device) if self.cuda else _processor(),
            "driver": _driver() if self.cuda else None,
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version("triton"),
            "transformers": _version("transformers"),
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
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def _run(*command: str) -> str | None:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _driver() -> str | None:
    found = _run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return found.splitlines()[0] if found else None


def _git_state() -> tuple[str | None, bool | None]:
    """(commit, whether files differ from it); (None, None) where there is no git."""
    top = _run("git", "rev-parse", "--show-toplevel")
    if top is None or not Path(top).samefile(ROOT):  # a copy without git inside another repository
        return None, None
    commit, changes = (
        _run("git", "rev-parse", "HEAD"),
        _run("git", "status", "--porcelain", "--", ".", ":!benchmarks/results"),
    )
    return commit, None if commit is None or changes is None else bool(changes)


def main() -> None:
    """Write what this machine is, and its ceilings, to a file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.machine", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", help="commit to name where there is no git")
    parser.add_argument("--quick", action="store_true", help="small matrices for the ceilings")
    options = parser.parse_args()
    machine = Machine(options.device, options.quick)
    found = machine.environment(options.commit, "python -m benchmarks.machine", options.quick) | machine.details()
    text = json.dumps(found, indent=1) + "\n"
    write_atomic(options.out, lambda path: path.write_text(text, encoding="utf-8"))
    print(text, end="")


if __name__ == "__main__":
    main()
