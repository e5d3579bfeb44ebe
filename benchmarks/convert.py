"""Convert the folder of a `bench --budget` run to a result file and to tuned.json.

tuned.json lists the fastest choice, an implementation with its tile shape, for every shape of an op that was measured
with several choices.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.records import as_record, check_environment, read_lines

LEAST_GAIN = 0.03  # fraction of the default's time; a smaller gain may be noise


def result_of(folder: Path) -> dict[str, Any]:
    """Return the content of the result file of a run: {"environment": ..., "records": [...]}.

    Lines of results.jsonl that are not JSON objects (cut off by a kill) are skipped. The steps of a run overlap: of
    records with equal suite, name, implementation, dtype and batch the last one is kept, but a missing record never
    replaces a measured one. The environment is the first in the file, with the commands of all.

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
    for number, row in enumerate(read_lines(path), 1):
        where = f"{path}: row {number}: "
        if "environment" in row:
            if not isinstance(row["environment"], dict):
                raise ValueError(f"{where}environment: expected an object")
            check_environment(row["environment"], f"{where}environment.")
            environments.append(row["environment"])
            continue
        as_record(row, where.removesuffix(": "))
        key = tuple(row[n] for n in ("suite", "name", "implementation", "dtype", "batch"))
        if row["missing"] is None or key not in records or records[key]["missing"] is not None:
            records[key] = row
    if not environments or not records:
        raise ValueError(f"{path}: nothing was measured in this run")
    for name in ("device", "torch", "triton", "commit", "quick"):
        if len({str(e[name]) for e in environments}) > 1:
            raise ValueError(f"{path}: holds results of more than one {name}, expected one; use one folder per run")
    commands = "; ".join(dict.fromkeys(e["command"] for e in environments))
    return {"environment": environments[0] | {"command": commands}, "records": list(records.values())}


def tuned_of(result: dict[str, Any]) -> dict[str, Any]:
    """Return the content of tuned.json for a result from `result_of`.

    It lists every shape whose fastest choice beats the default choice, with both times in ms. The gain must be at least
    3 % of the default's time, and at least the larger of the spreads (10th to 90th percentile) of the two timings.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in result["records"]:
        choice = record["extra"].get("choice")
        if isinstance(choice, dict) and "impl" in choice and record["median_ms"] is not None:
            shape = {k: v for k, v in choice.items() if k not in ("impl", "tiles")}
            groups.setdefault(json.dumps(shape | {"dtype": record["dtype"]}), []).append(record)
    choices = []
    for shape, group in groups.items():
        default = next((r for r in group if r["extra"]["choice"]["impl"] == "default"), None)
        if default is None:
            continue
        best = min(group, key=lambda r: r["median_ms"])
        gain = default["median_ms"] - best["median_ms"]
        spread = max(r["p90_ms"] - r["p10_ms"] for r in (default, best))
        if best is not default and gain >= max(LEAST_GAIN * default["median_ms"], spread):
            chosen = {k: best["extra"]["choice"].get(k) for k in ("impl", "tiles")}
            times = {"ms": best["median_ms"], "default_ms": default["median_ms"]}
            choices.append(json.loads(shape) | chosen | times)
    stamp = {name: result["environment"][name] for name in ("device", "torch", "triton", "commit", "date", "quick")}
    return {"format": 1, **stamp, "choices": choices}
