"""`vitpose-fast bench --budget SECONDS --out DIR`: proof and numbers in the minutes that a GPU is at hand.

A list of steps in the order of their worth, each in a process group of its own with a hard limit: one that fails, hangs
or loses the device is one line, and the next begins. The runner itself never touches the device. Whatever is measured
is on the disk at once (a line of JSON each), so a kill at any moment costs only what was being measured.

Files, all flat in DIR: env.json, compile.json, smoke.jsonl, results.jsonl, junit.xml, sanitizer.txt, log.txt, and
summary.txt, which is written anew around every step and printed last. `python benchmarks/report.py convert DIR` makes a
result file of them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.processes import Clock, kill_group, start, wait
from benchmarks.records import digits, read_lines
from vitpose_fast.files import remove_leftovers, write_atomic

ROOT = Path(__file__).resolve().parents[1]
FILES = (
    "env.json",
    "compile.json",
    "smoke.jsonl",
    "results.jsonl",
    "junit.xml",
    "sanitizer.txt",
    "log.txt",
    "summary.txt",
)
RESERVE = 10.0  # seconds kept for the summary
_GRACE = 4.0  # seconds before its limit at which a step should begin nothing new, if not a sixth of its time
_MOST_LOG = 1 << 20  # bytes of log that one step may leave


@dataclass(frozen=True)
class Run:
    """What the steps of a run depend on."""

    out: Path
    device: str
    commit: str | None
    quick: bool

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"


@dataclass(frozen=True)
class Step:
    """One part of a run.

    Attributes:
        seconds: its limit. least: not begun with less than that left; steps before it leave it that much.
        command: its arguments after `python -m`, from the run and the moment (seconds since 1970) when it should end by
            itself: what is cut off by the limit loses what it was measuring.
        absent: why it cannot take place in a run, None where it can.
    """

    name: str
    seconds: float
    least: float
    command: Callable[[Run, float], list[str]]
    absent: Callable[[Run], str | None] = lambda run: None


def _env(run: Run, until: float) -> list[str]:
    quick = ["--quick"] if run.quick else []
    commit = ["--commit", run.commit] if run.commit else []
    return ["benchmarks.machine", "--device", run.device, "--out", str(run.out / "env.json"), *quick, *commit]


def _warm(run: Run, until: float) -> list[str]:
    small = [] if run.cuda and not run.quick else ["--small"]
    return ["benchmarks.warm", "--out", str(run.out / "compile.json"), "--until", f"{until:.1f}", *small]


def _smoke(run: Run, until: float) -> list[str]:
    small = [] if run.cuda and not run.quick else ["--small"]
    return ["benchmarks.smoke", "all", "--device", run.device, "--lines", str(run.out / "smoke.jsonl"), *small]


def _suite(*tests: str, select: str = "", on_cpu: str = "", compiled: str = "no") -> Callable[[Run, float], list[str]]:
    """Benchmarks by pytest, in this order; `on_cpu` is selected there instead."""

    def command(run: Run, until: float) -> list[str]:
        out = ["pytest", "-q", "-p", "no:cacheprovider", "--benchmark-disable-gc", "--benchmark-columns=median,rounds"]
        out += ["--device", run.device, "--compiled", compiled, "--lines", str(run.out / "results.jsonl")]
        out += ["--until", f"{until:.1f}", *(["--quick"] if run.quick else [])]
        out += ["--commit", run.commit] if run.commit else []
        chosen = select if run.cuda else on_cpu or select
        out += ["-k", chosen] if chosen else []
        return [*out, *(f"benchmarks/{test}" for test in tests)]

    return command


def _tests(run: Run, until: float) -> list[str]:
    """The tests that have something to say on a GPU; in a quick run a few of them."""
    # -v: where the limit cuts it off, the log says how far it came.
    out = ["pytest", "-v", "-p", "no:cacheprovider", "--junitxml", str(run.out / "junit.xml")]
    if find_spec("xdist") is not None:
        out += ["-n", str(max(1, (os.cpu_count() or 1) - 2)), "--max-worker-restart=20"]
    if find_spec("pytest_timeout") is not None:
        out += [f"--timeout={max(until - time.time() - 10, 10):.0f}"]  # a property compiles tens of kernels
    if run.quick:
        return [*out, "tests/kernels/gpu/test_heatmap_target.py", "tests/kernels/gpu/test_layer_norm.py"]
    more = ("tests/test_runtime.py", "tests/test_predictor.py", "tests/models/test_train_with_triton.py")
    return [*out, "tests/kernels/gpu", *more]


def _sanitize(run: Run, until: float) -> list[str]:
    """memcheck first, of the ops with the most addresses."""
    ops = ["linear", "attention", "crop", "deconv", "split_ffn"]
    options = ["--out", str(run.out / "sanitizer.txt"), "--until", f"{until:.1f}"]
    return ["benchmarks.sanitize", *ops, "--tools", "memcheck", "racecheck", *options]


def _needs_gpu(run: Run) -> str | None:
    return None if run.cuda else "needs a GPU"


def _needs_sanitizer(run: Run) -> str | None:
    return _needs_gpu(run) or (None if shutil.which("compute-sanitizer") else "compute-sanitizer is not installed")


def _needs_triton(run: Run) -> str | None:
    return None if find_spec("triton") else "triton is not installed"


def _needs_pytest(run: Run) -> str | None:
    absent = [name for name in ("pytest", "pytest_benchmark") if find_spec(name) is None]
    return f"{' and '.join(absent)} not installed" if absent else None


# The selections name what decides how fast a model is; `bench --all` measures everything that can be.
_NETWORK = "test_network and not decoding and not 16-8 and not 16-72"  # batch 64 and 1
_ATTENTION = "B- and (whole or shift)"
_MAPS = ("::test_heatmap_decode", "::test_heatmap_loss", "::test_crop")
_DECODER = _suite(
    "test_ops.py::test_deconv",
    *(f"test_ops_on_maps.py{test}" for test in _MAPS),
    select="not S- and not L- and not H-",
)
_TABLE12 = _suite(
    "test_table12.py::test_vitpose",
    "test_training_step.py",
    "test_table12.py::test_rival",
    select="bfloat16 or 1/16 or (8x8 and shift and pool)",
    on_cpu="ViTPose-S or 1/16",
)
# Limits for two runs of 260 and 385 seconds on one GPU with 16 cores; estimates, none is measured yet.
STEPS = (
    Step("env", 30, 3, _env),
    Step("warm", 70, 8, _warm, _needs_triton),
    Step("smoke", 70, 10, _smoke, _needs_triton),
    Step("linear", 45, 12, _suite("test_tiles.py", select="B-"), _needs_pytest),
    Step("model", 75, 15, _suite("test_model.py", select=_NETWORK), _needs_pytest),
    Step("attention", 45, 12, _suite("test_ops.py::test_attention", select=_ATTENTION), _needs_pytest),
    Step("decoder", 45, 12, _DECODER, _needs_pytest),
    Step("tests", 140, 20, _tests, _needs_pytest),
    Step("rivals", 110, 30, _suite("test_model.py", select=f"{_NETWORK} and b-", compiled="only"), _needs_gpu),
    Step("table12", 60, 15, _TABLE12, _needs_pytest),
    Step("sanitize", 60, 15, _sanitize, _needs_sanitizer),
)
NAMES = tuple(step.name for step in STEPS)


@dataclass
class Outcome:
    """How a step went."""

    step: Step
    state: str = "not begun"
    seconds: float = 0.0
    code: int | None = None


class Runner:
    """Runs steps within a budget and keeps the summary of them on the disk."""

    def __init__(self, run: Run, steps: Sequence[Step], clock: Clock) -> None:
        self.run, self.clock = run, clock
        self.outcomes = [Outcome(step) for step in steps]
        self.process: Any = None

    def run_all(self) -> int:
        """0, or 1 where a step failed, was killed or could not begin for want of time."""
        for i, outcome in enumerate(self.outcomes):
            self._run_step(outcome, [o.step for o in self.outcomes[i + 1 :]])
            self.save()
        return int(any(not o.state.startswith(("done", "absent")) for o in self.outcomes))

    def _run_step(self, outcome: Outcome, later: Sequence[Step]) -> None:
        """Run a step for as long as it may, or until those after it have what they need at least, if that fits."""
        step, left = outcome.step, self.clock.left - RESERVE
        reason = step.absent(self.run)
        if reason is not None:
            outcome.state = f"absent: {reason}"
            return
        if left < step.least:
            outcome.state = f"not begun: {max(left, 0):.0f} s left, needs {step.least:.0f}"
            return
        needed = step.least
        for other in later:
            if other.absent(self.run) is None and needed + other.least <= left:
                needed += other.least
        seconds, began = min(step.seconds, left - (needed - step.least)), self.clock.used
        until = time.time() + seconds - max(_GRACE, seconds / 6)
        outcome.state = "running"
        self.save()
        log = self.run.out / "log.txt"
        with open(log, "ab") as file:
            before = file.tell()
            command = [sys.executable, "-m", *step.command(self.run, until)]
            file.write(f"\n== {step.name}: {' '.join(command[1:])}\n".encode())
            file.flush()
            self.process = start(command, file, self._environment(step), ROOT)
            outcome.code = wait(self.process, seconds)
            self.process = None
        outcome.seconds = self.clock.used - began
        if outcome.code is None:
            outcome.state = f"killed at its limit of {seconds:.0f} s"
        elif outcome.code == 0:
            outcome.state = "done"
        else:
            outcome.state = f"failed, code {outcome.code}"
            print(f"== {step.name} {outcome.state}; the end of its log:")
            print("\n".join(_tail(log, before, 1200).splitlines()[-12:]), flush=True)
        _trim(log, before)
        remove_leftovers(self.run.out)
        print(f"{step.name:10}{outcome.state:28}{outcome.seconds:6.1f} s", flush=True)

    def _environment(self, step: Step) -> dict[str, str]:
        """What a step finds: the checkout on the path; on a CPU kernels in the interpreter, but for `warm`."""
        environment = dict(os.environ, PYTHONUNBUFFERED="1")
        paths = [str(ROOT), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        environment.pop("TRITON_INTERPRET", None)
        if not self.run.cuda and step.name in ("smoke", "tests"):
            environment["TRITON_INTERPRET"] = "1"
        return environment

    def save(self) -> None:
        text = summary(self.run, self.outcomes, self.clock) + "\n"
        write_atomic(self.run.out / "summary.txt", lambda path: path.write_text(text, encoding="utf-8"))

    def stop(self, *_: Any) -> None:
        """Asked to end: kill the step, write what there is, leave with 1."""
        if self.process is not None:
            kill_group(self.process)
        for outcome in self.outcomes:
            if outcome.state == "running":
                outcome.state = "stopped from outside"
        self.save()
        print((self.run.out / "summary.txt").read_text(encoding="utf-8"), flush=True)
        os._exit(1)


def _tail(path: Path, since: int, size: int) -> str:
    """The last `size` bytes that were written to a file after `since`."""
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(since, end - size))
        return file.read().decode(errors="replace")


def _trim(path: Path, since: int) -> None:
    """Cut the middle out of what one step wrote, if that is more than `_MOST_LOG` bytes."""
    size = path.stat().st_size - since
    if size <= _MOST_LOG:
        return
    end = _tail(path, since, _MOST_LOG // 2).encode()
    with open(path, "r+b") as file:
        file.truncate(since + _MOST_LOG // 2)
        file.seek(0, os.SEEK_END)
        file.write(f"\n... {size - _MOST_LOG} bytes left out ...\n".encode() + end)


# --- the summary


def summary(run: Run, outcomes: Sequence[Outcome], clock: Clock) -> str:
    """What happened, on one screen: where, how every step went, what is wrong, and the ratios."""
    out = [_where(run), f"{clock.used:.0f} of {clock.budget:.0f} s", ""]
    for o in outcomes:
        try:
            said = _said(run, o.step.name)
        except (OSError, ValueError, ElementTree.ParseError):  # a step that was killed may leave half a file
            said = ""
        out.append(f"{o.step.name:10}{o.seconds:6.1f} s  {o.state}{': ' if said else ''}{said}")
    wrong = [row for row in _rows(run, "smoke.jsonl") if row.get("problem")]
    out += ["", f"{len(wrong)} calls are wrong:"] if wrong else []
    for row in wrong[:12]:
        what = f"{row['op']} {row['label']}, {row['model']} {row['batch']}, {row['dtype']}"
        out.append(f"  {what}: {row['problem']}"[:150])
    tables = _ratios(_rows(run, "results.jsonl"))
    out += ["", "median ms of ours, and rival / ours (above 1: ours is faster):", *tables] if tables else []
    return "\n".join(out)


def _where(run: Run) -> str:
    try:
        e = json.loads((run.out / "env.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{run.device}, commit {run.commit or 'unknown (give it with --commit)'}"
    ceilings = f"{digits(e['matmul_tflops'])} TFLOP/s, {digits(e['copy_tb_s'])} TB/s"
    commit = (e["commit"] or "unknown: give it with --commit")[:40]
    return f"{e['device']}, {ceilings}, torch {e['torch']}, triton {e['triton']}, commit {commit}"


def _rows(run: Run, name: str) -> list[dict[str, Any]]:
    try:
        return read_lines(run.out / name)
    except ValueError:
        return []


def _said(run: Run, step: str) -> str:
    """The result of a step in a few words, "" where there is none."""
    if step == "warm" and (run.out / "compile.json").is_file():
        c = json.loads((run.out / "compile.json").read_text(encoding="utf-8"))
        return f"{c['compiled']} of {c['kernels']} kernels for {c['arch']}, {len(c['failed'])} failed"
    if step == "smoke":
        rows = _rows(run, "smoke.jsonl")
        planned = sum(row.get("planned", 0) for row in rows)
        problems = [row["problem"] for row in rows if "op" in row]
        return f"{problems.count('')} of {planned} calls right, {planned - len(problems)} not reached" if rows else ""
    if step == "tests" and (run.out / "junit.xml").is_file():
        suite = ElementTree.parse(run.out / "junit.xml").getroot().find("testsuite")
        names = ("tests", "failures", "errors", "skipped")
        return "" if suite is None else ", ".join(f"{suite.get(name, 0)} {name}" for name in names)
    if step == "sanitize" and (run.out / "sanitizer.txt").is_file():
        lines = (run.out / "sanitizer.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        return "; ".join(line for line in lines if line.startswith("== "))[:120]
    return ""


def _ratios(rows: Sequence[dict[str, Any]], most: int = 44) -> list[str]:
    """One line for each case: ours, then its rivals, the fastest first."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if "environment" not in row:
            groups.setdefault((row["name"], row["dtype"], row["batch"]), []).append(row)
    lines = []
    for (name, dtype, batch), group in groups.items():
        mine = [r for r in group if r["implementation"] == "ours" or r["implementation"].startswith("vitpose_fast")]
        ours = min(mine, key=lambda r: "frozen" not in r["implementation"], default=None)
        rivals = [r for r in group if r is not ours]
        timed = sorted((r for r in rivals if r["missing"] is None), key=lambda r: r["median_ms"])
        failed = [r for r in rivals if (r["missing"] or "").startswith(("failed", "disagrees", "too fast"))]
        unit = None if ours is None else ours["median_ms"]
        if unit is None:
            told = [f"{r['implementation']} {digits(r['median_ms'])} ms" for r in timed]
        else:
            told = [f"{r['median_ms'] / unit:.2f} {r['implementation']}" for r in timed]
        told += [f"{r['implementation']} {r['missing'][:40]}" for r in failed]
        value = "-" if ours is None else digits(unit) if unit else f"OURS {ours['missing'][:60]}"
        lines.append(f"  {name}, {dtype}, {batch}: {value}{' | ' * bool(told)}{'; '.join(told)}"[:170])
    return lines if len(lines) <= most else [*lines[:most], f"  ... and {len(lines) - most} more in results.jsonl"]


