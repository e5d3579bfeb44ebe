"""Result files of the benchmarks: their format, reading and checking, and grouping of records for comparison."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

SUITES = ("table12", "model", "pipeline", "start", "training", "ops")


@dataclass(frozen=True)
class Record:
    """One measurement, or the reason why it is missing.

    Attributes:
        suite: one of `SUITES`.
        name: name of the case, the same for all implementations that are compared.
        implementation: name of the contender; "ours" or "vitpose_fast ..." for this library.
        batch: samples in a call.
        graphed: the calls were replayed from CUDA graphs.
        median_ms, p10_ms, p90_ms, p99_ms: median and percentiles of the time of a call in milliseconds.
        per_second: samples per second.
        peak_mib: GPU memory in MiB: weights, inputs, and the peak of what a call allocates.
        flops, bytes: work of a call, as declared.
        roofline_fraction: shortest time that the machine's measured ceilings allow, divided by the median.
        missing: the reason, or None for a measurement. If it is set, all numbers above except `batch` are None.
        extra: further facts, see `EXTRA` and `LAYER`.
    """

    suite: str
    name: str
    implementation: str
    dtype: str
    batch: int
    graphed: bool
    median_ms: float | None
    p10_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    per_second: float | None
    peak_mib: float | None
    flops: float | None
    bytes: float | None
    roofline_fraction: float | None
    missing: str | None
    extra: dict[str, Any]

    @property
    def key(self) -> tuple[str, str, str, str, int, bool]:
        return self.suite, self.name, self.implementation, self.dtype, self.batch, self.graphed

    @property
    def label(self) -> str:
        return self.implementation + (", graphed" if self.graphed else "")

    @property
    def ours(self) -> bool:
        return self.implementation == "ours" or self.implementation.startswith("vitpose_fast")

    @property
    def throughput(self) -> float | None:
        """Samples per second, computed from the median if the record has no `per_second`; None if it is missing."""
        return self.per_second or (1000 * self.batch / self.median_ms if self.median_ms else None)

    @property
    def spread(self) -> float:
        """The range from the 10th to the 90th percentile, divided by the median; 0 for a missing record."""
        return (self.p90_ms - self.p10_ms) / self.median_ms if self.median_ms else 0.0


@dataclass(frozen=True)
class Results:
    """One result file: its path, and its `environment` and `records` as described by `ENVIRONMENT` and `Record`."""

    path: Path
    environment: dict[str, Any]
    records: tuple[Record, ...]

    def suite(self, name: str) -> list[Record]:
        return [r for r in self.records if r.suite == name]

    @property
    def on_gpu(self) -> bool:
        """Whether the file is from a GPU: it names a driver, or a record has a peak memory. A CPU has neither."""
        return self.environment["driver"] is not None or any(r.peak_mib is not None for r in self.records)

    @property
    def machine(self) -> str:
        """The device; for a CPU also its cores and instructions, if the file names them."""
        e = self.environment
        if self.on_gpu or not e.get("features"):
            return e["device"]
        return f"{e['device']} on {e['cores']} cores with {', '.join(e['features'])}"

    @property
    def versions(self) -> str:
        e = self.environment
        commit = (e["commit"] or "unknown")[:10] + (" (dirty)" if e["dirty"] else "")
        return f"torch {e['torch']}, triton {e['triton'] or 'none'}, commit {commit}, {e['date']}"


Check = tuple[Callable[[Any], bool], str]  # whether a value is valid, and what is expected, in words


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300  # neither NaN nor inf


def _is_date(value: Any) -> bool:
    try:
        return datetime.date.fromisoformat(value).isoformat() == value
    except (TypeError, ValueError):
        return False


def _or_null(check: Check) -> Check:
    return lambda value: value is None or check[0](value), f"{check[1]} or null"


TEXT: Check = (lambda v: isinstance(v, str) and bool(v.strip()), "a non-empty string")
COUNT: Check = (lambda v: isinstance(v, int) and not isinstance(v, bool) and v > 0, "a positive integer")
FLAG: Check = (lambda v: isinstance(v, bool), "true or false")
POSITIVE: Check = (lambda v: _number(v) and v > 0, "a positive finite number")
AMOUNT: Check = (lambda v: _number(v) and v >= 0, "a non-negative finite number")
NULL: Check = (lambda v: v is None, "null, because `missing` is set")
LIST: Check = (lambda v: isinstance(v, list), "a list")
OBJECT: Check = (lambda v: isinstance(v, dict), "an object")
SUITE: Check = (lambda v: v in SUITES, f"one of {', '.join(SUITES)}")

ENVIRONMENT = dict.fromkeys(("device", "torch", "command"), TEXT) | {
    **{name: _or_null(TEXT) for name in ("driver", "triton", "commit")},
    "dirty": _or_null(FLAG),  # like the commit, unknown without git
    "quick": FLAG,
    "matmul_tflops": _or_null(AMOUNT),
    "copy_tb_s": _or_null(AMOUNT),
    "date": (_is_date, "a date, YYYY-MM-DD"),
}
OPTIONAL = {  # fields of the environment that older files lack
    "processor": TEXT,
    "features": (lambda v: isinstance(v, list) and all(TEXT[0](x) for x in v), "a list of non-empty strings"),
    "cores": COUNT,
}
IDENTITY = {"suite": SUITE, "name": TEXT, "implementation": TEXT, "dtype": TEXT, "batch": COUNT, "graphed": FLAG}
IDENTITY |= {"missing": _or_null(TEXT), "extra": OBJECT}
NUMBERS = {"median_ms": POSITIVE, "p10_ms": POSITIVE, "p90_ms": POSITIVE}
NUMBERS |= {n: _or_null(POSITIVE) for n in ("p99_ms", "per_second", "roofline_fraction")}
NUMBERS |= {n: _or_null(AMOUNT) for n in ("peak_mib", "flops", "bytes")}
LAYER = {"model": TEXT, "layer": TEXT, "calls": COUNT}
EXTRA = {n: _or_null(POSITIVE) for n in ("params_m", "gmacs", "mfu", "people_per_frame")} | {
    **{n: _or_null(POSITIVE) for n in ("paper_fps", "paper_memory_m", "paper_params_m", "paper_gflops", "paper_ap")},
    **{n: _or_null(AMOUNT) for n in ("cpu_seconds_per_1000", "launches", "relative_error")},
    "flip_test": _or_null(FLAG),
}


def check_fields(value: dict[str, Any], checks: dict[str, Check], where: str) -> None:
    """Raise ValueError if a field named in `checks` is absent or its value fails its check.

    The message begins with `where` and the name of the first bad field, and says what was expected and found.
    """
    for name, (good, expected) in checks.items():
        if name not in value:
            raise ValueError(f"{where}{name}: expected {expected}, found no such field")
        if not good(value[name]):
            raise ValueError(f"{where}{name}: expected {expected}, found {json.dumps(value[name])[:60]}")


def check_environment(environment: dict[str, Any], where: str) -> None:
    """Raise ValueError if a field of `ENVIRONMENT` is absent or invalid, or one of `OPTIONAL` is invalid.

    The optional fields come together or not at all. The message begins with `where` and the name of the field.
    """
    present = OPTIONAL.keys() if OPTIONAL.keys() & environment.keys() else ()
    check_fields(environment, ENVIRONMENT | {name: OPTIONAL[name] for name in present}, where)


def as_record(row: Any, where: str) -> Record:
    """Return a row of a result file as a record.

    Raises:
        ValueError: the row is no object, a field of `Record` is absent or invalid, the percentiles are not in order, a
            missing record has numbers, or a value in `extra` is invalid. The message begins with `where`.
    """
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object, found {json.dumps(row)[:60]}")
    check_fields(row, IDENTITY, f"{where}.")
    check_fields(row, NUMBERS if row["missing"] is None else dict.fromkeys(NUMBERS, NULL), f"{where}.")
    if row["missing"] is None and not row["p10_ms"] <= row["median_ms"] <= row["p90_ms"]:
        found = f"{row['p10_ms']}, {row['median_ms']}, {row['p90_ms']}"
        raise ValueError(f"{where}.median_ms: expected p10_ms <= median_ms <= p90_ms, found {found}")
    extra = row["extra"]
    check_fields(extra, {name: check for name, check in EXTRA.items() if name in extra}, f"{where}.extra.")
    if row["suite"] == "ops" and LAYER.keys() & extra.keys():
        check_fields(extra, LAYER, f"{where}.extra.")
    return Record(**{f.name: row[f.name] for f in fields(Record)})


def load(path: str | Path) -> Results:
    """Read a result file and check it.

    Raises:
        ValueError: the file is malformed, or two of its records differ in nothing that identifies them (`Record.key`).
            The message names the file, the record, the field and what was expected.
        OSError: the file cannot be read.
    """
    try:
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"expected JSON: {error}") from None
        if not isinstance(data, dict):
            raise ValueError("expected an object with `environment` and `records`")
        check_fields(data, {"environment": OBJECT, "records": LIST}, "")
        check_environment(data["environment"], "environment.")
        seen: dict[tuple[Any, ...], int] = {}
        records = tuple(as_record(row, f"records[{i}]") for i, row in enumerate(data["records"]))
        for i, record in enumerate(records):
            if seen.setdefault(record.key, i) != i:
                where = f"records[{i}].name: expected suite, name, implementation, dtype, batch or graphed to differ"
                raise ValueError(f"{where} from records[{seen[record.key]}], found {record.name!r}")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Results(Path(path), data["environment"], records)


def append_line(path: str | Path, row: dict[str, Any]) -> None:
    """Append a row as one line of JSON, synced to disk before this returns. Several processes may write to one file.

    If the last line in the file was cut off, the row begins on a new line.

    Raises:
        OSError: the file cannot be opened, or the line cannot be written completely.
    """
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.lseek(file, 0, os.SEEK_END)
        cut = size > 0 and os.pread(file, 1, size - 1) != b"\n"  # a full disk or a kill has cut off the last line
        line = (b"\n" if cut else b"") + (json.dumps(row) + "\n").encode()
        if os.write(file, line) < len(line):
            raise OSError(f"cannot write to {path}: the disk is full")
        os.fsync(file)
    finally:
        os.close(file)


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """Return the JSON objects in a JSON Lines file, or [] if there is no such file.

    All other lines are skipped, such as lines cut off by a kill or a full disk.
    """
    if not Path(path).exists():
        return []
    rows = []
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


# --- groups of records to compare


def gather(records: Iterable[Record], *names: str) -> dict[tuple[Any, ...], list[Record]]:
    """Group records by their fields `names`: {values of the fields: records}, all in the order of `records`."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(getattr(record, n) for n in names), []).append(record)
    return groups


