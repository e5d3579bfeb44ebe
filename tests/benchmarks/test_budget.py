"""`bench --budget`: a step that fails, hangs or dies costs only itself, and a kill at any moment costs one record."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from benchmarks import budget, report
from benchmarks.budget import Run, Runner, Step
from benchmarks.convert import result_of
from benchmarks.processes import Clock
from benchmarks.records import append_line, load, read_lines
from benchmarks.summary import summary
from vitpose_kernels.choices import from_rows

ENVIRONMENT = dict(
    device="NVIDIA H100", driver="580", threads=8, torch="2.11", triton="3.6.0", commit="abc123", dirty=None,
    matmul_tflops=790.0, copy_tb_s=3.0, date="2026-11-26", command="pytest -k B", quick=False,
)  # fmt: skip


def record(implementation, median, name="linear tiles B qkv", missing=None, **extra):
    numbers = dict.fromkeys(("p99_ms", "per_second", "peak_mib", "flops", "bytes", "roofline_fraction"))
    known = (None, None, None) if median is None else (median, 0.99 * median, 1.01 * median)
    times = dict(zip(("median_ms", "p10_ms", "p90_ms"), known))
    identity = dict(suite="ops", name=name, implementation=implementation, dtype="bfloat16", batch=64, graphed=True)
    return identity | numbers | times | dict(missing=missing, extra=extra)


@pytest.fixture
def steps(tmp_path, monkeypatch, python_path):
    """steps(name, seconds=20.0, least=0.0, **more) -> a `Step` that runs one of four modules.

    `fine` succeeds, `fails` exits with code 7, `hangs` sleeps with a child process, and `talks` prints 7 MB.
    """
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "fine.py").write_text("print('all is well')\n")
    (folder / "fails.py").write_text("import sys; print('line of the log'); sys.exit(7)\n")
    (folder / "hangs.py").write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\n"
        "print('child', child.pid, flush=True); time.sleep(300)\n"
    )
    (folder / "talks.py").write_text("print('x' * 70 * 1000 * 100)\n")
    monkeypatch.setenv("PYTHONPATH", python_path(folder))
    return lambda name, seconds=20.0, least=0.0, **more: Step(name, seconds, least, lambda run, s: [name], **more)


def is_alive(pid):
    try:
        return open(f"/proc/{pid}/stat").read().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_step_that_fails_or_hangs_costs_only_itself(tmp_path, steps, capfd):
    out = tmp_path / "out"
    out.mkdir()
    run = Run(out, "cpu", "abc123", True)
    todo = [
        steps("fails"),
        steps("hangs", seconds=6.0),
        steps("away", unavailable=lambda run: "needs a GPU"),
        steps("fine"),
        steps("late", least=1000.0),
    ]
    assert Runner(run, todo, Clock(60.0)).run_all() == 1
    text = (out / "summary.txt").read_text()
    for line in (
        "failed, code 7",
        "killed at its limit of 6 s",
        "skipped: needs a GPU",
        "s  done",
        "not started: ",
        "commit abc123",
    ):
        assert line in text, text
    log = (out / "log.txt").read_text()
    assert "== fine: -m fine" in log and "all is well" in log
    assert "line of the log" in capfd.readouterr().out  # the end of the log of a failed step is printed
    child = int(log.split("child ")[1].split()[0])
    assert not is_alive(child)
    assert Runner(run, [steps("fine"), todo[2]], Clock(60.0)).run_all() == 0


def test_steps_leave_time_for_later_steps_and_end_on_their_own(tmp_path, steps):
    """The limit of a step leaves later steps their minimum, and the step is told to end some time before its limit."""
    seen = {}

    def fine(name, seconds, least):
        def command(run, until):
            seen[name] = until - time.time()
            return ["fine"]

        return Step(name, seconds, least, command)

    run = Run(tmp_path, "cpu", None, True)
    Runner(run, [fine("a", 60.0, 5.0), fine("b", 60.0, 10.0), fine("c", 12.0, 5.0)], Clock(60.0, spent=10.0)).run_all()
    # 40 seconds are left after the reserve: 15 for the other steps and 25 for the first, whose margin is a sixth.
    assert 10 < seen["a"] < 21 and 10 < seen["b"] < 30 and seen["c"] < 8.5


def test_a_log_without_end_is_cut_in_its_middle(tmp_path, steps, monkeypatch):
    monkeypatch.setattr(budget, "_MAX_LOG", 100_000)
    run = Run(tmp_path, "cpu", None, True)
    (tmp_path / "log.txt").write_text("before\n")
    Runner(run, [steps("talks")], Clock(60.0)).run_all()
    log = (tmp_path / "log.txt").read_text()
    assert len(log) < 101_000 and log.startswith("before\n") and "bytes left out" in log and log.endswith("xx\n")
    assert "pass --commit" in (tmp_path / "summary.txt").read_text()


def test_the_summary_fits_a_screen_and_names_what_is_wrong(tmp_path):
    (tmp_path / "env.json").write_text(json.dumps(ENVIRONMENT))
    compiled = dict(arch="sm_90", kernels=321, compiled=320, failed={"linear_kernel (tiles)": "no"})
    (tmp_path / "compile.json").write_text(json.dumps(compiled))
    row = dict(op="attention", label="whole 16x12", model="B", batch=64, dtype="bfloat16", error=0.5, problem="")
    append_line(tmp_path / "smoke.jsonl", dict(planned=32))
    for i in range(30):
        append_line(tmp_path / "smoke.jsonl", row | dict(index=i, problem="error 5.0e-01" if i % 2 else ""))
    append_line(tmp_path / "results.jsonl", {"environment": ENVIRONMENT})
    for i in range(40):
        rows = [record("ours", 2.0, f"case {i}"), record("HF", 3.0, f"case {i}"), record("fast", 1.0, f"case {i}")]
        for one in [*rows, record("broken", None, f"case {i}", "failed: no kernel"), record("x", None, "y", "absent")]:
            append_line(tmp_path / "results.jsonl", one)
    append_line(tmp_path / "results.jsonl", record("ours", None, "lost", "failed: CUDA error"))
    for batch in (64, 1):
        times = dict(default=6.5, library=6.31, chosen=5.9 / batch)
        append_line(tmp_path / "results.jsonl", {"tuning": dict(batch=batch, ms=times, choices=[])})
    for one in (
        record("eager", 9.0, "table"),
        record("vitpose_fast frozen", 3.0, "table"),
        record("eager", 7.0, "HRNet"),
    ):
        append_line(tmp_path / "results.jsonl", one)
    (tmp_path / "junit.xml").write_text(
        '<testsuites><testsuite tests="9" failures="2" errors="1" skipped="3"/></testsuites>'
    )
    (tmp_path / "sanitizer.txt").write_text("noise\n== memcheck linear: 0 errors\n")
    steps = [(name, 1.0, "done") for name in budget.NAMES]
    text = summary(tmp_path, "cuda", steps)
    for part in (
        "NVIDIA H100, 790 TFLOP/s, 3 TB/s, torch 2.11, triton 3.6.0, commit abc123",
        "320 of 321 kernels for sm_90, 1 failed",
        "15 of 32 calls right, 2 not reached",
        "15 calls are wrong:",
        "attention whole 16x12 B 64 bfloat16: error 5.0e-01",
        "9 tests, 2 failures, 1 errors, 3 skipped",
        "== memcheck linear: 0 errors",
        "batch 64 0.0922 ms (default 6.5, library 6.31); batch 1 5.9 ms (default",
        "case 0, bfloat16, 64: 2 | 0.50 fast; 1.50 HF; broken failed: no kernel",
        "  table, bfloat16, 64: 3 | 3.00 eager",
        "  HRNet, bfloat16, 64: - | eager 7 ms",
    ):
        assert part in text, text
    for i in range(40):
        append_line(tmp_path / "results.jsonl", record("ours", 2.0, f"more {i}"))
    assert "more in results.jsonl" in summary(tmp_path, "cuda", steps)
    for name in ("junit.xml", "compile.json", "env.json", "smoke.jsonl"):
        (tmp_path / name).write_text("{<cut o")
    assert "320 of 321" not in summary(tmp_path, "cuda", steps)  # half a file must not hide the others
    assert len(text) < 12_000 and len(text.splitlines()) < 80 and max(map(len, text.splitlines())) <= 170


def bench(out, *more, **options):
    command = [sys.executable, "-W", "ignore", "-m", "vitpose_fast", "bench", "--device", "cpu", "--quick"]
    command += ["--out", str(out), "--commit", "abc123", *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, **options
    )


def until(happened, seconds=60.0):
    """Wait until `happened()` is true, but at most `seconds`; return its last value."""
    end = time.monotonic() + seconds
    while not happened() and time.monotonic() < end:
        time.sleep(0.1)
    return happened()


def test_a_kill_at_any_moment_keeps_what_was_measured(root, tmp_path):
    """Five times: all files are readable, no process survives, and the next run refuses to overwrite them."""
    draw = random.Random(0)
    for i, rows_before in enumerate((0, 0, 1, 3, 6)):
        out = tmp_path / f"run{i}"
        process = bench(out, "--budget", "90", "--steps", "env,decoder,smoke", cwd=root)
        measured = lambda out=out: len(read_lines(out / "results.jsonl")) + len(read_lines(out / "smoke.jsonl"))
        assert until(lambda n=rows_before, measured=measured: measured() >= n)
        time.sleep(2 * draw.random())
        process.kill()
        process.wait()
        assert until(lambda out=out: not processes_of(out))
        names = os.listdir(out) if out.exists() else []
        assert {name for name in names if not name.startswith("partial-")} <= set(budget.FILES)
        rows = read_lines(out / "results.jsonl")
        assert measured() >= rows_before and all("environment" in r or r["name"] for r in rows)
        if any("environment" not in r for r in rows):
            result = tmp_path / f"result{i}.json"
            assert report.main(["convert", str(out), "--out", str(result)]) == 0
            assert load(result).records and load(result).environment["commit"] == "abc123"
    again = bench(out, "--budget", "60", cwd=root)
    text, _ = again.communicate()
    assert again.returncode == 1 and "of an earlier run; choose another folder with --out" in text


def processes_of(out):
    """Return the ids of the processes whose command line contains the path `out`."""
    return [p for p in os.listdir("/proc") if p.isdigit() and str(out) in read(f"/proc/{p}/cmdline")]


def read(path):
    try:
        return open(path, errors="replace").read().replace("\0", " ")
    except OSError:
        return ""


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda kind: kind.name)
def test_a_signal_stops_the_run_with_a_summary(tmp_path, steps, kind):
    """As when the connection to a rented machine breaks."""
    out = tmp_path / "out"
    code = f"""
        import sys
        from benchmarks import budget
        budget.STEPS = tuple(
            budget.Step(n, 100.0, 1.0, lambda run, until, n=n: [n]) for n in ("fine", "hangs")
        )
        budget.NAMES = ("fine", "hangs")
        sys.exit(budget.main(["--budget", "100", "--out", {str(out)!r}, "--device", "cpu", "--steps", "fine, hangs"]))
        """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert until(lambda: "child " in read(out / "log.txt"))
    child = int(read(out / "log.txt").split("child ")[1].split()[0])
    process.send_signal(kind)
    text, _ = process.communicate(timeout=20)
    assert process.returncode == 1 and "hangs" in text and "stopped by a signal" in text and "done" in text
    assert text.endswith(read(out / "summary.txt"))
    assert until(lambda: not is_alive(child), 10)


def test_unrelated_files_stay_in_the_folder(tmp_path, steps):
    """Files of the user stay whatever their names, and malformed files of a step do not end the run."""
    (tmp_path / "partial-notes.txt").write_text("mine")
    (tmp_path / "partial-mine").mkdir()
    (tmp_path / "partial-mine" / "a").write_text("mine")
    for name in ("env.json", "compile.json"):
        (tmp_path / name).write_text("[]")
    for name in ("results.jsonl", "smoke.jsonl"):
        (tmp_path / name).write_text('{}\n5\n{"op": "x"}\n{"problem": 7}\n{"median_ms": 1}\n{"environ')
    run = Run(tmp_path, "cpu", "abc123", True)
    (tmp_path / "modules" / "leaves.py").write_text(f"open({str(tmp_path / 'partial-x.json')!r}, 'w')\n")
    assert Runner(run, [steps("leaves"), steps("fine")], Clock(60.0)).run_all() == 0
    assert (tmp_path / "partial-notes.txt").read_text() == (tmp_path / "partial-mine" / "a").read_text() == "mine"
    assert not (tmp_path / "partial-x.json").exists()


def test_a_full_disk_does_not_end_the_run(tmp_path, steps, monkeypatch, capsys):
    def full(path, write):
        raise OSError("No space left on device")

    monkeypatch.setattr(budget, "write_atomic", full)
    runner = Runner(Run(tmp_path, "cpu", "abc123", True), [steps("fine"), steps("fine")], Clock(60.0))
    assert runner.run_all() == 0
    assert "cannot write the summary: No space left" in capsys.readouterr().out
    assert runner.text.count("  done") == 2


def test_a_line_that_was_cut_off_costs_only_itself(tmp_path):
    lines = tmp_path / "rows.jsonl"
    append_line(lines, {"a": 1})
    with open(lines, "a") as file:
        file.write('{"b": ')  # cut off by a kill or a full disk
    append_line(lines, {"c": 3})
    append_line(lines, {"d": 4})
    assert read_lines(lines) == [{"a": 1}, {"c": 3}, {"d": 4}]


def test_a_checkout_without_git_and_few_packages_is_enough(root, tmp_path):
    """As on a machine borrowed for minutes: a bare copy on PYTHONPATH, with only torch, triton and pytest."""
    copy, hidden = tmp_path / "copy", tmp_path / "hidden"
    hidden.mkdir()
    for package in ("tyro", "pycocotools", "simplejpeg", "supervision", "git"):
        (hidden / f"{package}.py").write_text("raise ImportError('not here')\n")
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=root, capture_output=True, text=True)
    for name in files.stdout.splitlines():
        target = copy / name
        if (root / name).is_file():  # not deleted in the working tree
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((root / name).read_bytes())
    environment = os.environ | {"PYTHONPATH": f".:kernels:training:{hidden}", "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "ignore", "-m", "vitpose_fast", "bench", "--budget", "100", "--device", "cpu"]
    command += ["--quick", "--out", str(tmp_path / "out"), "--commit", "abc123", "--steps", "env,warm,linear"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "18 kernels for sm_90, 0 failed" in done.stdout.replace("18 of 18", "18")
    rows = read_lines(tmp_path / "out" / "results.jsonl")
    assert {r["environment"]["commit"] for r in rows if "environment" in r} == {"abc123"}
    measured = [r for r in rows if "environment" not in r]
    assert len(measured) == 8 and all(from_rows([r["extra"]["choice"]]) for r in measured)
    assert len(done.stdout) < 12_000
    assert str(copy) not in (tmp_path / "out" / "env.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "60"], "--budget needs --out DIR"),
        (["--budget", "5", "--out", "x"], "expected 10 to 604800 seconds"),
        (["--budget", "nan", "--out", "x"], "expected 10 to 604800 seconds"),
        (
            ["--budget", "60", "--out", "x", "--steps", "env, nonsense"],
            "unknown step 'nonsense' in --steps; choose from env",
        ),
        (["--budget", "60", "--out", "x", "--minutes", "1"], "--minutes cannot be combined with --budget"),
        (["--budget", "60", "--out", "/dev/null/y"], "/dev/null"),
        (["--budget", "60", "--out", "x", "--all"], "--all cannot be combined with --budget"),
        (["--budget", "60", "--out", "x", "-k", "B"], "-k cannot be combined with --budget"),
        (["--steps", "env"], "--steps needs --budget"),
    ],
)
def test_wrong_usage_is_reported_in_one_line(root, tmp_path, arguments, message):
    arguments = [str(tmp_path / a) if a == "x" else a for a in arguments]
    command = [sys.executable, "-m", "vitpose_fast", "bench", "--device", "cpu", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_results_become_a_file(tmp_path, capsys):
    lines = tmp_path / "results.jsonl"
    with pytest.raises(ValueError, match="no such file"):
        result_of(tmp_path)
    append_line(lines, {"environment": ENVIRONMENT})
    with pytest.raises(ValueError, match="nothing was measured"):
        result_of(tmp_path)
    append_line(lines, record("ours", 0.100))
    append_line(lines, record("cuBLAS", 0.090))
    append_line(lines, record("ours", None, "decoder", "failed: once"))
    append_line(lines, {"environment": ENVIRONMENT | dict(command="pytest -k model")})
    append_line(lines, record("ours", 0.5, "decoder"))
    append_line(lines, record("ours", None, "decoder", "failed: later"))
    with open(lines, "a") as file:
        file.write('{"suite": "ops", "na')  # cut off by a kill
    result = result_of(tmp_path)
    assert len(result["records"]) == 3 and result["records"][-1]["median_ms"] == 0.5
    assert result["environment"]["command"] == "pytest -k B; pytest -k model"
    out = tmp_path / "result.json"
    assert report.main(["convert", str(tmp_path), "--out", str(out)]) == 0
    assert len(load(out).records) == 3
    assert report.main(["convert", str(tmp_path), "--out", str(out)]) == 1
    assert "exists already; choose another name" in capsys.readouterr().err
    for bad, message in (
        ({}, ".suite: expected"),
        ({"environment": None}, "environment: expected an object"),
        (record("ours", 1.0) | dict(batch=-1), ".batch: expected"),
        (record("ours", 1.0) | dict(extra=None), ".extra: expected"),
        ({"tuning": []}, ": tuning: expected an object with `choices`"),
        ({"tuning": {"choices": [{"op": "linear"}]}}, ": tuning: choices: "),
    ):
        folder = tmp_path / "bad"
        folder.mkdir(exist_ok=True)
        (folder / "results.jsonl").write_text(lines.read_text().rsplit("\n", 1)[0] + "\n" + json.dumps(bad) + "\n")
        assert report.main(["convert", str(folder), "--out", str(folder / "b.json")]) == 1
        error = capsys.readouterr().err
        assert "results.jsonl: row 8" in error and message in error and error.count("\n") == 1, error
        assert not (folder / "b.json").exists()
    assert report.main(["convert", str(tmp_path / "nowhere")]) == 1
    assert "no such file; expected the folder of a `bench --budget` run" in capsys.readouterr().err


def test_results_of_two_gpus_are_never_mixed(tmp_path):
    for device in ("NVIDIA H100", "NVIDIA H200"):
        append_line(tmp_path / "results.jsonl", {"environment": ENVIRONMENT | dict(device=device)})
        append_line(tmp_path / "results.jsonl", record("ours", 1.0))
    with pytest.raises(ValueError, match="more than one device, expected one; use one folder per run"):
        result_of(tmp_path)
