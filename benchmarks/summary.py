"""The summary of a `bench --budget` run, made from the files in its folder."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.records import digits, read_lines


def summary(folder: Path, unknown: str, steps: Sequence[tuple[str, float, str]]) -> str:
    """Return a summary for one screen: the machine, the state of every step, wrong kernel calls, and speed ratios.

    Args:
        folder: folder with the files of the run.
        unknown: first line of the summary if env.json cannot be read.
        steps: (name, seconds, state) of each step.
    """
    out = [_or_empty(lambda: _machine(folder)) or unknown, ""]
    for name, seconds, state in steps:
        result = _or_empty(lambda name=name: _result(folder, name))
        out.append(f"{name:10}{seconds:6.1f} s  {state}{': ' if result else ''}{result}")
    wrong = _or_empty(lambda: _wrong_calls(_rows(folder, "smoke.jsonl")))
    ratios = _or_empty(lambda: _ratios(_rows(folder, "results.jsonl")))
    return "\n".join([*out, *(f"\n{part}" for part in (wrong, ratios) if part)])


def _or_empty(text: Callable[[], str]) -> str:
    """Return `text()`, or "" if it raises any exception, so that the other parts of the summary are still shown."""
    try:
        return text()
    except Exception:  # half a file of a killed step, or an unexpected field
        return ""


def _wrong_calls(rows: Sequence[dict[str, Any]]) -> str:
    wrong = [row for row in rows if row.get("problem")]
    lines = [f"{len(wrong)} calls are wrong:"] if wrong else []
    for row in wrong[:12]:
        where = " ".join(str(row.get(name)) for name in ("op", "label", "model", "batch", "dtype"))
        lines.append(f"  {where}: {row['problem']}"[:150])
    return "\n".join(lines)


def _machine(folder: Path) -> str:
    e = json.loads((folder / "env.json").read_text(encoding="utf-8"))
    ceilings = f"{digits(e['matmul_tflops'])} TFLOP/s, {digits(e['copy_tb_s'])} TB/s"
    commit = (e["commit"] or "unknown: pass --commit")[:40]
    return f"{e['device']}, {ceilings}, torch {e['torch']}, triton {e['triton']}, commit {commit}"


def _rows(folder: Path, name: str) -> list[dict[str, Any]]:
    try:
        return read_lines(folder / name)
    except OSError:
        return []


def _result(folder: Path, step: str) -> str:
    """Return the result of a step in a few words, or "" if it has none."""
    if step == "warm" and (folder / "compile.json").is_file():
        c = json.loads((folder / "compile.json").read_text(encoding="utf-8"))
        return f"{c['compiled']} of {c['kernels']} kernels for {c['arch']}, {len(c['failed'])} failed"
    if step == "smoke":
        rows = _rows(folder, "smoke.jsonl")
        planned = sum(row.get("planned", 0) for row in rows)
        problems = [row["problem"] for row in rows if "op" in row]
        return f"{problems.count('')} of {planned} calls right, {planned - len(problems)} not reached" if rows else ""
    if step == "tests" and (folder / "junit.xml").is_file():
        suite = ElementTree.parse(folder / "junit.xml").getroot().find("testsuite")
        names = ("tests", "failures", "errors", "skipped")
        return "" if suite is None else ", ".join(f"{suite.get(name, 0)} {name}" for name in names)
    if step == "tune":
        rows = [row["tuning"] for row in _rows(folder, "results.jsonl") if "tuning" in row]
        return "; ".join(_tuned(row) for row in rows)[:130]
    if step == "sanitize" and (folder / "sanitizer.txt").is_file():
        lines = (folder / "sanitizer.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        return "; ".join(line for line in lines if line.startswith("== "))[:120]
    return ""


def _tuned(row: dict[str, Any]) -> str:
    times = [f"{name} {digits(row['ms'][name])}" for name in ("default", "library") if name in row["ms"]]
    return f"batch {row['batch']} {digits(row['ms']['chosen'])} ms ({', '.join(times)})"


def _ratios(rows: Sequence[dict[str, Any]], most: int = 44) -> str:
    """Return a heading and one line for each of the first `most` cases, or "" if there is none.

    A line gives our median in ms, then the measured rivals, fastest first, and then the failed ones.
    """
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        if "median_ms" in row:
            groups.setdefault(str([row.get(k) for k in ("name", "dtype", "batch")]), []).append(row)
    lines = [line for group in groups.values() if (line := _or_empty(lambda group=group: _case(group)))]
    if len(lines) > most:
        lines = [*lines[:most], f"  ... and {len(lines) - most} more in results.jsonl"]
    return (
        "\n".join(["our median in ms, then rival / ours in time (above 1, ours is faster):", *lines]) if lines else ""
    )


def _case(group: Sequence[dict[str, Any]]) -> str:
    mine = [r for r in group if r["implementation"] == "ours" or r["implementation"].startswith("vitpose_fast")]
    ours = min(mine, key=lambda r: "frozen" not in r["implementation"], default=None)
    rivals = [r for r in group if r is not ours]
    timed = sorted((r for r in rivals if r["missing"] is None), key=lambda r: r["median_ms"])
    failed = [r for r in rivals if (r["missing"] or "").startswith(("failed", "disagrees", "too fast", "not measured"))]
    unit = None if ours is None else ours["median_ms"]
    if unit is None:
        ratios = [f"{r['implementation']} {digits(r['median_ms'])} ms" for r in timed]
    else:
        ratios = [f"{r['median_ms'] / unit:.2f} {r['implementation']}" for r in timed]
    ratios += [f"{r['implementation']} {r['missing'][:40]}" for r in failed]
    value = "-" if ours is None else digits(unit) if unit else f"OURS {ours['missing'][:60]}"
    head = f"  {group[0]['name']}, {group[0]['dtype']}, {group[0]['batch']}: {value}"
    return f"{head}{' | ' * bool(ratios)}{'; '.join(ratios)}"[:170]
