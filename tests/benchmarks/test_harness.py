"""Fairness of the benchmarks: equal outputs, random data, a clock that waits, no contender missing silently."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from benchmarks import machine as machine_file
from benchmarks.contenders import with_gradients
from benchmarks.harness import (
    Case,
    Contender,
    close,
    declared,
    faults,
    measure,
    same_place,
    tensors_of,
    with_rivals,
)
from benchmarks.machine import Machine
from benchmarks.models import random_model
from vitpose_fast import bench, functional, processor
from vitpose_fast.__main__ import run

FIELDS = {
    "suite", "name", "implementation", "dtype", "batch", "graphed", "median_ms", "p10_ms", "p90_ms", "p99_ms",
    "per_second", "peak_mib", "flops", "bytes", "roofline_fraction", "missing", "extra",
}  # fmt: skip


@pytest.fixture(scope="module")
def machine():
    return Machine("cpu", quick=True)


def case(*contenders, make=None, **options):
    make = make or (lambda seed: (torch.randn(64, 64, generator=torch.Generator().manual_seed(seed)),))
    options = dict(suite="ops", name="square", dtype=torch.float32, batch=4, agree=close(1e-5)) | options
    return Case(make=make, contenders=contenders, **options)


def square(x):
    return x @ x


def test_one_record_for_each_with_all_fields(machine):
    ours, rival = Contender("ours", square), Contender("rival", lambda x: torch.mm(x, x))
    absent = Contender("absent", None, "it is not installed")
    records = measure(case(ours, rival, absent, flops=2 * 64**3, extra={"layer": "x"}), machine, 0.01)
    assert [r["implementation"] for r in records] == ["ours", "rival", "absent"]
    assert all(set(r) >= FIELDS for r in records)
    assert [r["extra"] for r in records] == [{"layer": "x"}, {"layer": "x", "relative_error": 0.0}, {"layer": "x"}]
    for record in records[:2]:
        assert 0 < record["p10_ms"] <= record["median_ms"] <= record["p90_ms"] <= record["p99_ms"]
        assert record["per_second"] == pytest.approx(4e3 / record["median_ms"])
        assert record["missing"] is None and 0 < record["roofline_fraction"] < 4
    numbers = [
        v for k, v in records[2].items() if k not in ("suite", "name", "implementation", "dtype", "batch", "extra")
    ]
    assert records[2]["missing"] == "it is not installed" and set(numbers) == {None, False, "it is not installed"}


def test_a_rival_that_computes_something_else_is_a_record(machine):
    wrong = [lambda x: 1.01 * (x @ x), lambda x: (x @ x)[:32], lambda x: torch.full_like(x, float("nan"))]
    rivals = [Contender(f"rival {i}", function) for i, function in enumerate(wrong)]
    records = measure(
        case(Contender("ours", square), *rivals, Contender("right", lambda x: torch.mm(x, x))), machine, 0.01
    )
    assert records[0]["median_ms"] > 0 and records[-1]["median_ms"] > 0
    for record in records[1:-1]:
        assert record["median_ms"] is None and record["missing"].startswith("disagrees with ours: outputs differ")
    assert len(faults(records)) == 3 and "square: rival 0 disagrees with ours" in faults(records)[0]
    for other in ("fast", None, 3):
        with pytest.raises(TypeError, match="a contender returned a"):
            tensors_of([torch.ones(1), other])


def test_a_contender_has_its_own_tolerance_and_roofline(machine):
    """int8 arithmetic is less exact, and its ceiling is not measured."""

    def rough(x):
        return 1.01 * (x @ x)

    rivals = [Contender("strict", rough), Contender("int8", rough, agree=close(0.02), dtype=torch.int8)]
    records = measure(case(Contender("ours", square), *rivals, flops=10**15), machine, 0.01)
    assert records[0]["missing"].startswith("too fast") and records[1]["missing"].startswith("disagrees with ours")
    assert records[2]["median_ms"] > 0 and records[2]["roofline_fraction"] is None
    assert records[2]["extra"]["relative_error"] == pytest.approx(0.01, rel=1e-3)


def test_a_contender_that_fails_is_missing_with_its_reason(machine):
    """A failing rival costs no other contender its numbers. If ours fails, rivals are timed and the case is a fault."""

    def broken(x):
        raise ValueError("no kernel\nfor this")

    records = measure(case(Contender("ours", square), Contender("rival", broken)), machine, 0.01)
    assert records[0]["missing"] is None and records[1]["missing"] == "failed: no kernel for this"
    assert not faults(records)
    records = measure(case(Contender("ours", broken), Contender("rival", square)), machine, 0.01)
    assert records[0]["missing"] == "failed: no kernel for this" and records[1]["median_ms"] > 0
    assert faults(records) == ["square: ours failed: no kernel for this"]
    assert "ours failed" in records[1]["extra"]["unchecked"]
    records = measure(case(Contender("ours", broken)), machine, 0.01)
    assert [r["missing"] for r in records] == ["failed: no kernel for this"]
    for good in (1, 4):  # fail in the first round, and in a timed one
        calls = []

        def breaks_later(x, calls=calls, good=good):
            calls.append(1)
            if len(calls) > good:
                raise RuntimeError("out of luck")
            return x @ x

        records = measure(case(Contender("ours", square), Contender("rival", breaks_later)), machine, 0.01)
        assert records[0]["median_ms"] > 0 and records[1]["missing"] == "failed: out of luck"


def test_a_lost_device_is_blamed_on_the_contender_that_lost_it(machine, monkeypatch):
    lost = []

    def breaks_the_device(x):
        lost.append(1)
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(machine, "is_lost", lambda: bool(lost))
    rivals = [Contender("wild", breaks_the_device), Contender("next", square)]
    records = measure(case(Contender("ours", square), *rivals), machine, 0.01)
    assert records[0]["median_ms"] > 0 and records[1]["missing"].startswith("failed: CUDA error")
    assert records[2]["missing"] == "not measured: the GPU's context was lost by wild"


def test_launches_are_counted_once_of_the_call_that_is_timed(machine):
    """In the grad mode of the timed call, because torch.compile would compile again for another mode."""
    modes = []

    def function(x):
        modes.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
        return x @ x + 1

    foreign = Contender("not PyTorch", function, extra={"launches": None})
    records = measure(case(Contender("ours", function), foreign, launches=True, extra={"layer": "x"}), machine, 0.01)
    assert records[0]["extra"] == {"layer": "x", "launches": 2} and records[1]["extra"]["launches"] is None
    assert set(modes) == {(False, True)}


def test_compiled_rivals_are_separate_cases_on_request():
    ours, plain = Contender("ours", square), Contender("plain", square)
    slow = [Contender(f"compiled {i}", square, compiled=True) for i in range(2)]
    absent = Contender("absent", None, "not here", compiled=True)
    whole = case(ours, plain, *slow, absent)
    names = lambda cases: [[c.name for c in one.contenders] for one in cases]
    assert with_rivals(whole, "yes") == [whole]
    assert names(with_rivals(whole, "no")) == [["ours", "plain"]]
    apart = with_rivals(whole, "only")
    assert names(apart) == [["ours", "compiled 0"], ["ours", "compiled 1"]]
    assert [c.name for c in apart] == ["square, against compiled 0", "square, against compiled 1"]


def test_distant_keypoints_do_not_agree():
    points = torch.rand(8, 17, 2) * 200
    same_place(4.0)((points,), (points + 2,))
    for other in (points.flip(0), points + 5, points[:4], points * float("nan")):
        with pytest.raises(AssertionError, match="px apart or more|differ in shape"):
            same_place(4.0)((points,), (other,))


def test_nothing_is_timed_on_zeros(machine):
    for value in (torch.zeros(8, 8), torch.full((8, 8), 2.0), torch.full((8, 8), float("nan"))):
        with pytest.raises(AssertionError, match="input 0 is constant or not finite"):
            measure(case(Contender("ours", square), make=lambda seed, value=value: (value,)), machine, 0.01)


def test_a_timing_that_does_not_wait_cannot_pass(machine):
    """The work happens in a thread: the call returns at once with memory that is filled later."""
    threads = []

    def later(x):
        out = torch.empty_like(x)
        threads.append(threading.Thread(target=lambda: (time.sleep(0.1), torch.mm(x, x, out=out))))
        threads[-1].start()
        if len(threads) == 1:  # the outputs that are compared must be right
            threads[0].join()
        return out

    def make(seed):
        return (torch.randn(1024, 1024, generator=torch.Generator().manual_seed(seed)),)

    (record,) = measure(case(Contender("ours", later), make=make, flops=2 * 1024**3), machine, 0.01)
    assert record["median_ms"] is None and "times as fast as the roofline; the timing did not wait" in record["missing"]
    assert len(faults([record])) == 1
    for thread in threads:
        thread.join()


def test_contenders_take_turns(machine):
    order = []

    def turn(name):
        return lambda x: (order.append(name), x @ x)[1]

    measure(case(Contender("a", turn("a")), Contender("b", turn("b")), Contender("c", turn("c"))), machine, 0.001)
    timed = "".join(order)
    assert timed.startswith("abc" * 4) and timed == "abc" * (len(timed) // 3)


class Gpu(Machine):
    """A fake GPU: the functions that `record` returns are the calls themselves, which run on the CPU."""

    def __init__(self):
        self.device, self.cuda, self.most_believable = torch.device("cpu"), True, 1e9
        self.tflops, self.copy_tb_s = {torch.float32: 1.0}, 1.0
        self.recorded = 0

    def record(self, calls, together):
        self.recorded += len(calls)
        return calls

    def time(self, calls):
        started = time.perf_counter()
        for call in calls:
            call()
        return (time.perf_counter() - started) * 1e3

    def extra_mib(self, call):
        return 2.0

    def is_lost(self):
        return False


def test_all_contenders_use_graphs_or_are_called_eager():
    gpu = Gpu()
    eager = Contender("rival", square, graph=False)
    with pytest.raises(
        AssertionError, match="rival runs without CUDA graphs next to others with graphs; call it eager"
    ):
        measure(case(Contender("ours", square), eager), gpu, 0.001)
    named = Contender("rival (eager)", square, graph=False, module=torch.nn.Linear(512, 512, bias=False))
    own = Contender("compiled", square, own_graph=True)
    replayed = Contender("frozen", square, own_graph=True, eager=square)
    records = measure(case(Contender("ours", square), named, own, replayed), gpu, 0.001)
    assert [r["graphed"] for r in records] == [True, False, True, True]
    inputs = 64 * 64 * 4 / 2**20
    assert records.pop(2)["peak_mib"] is None  # memory inside the graphs of torch.compile is unknown
    assert [r["peak_mib"] for r in records] == pytest.approx([2 + inputs, 3 + inputs, 2 + inputs])
    assert (
        gpu.recorded % 2 == 0 and gpu.recorded >= 8
    )  # one graph per input set, and more sets than fit into the caches


def test_work_comes_from_the_declaration_of_the_op():
    pytest.importorskip("triton")
    x, weight, bias = torch.randn(6, 32), torch.randn(16, 32), torch.randn(16)
    flops, moved = declared(torch.no_grad()(functional.linear), (x, weight, bias))
    assert flops == 2 * 6 * 16 * 32 and moved == 4 * (6 * 32 + 16 * 32 + 16 + 6 * 16)


def test_work_of_a_backward_is_declared_too():
    """Attention over a whole map has two products forward and five of the same size backward."""
    pytest.importorskip("triton")
    qkv = torch.randn(2, 12, 3, 2, 16, requires_grad=True)
    attention = lambda x: functional.attention(x, (4, 3))
    flops, moved = declared(torch.no_grad()(attention), (qkv,))
    both, more = declared(with_gradients(attention), (qkv, torch.randn(2, 12, 32)))
    assert flops == 4 * 2 * 12 * 12 * 32 and both == flops * 7 // 2 and more > 2 * moved
    assert declared(lambda x: x + 1, (torch.zeros(3),)) == (None, None)


def test_the_environment_is_stamped(machine, monkeypatch):
    stamp = machine.environment(None, "pytest benchmarks/", True)
    assert stamp["torch"] == torch.__version__ and stamp["device"] and stamp["quick"] is True
    assert (
        stamp["matmul_tflops"] > 0 and stamp["copy_tb_s"] > 0 and set(stamp) >= {"driver", "triton", "commit", "dirty"}
    )
    assert stamp["processor"] in stamp["device"] and 0 < stamp["cores"] <= os.cpu_count()
    has = torch.cpu._is_avx2_supported(), torch.cpu._is_avx512_bf16_supported(), torch.cpu._is_amx_tile_supported()
    assert has == tuple(name in stamp["features"] for name in ("AVX2", "AVX-512 BF16", "AMX bf16"))
    monkeypatch.setattr(processor, "_field", lambda *names: "")  # a Mac
    assert processor.processor_features() == [torch.backends.cpu.get_cpu_capability()]
    assert processor.processor_model() and processor.memory_mib("/proc/meminfo", "MemAvailable") is None
    monkeypatch.setattr(machine_file, "_run", lambda *command: None)  # no git
    assert machine.environment(None, "", True)["commit"] is None
    given = machine.environment("abc123", "", True)
    assert given["commit"] == "abc123" and given["dirty"] is None


def test_bench_writes_a_file_that_names_missing_contenders(root, tmp_path, python_path):
    """As a user calls it, in its own process, with tyro, pycocotools and simplejpeg hidden."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    for package in ("tyro", "pycocotools", "simplejpeg"):
        (hidden / f"{package}.py").write_text("raise ImportError('not here')\n")
    environment = os.environ | {"PYTHONPATH": python_path(hidden), "OMP_NUM_THREADS": "1"}
    out = tmp_path / "results.json"
    command = [sys.executable, "-m", "vitpose_fast", "bench", "--suites", "ops", "--quick", "--device", "cpu"]
    command += ["--commit", "abc123", "--out", str(out), "-k", "layer_norm and forward and not backward"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    stamp = found["environment"]
    assert stamp["commit"] == "abc123" and stamp["quick"]
    assert "benchmarks/test_ops.py" in stamp["command"] and str(root) not in stamp["command"]
    assert "results.json" not in stamp["command"]  # the recorded command is the same on every machine
    records = found["records"]
    # torch.compile rivals have their own suite.
    assert {r["implementation"] for r in records} == {"ours", "torch", "reference"}
    again = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    assert again.returncode == 1 and "results.json exists already; choose another name" in again.stderr
    absent = [r for r in records if r["missing"]]
    assert absent and all(r["median_ms"] is None for r in absent)
    assert all(set(r) >= FIELDS for r in records) and "records in" in done.stdout


def test_bench_outside_a_checkout_is_an_error(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "site-packages" / "vitpose_fast" / "bench.py"))
    monkeypatch.chdir(tmp_path)
    assert run(lambda: bench.main([])) == 1
    assert "run it in a checkout of the repository" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    assert run(lambda: bench.main([])) == 1
    assert "needs pytest and pytest_benchmark" in capsys.readouterr().err


