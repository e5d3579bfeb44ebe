"""Convert the folder of a `bench --budget` run to a result file and to a tuned.json.

A tuned.json lists, for every GPU, the fastest choice (`choices.Choice`) of the calls that were measured with several.
The package ships one, and this is how it is made.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.records import as_record, check_environment, read_lines
from vitpose_kernels.chips import CHIPS, chip_named
from vitpose_kernels.choices import DEFAULT, Call, Choice, from_rows, to_rows

LEAST_GAIN = 0.03  # fraction of the default's time; a smaller gain may be noise
PACKAGES = ("flash_attn", "xformers")


def result_of(folder: Path) -> dict[str, Any]:
    """Return the content of the result file of a run: {"environment": ..., "records": [...], "tuning": [...]}.

    Lines of results.jsonl that are not JSON objects (cut off by a kill) are skipped. The steps of a run overlap: of
    records with equal suite, name, implementation, dtype and batch the last one is kept, but a missing record never
    replaces a measured one. "tuning" is what the step `tune` found, see `benchmarks/tuning.py`. The environment is the
    first in the file, with the commands of all.

    Raises:
        ValueError: the folder has no results.jsonl, or the file has no environment, no record, a row with a missing or
            invalid field, or environments that differ in device, torch, triton, commit or quick. The message names the
            file.
        OSError: the file cannot be read.
    """
    path = folder / "results.jsonl"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected the folder of a `bench --budget` run that measured something")
    environments: list[dict[str, Any]] = []
    records: dict[tuple[Any, ...], dict[str, Any]] = {}
    tuning: list[dict[str, Any]] = []
    for number, row in enumerate(read_lines(path), 1):
        where = f"{path}: row {number}: "
        if "environment" in row:
            if not isinstance(row["environment"], dict):
                raise ValueError(f"{where}environment: expected an object")
            check_environment(row["environment"], f"{where}environment.")
            environments.append(row["environment"])
            continue
        if "tuning" in row:
            _check_tuning(row["tuning"], f"{where}tuning")
            tuning.append(row["tuning"])
            continue
        as_record(row, where.removesuffix(": "))
        key = tuple(row[n] for n in ("suite", "name", "implementation", "dtype", "batch"))
        if row["missing"] is None or key not in records or records[key]["missing"] is not None:
            records[key] = row
    if not environments or not (records or tuning):
        raise ValueError(f"{path}: nothing was measured in this run")
    for name in ("device", "torch", "triton", "commit", "quick"):
        if len({str(e[name]) for e in environments}) > 1:
            raise ValueError(f"{path}: holds results of more than one {name}, expected one; use one folder per run")
    commands = "; ".join(dict.fromkeys(e["command"] for e in environments))
    return {"environment": environments[0] | {"command": commands}, "records": list(records.values()), "tuning": tuning}


def _check_tuning(row: Any, where: str) -> None:
    """Raise ValueError if a row is none that `benchmarks/tuning.py` writes."""
    if not (isinstance(row, dict) and isinstance(row.get("choices"), list)):
        raise ValueError(f"{where}: expected an object with `choices`")
    try:
        from_rows(row["choices"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def tuned_of(result: dict[str, Any]) -> dict[str, Any]:
    """Return the content of tuned.json for a result from `result_of`: the fastest choice of every call.

    A call that was tuned within a whole model has the choice that was the fastest there. Otherwise the choice is
    decided by the timings of the op alone: it must beat the default by at least 3 % of the default's time, and by at
    least the larger of the spreads (10th to 90th percentile) of the two timings. Choices of optional packages do not
    count, because the table serves machines without them. Calls for which the default remains are listed as such,
    because a call follows the nearest number of rows that is listed.

    Returns:
        `format` and `chips` as in the tuned.json that `vitpose_kernels` ships, with one chip, and `measured`, where
        and when it was measured, by chip. There is no chip if `chips.CHIPS` does not know the device.
    """
    groups: dict[tuple[Call, int], list[tuple[Choice, dict[str, Any]]]] = {}
    for record in result["records"]:
        if record["median_ms"] is not None and isinstance(record["extra"].get("choice"), dict):
            for call, rows, choice in _entries([record["extra"]["choice"]]):
                groups.setdefault((call, rows), []).append((choice, record))
    table: dict[Call, dict[int, Choice]] = {}
    for (call, rows), timed in groups.items():
        default = next((record for choice, record in timed if choice.impl == DEFAULT), None)
        if default is None or len(timed) == 1:
            continue
        choice, best = min(timed, key=lambda pair: pair[1]["median_ms"])
        gain = default["median_ms"] - best["median_ms"]
        spread = max(r["p90_ms"] - r["p10_ms"] for r in (default, best))
        wins = gain >= max(LEAST_GAIN * default["median_ms"], spread)
        table.setdefault(call, {})[rows] = choice if wins else Choice(DEFAULT)
    for tuned in result.get("tuning", ()):
        for call, rows, choice in _entries(tuned["choices"]):
            if choice.impl not in PACKAGES:
                table.setdefault(call, {})[rows] = choice
    environment = result["environment"]
    chip = chip_named(environment["device"])
    if chip is None:
        return {"format": 1, "chips": {}, "measured": {}}
    stamp = {name: environment[name] for name in ("device", "torch", "triton", "commit", "date", "quick")}
    return {"format": 1, "chips": {chip.name: to_rows(table)}, "measured": {chip.name: stamp}}


def _entries(rows: list[dict[str, Any]]) -> list[tuple[Call, int, Choice]]:
    return [(call, n, choice) for call, by_rows in from_rows(rows).items() for n, choice in by_rows.items()]


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a tuned.json with the entries of `new` added to those of `old`, which they replace.

    An entry replaces that of the same chip, call and number of rows. All other entries stay, except that a call for
    which only the default remains is dropped.
    """
    chips = {}
    for name in sorted(old["chips"].keys() | new["chips"].keys()):
        table = from_rows(old["chips"].get(name, []))
        for call, by_rows in from_rows(new["chips"].get(name, [])).items():
            table.setdefault(call, {}).update(by_rows)
        kept = {call: dict(sorted(t.items())) for call, t in table.items() if {c.impl for c in t.values()} != {DEFAULT}}
        chips[name] = to_rows(dict(sorted(kept.items())))
    return {"format": 1, "chips": chips, "measured": old.get("measured", {}) | new.get("measured", {})}


