"""Tables of result files, in Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.paper import PAPER_ROWS, verdicts
from benchmarks.records import SUITES, Record, Results, baseline, digits, gather, rows_of

EXTRA_NAMES = {
    "paper_memory_m": "the paper's A100 memory (M)",
    "mfu": "MFU",
    "cpu_seconds_per_1000": "CPU seconds per 1000",
}


def quotient(record: Record, base: Record | None) -> str:
    """Return the time of `record` over the time of `base`, our record, as text.

    A note is added if only one of the two was captured in a CUDA graph. The text is "-" if either was not measured, or
    if they are the same record.
    """
    if base is None or not record.median_ms or not base.median_ms or record.key == base.key:
        return "-"
    other = f" (ours {'' if base.graphed else 'not '}graphed)" if base.graphed != record.graphed else ""
    return f"{record.median_ms / base.median_ms:.2f}{other}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def cell(text: Any) -> str:
    """Return a text in one line, escaped so that it can end neither its table cell nor the section in docs/speed.md."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<!--", "&lt;!--")


def markdown(head: list[str], rows: list[list[list[str]]]) -> str:
    """Return a Markdown table. Each row has one cell per title in `head`, and a cell is a list of lines."""
    lines = ["<br>".join(map(cell, lines)) for row in rows for lines in row]
    cells = [lines[i : i + len(head)] for i in range(0, len(lines), len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *cells])


def median(record: Record) -> str:
    if record.median_ms is None:
        return f"missing: {record.missing}"
    return f"{digits(record.median_ms)} ({digits(record.p10_ms)}..{digits(record.p90_ms)})"


def also(record: Record) -> str:
    """Return the texts, numbers and flags in the `extra` of a record as "name value, name value", or "-" if none."""
    known = {k: v for k, v in record.extra.items() if isinstance(v, str | int | float)}
    texts = (
        v if isinstance(v, str) else ("no", "yes")[v] if isinstance(v, bool) else digits(v) for v in known.values()
    )
    return ", ".join(f"{EXTRA_NAMES.get(k, k.replace('_', ' '))} {t}" for k, t in zip(known, texts)) or "-"


HEAD = ["implementation", "median ms (p10..p90)", "per second", "peak MiB", "of the roofline", "rival / ours"]


def measured(row: list[Record], base: Record | None, mixed: bool = False) -> list[list[str]]:
    """Return the cells under `HEAD` for a table row, each with one line per record in `row`.

    `base` is our record for the last column. With `mixed`, implementations that were captured in CUDA graphs are marked
    as "graphed".
    """
    return [
        [r.label if mixed else r.implementation for r in row],
        [median(r) for r in row],
        [digits(r.throughput) for r in row],
        [digits(r.peak_mib) for r in row],
        [percent(r.roofline_fraction) for r in row],
        [quotient(r, base) for r in row],
    ]


def suite_table(records: list[Record]) -> str:
    extra = any(also(r) != "-" for r in records if r.suite != "ops")  # the `extra` of ops is for layers.png
    rows = []
    for row in rows_of(records):
        cells = [[row.name], [row.dtype], [str(row.batch)], ["yes" if row.graphed else "no"]]
        cells += measured(row.records, row.base)
        rows.append(cells + ([[also(r) for r in row.records]] if extra else []))
    return markdown(["name", "dtype", "batch", "graphed", *HEAD, *(["also"] if extra else [])], rows)


def head(results: Results) -> str:
    e = results.environment
    line = (
        f"**{cell(results.machine)}**, driver {cell(e['driver'] or 'none')}, {cell(results.versions)}, matrix product "
    )
    line += f"{digits(e['matmul_tflops'])} TFLOP/s, copy {digits(e['copy_tb_s'])} TB/s, from `{cell(e['command'])}`"
    return line + ("\n\n**Quick run: few repetitions, do not quote these numbers.**" if e["quick"] else "")


def tables(results: Results) -> str:
    parts = [head(results)]
    for suite in (s for s in SUITES if results.suite(s)):
        parts += [f"## {suite}", table12(results) if suite == "table12" else suite_table(results.suite(suite))]
        for title, lines in verdicts(results) if suite == "table12" else ():
            parts.append("\n".join([cell(title), *(["", *(f"* {cell(line)}" for line in lines)] if lines else [])]))
    return "\n\n".join(parts if len(parts) > 1 else [*parts, "The file has no records."])


# --- Table 12


def table12(results: Results) -> str:
    """Return the suite `table12` as a Markdown table: float32 first, then by dtype, batch and the paper's order.

    Columns that hold the paper's figures have titles that begin with "paper:".
    """
    columns = {
        "params M": "params_m",
        "GMACs": "gmacs",
        "paper: A100 fps": "paper_fps",
        "paper: A100 memory M": "paper_memory_m",
        "paper: params M, decoder left out": "paper_params_m",
        "paper: GFLOPs": "paper_gflops",
        "paper: AP": "paper_ap",
    }
    place = {name: i for i, name in enumerate(PAPER_ROWS)}
    groups = gather(results.suite("table12"), "name", "dtype", "batch")
    rows = []
    for key in sorted(groups, key=lambda k: (k[1] != "float32", k[1], k[2], place.get(k[0], len(place)))):
        group = groups[key]
        facts = [next((r.extra[c] for r in group if r.extra.get(c) is not None), None) for c in columns.values()]
        cells = [[str(part)] for part in key] + measured(group, baseline(group, True), mixed=True)
        rows.append(cells + [["-" if f is None else f"{f:.4g}"] for f in facts])
    return markdown(["name", "dtype", "batch", *HEAD, *columns], rows)
