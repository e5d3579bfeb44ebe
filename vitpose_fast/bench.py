"""`vitpose-fast bench`: measure one model, or run the benchmarks of a checkout and write the results to a JSON file.

With `--model NAME` (or a checkpoint) the command prints people per second, memory and the largest batch of that model
on this machine. It needs no checkout. See `vitpose_fast/measure.py`.

Without it, the benchmarks in a git checkout of this repository are run, which needs pytest and pytest-benchmark.

With `--budget SECONDS --out DIR` the command checks the results of the kernels, then measures kernels and whole models,
all within SECONDS of wall-clock time, and writes several files to DIR. This works on a GPU and, as a rehearsal, on a
CPU, and does not need pytest. See `benchmarks/budget.py`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SUITES = {  # in order of importance, since the time limit may end the run early
    "model": ["test_model.py"],
    "ops": ["test_ops.py", "test_ops_on_maps.py", "test_tiles.py"],
    "pipeline": ["test_pipeline.py"],
    "start": ["test_first_pose.py"],
    "table12": ["test_table12.py"],
    "training": ["test_training_step.py"],
    "compiled": ["test_model.py", "test_ops.py", "test_ops_on_maps.py"],  # rivals under torch.compile, minutes each
}


def find_benchmarks() -> Path:
    """Return the folder `benchmarks/` of the checkout that contains this package, or else of the current directory.

    Raises:
        ValueError: neither has one; the installed package does not include the benchmarks.
    """
    for root in (Path(__file__).resolve().parents[1], Path.cwd()):
        if (root / "benchmarks" / "harness.py").is_file():
            return root / "benchmarks"
    raise ValueError(
        "bench: found no benchmarks/ next to the package or in this directory; run it in a checkout of the repository"
    )


def with_sources(checkout: Path) -> dict[str, str]:
    """Return the environment for a subprocess that imports the three packages of this repository from `checkout`.

    It is the environment of this process, with the three source folders at the start of PYTHONPATH.
    """
    paths = [*map(str, (checkout, checkout / "kernels", checkout / "training")), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def result_name(device: str, date: str, quick: bool) -> str:
    """Return the name of a result file: <device>-<date>.json, or <device>-<date>-quick.json for a quick run.

    The words of the device name are in lowercase and joined by hyphens: "NVIDIA A100" gives nvidia-a100.
    """
    words = "".join(c if c.isalnum() else " " for c in device.lower()).split()
    return f"{'-'.join(words)}-{date}{'-quick' if quick else ''}.json"


def free_path(folder: Path, name: str) -> Path:
    """Return the path of `name` (a .json file) in a folder, with -2, -3, ... before the suffix if it exists already."""
    stem = name.removesuffix(".json")
    paths = (folder / f"{stem}{f'-{i}' if i > 1 else ''}.json" for i in range(1, 1000))
    return next(path for path in paths if not path.exists())


def _with_budget(options: argparse.Namespace, folder: Path) -> int:
    """Replace this process by `benchmarks/budget.py`, which survives steps that crash or lose the device.

    `folder` is `benchmarks/` of the checkout. Does not return.

    Raises:
        ValueError: an option cannot be combined with --budget, --out is missing, or there is no CUDA GPU for
            --device cuda.
    """
    without_budget = {
        "--all": options.all or None,
        "--suites": options.suites,
        "-k": options.k,
        "--minutes": options.minutes,
    }
    given = [flag for flag, value in without_budget.items() if value is not None]
    if given:
        raise ValueError(f"bench: {given[0]} cannot be combined with --budget; select work with --steps")
    if options.out is None:
        raise ValueError("bench: --budget needs --out DIR, the folder for its files")
    began = time.time()
    has_gpu = options.device != "cpu" and importlib.import_module("torch").cuda.is_available()
    if options.device == "cuda" and not has_gpu:
        raise ValueError("bench: got --device cuda, but PyTorch finds no CUDA GPU; use --device cpu for a rehearsal")
    device = "cuda" if has_gpu else "cpu"
    command = [sys.executable, "-m", "benchmarks.budget", "--budget", f"{options.budget:g}", "--device", device]
    command += ["--out", str(options.out.absolute()), "--began", f"{began:.1f}"]
    command += ["--quick"] if options.quick else []
    for flag in ("commit", "steps"):
        if (value := getattr(options, flag)) is not None:
            command += [f"--{flag}", value]
    os.chdir(folder.parent)
    sys.stdout.flush()
    os.execve(sys.executable, command, with_sources(folder.parent))


def _with_model(options: argparse.Namespace) -> int:
    """Measure the model of --model and print the results; see `measure.measure_model` for the errors.

    Raises:
        ValueError: an option that selects benchmarks is given too.
    """
    names = ("all", "suites", "out", "budget", "steps", "quick", "minutes", "commit", "k")
    given = [f"--{name}" if len(name) > 1 else f"-{name}" for name in names if getattr(options, name)]
    if given:
        raise ValueError(f"bench: {given[0]} cannot be combined with --model, which runs no benchmarks of a checkout")
    from vitpose_fast.measure import measure_model

    measure_model(options.model, options.batch or 8, options.task, options.device, options.tune)
    return 0


def _at_least(least: float, kind: type) -> Callable[[str], Any]:
    """Return a parser of a number of type `kind` that is finite and at least `least`."""

    def number(text: str) -> Any:
        value = kind(text)
        if not least <= value < 1e9:
            raise argparse.ArgumentTypeError(f"got {text}, expected a number of at least {least:g}")
        return value

    number.__name__ = "number"  # argparse names it where the text is no number
    return number


def main(args: list[str]) -> int:
    """Run the command and return its exit code: 1 if a benchmark failed or a suite crashed, else 0.

    The results of the benchmarks that succeeded are written in both cases. With --budget the function does not return,
    because another program replaces this process.

    Args:
        args: the arguments after `bench`.

    Raises:
        ValueError: there is no checkout, options contradict each other, pytest or pytest-benchmark is not installed,
            or the file for --out exists. With --model, as in `measure.measure_model`.
    """
    parser = argparse.ArgumentParser(prog="vitpose-fast bench", description=__doc__)
    parser.add_argument("--model", metavar="NAME", help="measure only this model: vitpose-b, ..., or a checkpoint")
    parser.add_argument("--batch", type=_at_least(1, int), help="with --model: people in a call; default: 8")
    parser.add_argument("--task", help="with --model: the task whose head is used")
    parser.add_argument(
        "--tune", type=_at_least(0, float), metavar="SECONDS", help="with --model: time to search for faster kernels"
    )
    parser.add_argument("--all", action="store_true", help="run all suites (the default)")
    parser.add_argument("--suites", nargs="+", choices=SUITES, metavar="SUITE", help=", ".join(SUITES))
    parser.add_argument("--out", type=Path, help="result file; default: benchmarks/results/<device>-<date>.json")
    parser.add_argument(
        "--budget",
        type=float,
        metavar="SECONDS",
        help="finish within this time: compile, check every kernel, measure the most important; --out is a folder",
    )
    parser.add_argument("--steps", help="with --budget: the steps to run, in this order, such as env,warm,smoke,model")
    parser.add_argument("--quick", action="store_true", help="small shapes and few rounds: five minutes on two cores")
    parser.add_argument("--minutes", type=float, help="start no new benchmark after this many minutes; default: 19")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: cuda if available")
    parser.add_argument("--commit", help="commit to record in the file; default: the commit that git reports")
    parser.add_argument("-k", metavar="EXPRESSION", help="run only benchmarks whose names match, as in pytest")
    options = parser.parse_args(args)
    if options.model is not None:
        return _with_model(options)
    for name in ("batch", "task", "tune"):
        if getattr(options, name) is not None:
            raise ValueError(f"bench: --{name} needs --model NAME")
    folder = find_benchmarks()
    if options.steps is not None and options.budget is None:
        raise ValueError("bench: --steps needs --budget SECONDS")
    if options.budget is not None:
        return _with_budget(options, folder)
    absent = [name for name in ("pytest", "pytest_benchmark") if find_spec(name) is None]
    if absent:
        raise ValueError(f"bench: needs {' and '.join(absent)}; pip install pytest pytest-benchmark")
    out = (options.out or folder / "results" / f"partial-{os.getpid()}.json").absolute()
    if options.out and out.exists():
        raise ValueError(f"bench: {options.out} exists already; choose another name")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-disable-gc"]
    command += ["--benchmark-columns=median,rounds", "--out", str(out), "--append"]
    for flag in ("device", "commit", "k"):
        if (value := getattr(options, flag)) is not None:
            command += ["-k" if flag == "k" else f"--{flag}", value]
    command += ["--quick"] if options.quick else []
    environment = with_sources(folder.parent)
    started, codes = time.monotonic(), []
    suites = SUITES if options.all else options.suites or SUITES
    for suite in suites:  # each in its own process, so that a crash does not affect the others
        left = (19.0 if options.minutes is None else options.minutes) - (time.monotonic() - started) / 60
        own = ["--minutes", f"{max(left, 0):.2f}", "--compiled", "only" if suite == "compiled" else "no"]
        own += [f"benchmarks/{file}" for file in SUITES[suite]]
        codes.append(subprocess.run([*command, *own], cwd=folder.parent, env=environment))
    if not options.out and out.exists():
        stamp = json.loads(out.read_text(encoding="utf-8"))["environment"]
        out = out.rename(free_path(folder / "results", result_name(stamp["device"], stamp["date"], stamp["quick"])))
    print(f"results: {out}" if out.exists() else "nothing was measured; no file was written")
    no_tests = 5  # exit code of pytest if no test was selected
    return int(any(done.returncode not in (0, no_tests) for done in codes))
