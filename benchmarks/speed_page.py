"""What docs/speed.md says of result files, between its markers, and the chart in the README.

The chart shows how many times faster than its rivals our library gets from a frame to keypoints. It is SVG text that
depends on nothing but the result file, so that a test can check whether the committed chart is up to date.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from html import escape
from pathlib import Path

from benchmarks.records import Record, Results, baseline, digits, gather, rows_of
from benchmarks.tables import cell, markdown, median, quotient

START, END = "<!-- speed -->", "<!-- /speed -->"
OURS, INK, PALE = "#0b62c4", "#333333", "#d9a441"
WIDTH, LEFT, RIGHT, TOP, STEP, BAR = 860, 320, 190, 58, 26, 16
SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def duels(results: Results, suite: str) -> list[tuple[float, Record, Record]]:
    """Return (ratio, our record, the rival's record) for every measured rival in a suite.

    The ratio is the rival's time over ours: above 1, ours is faster. Cases in which ours was not measured are left out.
    """
    return [
        (record.median_ms / row.base.median_ms, row.base, record)
        for row in rows_of(results.suite(suite))
        for record in row.records
        if row.base is not None and row.base.median_ms and record.median_ms and not record.ours
    ]


def chart(results: Results) -> str | None:
    """Return the chart as SVG, or None if the suite `pipeline` has no duels.

    It has a bar for each of the `duels`, as long as its ratio, and a line at ratio 1.
    """
    rows = duels(results, "pipeline")
    if not rows:
        return None
    rivals = " / ".join(dict.fromkeys(rival.implementation for *_, rival in rows))
    scale = (WIDTH - LEFT - RIGHT) / max(1.0, *(ratio for ratio, *_ in rows))
    height = TOP + STEP * len(rows) + 34
    device = f"{results.environment['device']}, {results.versions}"
    quick = "QUICK RUN, not to be quoted. " if results.environment["quick"] else ""
    source = f"{escape(quick + device)}.{'' if results.on_gpu else ' GPU: not measured yet.'}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="14" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="16" y="26" font-size="17" font-weight="bold">From a frame to keypoints: speed relative to '
        f"{escape(rivals)}</text>",
        f'<text x="{LEFT + scale:.1f}" y="{TOP - 10}" text-anchor="middle" font-size="12">equal</text>',
    ]
    for i, (ratio, ours, _) in enumerate(rows):
        y = TOP + STEP * i
        label = f"{ours.name.replace(' frame to keypoints', '')}, {SHORT.get(ours.dtype, ours.dtype)}"
        lines += [
            f'<text x="{LEFT - 10}" y="{y + BAR - 4}" text-anchor="end">{escape(label)}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{ratio * scale:.1f}" height="{BAR}" fill="{OURS}"/>',
            f'<text x="{LEFT + ratio * scale + 8:.1f}" y="{y + BAR - 4}"><tspan font-weight="bold">{ratio:.2f}x</tspan>'
            f" ({digits(ours.throughput)} people/s)</text>",
        ]
    bottom = TOP + STEP * len(rows)
    lines += [
        f'<line x1="{LEFT + scale:.1f}" y1="{TOP - 6}" x2="{LEFT + scale:.1f}" y2="{bottom}" stroke="{PALE}" '
        f'stroke-width="2"/>',
        f'<text x="16" y="{bottom + 22}" font-size="12">{source}</text>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


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
    ops = duels(results, "ops")
    text = [markdown(["name", "dtype", "batch", "ours", "rival / ours"], rows)] if rows else []
    if ops:
        worst, _, r = min(ops, key=lambda duel: duel[0])
        won = sum(ratio > 1 for ratio, *_ in ops)
        where = cell(f"{r.name}, {r.dtype}, batch {r.batch}, against {r.label}")
        text.append(f"Single ops: ours is faster in {won} of {len(ops)} comparisons; the lowest ratio is {worst:.2f}")
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
