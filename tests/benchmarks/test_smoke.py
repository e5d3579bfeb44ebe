"""The smoke run finds wrong numbers, unwritten outputs and dead processes, and continues after them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from benchmarks import sanitize, smoke
from benchmarks.records import read_lines
from vitpose_kernels.calls import Call

pytest.importorskip("triton", reason="triton is not installed")

CPU = torch.device("cpu")
ROW = dict(op="x", index=0, label="y", model="z", batch=1, dtype="float32")


def check(function):
    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    call = Call("y", lambda x, impl: x.exp() if impl == "reference" else function(x), (x,))
    return smoke.check(dict(ROW), call, CPU, eager=False)


def test_right_and_wrong_outputs():
    row = check(lambda x: x.double().exp().float())
    assert row["problem"] == "" and row["error"] < 1e-7 and row["limit"] == 1e-5
    assert "error 1.0e-03, 1e-05 allowed" in check(lambda x: x.exp() * 1.001)["problem"]
    row = check(lambda x: x.exp()[:32])
    assert "error inf" in row["problem"] and row["error"] is None  # JSON has no infinity
    json.loads(json.dumps(row, allow_nan=False))

    def unwritten(x):
        out = torch.empty_like(x)
        out[:-1] = x[:-1].exp()
        return out

    assert "error inf" in check(unwritten)["problem"]

    def broken(x):
        raise RuntimeError("no such\nkernel")

    assert check(broken)["problem"] == "RuntimeError: no such kernel"


def test_memory_is_poisoned_only_inside_the_context():
    with smoke.poisoned():
        fresh = [torch.empty(9), torch.empty_like(torch.ones(9)), torch.ones(2).new_empty(9)]
        assert all(x.isnan().all() for x in fresh) and torch.empty(3, dtype=torch.int32).tolist() == [77] * 3
    assert torch.empty.__module__ != "benchmarks.smoke" and "poison" not in repr(torch.empty)


def test_float64_reaches_every_argument():
    half = torch.ones(2, dtype=torch.float16)
    given = (half, [half, 3], dict(a=(half,), dtype=torch.float16), torch.ones(1, dtype=torch.int64), None)
    wide = smoke.in_float64(given)
    assert wide[0].dtype == wide[1][0].dtype == wide[2]["a"][0].dtype == wide[2]["dtype"] == torch.float64
    assert wide[1][1] == 3 and wide[3].dtype == torch.int64 and wide[4] is None


def run(*arguments, **environment):
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.smoke", *arguments, "--device", "cpu", "--small"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_one_op_in_a_process(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    done = run("layer_norm", "--lines", str(tmp_path / "rows.jsonl"), "--skip", "2")
    assert done.returncode == 0, done.stderr
    rows = read_lines(tmp_path / "rows.jsonl")
    assert [r["index"] for r in rows] == [2, 3, 4, 5] and not any(r["problem"] for r in rows)
    assert {r["model"] for r in rows} == {"small"} and all(r["error"] < 1e-6 for r in rows)
    refused = subprocess.run(
        [sys.executable, "-m", "benchmarks.smoke", "linear", "--device", "cpu"],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
    )
    assert refused.returncode == 2 and "set TRITON_INTERPRET=1" in refused.stderr


def test_a_lost_device_or_process_costs_one_call(root, tmp_path, monkeypatch):
    """The second call of `heatmap_target` kills its process; calls of `layer_norm` lose the device, raise and hang."""
    monkeypatch.chdir(root)
    (tmp_path / "smoke_with_accidents.py").write_text(
        """
import os, sys
import benchmarks.smoke as smoke
honest = smoke.check
def check(row, call, device, eager):
    if (row["op"], row["index"]) == ("heatmap_target", 1):
        os.kill(os.getpid(), 9)
    found = honest(row, call, device, eager)
    if (row["op"], row["index"]) == ("layer_norm", 1):
        smoke.append_line(sys.argv[sys.argv.index("--lines") + 1], found | dict(problem="CUDA error"))
        os._exit(smoke.BROKEN)
    if (row["op"], row["index"]) == ("layer_norm", 3):
        raise MemoryError  # outside the try block of a call
    if (row["op"], row["index"]) == ("layer_norm", 5):
        smoke.time.sleep(100)  # a kernel that hangs
    return found
