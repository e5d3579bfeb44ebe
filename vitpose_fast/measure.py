"""`vitpose-fast bench --model`: the speed and memory of one model, frozen in each sensible dtype, on this machine."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitpose_fast.checkpoints import load_model
from vitpose_fast.device import is_out_of_memory, pick_device
from vitpose_fast.models.config import PLUS_TASKS, PRESETS
from vitpose_fast.models.vitpose import ViTPose, create_model
from vitpose_fast.processor import cores, memory_mib, processor_features, processor_model
from vitpose_fast.runtime import FrozenViTPose, freeze

_SECONDS, _FEWEST, _MOST = 2.0, 5, 200  # time spent on timing each dtype, and bounds on the number of calls
_LARGEST = 1 << 16  # people; no larger batch is tried


class Measured(NamedTuple):
    """One row of the table.

    Attributes:
        ms: (10th percentile, median, 90th percentile) of the milliseconds of a batch.
        weights_mib: size of the weights.
        peak_mib: on a GPU the most memory that a call had allocated, weights included; on a CPU what the memory of the
            process grew by during a call. None if the system does not tell.
        largest: on a GPU the largest batch that one forward pass has memory for; on a CPU an estimate, or None.
    """

    dtype: torch.dtype
    ms: tuple[float, float, float]
    weights_mib: float
    peak_mib: float | None
    largest: int | None


def measure_model(name: str, batch: int, task: str | None, device_name: str | None, tune: float | None) -> None:
    """Measure a model and print the results.

    Args:
        name: a name of `PRESETS`, which stands for random weights, or a checkpoint that `load_model` reads.
        batch: people in a call.
        task: task whose head is used. None means the only head; for a name of `PRESETS`, "coco".
        device_name: as in `pick_device`.
        tune: if given, passed to `freeze`.

    Raises:
        ValueError: there is no such model, task or device.
        OSError: the checkpoint cannot be read.
        MemoryError: the batch does not fit into memory.
    """
    device = pick_device(device_name)
    model = _model(name, task).to(device).eval()
    task = model.resolve_task(task)
    height, width = model.config.image_size
    kind = "random weights" if name in PRESETS else "checkpoint"
    print(f"{name} ({kind}), task {task}, {height}x{width}, batch {batch}: network only, from crops to heatmaps")
    print(f"{_machine(device)}, torch {torch.__version__}", flush=True)
    options: dict[str, Any] = {} if tune is None else {"tune": tune}
    dtypes: list[torch.dtype | None] = [None, torch.float32, torch.float16]  # None: what `freeze` chooses
    rows, reports, seen = [], [], set()
    for dtype in dtypes if device.type == "cuda" else dtypes[:2]:  # CPUs have no fast float16
        if dtype in seen:
            continue
        try:
            frozen = freeze(model, task, dtype, **options)
            rows.append(measure(frozen, batch, task))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = f"a batch of {batch} does not fit into the memory of {device}; choose a smaller --batch"
            raise MemoryError(f"bench: {reason}") from None
        seen.add(frozen.dtype)
        reports.append(str(frozen.freeze_report))
        del frozen
        gc.collect()
    print(f"\n{table(rows, batch, device.type == 'cuda')}\n")
    print("\n\n".join(reports))
    if name in PRESETS:
        print("\nwith random weights many peaks of a heatmap are nearly equal: errors of keypoints tell nothing")


def _model(name: str, task: str | None) -> ViTPose:
    if name in PRESETS:
        plus = name.startswith("vitpose++")
        tasks = PLUS_TASKS if plus else (task or "coco",)
        return create_model(name, tasks, head_tasks=(task or "coco",))
    if not Path(name).exists() and "/" not in name:
        raise ValueError(f"bench: got --model {name}, expected a checkpoint or one of {', '.join(PRESETS)}")
    return load_model(name)


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    features = ", ".join(processor_features())
    return f"{processor_model()}, {cores()} cores with {features}, {torch.get_num_threads()} threads"


def measure(frozen: FrozenViTPose, batch: int, task: str) -> Measured:
    """Time a frozen model on random crops, after a warm-up, and measure the memory that it needs."""
    device = frozen.device
    shape = (3, *frozen.config.image_size)
    images = torch.randn(batch, *shape, device=device).to(frozen.dtype)

    def call(images: Tensor = images) -> Any:
        out = frozen(images, task)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return out

    call()  # compiles kernels, captures graphs
    call()
    times: list[float] = []
    while len(times) < _FEWEST or (sum(times) < _SECONDS * 1e3 and len(times) < _MOST):
        started = time.perf_counter()
        call()
        times.append((time.perf_counter() - started) * 1e3)
    times.sort()
    ms = times[len(times) // 10], statistics.median(times), times[len(times) * 9 // 10]
    weights = sum(p.numel() * p.element_size() for p in frozen.parameters()) / 2**20
    if device.type == "cuda":
        most = largest_batch(lambda n: _fits(frozen, n, task, shape), batch, _LARGEST)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return Measured(frozen.dtype, ms, weights, torch.cuda.max_memory_allocated(device) / 2**20, most)
    peak = memory_growth(call)
    out = call()
    person = _per_person(images, out, out)  # the heatmaps of the pieces, and then of all together
    free = memory_mib("/proc/meminfo", "MemAvailable")
    largest = None if peak is None or free is None else int(max(0.0, free - peak) / person)
    return Measured(frozen.dtype, ms, weights, peak, largest)


def _per_person(*tensors: Tensor) -> float:
    """Return the MiB of these tensors for each entry of their first dimension."""
    return sum(t.numel() * t.element_size() for t in tensors) / len(tensors[0]) / 2**20


def _fits(frozen: FrozenViTPose, batch: int, task: str, shape: tuple[int, ...]) -> bool:
    """Return whether one forward pass of this batch, without CUDA graphs (which split it), has memory enough."""
    graphs, frozen.graphs = frozen.graphs, None
    try:
        frozen(torch.zeros(batch, *shape, device=frozen.device, dtype=frozen.dtype), task)
        torch.cuda.synchronize(frozen.device)
        return True
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    except ValueError:  # an op that cannot index a tensor this large
        pass
    finally:
        frozen.graphs = graphs
    torch.cuda.empty_cache()  # outside of `except`, because the error keeps tensors alive there
    return False


def largest_batch(fits: Callable[[int], bool], start: int, limit: int) -> int:
    """Return the largest batch for which `fits` is true, up to 3 % too small, found by doubling and bisection.

    Args:
        start: a batch that is known to fit.
        limit: the largest batch to try.
    """
    low, high = start, min(2 * start, limit)
    while high > low and fits(high):
        low, high = high, min(2 * high, limit)
    while high - low > max(1, low // 32):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def memory_growth(call: Callable[[], Any]) -> float | None:
    """Return by how many MiB the memory of this process grows at most during a call; None where Linux does not tell.

    Memory that was freed before is given back to the system first, since the call would reuse it unseen.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    except (AttributeError, OSError, TypeError):  # not Linux, or not glibc
        return None
    before = memory_mib("/proc/self/status", "VmRSS")
    call()
    peak = memory_mib("/proc/self/status", "VmHWM")
    return None if before is None or peak is None else max(0.0, peak - before)


def _rounded(value: int) -> int:
    """Round down to two significant digits."""
    unit = 10 ** max(0, len(str(value)) - 2)
    return value // unit * unit


def table(rows: list[Measured], batch: int, cuda: bool) -> str:
    """Return the measurements as a table in plain text, with a line that explains the last column."""
    head = ("dtype", "ms per batch (p10..p90)", "people/s", "weights MiB", "peak MiB", "largest batch")
    cells = [head]
    for row in rows:
        low, median, high = row.ms
        cells.append(
            (
                str(row.dtype).removeprefix("torch."),
                f"{median:.4g} ({low:.4g}..{high:.4g})",
                f"{1e3 * batch / median:.4g}",
                f"{row.weights_mib:.0f}",
                "-" if row.peak_mib is None else f"{row.peak_mib:.0f}",
                "-" if row.largest is None else str(row.largest) if cuda else f"about {_rounded(row.largest)}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]
    if cuda:
        note = "peak: most memory allocated in a call, with the weights; largest batch: of one forward pass, by trial"
    else:
        note = (
            "peak: growth of the process in a call; larger batches are computed in pieces, so only crops and heatmaps "
            "limit the batch, estimated from the free memory"
        )
    return "\n".join([*lines, note])
