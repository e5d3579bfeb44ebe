"""Tables, figures, comparisons, and the numbers of docs/speed.md, from the result files of the benchmarks.

Run `python benchmarks/report.py tables|figures|compare|docs FILE ...`, or `convert DIR` for the folder of a
`bench --budget` run, and then `ship FILE` to put the choices that it found into the package. The exit code is 1 for an
error, which is reported in one line, or if `compare` finds that something became slower, and 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

if __name__ == "__main__":  # as a script: sys.path starts with this folder, where `benchmarks` is not found
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.records import Results, digits, load
from benchmarks.speed_page import END, START, chart, rewrite, speed_section
from benchmarks.tables import tables
from vitpose_fast.bench import free_path, result_name
from vitpose_fast.files import write_atomic

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "kernels" / "vitpose_kernels" / "gpu" / "tuned.json"


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
    results = [load(file) for file in sorted(options.files, key=lambda file: file.name)]
    rewrite(options.page, speed_section(results))
    drawn = chart(results)
    if drawn is not None:
        write_atomic(options.page.with_suffix(".svg"), lambda target: target.write_text(drawn, encoding="utf-8"))
    return 0


def convert(options: argparse.Namespace) -> int:
    from benchmarks.convert import merged, read_tuned, result_of, text_of, tuned_of  # imports torch

    result = result_of(options.folder)
    stamp = result["environment"]
    name = result_name(stamp["device"], stamp["date"], stamp["quick"])
    out = options.out or free_path(ROOT / "benchmarks" / "results", name)
    tuned = options.tuned or out.with_name(f"{out.stem}-tuned.json")
    if out.absolute() == tuned.absolute():
        raise ValueError(f"got {out} for both files; choose two names")
    if out.exists():
        raise ValueError(f"{out} exists already; choose another name")
    found = tuned_of(result)
    files = {out: json.dumps(result, indent=1) + "\n"}
    if found["chips"]:
        files[tuned] = text_of(merged(read_tuned(tuned), found))
    for path, text in files.items():
        write_atomic(path, lambda target, text=text: target.write_text(text, encoding="utf-8"))
    count = sum(map(len, found["chips"].values()))
    chosen = f"{count} choices for {', '.join(found['chips'])} in {tuned}" if count else "no choices for a known GPU"
    print(f"{len(result['records'])} records in {out}, {chosen}")
    return 0


def ship(options: argparse.Namespace) -> int:
    from benchmarks.convert import merged, read_tuned, text_of  # imports torch

    new = read_tuned(options.file)
    if not new["chips"]:
        raise ValueError(f"{options.file}: holds no choices")
    quick = [name for name, stamp in new.get("measured", {}).items() if stamp.get("quick")]
    if quick:
        raise ValueError(f"{options.file}: the choices for {quick[0]} are from a quick run; measure without --quick")
    choices = merged(read_tuned(options.into), new)
    write_atomic(options.into, lambda target: target.write_text(text_of(choices), encoding="utf-8"))
    print(f"{options.into}: " + ", ".join(f"{len(rows)} choices for {name}" for name, rows in choices["chips"].items()))
    return 0


def fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e6:
        raise ValueError(text)
    return value


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="report.py", description=__doc__)
    commands = root.add_subparsers(required=True, metavar="tables | figures | compare | docs | convert | ship")
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
    text = f"rewrite the text between {START} and {END}, and the chart beside the page"
    command = commands.add_parser("docs", help=text)
    command.add_argument("files", type=Path, nargs="+", metavar="FILE")
    command.add_argument("--page", type=Path, default=ROOT / "docs" / "speed.md", metavar="PATH")
    command.set_defaults(run=write_docs)
    command = commands.add_parser("convert", help="make a result file and tuned.json from a `bench --budget` run")
    command.add_argument("folder", type=Path, metavar="DIR")
    command.add_argument("--out", type=Path, metavar="FILE", help="default: benchmarks/results/<device>-<date>.json")
    text = "a tuned.json that the choices are added to; default: next to the result file, ...-tuned.json"
    command.add_argument("--tuned", type=Path, metavar="FILE", help=text)
    command.set_defaults(run=convert)
    command = commands.add_parser("ship", help="add the choices of a tuned.json to those that the package ships")
    command.add_argument("file", type=Path, metavar="FILE")
    command.add_argument("--into", type=Path, default=SHIPPED, metavar="FILE", help="default: the file in the package")
    command.set_defaults(run=ship)
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
