"""Tune a frozen model: find out by timing which implementation of each part is the fastest on this machine.

The parts ("switches") of the real model are flipped one after the other, and the whole forward pass is timed, on a GPU
as a captured CUDA graph: that includes what a layer leaves in the caches and what the next one finds there. The result
is never slower than the model with all parts left at their defaults, nor than the model with all parts done by
libraries, as far as both were measured. It is kept in a file and found again by the next process.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from copy import deepcopy
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from vitpose_fast import __version__
from vitpose_fast.files import make_folder, write_atomic
from vitpose_fast.graphs import Graphs
from vitpose_fast.search import Found, search
from vitpose_kernels.choices import DEFAULT, Call, Choice, Table, from_rows, to_rows, using
from vitpose_kernels.launch import architecture, recording
from vitpose_kernels.linear import linear_call
from vitpose_kernels.packed import LIBRARIES, default_library, supports

if TYPE_CHECKING:
    from vitpose_fast.runtime import FrozenViTPose

_FORMAT = 1  # of the file
_WARM = 0.2  # seconds of running before the first timing, in which clock rates settle


class Switch(NamedTuple):
    """A part of a model that can be computed in several ways.

    Attributes:
        name: as in the report, such as "fc1".
        calls: the calls (see `choices.Call`) that it decides, with their numbers of rows.
        options: ways to compute them, besides the default.
        library: the option in which PyTorch's or another library computes the part; None means its default does.
    """

    name: str
    calls: list[tuple[Call, int]]
    options: list[Choice]
    library: Choice | None


@dataclass(frozen=True)
class Measured:
    """What tuning found for one batch size.

    Attributes:
        batch: number of samples.
        chosen: switch -> option, where it is not the default.
        ms: median time of a forward pass in ms: "default", "chosen" and, if it could run, "library".
        error: relative error of the heatmaps against float64, of the same.
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
    frozen: FrozenViTPose,
    seconds: float,
    batches: Sequence[int],
    error: Callable[[], float],
    cache: Path | None = None,
) -> Choices:
    """Find the fastest choices for a frozen model, or read them from the cache file if this machine found them before.

    Args:
        frozen: the model, on the device that it runs on.
        seconds: time for the measurements, shared equally by the batch sizes. On a GPU up to half of it goes into
            compiling kernels.
        batches: batch sizes to tune for. Other batch sizes follow the nearest of them.
        error: returns the error of the model under the choices in effect.
        cache: the cache file. Default: `cache_file` of the device.

    Raises:
        ValueError: `seconds` is not positive, or a batch size is below 1.
    """
    if not seconds > 0:
        raise ValueError(f"freeze: got tune={seconds}, expected seconds above 0, choices, or None")
    if not batches or min(batches) < 1:
        raise ValueError(f"freeze: got batches={tuple(batches)} to tune for, expected sizes of at least 1")
    machine = machine_of(frozen.device)
    path = cache or cache_file(machine)
    key = model_key(frozen, batches)
    known = _read(path, machine).get(key)
    if known is not None:
        return Choices(from_rows(known["choices"]), tuple(map(_measured, known["measured"])), str(path))
    table: dict[Call, dict[int, Choice]] = {}
    measured = []
    for i, batch in enumerate(batches):
        began, share = time.monotonic(), seconds / (len(batches) - i)
        end = began + share
        seconds -= share
        parts = switches(frozen, batch)
        if frozen.device.type == "cuda":
            parts = compiled_in_time(frozen, parts, batch, share / 2)
        found = tune_batch(frozen, parts, batch, error, lambda end=end: end - time.monotonic())  # type: ignore[misc]
        for call, by_rows in table_of(parts, found.setting).items():  # type: ignore[arg-type]
            table.setdefault(call, {}).update(by_rows)
        for part in parts:  # measured, and the default won
            for call, rows in part.calls:
                table.setdefault(call, {}).setdefault(rows, Choice(DEFAULT))
        ms = {name: round(1e3 * s, 4) for name, s in found.seconds.items()}
        chosen = {name: str(option) for name, option in found.setting.items()}
        measured.append(Measured(batch, chosen, ms, found.errors, tuple(found.notes)))
    choices = Choices(table, tuple(measured))
    _write(path, machine, key, choices)
    return choices


