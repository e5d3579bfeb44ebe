"""Result files of the benchmarks: their format, reading and checking, and grouping of records for comparison."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

SUITES = ("table12", "model", "pipeline", "training", "ops")


@dataclass(frozen=True)
class Record:
    """One measurement, or the reason why it is missing."""

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
        """Samples per second, computed from the median if the record has no `per_second`."""
        return self.per_second or (1000 * self.batch / self.median_ms if self.median_ms else None)

    @property
    def spread(self) -> float:
        return (self.p90_ms - self.p10_ms) / self.median_ms if self.median_ms else 0.0


@dataclass(frozen=True)
class Results:
    """One result file."""

    path: Path
    environment: dict[str, Any]
    records: tuple[Record, ...]

    def suite(self, name: str) -> list[Record]:
        return [r for r in self.records if r.suite == name]

    @property
    def on_gpu(self) -> bool:
        """Whether the file is from a GPU: it has a driver or, if that is unknown, peak memory; a CPU has neither."""
        return self.environment["driver"] is not None or any(r.peak_mib is not None for r in self.records)

    @property
    def versions(self) -> str:
        e = self.environment
        commit = (e["commit"] or "unknown")[:10] + (" (dirty)" if e["dirty"] else "")
        return f"torch {e['torch']}, triton {e['triton'] or 'none'}, commit {commit}, {e['date']}"


Check = tuple[Callable[[Any], bool], str]


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
IDENTITY = {"suite": SUITE, "name": TEXT, "implementation": TEXT, "dtype": TEXT, "batch": COUNT, "graphed": FLAG}
IDENTITY |= {"missing": _or_null(TEXT), "extra": OBJECT}
NUMBERS = {"median_ms": POSITIVE, "p10_ms": POSITIVE, "p90_ms": POSITIVE}
NUMBERS |= {n: _or_null(POSITIVE) for n in ("p99_ms", "per_second", "roofline_fraction")}
NUMBERS |= {n: _or_null(AMOUNT) for n in ("peak_mib", "flops", "bytes")}
LAYER = {"model": TEXT, "layer": TEXT, "calls": COUNT}
EXTRA = {n: _or_null(POSITIVE) for n in ("params_m", "gmacs", "mfu", "people_per_frame")} | {
    **{n: _or_null(POSITIVE) for n in ("paper_fps", "paper_memory_m", "paper_params_m", "paper_gflops", "paper_ap")},
    **{n: _or_null(AMOUNT) for n in ("cpu_seconds_per_1000", "launches")},
    "flip_test": _or_null(FLAG),
}


def check_fields(value: dict[str, Any], checks: dict[str, Check], where: str) -> None:
    """Raise ValueError with the name of the first field that is absent or not as expected."""
    for name, (good, expected) in checks.items():
        if name not in value:
            raise ValueError(f"{where}{name}: expected {expected}, found no such field")
        if not good(value[name]):
            raise ValueError(f"{where}{name}: expected {expected}, found {json.dumps(value[name])[:60]}")


def as_record(row: Any, where: str) -> Record:
    """Check a row of a result file and return it as a record. Raises ValueError that starts with `where`."""
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
        ValueError: the file is malformed. The message names the file, the record, the field and what was expected.
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
        check_fields(data["environment"], ENVIRONMENT, "environment.")
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

    Raises:
        OSError: the line cannot be written completely.
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
    """Return the rows of a JSON Lines file, except lines cut off by a kill or a full disk; [] without a file."""
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
    """Group records by the values of these fields, in the order of the file."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(getattr(record, n) for n in names), []).append(record)
    return groups


def baseline(group: list[Record], graphed: bool) -> Record | None:
    """Return our measured record to compare rivals with, or None; prefer one with this `graphed`, then a frozen one."""
    ours = [r for r in group if r.ours and r.median_ms]
    return min(ours, key=lambda r: (r.graphed != graphed, "frozen" not in r.implementation), default=None)


@dataclass(frozen=True)
class Row:
    """Records of one case that are all graphed or all not; `base` is our record, or None if ours was not measured."""

    suite: str
    name: str
    dtype: str
    batch: int
    graphed: bool
    records: list[Record]
    base: Record | None


def rows_of(records: Iterable[Record]) -> list[Row]:
    """Group records by case and split each group by `graphed`.

    A missing record was never captured in a graph: it goes with our measured record, else with the first measured one.
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
    """Format a number with three significant digits, from 100 on as a whole number, and None as "-"."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
