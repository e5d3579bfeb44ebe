"""Tables, figures, comparisons, and the numbers of docs/speed.md, from the result files of the benchmarks.

Run `python benchmarks/report.py tables|figures|compare|docs FILE ...`, or `convert DIR` for the folder of a
`bench --budget` run. The exit code is 1 for an error, which is reported in one line, or if `compare` finds that
something became slower, and 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # as a script: sys.path starts with this folder, where `benchmarks` is not found
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.chart import chart, comparisons
from benchmarks.convert import result_of, tuned_of
from benchmarks.paper import PAPER_ROWS, verdicts
from benchmarks.records import SUITES, Record, Results, baseline, digits, gather, load, rows_of
from vitpose_fast.bench import free_path, result_name
from vitpose_fast.files import write_atomic

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- speed -->", "<!-- /speed -->"
EXTRA_NAMES = {
    "paper_memory_m": "the paper's A100 memory (M)",
    "mfu": "MFU",
    "cpu_seconds_per_1000": "CPU seconds per 1000",
}


# --- markdown


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
    line = f"**{cell(e['device'])}**, driver {cell(e['driver'] or 'none')}, {cell(results.versions)}, matrix product "
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


# --- old against new


def compare(old: Results, new: Results, threshold: float) -> tuple[list[str], bool]:
    """Return (lines to print, whether a measured record of `old` became slower in `new`).

    A record is slower if its median grew, relative to the old median, by more than the threshold and by more than the
    spread of either record. Records that vanished are listed, but do not count. ValueError if the files have no
    measured record in common.
    """
    before, after = ({r.key: r for r in results.records} for results in (old, new))
    reasons = {r.key[:-1]: r for r in new.records if r.missing}  # a missing record is never graphed: ignore that field
    slower, gone, compared = [], [], 0
    for key, a in before.items():
        b = after.get(key) or reasons.get(key[:-1])
        name = f"{a.suite} {a.name}, {a.label}, {a.dtype}, batch {a.batch}"
        if a.median_ms is None:
            continue
        if b is None or b.median_ms is None:
            gone.append(f"vanished: {name}: {'not in the new file' if b is None else f'missing: {b.missing}'}")
            continue
        compared += 1
        growth = b.median_ms / a.median_ms - 1
        if growth > max(threshold, a.spread, b.spread):
            slower.append(f"slower: {name}: {digits(a.median_ms)} -> {digits(b.median_ms)} ms, +{100 * growth:.1f} %")
    if not compared:
        raise ValueError(f"{old.path} and {new.path} have no measured record in common")
    quick = [f"quick run: {r.path}" for r in (old, new) if r.environment["quick"]]
    summary = f"{compared} compared, {len(slower)} slower by more than {100 * threshold:g} % and the spread"
    return [*quick, *slower, *gone, f"{summary}, {len(gone)} vanished"], bool(slower)


# --- docs/speed.md


def headlines(results: Results) -> str:
    """Return a summary of a file in Markdown.

    It has one table row per case with rivals, except for single ops: of these it gives the number of comparisons in
    which ours is faster, and the lowest ratio of rival to ours.
    """
    rows = []
    groups = gather((r for r in results.records if r.suite != "ops"), "suite", "name", "dtype", "batch")
    for (_, name, dtype, batch), group in groups.items():
        rivals, ours = [r for r in group if not r.ours], baseline(group, True)
        reasons = [median(r) for r in group if r.ours and r.missing]
        if rivals and (ours or reasons):
            cells = [f"{ours.label}: {digits(ours.median_ms)} ms, {digits(ours.throughput)}/s"] if ours else reasons
            ratios = [f"{r.label} {median(r) if r.missing else quotient(r, ours).split(' ')[0]}" for r in rivals]
            rows.append([[name], [dtype], [str(batch)], cells, ratios])
    duels = [
        (r.median_ms / row.base.median_ms, r)
        for row in rows_of(results.suite("ops"))
        for r in row.records
        if row.base and row.base.median_ms and r.median_ms and not r.ours
    ]
    text = [markdown(["name", "dtype", "batch", "ours", "rival / ours"], rows)] if rows else []
    if duels:
        worst, r = min(duels, key=lambda duel: duel[0])
        won = sum(factor > 1 for factor, _ in duels)
        where = cell(f"{r.name}, {r.dtype}, batch {r.batch}, against {r.label}")
        text.append(f"Single ops: ours is faster in {won} of {len(duels)} comparisons; the lowest ratio is {worst:.2f}")
        text[-1] += f" ({where})."
    return "\n\n".join(text or ["No comparison in this file."])


def speed_section(files: list[Results]) -> str:
    parts = ["Ratios are rival / ours in time: above 1, ours is faster."]
    for results in files:
        e = results.environment
        quick = "**Quick run, do not quote these numbers.** " if e["quick"] else ""
        parts.append(f"{quick}**{cell(e['device'])}**, {cell(results.versions)}, from `{cell(e['command'])}`:")
        parts.append(headlines(results))
    return "\n\n".join(parts)


def rewrite(page: Path, text: str) -> None:
    """Replace the text between `START` and `END` in a page atomically: readers see the old file or the new one.

    Raises:
        ValueError: the page does not have both markers once each, in this order.
    """
    page = page.resolve()
    old = page.read_bytes().decode("utf-8")
    if old.count(START) != 1 or old.count(END) != 1 or old.index(START) > old.index(END):
        raise ValueError(f"{page}: expected {START} followed by {END}, once each")
    new = old[: old.index(START)] + f"{START}\n{text}\n" + old[old.index(END) :]
    handle, temporary = tempfile.mkstemp(dir=page.parent, prefix=f".{page.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(new.encode("utf-8"))
        shutil.copymode(page, temporary)
        os.replace(temporary, page)
    except BaseException:
        os.unlink(temporary)
        raise


# --- commands


def show_tables(options: argparse.Namespace) -> int:
    print(tables(load(options.file)))
    return 0


def write_figures(options: argparse.Namespace) -> int:
    from benchmarks.figures import bubbles, layers, save

    results = load(options.file)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, draw in (("fig1.png", bubbles), ("layers.png", layers)):
        figure, reason = draw(results)
        if figure is None:
            print(f"{name}: skipped, {reason}")
        else:
            save(figure, options.out / name)
            print(f"{name}: written to {options.out}")
    return 0


def show_comparison(options: argparse.Namespace) -> int:
    old, new = load(options.old), load(options.new)
    devices = [r.environment["device"] for r in (old, new)]
    if devices[0] != devices[1] and not options.any_device:
        raise ValueError(
            f"{new.path} is from {devices[1]}, {old.path} from {devices[0]}; pass --any-device to compare them anyway"
        )
    lines, slower = compare(old, new, options.threshold)
    print("\n".join(lines))
    return int(slower)


def write_docs(options: argparse.Namespace) -> int:
    results = [load(file) for file in options.files]
    rewrite(options.page, speed_section(results))
    drawn = next((chart(r) for r in results if comparisons(r)), None)
    if drawn is not None:
        write_atomic(options.page.with_suffix(".svg"), lambda target: target.write_text(drawn, encoding="utf-8"))
    return 0


def convert(options: argparse.Namespace) -> int:
    result = result_of(options.folder)
    stamp = result["environment"]
    name = result_name(stamp["device"], stamp["date"], stamp["quick"])
    out = options.out or free_path(ROOT / "benchmarks" / "results", name)
    tuned = options.tuned or out.with_name(f"{out.stem}-tuned.json")
    if out.absolute() == tuned.absolute():
        raise ValueError(f"got {out} for both files; choose two names")
    for path in (out, tuned):
        if path.exists():
            raise ValueError(f"{path} exists already; choose another name")
    choices = tuned_of(result)
    for path, value in ((out, result), (tuned, choices)):
        text = json.dumps(value, indent=1) + "\n"
        write_atomic(path, lambda target, text=text: target.write_text(text, encoding="utf-8"))
    print(f"{len(result['records'])} records in {out}, {len(choices['choices'])} choices in {tuned}")
    return 0


def fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e6:
        raise ValueError(text)
    return value


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="report.py", description=__doc__)
    commands = root.add_subparsers(required=True, metavar="tables | figures | compare | docs | convert")
    command = commands.add_parser("tables", help="print a result file as Markdown tables")
    command.add_argument("file", type=Path, metavar="FILE")
    command.set_defaults(run=show_tables)
    command = commands.add_parser("figures", help="draw fig1.png and layers.png")
    command.add_argument("file", type=Path, metavar="FILE")
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.set_defaults(run=write_figures)
    command = commands.add_parser("compare", help="list what became slower and what vanished")
    command.add_argument("old", type=Path, metavar="OLD")
    command.add_argument("new", type=Path, metavar="NEW")
    command.add_argument(
        "--threshold",
        type=fraction,
        default=0.05,
        help="relative growth of the median that counts as slower; default: 0.05",
    )
    command.add_argument("--any-device", action="store_true", help="compare even if the devices differ")
    command.set_defaults(run=show_comparison)
    text = f"rewrite the text between {START} and {END}, and the chart of the first file that has one"
    command = commands.add_parser("docs", help=text)
    command.add_argument("files", type=Path, nargs="+", metavar="FILE")
    command.add_argument("--page", type=Path, default=ROOT / "docs" / "speed.md", metavar="PATH")
    command.set_defaults(run=write_docs)
    command = commands.add_parser("convert", help="make a result file and tuned.json from a `bench --budget` run")
    command.add_argument("folder", type=Path, metavar="DIR")
    command.add_argument("--out", type=Path, metavar="FILE", help="default: benchmarks/results/<device>-<date>.json")
    command.add_argument("--tuned", type=Path, metavar="FILE", help="default: next to the result file, ...-tuned.json")
    command.set_defaults(run=convert)
    return root


def main(args: list[str] | None = None) -> int:
    """Run a command and return its exit code. ValueError, OSError and ImportError are printed in one line."""
    try:
        options = parser().parse_args(args)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        return options.run(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"report: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