def read_tuned(path: Path) -> dict[str, Any]:
    """Read a tuned.json; one that does not exist is empty.

    Raises:
        ValueError: it is no such file, or holds an unknown chip or an invalid entry. The message names the file.
        OSError: the file cannot be read.
    """
    if not path.exists():
        return {"format": 1, "chips": {}}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not (isinstance(content, dict) and content.get("format") == 1 and isinstance(content.get("chips"), dict)):
            raise ValueError('expected {"format": 1, "chips": {...}}')
        for name, rows in content["chips"].items():
            if name not in {chip.name for chip in CHIPS}:
                raise ValueError(f"unknown chip {name!r}, expected a name of chips.CHIPS")
            from_rows(rows)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
    return content


def text_of(tuned: dict[str, Any]) -> str:
    """Return the text of a tuned.json, with one entry a line."""
    chips = []
    for name, rows in tuned["chips"].items():
        lines = ",\n".join(f"   {json.dumps(row)}" for row in rows)
        chips.append(f"  {json.dumps(name)}: [\n{lines}\n  ]" if rows else f"  {json.dumps(name)}: []")
    parts = ['"format": 1', '"chips": {\n' + ",\n".join(chips) + "\n }" if chips else '"chips": {}']
    parts += [f"{json.dumps(name)}: {json.dumps(tuned[name])}" for name in ("measured",) if tuned.get(name)]
    return "{" + ",\n ".join(parts) + "}\n"
