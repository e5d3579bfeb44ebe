"""What docs/speed.md says of result files, between its markers, and the chart in the README.

The chart shows how many times faster than its rivals our library gets from a frame to keypoints. It is SVG text that
depends on nothing but the result files, so that a test can check whether the committed chart is up to date.
"""

from __future__ import annotations

import os
import shutil
import string
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.records import Record, Results, baseline, digits, rows_of
from benchmarks.tables import cell, markdown, median, quotient

START, END = "<!-- speed -->", "<!-- /speed -->"
OURS, INK, PALE = "#0b62c4", "#333333", "#d9a441"
WIDTH, LEFT, RIGHT, TOP, STEP, BAR = 860, 320, 190, 58, 26, 16
LETTERS = string.ascii_uppercase + string.ascii_lowercase
SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class Duel:
    """Our record and a rival's in one case of one result file, both measured.

    `ratio` is the rival's time over ours: above 1, ours is faster.
    """

    ratio: float
    ours: Record
    rival: Record
    results: Results

    @property
    def key(self) -> tuple[Any, ...]:
        return (*self.rival.key, self.ours.label, self.results.on_gpu)


def duels(files: Sequence[Results], suite: str) -> list[Duel]:
    """Return a duel for every measured rival in a suite; if several files have it, the one with the lowest ratio.

    So what is printed for a case holds on every machine that measured it. GPUs and CPUs are kept apart, and cases in
    which ours was not measured are left out.
    """
    lowest: dict[tuple[Any, ...], Duel] = {}
    for results in files:
        for row in rows_of(results.suite(suite)):
            for record in row.records:
                if row.base is None or not row.base.median_ms or not record.median_ms or record.ours:
                    continue
                duel = Duel(record.median_ms / row.base.median_ms, row.base, record, results)
                if duel.key not in lowest or duel.ratio < lowest[duel.key].ratio:
                    lowest[duel.key] = duel
    return list(lowest.values())


def letters(files: Sequence[Results]) -> dict[Path, str]:
    """Return a letter for each result file, {path: letter}; a single file gets none, which is ""."""
    return {files[0].path: ""} if len(files) == 1 else {r.path: LETTERS[i] for i, r in enumerate(files)}


