"""Tune a frozen model: find out by timing which implementation of each part is the fastest on this machine.

The parts ("switches") of the real model are flipped one after the other, and the whole forward pass is timed, on a GPU
as a captured CUDA graph: that includes what a layer leaves in the caches and what the next one finds there. The result
is never slower than the model with all parts left at their defaults, nor than the model with all parts done by
libraries, as far as both were measured. It is kept in a file and found again by the next process.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitpose_fast.files import make_folder, write_atomic
from vitpose_fast.graphs import Graphs
from vitpose_fast.processor import processor_features, processor_model
from vitpose_fast.search import NO_TIME, Found, search
from vitpose_fast.switches import Switch, compiled_in_time, switches, table_of
from vitpose_kernels.choices import DEFAULT, Call, Choice, Table, from_rows, to_rows
from vitpose_kernels.launch import architecture

_FORMAT = 1  # of the file
_WARM = 0.2  # seconds of running before the first timing, in which clock rates settle


@dataclass(frozen=True)
class Measured:
    """What tuning found for one batch size.

    Attributes:
        batch: number of samples.
        chosen: switch -> option, where it is not the default.
        ms: median time of a forward pass in ms: "default", "chosen" and, if it could run, "library".
        error: relative error of the heatmaps, of the same.
        notes: what was refused, and why.
    """

    batch: int
    chosen: dict[str, str]
    ms: dict[str, float]
    error: dict[str, float]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        names = {"library": "all by libraries", "default": "all at the defaults"}
        others = ", ".join(f"{self.ms[n]:.2f} ms {text}" for n, text in names.items() if n in self.ms)
        chosen = ", ".join(f"{switch} {option}" for switch, option in self.chosen.items()) or "the defaults"
        return (
            f"batch {self.batch}: {chosen}: {self.ms['chosen']:.2f} ms ({others}), "
            f"error {self.error['chosen']:.2e} ({self.error['default']:.2e})"
        )


@dataclass(frozen=True)
class Choices:
    """The result of tuning: what `freeze(tune=...)` takes and `FrozenViTPose.choices` holds.

    Attributes:
        table: what the ops look up.
        measured: what was measured, by batch size.
        source: "measured", or the file that the choices were read from.
    """

    table: Table
    measured: tuple[Measured, ...] = ()
    source: str = "measured"


def tune(
    frozen: Any,
    seconds: float,
    batches: Sequence[int],
    error: Callable[[], float],
) -> Choices:
    """Find the fastest choices for a frozen model, or read them from the cache file if this machine found them before.

    What is in the file counts if its search was complete, or had at least as much time.

    Args:
        frozen: the model, on the device that it runs on.
        seconds: time limit, shared equally by the batch sizes. On a GPU up to half of it is spent on compiling kernels;
            options whose kernels are not ready by then are not measured.
        batches: batch sizes to tune for. Other batch sizes follow the nearest of them.
        error: returns the error of the model under the choices in effect.

    Raises:
        ValueError: `seconds` is not positive, or a batch size is below 1.
    """
    if not seconds > 0:
        raise ValueError(f"freeze: got tune={seconds}, expected seconds above 0, choices, or None")
    if not batches or min(batches) < 1:
        raise ValueError(f"freeze: got batches={tuple(batches)} to tune for, expected sizes of at least 1")
    machine = machine_of(frozen.device)
    path = cache_file(machine)
    key = model_key(frozen, batches)
    known, asked = _read(path, machine).get(key), seconds
    if known is not None and (known["complete"] or known["seconds"] >= seconds):
        return Choices(from_rows(known["choices"]), tuple(map(_measured, known["measured"])), str(path))
    table: dict[Call, dict[int, Choice]] = {}
    measured = []
    arch = architecture(next(frozen.parameters())) if frozen.device.type == "cuda" else None
    for i, batch in enumerate(batches):
        began, share = time.monotonic(), seconds / (len(batches) - i)
        end = began + share
        seconds -= share
        parts = switches(frozen, batch, arch)
        if arch is not None:
            parts = compiled_in_time(frozen, parts, batch, arch, share / 2)
        found = tune_batch(frozen, parts, batch, error, lambda end=end: end - time.monotonic())  # type: ignore[misc]
        for call, by_rows in table_of(parts, found.setting).items():  # type: ignore[arg-type]
            table.setdefault(call, {}).update(by_rows)
        for part in parts:
            if any(f"{part.name} {option}: {NO_TIME}" not in found.notes for option in part.options):
                for call, rows in part.calls:  # measured: where no option won, the default did
                    table.setdefault(call, {}).setdefault(rows, Choice(DEFAULT))
        ms = {name: round(1e3 * s, 4) for name, s in found.seconds.items()}
        chosen = {name: str(option) for name, option in found.setting.items()}
        measured.append(Measured(batch, chosen, ms, found.errors, tuple(found.notes)))
    choices = Choices(table, tuple(measured))
    complete = not any("no time left" in note for found in measured for note in found.notes)
    _write(path, machine, key, choices, {"seconds": asked, "complete": complete})
    return choices


def tune_batch(
    frozen: Any,
    parts: Sequence[Switch],
    batch: int,
    error: Callable[[], float],
    left: Callable[[], float],
) -> Found:
    """Search the fastest setting for one batch size, within the seconds that `left()` returns."""
    head = next(iter(frozen.heads))
    noise = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, *frozen.config.image_size, generator=noise).to(frozen.device, frozen.dtype)

    def trial(setting: dict[str, Choice]) -> _Trial:
        return _Trial(frozen, table_of(parts, setting), images, head, error)

    library = {part.name: part.library for part in parts if part.library is not None}
    return search({part.name: part.options for part in parts}, library, trial, left)


class _Trial:
    """A frozen model under a table of choices, ready to be timed."""

    def __init__(self, frozen: Any, table: Table, images: Tensor, head: str, error: Callable[[], float]) -> None:
        self.frozen, self.table, self.images, self.head = frozen, table, images, head
        self.graphs = None if frozen.graphs is None else Graphs((len(images),))
        with self._active():
            self.error = error()
        warm = time.monotonic() + _WARM
        self.run()
        while time.monotonic() < warm:
            self.run()

    @contextmanager
    def _active(self) -> Iterator[None]:
        """Let the model use the graphs and choices of this trial. A context manager."""
        frozen = self.frozen
        before = frozen.graphs, frozen.choices
        frozen.graphs, frozen.choices = self.graphs, Choices(self.table)
        try:
            yield
        finally:
            frozen.graphs, frozen.choices = before

    def run(self) -> float:
        """Run once and return the time in seconds."""
        cuda = self.images.is_cuda
        with self._active(), torch.no_grad():
            if cuda:
                torch.cuda.synchronize(self.images.device)
            began = time.perf_counter()
            self.frozen(self.images, self.head)
            if cuda:
                torch.cuda.synchronize(self.images.device)
            return time.perf_counter() - began


def machine_of(device: torch.device) -> dict[str, Any]:
    """Return what choices depend on: device, driver and versions of the libraries that compute."""
    out: dict[str, Any] = {"torch": torch.__version__, "library": sys.modules["vitpose_fast"].__version__}
    if device.type == "cuda":
        import triton

        properties = torch.cuda.get_device_properties(device)
        out |= {"device": properties.name, "multiprocessors": properties.multi_processor_count}
        out |= {"triton": triton.__version__, "cudnn": torch.backends.cudnn.version(), "cuda": torch.version.cuda}
        return out | {"driver": torch._C._cuda_getDriverVersion()}  # type: ignore[attr-defined]
    out |= {"device": processor_model(), "features": processor_features(), "threads": torch.get_num_threads()}
    return out


def cache_file(machine: Mapping[str, Any]) -> Path:
    """Return the cache file of a machine, in the folder VITPOSE_FAST_CACHE or else ~/.cache/vitpose_fast."""
    folder = os.environ.get("VITPOSE_FAST_CACHE") or Path.home() / ".cache" / "vitpose_fast"
    digest = hashlib.sha1(json.dumps(machine, sort_keys=True).encode()).hexdigest()[:16]
    return Path(folder) / f"choices-{digest}.json"


def model_key(frozen: Any, batches: Sequence[int]) -> str:
    """Return the key of a model in the cache: what its speed depends on, and the batch sizes."""
    config = frozen.config
    parts = [frozen.dtype, config.width, config.depth, config.num_heads, config.image_size, config.patch_stride]
    parts += [config.attention, config.window, config.decoder, config.experts, getattr(frozen.backbone, "impl", None)]
    block = frozen.backbone.blocks[0]
    parts += [config.decoder_width, tuple(frozen.heads), tuple(batches), block.int8, block.qkv.eps is not None]
    return " ".join(str(p).replace(" ", "") for p in parts)


def _measured(row: Mapping[str, Any]) -> Measured:
    return Measured(**{**row, "notes": tuple(row["notes"])})


def _read(path: Path, machine: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a cache file by model key; none if it is absent, damaged, or of another machine."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT or content["machine"] != dict(machine):
            return {}
        entries = dict(content["models"])
        for entry in entries.values():
            from_rows(entry["choices"]), list(map(_measured, entry["measured"]))
            float(entry["seconds"]), bool(entry["complete"])
        return entries
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write(path: Path, machine: Mapping[str, Any], key: str, choices: Choices, how: dict[str, Any]) -> None:
    """Add an entry to the cache file. Where the file cannot be written, tuning has only to be repeated.

    `how` has the "seconds" that were asked for, and whether the search is "complete": nothing was left out for time.
    """
    entry = how | {"choices": to_rows(choices.table), "measured": [asdict(m) for m in choices.measured]}
    content = {"format": _FORMAT, "machine": dict(machine), "models": _read(path, machine) | {key: entry}}
    text = json.dumps(content, indent=1) + "\n"
    try:
        make_folder(path.parent)
        write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))
    except OSError:
        pass
