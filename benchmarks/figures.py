"""Figures of a result file: speed against accuracy, as in Fig. 1 of the paper, and the time of each layer."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.records import Record, Results, baseline, digits, gather

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS, EAGER, RIVAL, INK = "#0b62c4", "#9cc3ee", "#d9a441", "#333333"
POINTS_PER_M = 2.0  # area of a bubble in square points per million parameters
DPI = 150
Box = tuple[float, float, float, float]  # left, bottom, right, top, in pixels
Label = tuple[Any, float]  # a text anchored at the center of its bubble, and the bubble's radius in points


def canvas(width: float, height: float) -> Figure:
    """Create a figure of this size in inches, without pyplot: pyplot would keep it alive and change the backend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def caption(figure: Figure, results: Results, text: str) -> None:
    device = f"{results.machine}, {results.versions}"
    quick = "Quick run: few repetitions, do not quote these numbers. " if results.environment["quick"] else ""
    lines = [line for part in (quick + device, text) for line in textwrap.wrap(part, int(figure.get_figwidth() * 13))]
    figure.text(
        0.5,
        0.08 / figure.get_figheight(),
        "\n".join(lines),
        ha="center",
        va="bottom",
        fontsize=8.5,
        color=INK,
        parse_math=False,
    )


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=DPI, facecolor="white", metadata={"Software": None})


# --- speed against accuracy


def bubbles(results: Results) -> tuple[Figure | None, str]:
    """Draw speed against accuracy from the suite `table12`: one panel per dtype, at its most frequent batch size.

    Only records with a time, a number of parameters and the paper's AP are drawn and counted. Returns (figure, ""), or
    (None, reason) if there is nothing to draw.
    """
    shown = [r for r in results.suite("table12") if r.throughput and _ap(r) and _size(r)]
    panels = []
    for (dtype,), records in gather(shown, "dtype").items():
        batches = gather(records, "batch")
        (batch,) = max(batches, key=lambda b: (len(batches[b]), b))
        panels.append((dtype, batch, batches[batch,]))
    if not panels:
        return None, "no table12 record has a measured time, a size and the paper's AP"
    figure = canvas(1.0 + 8.6 * len(panels), 8.6)
    figure.subplots_adjust(left=0.7 / figure.get_figwidth(), right=0.985, bottom=0.25, top=0.95, wspace=0.03)
    every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    labels = []
    for axes, (dtype, batch, records) in zip(every, panels, strict=True):
        labels.append((axes, bubble_panel(axes, gather(records, "name"))))
        axes.set_title(f"{dtype}{' (TF32)' if dtype == 'float32' and results.on_gpu else ''}, batch {batch}")
    every[0].set_ylabel("AP on COCO val (%), from Table 12 of the paper")
    names = {r.name for r in shown}
    absent = sorted({r.name for r in results.suite("table12")} - names)
    more = f" Not shown (no time or no AP): {', '.join(absent)}." if absent else ""
    text = "Bubble area: parameters. The throughput is measured here, the accuracy is the paper's."
    caption(figure, results, text + more)
    _legend(figure)
    for axes, texts in labels:
        place_labels(axes, texts)
    return figure, ""


def _ap(record: Record) -> float | None:
    return record.extra.get("paper_ap")


def _size(record: Record) -> float | None:
    return record.extra.get("params_m") or record.extra.get("paper_params_m")