def switches(frozen: FrozenViTPose, batch: int) -> list[Switch]:
    """Return the switches of a model with their options for a batch size, the most important first."""
    from vitpose_fast.frozen import FrozenDecoder

    cuda, dtype = frozen.device.type == "cuda", str(frozen.dtype).removeprefix("torch.")
    block: Any = frozen.backbone.blocks[0]  # type: ignore[index]
    (rows, columns), width = frozen.config.grid, frozen.config.width
    tokens, out = rows * columns, []
    probe = torch.empty(0, dtype=frozen.dtype)
    products: dict[str, tuple[Call, int]] = {}
    for name in ("fc1", "fc2", "qkv", "proj") if not block.split else ("qkv", "proj"):
        layer, added = getattr(block, name), name in ("fc2", "proj")
        call = linear_call(probe, layer.weight, name == "fc1", added, layer.eps is not None)
        products[name] = call, batch * tokens
    if cuda:
        for name, (call, m) in products.items():
            out.append(Switch(name, [(call, m)], _product_options(frozen, call, m), Choice("library")))
    else:
        usual = default_library(frozen.dtype, batch)
        options = [Choice(name) for name in LIBRARIES if name != usual and supports(name, frozen.dtype)]
        out.append(Switch("products", list(products.values()), [*options, Choice("reference")], Choice("reference")))
    plain = [b.attention for b in frozen.backbone.blocks if b.attention["window"] is None]  # type: ignore[union-attr]
    if plain and not any(a["pool"] for a in plain) and not frozen.config.has_rel_pos:
        heads = block.num_heads
        call = Call("attention", (tokens, heads, width // heads), "forward", dtype)
        names = ["sdpa", "products"]
        if cuda:
            names = ["sdpa:flash", "sdpa:cudnn", "sdpa:efficient"]
            names += [name for name in ("flash_attn", "xformers") if find_spec(name) is not None]
        out.append(Switch("attention", [(call, batch)], [Choice(n) for n in names], Choice("sdpa")))
    if cuda and any(isinstance(head, FrozenDecoder) for head in frozen.heads.values()):
        call = Call("decoder", (width, rows, columns), "", dtype)
        out.append(Switch("decoder", [(call, batch)], [Choice("library")], Choice("library")))
    if not cuda and batch > 1:
        call = Call("pieces", (width, tokens), "", dtype)
        sizes = [Choice("of", (n,)) for n in (1, 2, 4, 8, 16) if n <= batch]
        out.append(Switch("pieces", [(call, batch)], sizes, None))
    return out


def _product_options(frozen: FrozenViTPose, call: Call, rows: int) -> list[Choice]:
    """Return the ways to compute a linear layer on a GPU, besides the default."""
    options = [Choice("library")]
    first: Any = frozen.backbone.blocks[0]  # type: ignore[index]
    if first.impl != "reference":
        from vitpose_kernels.gpu.tiles import candidates

        arch = architecture(first.qkv.weight)
        columns, inputs = call.shape
        tiles = candidates(rows, columns, inputs, frozen.dtype, arch, "gelu" in call.detail)
        options += [Choice("triton", tuple(t)) for t in tiles[1:]]
    return options


def table_of(parts: Sequence[Switch], setting: Mapping[str, Choice]) -> dict[Call, dict[int, Choice]]:
    """Return the table that makes the ops follow a setting (switch -> option)."""
    table: dict[Call, dict[int, Choice]] = {}
    for part in parts:
        if part.name in setting:
            for call, rows in part.calls:
                table.setdefault(call, {})[rows] = setting[part.name]
    return table


def tune_batch(
    frozen: FrozenViTPose,
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

    def __init__(
        self, frozen: FrozenViTPose, table: Table, images: Tensor, head: str, error: Callable[[], float]
    ) -> None:
        self.frozen, self.table, self.images, self.head = frozen, table, images, head
        self.graphs = None if frozen.graphs is None else Graphs((len(images),))
        with self._active():
            self.error = error()
        warm = time.monotonic() + _WARM
        self.run()
        while time.monotonic() < warm:
            self.run()

    def _active(self) -> Any:
        return _swapped(self.frozen, self.graphs, self.table)

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


class _swapped:
    """Let a frozen model use these graphs and choices inside a `with` block."""

    def __init__(self, frozen: FrozenViTPose, graphs: Graphs | None, table: Table) -> None:
        self.frozen, self.graphs, self.choices = frozen, graphs, Choices(table)

    def __enter__(self) -> None:
        self.before = self.frozen.graphs, self.frozen.choices
        self.frozen.graphs, self.frozen.choices = self.graphs, self.choices

    def __exit__(self, *_: object) -> None:
        self.frozen.graphs, self.frozen.choices = self.before


def compiled_in_time(frozen: FrozenViTPose, parts: list[Switch], batch: int, seconds: float) -> list[Switch]:
    """Compile the kernels of all options in parallel processes, and drop the options that are not ready in time.

    The binaries go to Triton's cache on disk, where the measurements find them.
    """
    from vitpose_kernels.gpu.aot import source

    kernels: dict[tuple[str, Choice], set[Any]] = {}
    arch = architecture(next(frozen.parameters()))
    block: Any = deepcopy(frozen.backbone.blocks[0]).to("meta")  # type: ignore[index]
    tokens = frozen.config.grid[0] * frozen.config.grid[1]
    x = torch.empty(batch, tokens, frozen.config.width, dtype=frozen.dtype, device="meta")
    task = torch.empty(batch, dtype=torch.int64, device="meta")
    for part in parts:
        for option in part.options:
            if option.impl == "triton":
                with recording(arch) as recorded, using(table_of([part], {part.name: option})), torch.no_grad():
                    block(x, task)
                kernels[part.name, option] = {source(launch) for launch in recorded.launches}
    if not kernels:
        return parts
    done = compile_all(set().union(*kernels.values()), arch, seconds)
    return [
        part._replace(options=[o for o in part.options if kernels.get((part.name, o), set()) <= done]) for part in parts
    ]


def compile_all(sources: set[Any], arch: int, seconds: float) -> set[Any]:
    """Compile kernels in parallel processes, and return those that were compiled within `seconds`."""
    from vitpose_kernels.gpu.aot import compile_source

    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(max(1, (os.cpu_count() or 1) - 1), context)
    futures = {pool.submit(_compiles, compile_source, src, arch): src for src in sources}
    ready, late = wait(futures, timeout=seconds)
    if late:  # do not wait for compilations that are running
        for process in list((pool._processes or {}).values()):
            process.kill()
    pool.shutdown(wait=not late, cancel_futures=True)
    return {futures[f] for f in ready if f.exception() is None and f.result()}


def _compiles(compile_source: Callable[[Any, int], Any], src: Any, arch: int) -> bool:
    """Compile a kernel in a worker process; return whether that succeeded."""
    try:
        compile_source(src, arch)
    except Exception:  # the measurement of this option would report it; it is left out
        return False
    return True


def machine_of(device: torch.device) -> dict[str, Any]:
    """Return what choices depend on: device, driver and versions of the libraries that compute."""
    out: dict[str, Any] = {"torch": torch.__version__, "library": __version__}
    if device.type == "cuda":
        import triton

        properties = torch.cuda.get_device_properties(device)
        out |= {"device": properties.name, "multiprocessors": properties.multi_processor_count}
        out |= {"triton": triton.__version__, "cudnn": torch.backends.cudnn.version(), "cuda": torch.version.cuda}
        return out | {"driver": torch._C._cuda_getDriverVersion()}  # type: ignore[attr-defined]
    features: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return out | {
        "device": f"{platform.machine()} {features.get('cpu_name', platform.processor())}",
        "features": sorted(name for name, value in features.items() if value is True),
        "threads": torch.get_num_threads(),
    }


def cache_file(machine: Mapping[str, Any]) -> Path:
    """Return the cache file of a machine, in the folder VITPOSE_FAST_CACHE or else ~/.cache/vitpose_fast."""
    folder = os.environ.get("VITPOSE_FAST_CACHE") or Path.home() / ".cache" / "vitpose_fast"
    digest = hashlib.sha1(json.dumps(machine, sort_keys=True).encode()).hexdigest()[:16]
    return Path(folder) / f"choices-{digest}.json"


def model_key(frozen: FrozenViTPose, batches: Sequence[int]) -> str:
    """Return the key of a model in the cache: what its speed depends on, and the batch sizes."""
    config = frozen.config
    parts = [frozen.dtype, config.width, config.depth, config.num_heads, config.image_size, config.patch_stride]
    parts += [config.attention, config.window, config.decoder, config.experts, getattr(frozen.backbone, "impl", None)]
    parts += [tuple(frozen.heads), tuple(batches), getattr(frozen.backbone.blocks[0].qkv, "eps", None) is not None]  # type: ignore[index, union-attr]
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
        return entries
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write(path: Path, machine: Mapping[str, Any], key: str, choices: Choices) -> None:
    """Add an entry to the cache file. Where the file cannot be written, tuning has only to be repeated."""
    entry = {"choices": to_rows(choices.table), "measured": [asdict(m) for m in choices.measured]}
    content = {"format": _FORMAT, "machine": dict(machine), "models": _read(path, machine) | {key: entry}}
    text = json.dumps(content, indent=1) + "\n"
    try:
        make_folder(path.parent)
        write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))
    except OSError:
        pass
