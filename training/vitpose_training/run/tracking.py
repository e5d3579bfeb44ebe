"""Records of a run: metrics.jsonl, quarantine.jsonl, and experiment trackers (TensorBoard, Weights & Biases)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from vitpose_fast.files import make_folder, remove_leftovers, write_atomic
from vitpose_training.distributed import job
from vitpose_training.run.checkpoint import remove_run
from vitpose_training.run.config import TrainConfig


class Tracker(Protocol):
    """An experiment tracker: it receives the numbers of every new row of metrics.jsonl."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log the numbers of a row by name. `step` is the step of the row, see `MetricsFile`."""

    def close(self) -> None:
        """Finish logging."""


class TensorBoard:
    """TensorBoard event files in `out`/tensorboard.

    Raises:
        ImportError: the package tensorboard is not installed.
    """

    def __init__(self, out: Path, config: TrainConfig) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ImportError("--track tensorboard needs the package tensorboard: pip install tensorboard") from None
        self._writer = SummaryWriter(str(out / "tensorboard"))
        self._writer.add_text("config", f"```\n{json.dumps(config.to_dict(), indent=1)}\n```")

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Weights & Biases (W&B), in the project vitpose-fast.

    The path `out` names the W&B run, so a resumed run with the same path continues it.

    Raises:
        ImportError: the package wandb is not installed.
    """

    def __init__(self, out: Path, config: TrainConfig) -> None:
        try:
            import wandb
        except ImportError:
            raise ImportError("--track wandb needs the package wandb: pip install wandb") from None
        name = str(out).replace("/", "-").strip("-.")
        options = dict(project="vitpose-fast", name=name, id=name, resume="allow", dir=str(out))
        self._run = wandb.init(config=config.to_dict(), **options)

    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[Path, TrainConfig], Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb}


class MetricsFile:
    """The file `metrics.jsonl`, with one row per line (a JSON object), flushed after every row.

    A row is about an evaluation or an optimizer step. For an evaluation it has a `score`, by which the best model is
    chosen, and its `step` is the number of optimizer steps done. For an optimizer step, taken or skipped, its `step` is
    the index of that step, from 0. Skipped steps count in both.

    When a run resumes, the rows of the steps that it repeats are removed.

    Args:
        path: path of the file.
        step: number of optimizer steps already done; 0 starts an empty file.
        trackers: receive the numbers of every new row as well.
    """

    def __init__(self, path: Path, step: int, trackers: Sequence[Tracker] = ()) -> None:
        self.trackers = trackers
        rows = read_rows(path) if step and path.exists() else []
        rows = [r for r in rows if r["step"] < step or (r["step"] == step and "score" in r)]
        write_atomic(path, lambda p: p.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8"))
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self.best = max([r["score"] for r in rows if "score" in r], default=-1.0)
        """Highest score in the file; -1 if it has no evaluation."""
        self._scored = {r["step"] for r in rows if "score" in r}

    def write(self, row: dict[str, Any]) -> None:
        """Append a row, which must have a `step`, and pass its other numbers to the trackers.

        Raises:
            OSError: the file cannot be written, for example because the disk is full.
        """
        self._file.write(json.dumps(row) + "\n")
        if "score" in row:
            self.best = max(self.best, row["score"])
            self._scored.add(row["step"])
        numbers = {k: v for k, v in row.items() if isinstance(v, (int, float)) and k != "step"}
        for tracker in self.trackers:
            tracker.write(row["step"], numbers)

    def scored(self, step: int) -> bool:
        """Return whether the file has an evaluation after `step` optimizer steps."""
        return step in self._scored

    def close(self) -> None:
        """Close the file and the trackers."""
        self._file.close()
        for tracker in self.trackers:
            tracker.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a .jsonl file, up to the first line that is not valid JSON (one cut off by a crash)."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


class Quarantine:
    """The file `quarantine.jsonl`: every unusable image, once, and the suspect samples of every skipped optimizer step.

    Args:
        path: path of the file. If it exists, its rows are kept, and its images count toward the limit.
        limit: largest number of unusable images in the file.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.path, self.limit = path, limit
        rows = read_rows(path) if path.exists() else []
        self.images = {row["image"]: row["reason"] for row in rows if "image" in row}

    def add_images(self, step: int, bad: Iterable[tuple[str, str]]) -> None:
        """Add the images that are not in the file yet.

        Args:
            step: index of the optimizer step that was to use the images, from 0.
            bad: (image path, reason) pairs.

        Raises:
            ValueError: the file now has more images than the limit.
        """
        for image, reason in bad:
            if image not in self.images:
                self.images[image] = reason
                self._write({"step": step, "image": image, "reason": reason})
        if len(self.images) > self.limit:
            raise ValueError(
                f"{len(self.images)} images cannot be used, more than --max-bad-images {self.limit}; "
                f"the last: {list(self.images.values())[-1]}; all are listed in {self.path}"
            )

    def add_step(self, step: int, samples: Iterable[Any], reason: str) -> None:
        """Add a skipped optimizer step: its index from 0, the samples that may have caused it, and the reason."""
        self._write({"step": step, "samples": [str(s) for s in samples], "reason": reason})

    def _write(self, row: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


@dataclass(frozen=True)
class Records:
    """The files metrics.jsonl and quarantine.jsonl of a run. A context manager that closes them and the trackers."""

    metrics: MetricsFile
    quarantine: Quarantine

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        self.metrics.close()


def start_records(config: TrainConfig, step: int) -> Records:
    """Create the output folder, write config.json, and open the records of a run that has done `step` optimizer steps.

    Call this on rank 0 only. If `step` is 0 and `config.overwrite` is set, the files of an earlier run are removed.
    Under torchrun the file `job` with the identifier of the torchrun job is written too.

    Raises:
        OSError: the folder cannot be written.
        ImportError: the package of a tracker is not installed. Nothing has been written or removed then.
    """
    out = config.out
    make_folder(out)
    remove_leftovers(out)
    trackers = [TRACKERS[name](out, config) for name in config.track]  # before the earlier run is gone
    if step == 0 and config.overwrite:
        remove_run(out)
    if job():
        write_atomic(out / "job", lambda p: p.write_text(job(), encoding="utf-8"))
    write_atomic(out / "config.json", lambda p: p.write_text(json.dumps(config.to_dict(), indent=1)))
    metrics = MetricsFile(out / "metrics.jsonl", step, trackers)
    return Records(metrics, Quarantine(out / "quarantine.jsonl", config.max_bad_images))


class Meter:
    """Measures throughput, waiting time for data and MFU between rows of metrics, and the peak memory.

    Args:
        device: the device whose memory is measured.
        flops: FLOPs to train on one image (three times the forward pass).
        peak: peak FLOP/s of all devices together. None means unknown: MFU is then left out.

    Attributes:
        images: number of images since the last row, over all processes. The caller adds to it.
    """

    def __init__(self, device: torch.device, flops: float, peak: float | None) -> None:
        self.device, self.flops, self.peak = device, flops, peak
        self.images, self._since, self._waited = 0, time.monotonic(), 0.0

    def row(self, waited: float) -> dict[str, float]:
        """Return the numbers of a row of metrics, and start the next row.

        Args:
            waited: seconds that this process has spent waiting for data in total, so far.

        Returns:
            `images_per_s`; `data_wait`, the fraction of the time spent waiting for data; and, if `peak` is known, `mfu`
            (a fraction): all since the last call of `row`, without paused time. `memory_mib` is the peak since the
            process started.
        """
        seconds = max(time.monotonic() - self._since, 1e-9)
        speed = self.images / seconds
        out = {"images_per_s": round(speed, 2), "data_wait": round((waited - self._waited) / seconds, 4)}
        out["memory_mib"] = round(memory_in_use(self.device) / 2**20)
        if self.peak:
            out["mfu"] = round(speed * self.flops / self.peak, 4)
        self.images, self._since, self._waited = 0, time.monotonic(), waited
        return out

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context manager whose time does not count, for example that of an evaluation."""
        started = time.monotonic()
        yield
        self._since += time.monotonic() - started


def memory_in_use(device: torch.device) -> int:
    """Return the peak memory in bytes since the process started.

    On a GPU it is the memory that torch allocated, on a CPU the resident set of the process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