def bubble_panel(axes: Axes, systems: dict[tuple[Any, ...], list[Record]]) -> list[Label]:
    """Draw the bubbles of one panel and return their labels, which `place_labels` has to place.

    `systems` maps (name,) to the records of a system. Drawn are the first record that is not ours (eager PyTorch), our
    record if it was measured, and a line between the two.
    """
    labels = []
    for (name,), records in systems.items():
        fast, slow = baseline(records, True), next((r for r in records if not r.ours), None)
        vit = name.startswith("ViTPose")
        if fast and slow:
            axes.plot([slow.throughput, fast.throughput], [_ap(fast)] * 2, color=OURS, lw=1.1, ls=":", zorder=1)
        for record, color in ((slow, EAGER if vit else RIVAL), (fast, OURS)):
            if record:
                area = POINTS_PER_M * _size(record)
                style = {"color": color, "alpha": 0.8, "edgecolor": INK, "linewidth": 0.6}
                axes.scatter([record.throughput], [_ap(record)], s=area, zorder=2, **style)
        anchor = fast or slow
        label = f"{name.removesuffix(' 256x192')}, {_size(anchor):.0f} M"
        text = axes.annotate(label, (anchor.throughput, _ap(anchor)), fontsize=9, color=OURS if vit else INK, zorder=3)
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5})
        labels.append((text, math.sqrt(POINTS_PER_M * _size(anchor) / math.pi)))
    axes.set_xscale("log")
    axes.set_xlabel("throughput (people per second, log scale)")
    axes.margins(x=0.14, y=0.13)
    _ticks(axes)
    axes.grid(True, which="both", color="#e4e4e4", lw=0.6, zorder=0)
    return labels