smoke.check = check
smoke._TIME_LIMIT["cpu"] = 4
sys.exit(smoke.main())
"""
    )
    lines, real = tmp_path / "rows.jsonl", smoke.start

    def start(command, *rest):
        return real([command[0], str(tmp_path / "smoke_with_accidents.py"), *command[3:]], *rest)

    monkeypatch.setattr(smoke, "start", start)
    monkeypatch.setattr(smoke, "OPS", ("heatmap_target", "layer_norm"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with open(tmp_path / "out.txt", "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert smoke.check_all(CPU, True, 2, lines) == 1
    rows = read_lines(lines)
    assert rows.pop(0) == {"planned": 8}
    indices = {op: [r["index"] for r in rows if r["op"] == op] for op in smoke.OPS}
    assert indices == {"heatmap_target": [0, 1], "layer_norm": [0, 1, 2, 3, 4, 5]}
    wrong = {(r["op"], r["index"]): r["problem"] for r in rows if r["problem"]}
    assert wrong == {
        ("heatmap_target", 1): "ended its process, code -9",
        ("layer_norm", 1): "CUDA error",
        ("layer_norm", 3): "ended its process, code 1",
        ("layer_norm", 5): "took too long, code -14",
    }
    assert next(r for r in rows if r["op"] == "heatmap_target" and r["index"] == 1)["label"] == "msra"


def test_the_verdict_of_the_sanitizer_is_parsed():
    clean = "========= COMPUTE-SANITIZER\n...\n========= ERROR SUMMARY: 0 errors\n"
    assert sanitize.verdict(clean, 1) == "0 errors"  # whether the numbers are right is reported by the smoke run
    assert sanitize.verdict("========= ERROR SUMMARY: 3 errors", 9) == "3 errors"
    race = "========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)"
    assert sanitize.verdict(race, 9) == "2 errors"
    assert sanitize.verdict("half a line", None) == "did not finish in time"
    assert sanitize.verdict("", 127) == "no verdict, exit code 127"


def test_the_sanitizer_runs_ops_side_by_side_and_counts_findings(root, tmp_path):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(
        """#!/bin/sh
case "$*" in *crop*) errors=2 ;; *) errors=0 ;; esac
echo "$*"; echo "allocations apart: $PYTORCH_NO_CUDA_MEMORY_CACHING"; sleep 1
echo "========= ERROR SUMMARY: $errors errors"
"""
    )
    tool.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "benchmarks.sanitize", "linear", "crop", "--tools", "memcheck"]
    command += ["--out", str(tmp_path / "out.txt")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    assert done.returncode == 1, done.stderr
    assert done.stdout == "== memcheck linear: 0 errors\n== memcheck crop: 2 errors\n"
    text = (tmp_path / "out.txt").read_text()
    assert "--tool memcheck" in text and "benchmarks.smoke --small --eager --device cuda linear" in text
    assert "allocations apart: 1" in text and len(os.listdir(tmp_path)) == 2
    clean = subprocess.run([*command[:3], "linear", *command[5:]], capture_output=True, env=environment, cwd=root)
    assert clean.returncode == 0


def test_the_sanitizer_must_be_installed(root, monkeypatch):
    environment = os.environ | {"PATH": "/nonexistent"}
    command = [sys.executable, "-m", "benchmarks.sanitize", "linear"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    assert done.returncode == 2 and "compute-sanitizer is not on the PATH" in done.stderr


def test_a_compiler_that_dies_costs_one_kernel(python_path, tmp_path):
    (tmp_path / "killer.py").write_text("import os; os._exit(9)\n")
    code = """
        import benchmarks.warm as warm, torch
        from benchmarks.processes import Clock

        if __name__ == "__main__":
            good = list(warm.wanted(90, True))[:3]
            bad = warm.Source("killer", "kernel", (), 4, 2)
            done = {}
            sources = [good[0], bad, *good[1:]]
            while left := [s for s in sources if s not in done]:
                warm.compile_some(left, 90, 2, Clock(100.0), done, lambda: None)
            assert [done[s].error for s in sources] == ["", "the process that compiled it died", "", ""], done
            started = warm.time.monotonic()
            warm.compile_some(good, 90, 2, Clock(0.5), {}, lambda: None)  # it ends when time is over
            assert warm.time.monotonic() - started < 20
            print("as expected")
        """
    (tmp_path / "main.py").write_text(textwrap.dedent(code))
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": python_path(tmp_path), "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-W", "ignore", str(tmp_path / "main.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.stdout.endswith("as expected\n"), done.stdout + done.stderr