def chart(files: Sequence[Results]) -> str | None:
    """Return the chart as SVG, or None if the suite `pipeline` has no duels.

    It has a bar for each of the `duels`, as long as its ratio, and a line at ratio 1. If the duels are from several
    files, each bar has the letter of its machine.
    """
    rows = duels(files, "pipeline")
    if not rows:
        return None
    used = list({r.path: r for r in files if any(d.results.path == r.path for d in rows)}.values())
    letter = letters(used)
    rivals = " / ".join(dict.fromkeys(d.rival.implementation for d in rows))
    scale = (WIDTH - LEFT - RIGHT) / max(1.0, *(d.ratio for d in rows))
    sources = []
    for results in used:
        quick = "QUICK RUN, not to be quoted. " if results.environment["quick"] else ""
        name = f"{letter[results.path]}: " if letter[results.path] else ""
        sources.append(f"{name}{quick}{results.machine}, {results.versions}.")
    if len(used) > 1:
        sources.append("Where several machines measured the same, the lowest ratio is shown.")
    sources[-1] += "" if any(r.on_gpu for r in used) else " GPU: not measured yet."
    sources = [line for source in sources for line in textwrap.wrap(source, 130)]
    height = TOP + STEP * len(rows) + 18 + 16 * len(sources)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="14" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="16" y="26" font-size="17" font-weight="bold">From a frame to keypoints: speed relative to '
        f"{escape(rivals)}</text>",
        f'<text x="{LEFT + scale:.1f}" y="{TOP - 10}" text-anchor="middle" font-size="12">equal</text>',
    ]
    for i, duel in enumerate(rows):
        ours, y = duel.ours, TOP + STEP * i
        label = f"{ours.name.replace(' frame to keypoints', '')}, {SHORT.get(ours.dtype, ours.dtype)}"
        where = f", {letter[duel.results.path]}" if len(used) > 1 else ""
        lines += [
            f'<text x="{LEFT - 10}" y="{y + BAR - 4}" text-anchor="end">{escape(label)}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{duel.ratio * scale:.1f}" height="{BAR}" fill="{OURS}"/>',
            f'<text x="{LEFT + duel.ratio * scale + 8:.1f}" y="{y + BAR - 4}"><tspan font-weight="bold">'
            f"{duel.ratio:.2f}x</tspan> ({digits(ours.throughput)} people/s{where})</text>",
        ]
    bottom = TOP + STEP * len(rows)
    lines += [
        f'<line x1="{LEFT + scale:.1f}" y1="{TOP - 6}" x2="{LEFT + scale:.1f}" y2="{bottom}" stroke="{PALE}" '
        f'stroke-width="2"/>',
        *(
            f'<text x="16" y="{bottom + 22 + 16 * i}" font-size="12">{escape(line)}</text>'
            for i, line in enumerate(sources)
        ),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def headlines(files: Sequence[Results]) -> str:
    """Return a summary of result files in Markdown.

    It has one table row per case with rivals, except for single ops: of these it gives the number of comparisons in
    which ours is faster, and the lowest ratio of rival to ours. Of several files with the same case, the lowest ratio
    counts; the letters of the files say which machine it is from, and the others' ratios follow in parentheses.
    """
    letter = letters(files)
    rows = []
    groups: dict[tuple[Any, ...], dict[Path, list[Record]]] = {}
    for results in files:
        for r in (r for r in results.records if r.suite != "ops"):
            key = (r.suite, r.name, r.dtype, r.batch, results.on_gpu)
            groups.setdefault(key, {}).setdefault(results.path, []).append(r)
    for (_, name, dtype, batch, _), by_file in groups.items():
        cells: list[str] = []
        ratios: dict[str, list[tuple[str, str, str]]] = {}
        for path, group in by_file.items():
            mark = f"{letter[path]}: " if letter[path] else ""
            rivals, ours = [r for r in group if not r.ours], baseline(group, True)
            reasons = [f"{mark}{median(r)}" for r in group if r.ours and r.missing]
            if rivals and (ours or reasons):
                times = f"{mark}{ours.label}: {digits(ours.median_ms)} ms, {digits(ours.throughput)}/s" if ours else ""
                cells += [times] if ours else reasons
                for r in rivals:
                    ratios.setdefault(r.label, []).append((quotient(r, ours).split(" ")[0], median(r), letter[path]))
        if cells:
            rows.append([[name], [dtype], [str(batch)], cells, [f"{k} {_lowest(v)}" for k, v in ratios.items()]])
    text = [markdown(["name", "dtype", "batch", "ours", "rival / ours"], rows)] if rows else []
    if ops := duels(files, "ops"):
        worst = min(ops, key=lambda duel: duel.ratio)
        r, won = worst.rival, sum(duel.ratio > 1 for duel in ops)
        where = cell(f"{r.name}, {r.dtype}, batch {r.batch}, against {r.label}")
        where += f", {letter[worst.results.path]}" if len(files) > 1 else ""
        text.append(f"Single ops: ours is faster in {won} of {len(ops)} comparisons; the lowest ratio is ")
        text[-1] += f"{worst.ratio:.2f} ({where})."
    return "\n\n".join(text or ["No comparison in this file."])


def _lowest(found: Sequence[tuple[str, str, str]]) -> str:
    """Return the lowest ratio, its machine and then the other ratios, as text: "1.03 on A (B: 1.40)".

    `found` has a rival's (ratio or "-", median or why it is missing, letter of the file) in every file. If there is no
    ratio, the text is the reason of the first file, or "-".
    """
    known = sorted((f for f in found if f[0] != "-"), key=lambda f: float(f[0]))
    if not known:
        return found[0][1] if found[0][1].startswith("missing") else "-"
    ratio, _, letter = known[0]
    others = "; ".join(f"{other}: {r}" for r, _, other in known[1:])
    return f"{ratio}{f' on {letter}' if letter else ''}{f' ({others})' if others else ''}"


def speed_section(files: Sequence[Results]) -> str:
    """Return the text between the markers of docs/speed.md: the machines, and `headlines`."""
    letter = letters(files)
    parts = ["Ratios are rival / ours in time: above 1, ours is faster."]
    if len(files) > 1:
        parts[0] += " Where several machines measured the same, the lowest ratio comes first, and its machine after it."
    for results in files:
        e = results.environment
        quick = "**Quick run, do not quote these numbers.** " if e["quick"] else ""
        mark = f"{letter[results.path]}: " if letter[results.path] else ""
        parts.append(
            f"{mark}{quick}**{cell(results.machine)}**, {cell(results.versions)}, from `{cell(e['command'])}`"
            + ("" if mark else ":")
        )
    return "\n\n".join([*parts, headlines(files)])


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
