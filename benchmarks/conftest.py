"""Options and fixtures of `pytest benchmarks/`, and the result file that it writes."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.harness import Case, faults, measure, with_rivals
from benchmarks.lineup import Lineup
from benchmarks.machine import ROOT, Machine
from benchmarks.records import append_line
from vitpose_fast.bench import free_path, result_name
from vitpose_fast.files import write_atomic

_STARTED = pytest.StashKey[float]()
_RESULTS = pytest.StashKey["Results"]()


def pytest_addoption(parser):
    group = parser.getgroup("vitpose_fast")
    group.addoption("--quick", action="store_true", help="small shapes and few rounds: minutes on two CPU cores")
    group.addoption("--out", type=Path, help="result file; default: benchmarks/results/<device>-<date>.json")
    group.addoption("--append", action="store_true", help="keep the records that the result file already has")
    group.addoption(
        "--lines", type=Path, help="instead of --out: append each record to this file at once, as a line of JSON"
    )
    group.addoption(
        "--compiled",
        choices=["yes", "no", "only"],
        default="yes",
        help="torch.compile contenders: along with the others, not at all, or each one alone next to ours",
    )
    group.addoption("--minutes", type=float, default=math.inf, help="start no new benchmark after this many minutes")
    group.addoption(
        "--until", type=float, default=math.inf, help="start no new benchmark after this time (seconds since 1970)"
    )
    group.addoption("--commit", help="commit to record in the results if git is not available")
    group.addoption("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])


@pytest.fixture(autouse=True)
def time_left(request):
    """Skip every benchmark that would start after the time of --until, or --minutes after the first benchmark."""
    started = request.config.stash.setdefault(_STARTED, time.monotonic())
    over = time.monotonic() - started > 60 * request.config.getoption("--minutes")
    if over or time.time() > request.config.getoption("--until"):
        pytest.skip("the time given with --minutes or --until is over")


class Results:
    """The result file of a run, rewritten after every case so that an interrupted run keeps its records.

    Args:
        path: the result file.
        environment: `environment` of the result file, see `Machine.environment`.
        append: if `path` exists, keep its records and its command, and add the new ones.
        lines: if given, `path` is not written. Instead the environment and then every record are appended to `lines`,
            each as one line of JSON.
    """

    def __init__(self, path: Path, environment: dict, append: bool, lines: Path | None) -> None:
        self.path, self.environment, self.lines = path, environment, lines
        self.records: list[dict] = []
        if lines is not None:
            append_line(lines, {"environment": environment})
        if append and path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            self.records = before["records"]
            commands = [before["environment"]["command"], environment["command"]]
            self.environment = environment | {"command": "; ".join(dict.fromkeys(commands))}

    def add(self, records: list[dict]) -> None:
        """Add the records of a case and write them to disk."""
        assert all(r["missing"] or math.isfinite(r["median_ms"]) for r in records)
        self.records += records
        if self.lines is not None:  # `bench --budget`: a record must survive a kill at any moment
            for record in records:
                append_line(self.lines, record)
            return
        text = json.dumps({"environment": self.environment, "records": self.records}, indent=1) + "\n"
        write_atomic(self.path, lambda path: path.write_text(text, encoding="utf-8"))


@pytest.fixture(scope="session")
def quick(request) -> bool:
    return request.config.getoption("--quick")


@pytest.fixture(scope="session")
def machine(request, quick) -> Machine:
    return Machine(request.config.getoption("--device"), quick)


@pytest.fixture
def on(machine) -> torch.device:
    return machine.device


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request, machine, quick) -> torch.dtype:
    """Dtype of the op benchmarks: bfloat16 on a GPU; float32 and bfloat16 on a CPU, in a quick run only float32."""
    if machine.cuda != (request.param == torch.bfloat16) and (machine.cuda or quick):
        pytest.skip("a GPU is measured in bfloat16, a CPU in a quick run in float32")
    return request.param


@pytest.fixture(scope="session")
def lineup(machine):
    """lineup(name, dtype, ...) -> `Lineup`, built once for the same arguments and kept until the session ends.

    The models S to H together take 40 GB of GPU memory.
    """
    made: dict = {}

    def get(*key, **options):
        if (key, *options.items()) not in made:
            made[key, *options.items()] = Lineup(machine.device, *key, **options)
        return made[key, *options.items()]

    return get


@pytest.fixture(scope="session")
def results(request, machine, quick):
    command = _command(request.config.invocation_params.args)
    environment = machine.environment(request.config.getoption("--commit"), command, quick)
    name = result_name(environment["device"], environment["date"], quick)
    path = request.config.getoption("--out") or free_path(ROOT / "benchmarks" / "results", name)
    append, lines = request.config.getoption("--append"), request.config.getoption("--lines")
    found = Results(path, environment, append, lines)
    request.config.stash[_RESULTS] = found
    return found


def pytest_terminal_summary(terminalreporter, config):
    results = config.stash.get(_RESULTS, None)
    if results is not None and results.records:
        terminalreporter.write_line(f"{len(results.records)} records in {results.lines or results.path}")


_ABOUT_THE_RUN = ("--out", "--lines", "--minutes", "--until", "-p", "--commit")  # options that take a value


def _command(arguments: Sequence[str]) -> str:
    """Return the pytest command to record in the result file.

    It keeps what was measured, and leaves out output files, time limits, the commit, and options of plugins and of the
    display.
    """
    out, skip = ["pytest"], False
    for argument in arguments:
        if not skip and not argument.startswith((*_ABOUT_THE_RUN, "--append", "--benchmark", "-q")):
            out.append(argument.removeprefix(f"{ROOT}/"))
        skip = argument in _ABOUT_THE_RUN
    return shlex.join(out)


@pytest.fixture
def compare(request, benchmark, machine, results, quick):
    """compare(case, fewest=3): check, time (at least `fewest` rounds) and record the contenders; returns the records.

    Once everything is recorded, the test fails if our contender failed, outputs differ or a time is impossibly short.
    With `--compiled only` it is skipped if no contender uses torch.compile. If the CUDA context breaks, the process
    exits with code 70.
    """

    def compare(case: Case, fewest: int = 3) -> list[dict]:
        seconds = 0.5 if quick or machine.cuda else 2.0  # CUDA events are exact, so less time suffices
        if results.lines is not None:  # `bench --budget` has no time to profile
            case = replace(case, launches=False)
        found: list[dict] = []
        wrong: list[str] = []
        for i, part in enumerate(with_rivals(case, request.config.getoption("--compiled"))):
            records = measure(part, machine, seconds, benchmark if i == 0 else None, fewest)
            results.add(records)
            found += records
            wrong += faults(records)
            if machine.is_lost():
                print(f"{part.name}: the CUDA context is broken; this process exits", file=sys.__stderr__, flush=True)
                os._exit(70)
        assert not wrong, "; ".join(wrong)
        return found or pytest.skip("no torch.compile contender takes part in this case")

    return compare