def baseline(group: list[Record], graphed: bool) -> Record | None:
    """Return our record to compare the rivals of a case with, or None if none of ours was measured.

    If there are several, those with this `graphed` are preferred, then those of frozen models, then the first.
    """
    ours = [r for r in group if r.ours and r.median_ms]
    return min(ours, key=lambda r: (r.graphed != graphed, "frozen" not in r.implementation), default=None)


@dataclass(frozen=True)
class Row:
    """Records of one case that are shown together: the measured ones with this `graphed` and, in only one row
    of each case (see `rows_of`), the missing ones.

    `base` is our record to compare them with, see `baseline`. It may differ in `graphed`, and is None if ours was not
    measured.
    """

    suite: str
    name: str
    dtype: str
    batch: int
    graphed: bool
    records: list[Record]
    base: Record | None


def rows_of(records: Iterable[Record]) -> list[Row]:
    """Group records by case (suite, name, dtype, batch) and split each group by `graphed`.

    The `graphed` of a missing record means nothing: the record joins the part with our first measured record or, if
    ours was not measured, with the first measured record.
    """
    rows = []
    for key, group in gather(records, "suite", "name", "dtype", "batch").items():
        measured = [r for r in group if r.median_ms]
        home = next((r.graphed for r in sorted(measured, key=lambda r: not r.ours)), False)
        parts: dict[bool, list[Record]] = {}
        for record in group:
            parts.setdefault(record.graphed if record.median_ms else home, []).append(record)
        rows += [Row(*key, graphed, part, baseline(group, graphed)) for graphed, part in parts.items()]
    return rows


def digits(value: float | None) -> str:
    """Format a number with three significant digits, or as a whole number from 100 on; None gives "-"."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
