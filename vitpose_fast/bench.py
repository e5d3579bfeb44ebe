"""`vitpose-fast bench`: run the benchmarks of a checkout and leave one JSON file. Needs pytest and pytest-benchmark."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

SUITES = {  # in the order of their worth, should the time run out
    "model": ["test_model.py"],
    "ops": ["test_ops.py", "test_ops_on_maps.py"],
    "pipeline": ["test_pipeline.py"],
    "table12": ["test_table12.py"],
    "training": ["test_training_step.py"],
}


def find_benchmarks() -> Path:
    """The folder `benchmarks/` of the checkout that this package, or the working folder, belongs to.

    Raises:
        ValueError: there is none; an installed package does not carry the benchmarks.
    """
    for root in (Path(__file__).resolve().parents[1], Path.cwd()):
        if (root / "benchmarks" / "harness.py").is_file():
            return root / "benchmarks"
    raise ValueError("bench: there are no benchmarks here; run it in a checkout of the repository")


def main(args: list[str]) -> int:
    """The command: the exit code of pytest; 1 where a benchmark failed, all others are in the file."""
    parser = argparse.ArgumentParser(prog="vitpose-fast bench", description=__doc__)
    parser.add_argument("--all", action="store_true", help="all suites (the same as naming none)")
    parser.add_argument(
        "--suites", nargs="+", choices=SUITES, default=list(SUITES), metavar="SUITE", help=", ".join(SUITES)
    )
    parser.add_argument("--out", type=Path, help="result file; default: benchmarks/results/<device>-<date>.json")
    parser.add_argument("--quick", action="store_true", help="small shapes, few rounds: five minutes on two cores")
    parser.add_argument("--minutes", type=float, default=19.0, help="begin no new benchmark after that long")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: cuda where there is one")
    parser.add_argument("--commit", help="commit to write into the file where there is no git")
    parser.add_argument("-k", metavar="EXPRESSION", help="only the benchmarks whose names match, as in pytest")
    options = parser.parse_args(args)
    folder = find_benchmarks()
    missing = [name for name in ("pytest", "pytest_benchmark") if find_spec(name) is None]
    if missing:
        raise ValueError(f"bench: needs {' and '.join(missing)}; pip install pytest pytest-benchmark")
    names = list(SUITES) if options.all else options.suites
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-disable-gc"]
    command += ["--benchmark-columns=median,rounds", "--minutes", str(options.minutes)]
    command += [f"benchmarks/{file}" for suite, files in SUITES.items() if suite in names for file in files]
    for flag in ("out", "device", "commit", "k"):
        if (value := getattr(options, flag)) is not None:
            value = value.absolute() if flag == "out" else value
            command += ["-k" if flag == "k" else f"--{flag}", str(value)]
    command += ["--quick"] if options.quick else []
    paths = [str(folder.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    code = subprocess.run(command, cwd=folder.parent, env=environment).returncode
    return 0 if code == 0 else 1
