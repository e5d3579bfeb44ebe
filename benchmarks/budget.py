"""`vitpose-fast bench --budget SECONDS --out DIR`: check the kernels and measure within a time budget.

A run is a list of steps, by default the most important first. Each step runs in its own process group with a hard
time limit. If a step fails, hangs or loses the device, its line in the summary says so, and the next step starts. The
process that starts the steps never uses the device itself. Each checked kernel call and each measured benchmark case
is appended to a file at once, as lines of JSON, so a kill at any moment loses only the call or case in progress.
(junit.xml is different: pytest writes it at the end of the step `tests`.)

All files lie directly in DIR: env.json, compile.json, smoke.jsonl, results.jsonl, junit.xml, sanitizer.txt, log.txt and
summary.txt. The summary is rewritten whenever a step starts or ends, and printed at the end. `python
benchmarks/report.py convert DIR` converts results.jsonl to a result file and a tuned.json, see `benchmarks/convert.py`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.processes import Clock, kill, start, wait
from benchmarks.summary import summary
from vitpose_fast.bench import with_sources
from vitpose_fast.files import make_folder, write_atomic

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
RESERVE = 10.0  # seconds kept free for the summary
_MAX_BUDGET = 7 * 86400.0  # seconds
_GRACE = 4.0  # steps with an end time start nothing new in their last 4 seconds, or last sixth if that is longer
_MAX_LOG = 1 << 20  # bytes of log kept per step


@dataclass(frozen=True)
class Run:
    """The options of a run that its steps depend on.

    Attributes:
        out: folder for the files of the run, an absolute path.
        device: "cuda" or "cpu".
        commit: commit to record in the results; None asks git.
        quick: rehearse with small shapes and few rounds.
    """

    out: Path
    device: str
    commit: str | None
    quick: bool

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def small(self) -> list[str]:
        """`["--small"]` in every quick run and in every run on a CPU, else []."""
        return [] if self.cuda and not self.quick else ["--small"]


@dataclass(frozen=True)
class Step:
    """One step of a run.

    Attributes:
        name: name in `--steps` and in the summary.
        seconds: time limit in seconds.
        least: the step does not start with fewer seconds left; earlier steps leave this much time for it if they can.
        command: maps (run, time in seconds since 1970) to the arguments after `python -m`. The step should end on its
            own by that time, because a step that is killed at its limit loses the measurement in progress.
        unavailable: maps the run to the reason why the step cannot take place, or to None if it can.
    """

    name: str
    seconds: float
    least: float
    command: Callable[[Run, float], list[str]]
    unavailable: Callable[[Run], str | None] = lambda run: None


def _env(run: Run, until: float) -> list[str]:
    quick = ["--quick"] if run.quick else []
    commit = ["--commit", run.commit] if run.commit else []
    return ["benchmarks.machine", "--device", run.device, "--out", str(run.out / "env.json"), *quick, *commit]


def _warm(run: Run, until: float) -> list[str]:
    return ["benchmarks.warm", "--out", str(run.out / "compile.json"), "--until", f"{until:.1f}", *run.small]


def _smoke(run: Run, until: float) -> list[str]:
    return ["benchmarks.smoke", "all", "--device", run.device, "--lines", str(run.out / "smoke.jsonl"), *run.small]


def _tune(run: Run, until: float) -> list[str]:
    quick = ["--quick"] if run.quick else []
    commit = ["--commit", run.commit] if run.commit else []
    lines = ["--lines", str(run.out / "results.jsonl"), "--until", f"{until:.1f}"]
    return ["benchmarks.tuning", "--device", run.device, *lines, *quick, *commit]


def _suite(*tests: str, select: str = "", on_cpu: str = "", compiled: str = "no") -> Callable[[Run, float], list[str]]:
    """Return a `Step.command` that runs `tests`, paths below benchmarks/, with pytest in this order.

    Args:
        select: expression for `pytest -k`; "" selects everything.
        on_cpu: replaces `select` on a CPU, unless it is "".
        compiled: value of the option `--compiled` in benchmarks/conftest.py.
    """

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
    """Return the command that runs the tests that use a GPU if there is one; a quick run has only two of the files."""
    # -v: if the step is killed at its limit, the log shows how far it got.
    out = ["pytest", "-v", "-p", "no:cacheprovider", "--junitxml", str(run.out / "junit.xml")]
    if find_spec("xdist") is not None:
        out += ["-n", str(max(1, (os.cpu_count() or 1) - 2)), "--max-worker-restart=20"]
    if find_spec("pytest_timeout") is not None:
        out += [f"--timeout={max(until - time.time() - 10, 10):.0f}"]  # per test; property-based tests compile tens
    if run.quick:
        return [*out, "tests/kernels/gpu/test_heatmap_target.py", "tests/kernels/gpu/test_layer_norm.py"]
    more = ("test_graphs.py", "test_runtime.py", "test_predictor.py", "models/test_train_with_triton.py")
    return [*out, "tests/kernels/gpu", *(f"tests/{test}" for test in more)]


def _sanitize(run: Run, until: float) -> list[str]:
    """Return the command that runs memcheck and then racecheck on the five ops with the most address arithmetic."""
    ops = ["linear", "attention", "crop", "deconv", "split_ffn"]
    options = ["--out", str(run.out / "sanitizer.txt"), "--until", f"{until:.1f}"]
    return ["benchmarks.sanitize", *ops, "--tools", "memcheck", "racecheck", *options]


def _needs_hypothesis(run: Run) -> str | None:
    return _needs_pytest(run) or (None if find_spec("hypothesis") else "hypothesis is not installed")


def _needs_both(run: Run) -> str | None:
    return _needs_gpu(run) or _needs_pytest(run)


def _needs_gpu(run: Run) -> str | None:
    return None if run.cuda else "needs a GPU"


def _needs_sanitizer(run: Run) -> str | None:
    return _needs_gpu(run) or (None if shutil.which("compute-sanitizer") else "compute-sanitizer is not installed")


def _needs_triton(run: Run) -> str | None:
    return None if find_spec("triton") else "triton is not installed"


def _needs_pytest(run: Run) -> str | None:
    absent = [name for name in ("pytest", "pytest_benchmark") if find_spec(name) is None]
    return f"{' and '.join(absent)} not installed" if absent else None


# The selections cover what dominates the speed of a model; `bench --all` measures everything.
_NETWORK = "test_network and not decoding and not 16-8 and not 16-72"  # on a GPU: batch 64 and 1
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
# The limits are estimates, not measured yet, for two runs with budgets of 260 and 385 seconds on a machine with one GPU
# and 16 CPU cores.
STEPS = (
    Step("env", 30, 3, _env),
    Step("warm", 70, 8, _warm, _needs_triton),
    Step("smoke", 70, 10, _smoke, _needs_triton),
    Step("linear", 45, 12, _suite("test_tiles.py", select="B-"), _needs_pytest),
    Step("model", 75, 15, _suite("test_model.py", select=_NETWORK), _needs_pytest),
    Step("tune", 90, 30, _tune),
    Step("attention", 45, 12, _suite("test_ops.py::test_attention", select=_ATTENTION), _needs_pytest),
    Step("decoder", 45, 12, _DECODER, _needs_pytest),
    Step("tests", 140, 20, _tests, _needs_hypothesis),
    Step("rivals", 110, 30, _suite("test_model.py", select=f"{_NETWORK} and b-", compiled="only"), _needs_both),
    Step("table12", 60, 15, _TABLE12, _needs_pytest),
    Step("sanitize", 60, 15, _sanitize, _needs_sanitizer),
)
NAMES = tuple(step.name for step in STEPS)


@dataclass
class Outcome:
    """State of a step as the summary shows it ("done", "failed, code 1", ...), and the seconds that it took."""

    step: Step
    state: str = "not started"
    seconds: float = 0.0


class Runner:
    """Runs steps within a time budget and keeps their summary on disk."""

    def __init__(self, run: Run, steps: Sequence[Step], clock: Clock) -> None:
        self.run, self.clock = run, clock
        self.outcomes = [Outcome(step) for step in steps]
        self.running: tuple[Outcome, subprocess.Popen, float] | None = None  # (outcome, process, clock.used at start)
        self.text = ""  # the summary
        self._before = {path.name for path in run.out.iterdir()}

    def run_all(self) -> int:
        """Run all steps. Return 1 if a step failed, was killed or did not start for lack of time, else 0.

        Steps that were skipped because they are unavailable do not count as failures.
        """
        for i, outcome in enumerate(self.outcomes):
            self._run_step(outcome, [o.step for o in self.outcomes[i + 1 :]])
            self.save()
        return int(any(not o.state.startswith(("done", "skipped")) for o in self.outcomes))

    def _run_step(self, outcome: Outcome, later: Sequence[Step]) -> None:
        """Run a step, or skip it if it is unavailable or has fewer than `least` seconds; store the state in `outcome`.

        The limit is the step's own, lowered so that every later step that is available and still fits keeps its
        `least` seconds.
        """
        step, left = outcome.step, self.clock.left - RESERVE
        reason = step.unavailable(self.run)
        if reason is not None:
            outcome.state = f"skipped: {reason}"
            return
        if left < step.least:
            outcome.state = f"not started: {max(left, 0):.0f} s left, needs {step.least:.0f}"
            return
        needed = step.least
        for other in later:
            if other.unavailable(self.run) is None and needed + other.least <= left:
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
            self.running = outcome, start(command, file, self._environment(step), ROOT, group=True), began
            code = wait(self.running[1], seconds, group=True)
            self.running = None
        outcome.seconds = self.clock.used - began
        if code is None:
            outcome.state = f"killed at its limit of {seconds:.0f} s"
        elif code == 0:
            outcome.state = "done"
        else:
            outcome.state = f"failed, code {code}"
            print(f"== {step.name} {outcome.state}; the end of its log:")
            print("\n".join(_tail(log, before, 1200).splitlines()[-12:]), flush=True)
        _trim(log, before)
        self._remove_partial_files()
        print(f"{step.name:10}{outcome.state:28}{outcome.seconds:6.1f} s", flush=True)

    def _environment(self, step: Step) -> dict[str, str]:
        """Return the environment variables of a step: PYTHONPATH starts with the checkout.

        TRITON_INTERPRET is set only on a CPU and only for the steps `smoke` and `tests`.
        """
        environment = with_sources(ROOT) | {"PYTHONUNBUFFERED": "1"}
        environment.pop("TRITON_INTERPRET", None)
        if not self.run.cuda and step.name in ("smoke", "tests"):
            environment["TRITON_INTERPRET"] = "1"
        return environment

    def _remove_partial_files(self) -> None:
        """Remove the temporary files (`partial-*`) of killed steps, but none that existed before this run."""
        for path in self.run.out.glob("partial-*"):
            if path.name not in self._before and path.is_file():
                path.unlink(missing_ok=True)

    def save(self) -> None:
        """Store the current summary in `text` and write it to summary.txt. An OSError is printed, not raised."""
        commit = self.run.commit or "unknown (pass --commit)"
        steps = [(o.step.name, o.seconds, o.state) for o in self.outcomes]
        steps.append(("total", self.clock.used, f"of {self.clock.budget:.0f}"))
        self.text = summary(self.run.out, f"{self.run.device}, commit {commit}", steps) + "\n"
        try:
            write_atomic(self.run.out / "summary.txt", lambda path: path.write_text(self.text, encoding="utf-8"))
        except OSError as error:  # carry on: later steps can run, and the summary is printed
            print(f"cannot write the summary: {error}", flush=True)

    def stop(self, *_: Any) -> None:
        """Handle a signal: kill the running step, write and print the summary, and exit with code 1."""
        if self.running is not None:
            outcome, process, began = self.running
            kill(process, group=True)
            outcome.state, outcome.seconds = "stopped by a signal", self.clock.used - began
        self._remove_partial_files()
        self.save()
        print(f"\n{self.text}", end="", flush=True)
        os._exit(1)


def _tail(path: Path, since: int, size: int) -> str:
    """Return the text written to a file after byte offset `since`, but at most its last `size` bytes."""
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(since, end - size))
        return file.read().decode(errors="replace")


def _trim(path: Path, since: int) -> None:
    """Shorten the log written after byte offset `since` to `_MAX_LOG` bytes and a note, by cutting out its middle."""
    size = path.stat().st_size - since
    if size <= _MAX_LOG:
        return
    with open(path, "r+b") as file:
        file.seek(-(_MAX_LOG // 2), os.SEEK_END)
        end = file.read()
        file.truncate(since + _MAX_LOG // 2)
        file.seek(0, os.SEEK_END)
        file.write(f"\n... {size - _MAX_LOG} bytes left out ...\n".encode() + end)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, see `Runner.run_all`. A signal ends the process with code 1.

    Raises:
        ValueError: a step is unknown, the budget is too small or too large, or DIR holds files of an earlier run.
        OSError: DIR cannot be created or written to.
    """
    parser = argparse.ArgumentParser(prog="vitpose-fast bench --budget", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--budget", type=float, required=True, metavar="SECONDS", help="finish within this many seconds"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the files of the run")
    parser.add_argument(
        "--steps", default=",".join(NAMES), help=f"steps to run, in this order; choose from {','.join(NAMES)}"
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--commit", help="commit to record in the results if git is not available")
    parser.add_argument("--quick", action="store_true", help="rehearse with small shapes and few rounds")
    parser.add_argument("--began", type=float, help="start of the budget (seconds since 1970); default: now")
    options = parser.parse_args(args)
    clock = Clock(options.budget, 0.0 if options.began is None else max(time.time() - options.began, 0.0))
    names = [name.strip() for name in options.steps.split(",")]
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise ValueError(f"bench: unknown step {unknown[0]!r} in --steps; choose from {','.join(NAMES)}")
    if not RESERVE < options.budget <= _MAX_BUDGET:
        raise ValueError(f"bench: got --budget {options.budget:g}, expected {RESERVE:g} to {_MAX_BUDGET:g} seconds")
    make_folder(options.out)
    before = [name for name in FILES if (options.out / name).exists()]
    if before:
        raise ValueError(
            f"bench: {options.out} already holds {before[0]} of an earlier run; choose another folder with --out"
        )
    try:
        (options.out / "log.txt").touch(exist_ok=False)
    except FileExistsError:
        raise ValueError(f"bench: another run has started in {options.out}; choose another folder with --out") from None
    run = Run(options.out.absolute(), options.device, options.commit, options.quick)
    by_name = {step.name: step for step in STEPS}
    runner = Runner(run, [by_name[name] for name in dict.fromkeys(names)], clock)
    for kind in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # SIGHUP: the connection to the machine is lost
        signal.signal(kind, runner.stop)
    code = runner.run_all()
    print(f"\n{runner.text}", end="", flush=True)
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        print(f"vitpose-fast: error: {error}", file=sys.stderr)
        sys.exit(1)