def test_no_benchmark_starts_after_the_time_limit(root, tmp_path):
    command = [sys.executable, "-m", "vitpose_fast", "bench", "--quick", "--minutes", "0", "--device", "cpu"]
    command += ["--suites", "ops", "training", "--out", str(tmp_path / "no.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0 and " skipped" in done.stdout and " passed" not in done.stdout
    assert "nothing was measured" in done.stdout and not (tmp_path / "no.json").exists()


def test_result_files_get_unique_names(tmp_path):
    name = bench.result_name("NVIDIA H200", "2026-11-22", False)
    assert name == "nvidia-h200-2026-11-22.json"
    assert bench.result_name("AMD EPYC, 2 threads", "2026-11-22", True) == "amd-epyc-2-threads-2026-11-22-quick.json"
    for expected in (name, "nvidia-h200-2026-11-22-2.json", "nvidia-h200-2026-11-22-3.json"):
        path = bench.free_path(tmp_path, name)
        assert path.name == expected
        path.touch()


def test_models_are_made_on_their_device():
    """A large model takes a minute to initialize on one CPU thread, so it is not made there and moved."""
    for name in ("vitpose-tiny", "vitpose++-tiny"):
        model = random_model(name, torch.device("meta"))
        assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))
    on_cpu = random_model("vitpose-tiny", torch.device("cpu")).state_dict()
    norms = [v for k, v in on_cpu.items() if "running_var" in k]
    assert norms and all(0.5 <= v.min() < v.max() <= 1.5 for v in norms)


def test_what_matters_most_is_measured_first(root):
    """Sizes vary slowest, B first; pytest would reorder parameters of fixtures with a wider scope."""
    command = [sys.executable, "-m", "pytest", "benchmarks/test_model.py", "--collect-only", "-q", "--device", "cuda"]
    done = subprocess.run([*command, "-k", "test_network and not decoding"], capture_output=True, text=True, cwd=root)
    cases = [line.split("[")[1].rstrip("]") for line in done.stdout.splitlines() if "[" in line]
    assert cases[:5] == ["b-bfloat16-64", "b-bfloat16-1", "b-bfloat16-8", "b-bfloat16-72", "s-bfloat16-64"]
    assert len(cases) == 16