def _ticks(axes: Axes) -> None:
    """Put x ticks at 1, 2 and 5 of every decade, as plain numbers, because a short range may have no power of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D

    kinds = {"other systems, eager": RIVAL, "ViTPose, eager PyTorch": EAGER, "ViTPose, vitpose_fast": OURS}
    dots = [Line2D([], [], marker="o", ls="", ms=8, color=c, mec=INK, label=text) for text, c in kinds.items()]
    for size in (30, 100, 300):
        width = 2 * math.sqrt(POINTS_PER_M * size / math.pi)
        dots.append(Line2D([], [], marker="o", ls="", mfc="none", mec=INK, ms=width, label=f"{size} M parameters"))
    figure.legend(
        handles=dots,
        ncols=3,
        fontsize=9,
        frameon=False,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.095),
        handletextpad=1.6,
        columnspacing=4,
        labelspacing=1.8,
    )


def place_labels(axes: Axes, labels: list[Label]) -> None:
    """Move every label to the first free place of `_offsets`, and draw a line from its bubble to it.

    A place is free if it lies inside the axes and covers no bubble and no label placed before. If none is free, the
    last place is used.
    """
    figure = axes.figure
    figure.canvas.draw()  # fixes the layout, so that positions in pixels are known
    scale, inside = figure.dpi / 72, axes.get_window_extent()
    boxes = [text.get_window_extent() for text, _ in labels]
    taken = [_around(axes, c.get_offsets()[0], math.sqrt(c.get_sizes()[0] / math.pi) * scale) for c in axes.collections]
    for (text, radius), box in zip(labels, boxes, strict=True):
        x, y = axes.transData.transform(text.xy)
        width, height = box.width + 4 * scale, box.height + 3 * scale
        for dx, dy in _offsets((radius + 5) * scale, width, height):
            place = (x + dx - width / 2, y + dy - height / 2, x + dx + width / 2, y + dy + height / 2)
            within = inside.x0 < place[0] and place[2] < inside.x1 and inside.y0 < place[1] and place[3] < inside.y1
            if within and not any(_meet(place, other) for other in taken):
                break
        taken.append(place)
        text.set(position=(dx / scale, dy / scale), ha="center", va="center", anncoords="offset points")
        end = (
            min(max(0, dx - width / 2), dx + width / 2) / scale,
            min(max(0, dy - height / 2), dy + height / 2) / scale,
        )
        line = {"arrowstyle": "-", "color": "#777777", "lw": 0.7, "shrinkA": 0, "shrinkB": radius}
        axes.annotate("", text.xy, end, textcoords="offset points", arrowprops=line, zorder=1)


def _around(axes: Axes, point: Any, radius: float) -> Box:
    x, y = axes.transData.transform(point)
    return x - radius, y - radius, x + radius, y + radius


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _offsets(radius: float, width: float, height: float) -> Iterator[tuple[float, float]]:
    """Yield offsets (x, y), y upward, from the center of a bubble to possible centers of its label, all in pixels.

    The label has this width and height, and its nearest edge is `radius` away. First it is to the right, above, below
    and to the left of the bubble, then above or below and shifted sideways. The same places follow at 13 larger
    distances.
    """
    sides = (
        (1, 0),
        (0, 1),
        (0, -1),
        (-1, 0),
        (1, 1),
        (1, -1),
        (-1, 1),
        (-1, -1),
        (0.5, 1),
        (0.5, -1),
        (-0.5, 1),
        (-0.5, -1),
    )
    for ring, (h, v) in itertools.product(range(14), sides):
        far = radius + ring * height * 0.5
        yield h * (far + width / 2) if not v else h * width / 2, v * (far + height / 2)


# --- layers


def layers(results: Results) -> tuple[Figure | None, str]:
    """Draw the time of each layer with our ops: one panel per model, for the dtype and batch size with the most layers.

    Returns (figure, ""), or (None, reason) if there is nothing to draw.
    """
    ours = [r for r in results.suite("ops") if r.ours and {"model", "layer", "calls"} <= r.extra.keys()]
    models: dict[str, list[Record]] = {}
    for record in ours:
        models.setdefault(record.extra["model"], []).append(record)
    panels = {model: _one_run(records) for model, records in models.items()}
    panels = {model: records for model, records in panels.items() if any(r.median_ms for r in records)}
    if not panels:
        return None, "no measured ops record of ours has a model, a layer and calls"
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    longest = max(4, *map(len, panels.values()))
    label = 0.5 + 0.07 * max(len(_layer(r)) for records in panels.values() for r in records)  # inches
    wide, tall = columns * (label + 6.6) + 0.2, 1.15 + rows * (1.0 + 0.36 * longest)
    figure = canvas(wide, tall)
    figure.subplots_adjust(left=label / wide, right=1 - 0.2 / wide, bottom=1.25 / tall, top=1 - 0.5 / tall)
    figure.subplots_adjust(wspace=label / 6.6, hspace=1.0 / (0.36 * longest))
    every = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (model, records) in zip(every, panels.items()):
        layer_panel(axes, model, records)
    for axes in every[len(panels) :]:
        axes.set_axis_off()
    text = "Measured: calls in a forward pass times the median of one call. Floor: the same at the measured roofline."
    caption(figure, results, text)
    return figure, ""


def _one_run(records: list[Record]) -> list[Record]:
    runs = gather(records, "dtype", "batch").values()
    return max(runs, key=lambda run: (len(run), run[0].dtype == "bfloat16", run[0].batch))


def _layer(record: Record) -> str:
    return f"{record.extra['layer']} × {record.extra['calls']}"


def layer_panel(axes: Axes, model: str, records: list[Record]) -> None:
    """Draw two bars per layer, its measured time and its floor; the title gives the sums and names missing layers.

    The floor is the time at the roofline, and has no bar if it is unknown. `records` are of one dtype and batch size.
    """
    present = [r for r in records if r.median_ms]
    times = [r.extra["calls"] * r.median_ms for r in present]
    floors = [t * r.roofline_fraction if r.roofline_fraction else None for t, r in zip(times, present)]
    rows = range(len(present))
    axes.barh([i - 0.2 for i in rows], times, 0.38, color=OURS, label="measured")
    known = [(i + 0.2, f) for i, f in enumerate(floors) if f]
    axes.barh([i for i, _ in known], [f for _, f in known], 0.38, color=RIVAL, label="floor")
    for i, (time, floor) in enumerate(zip(times, floors)):
        part = f" ms, floor {100 * floor / time:.0f} % of it" if floor else " ms, floor unknown"
        axes.annotate(
            digits(time) + part, (max(time, floor or 0), i), (4, 0), textcoords="offset points", fontsize=8, va="center"
        )
    axes.set_yticks(rows, [_layer(r) for r in present], fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.3)
    axes.set_xlabel("time in a forward pass (ms)")
    total = f"ViTPose-{model}, {present[0].dtype}, batch {present[0].batch}: {digits(sum(times))} ms"
    total += f", floor {digits(sum(floors))} ms" if all(floors) else ", floor not known for all layers"
    missing = [r.extra["layer"] for r in records if not r.median_ms]
    axes.set_title(total + (f"\nwithout {', '.join(missing)} (missing)" if missing else ""), fontsize=11)
    axes.legend(loc="upper right", bbox_to_anchor=(1, -0.06), ncols=2, fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
