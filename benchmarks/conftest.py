"""Options of `pytest benchmarks/`, and the file that the results go to."""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.harness import Case, measure
from benchmarks.lineup import Lineup
from benchmarks.machine import ROOT, Machine
from vitpose_fast.bench import free_path, result_name
from vitpose_fast.files import write_atomic

_STARTED = pytest.StashKey[float]()
_RESULTS = pytest.StashKey["Results"]()


def pytest_addoption(parser):
    group = parser.getgroup("vitpose_fast")
    group.addoption("--quick", action="store_true", help="small shapes, few rounds: minutes on two cores")
    group.addoption("--out", type=Path, help="result file; default: benchmarks/results/<device>-<date>.json")
    group.addoption("--append", action="store_true", help="keep the records that the file has")
    group.addoption("--minutes", type=float, default=math.inf, help="begin no new benchmark after that long")
    group.addoption("--commit", help="commit to write into the results where there is no git")
    group.addoption("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])


@pytest.fixture(autouse=True)
def time_left(request):
    """A run that is given a time ends with a file that says what it has not measured."""
    started = request.config.stash.setdefault(_STARTED, time.monotonic())
    if time.monotonic() - started > 60 * request.config.getoption("--minutes"):
        pytest.skip("the time given with --minutes is over")


class Results:
    """The result file of a run, written anew after every case so that an interrupted run keeps what it has."""

    def __init__(self, path: Path, environment: dict, append: bool) -> None:
        self.path, self.environment, self.records = path, environment, []
        if append and path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            self.records = before["records"]
            commands = [before["environment"]["command"], environment["command"]]
            self.environment = environment | {"command": "; ".join(dict.fromkeys(commands))}

    def add(self, records: list[dict]) -> None:
        assert all(r["missing"] or math.isfinite(r["median_ms"]) for r in records)
        self.records += records
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
    """Of the ops: bfloat16 on a GPU; on a CPU both, in a quick run float32."""
    if machine.cuda != (request.param == torch.bfloat16) and (machine.cuda or quick):
        pytest.skip("bfloat16 on a GPU, float32 in a quick run on a CPU")
    return request.param


@pytest.fixture(scope="session")
def lineup(machine):
    """lineup(name, dtype, ...): a model in all its forms; the last one is kept."""
    last: dict = {}

    def get(*key, **options):
        if (key, *options.items()) not in last:
            last.clear()
            last[key, *options.items()] = Lineup(machine.device, *key, **options)
        return last[key, *options.items()]

    return get


@pytest.fixture(scope="session")
def results(request, machine, quick):
    command = _command(request.config.invocation_params.args)
    environment = machine.environment(request.config.getoption("--commit"), command, quick)
    name = result_name(environment["device"], environment["date"], quick)
    path = request.config.getoption("--out") or free_path(ROOT / "benchmarks" / "results", name)
    found = Results(path, environment, request.config.getoption("--append"))
    request.config.stash[_RESULTS] = found
    return found


def pytest_terminal_summary(terminalreporter, config):
    results = config.stash.get(_RESULTS, None)
    if results is not None and results.records:
        terminalreporter.write_line(f"{len(results.records)} records in {results.path}")


def _command(arguments: Sequence[str]) -> str:
    """The command for a reader: what was measured, not where to and for how long."""
    out, skip = ["pytest"], False
    for argument in arguments:
        uninteresting = argument.startswith(("--out", "--minutes", "--append", "--benchmark", "-q", "-p", "--commit"))
        if not skip and not uninteresting:
            out.append(argument.removeprefix(f"{ROOT}/"))
        skip = argument in ("--out", "--minutes", "-p", "--commit")
    return shlex.join(out)


@pytest.fixture
def compare(benchmark, machine, results, quick):
    """compare(case): check, time and record its contenders; the records."""

    def compare(case: Case, fewest: int = 3) -> list[dict]:
        seconds = 0.5 if quick or machine.cuda else 2.0  # events on a GPU are exact
        records = measure(case, machine, seconds, benchmark, fewest)
        results.add(records)
        return records

    return compare