def main(args: Sequence[str] | None = None) -> int:
    """The command: 0, or 1 where a step failed or had no time."""
    parser = argparse.ArgumentParser(prog="vitpose-fast bench --budget", description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, required=True, metavar="SECONDS", help="end within that time")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the files")
    parser.add_argument("--steps", default=",".join(NAMES), help=f"some of {','.join(NAMES)}, in the order to run")
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--commit", help="commit to write into the results where there is no git")
    parser.add_argument("--quick", action="store_true", help="small shapes and few rounds: a rehearsal")
    parser.add_argument("--began", type=float, help="when the budget began (seconds since 1970); default: now")
    options = parser.parse_args(args)
    clock = Clock(options.budget, 0.0 if options.began is None else max(time.time() - options.began, 0.0))
    names = [name for name in options.steps.split(",") if name]
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names:
        raise ValueError(f"bench: got --steps {options.steps}, expected some of {','.join(NAMES)}")
    if options.budget <= RESERVE:
        raise ValueError(f"bench: got --budget {options.budget:g}, expected more than {RESERVE:g} seconds")
    options.out.mkdir(parents=True, exist_ok=True)
    before = [name for name in FILES if (options.out / name).exists()]
    if before:
        raise ValueError(f"bench: {options.out} holds {before[0]} of an earlier run; name another folder with --out")
    run = Run(options.out.absolute(), options.device, options.commit, options.quick)
    by_name = {step.name: step for step in STEPS}
    runner = Runner(run, [by_name[name] for name in dict.fromkeys(names)], clock)
    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, runner.stop)
    code = runner.run_all()
    print("\n" + (run.out / "summary.txt").read_text(encoding="utf-8"), end="", flush=True)
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        print(f"vitpose-fast: error: {error}", file=sys.stderr)
        sys.exit(1)
