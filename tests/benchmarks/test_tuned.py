"""Benchmark results become the table of choices that the package ships, and the ops follow it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import report
from benchmarks.convert import merged, read_tuned, result_of, text_of, tuned_of
from benchmarks.records import append_line, load, read_lines
from vitpose_kernels import choices
from vitpose_kernels.choices import DEFAULT, Call, Choice, find, from_rows, to_rows

ENVIRONMENT = dict(
    device="NVIDIA H100 80GB HBM3", driver="580", threads=8, torch="2.11", triton="3.6.0", commit="abc123", dirty=None,
    matmul_tflops=790.0, copy_tb_s=3.0, date="2026-11-26", command="pytest -k B", quick=False,
)  # fmt: skip
QKV = Call("linear", (2304, 768), "norm", "bfloat16")
ATTENTION = Call("attention", (192, 12, 64), "forward", "bfloat16")
TILES = (128, 0, 256, 64, 8, 3, 1, 1, 1)


def record(call, rows, impl, median, tiles=(), spread=0.01):
    numbers = dict.fromkeys(("p99_ms", "per_second", "peak_mib", "flops", "bytes", "roofline_fraction"))
    times = dict(median_ms=median, p10_ms=median * (1 - spread), p90_ms=median * (1 + spread))
    name = f"{impl} {tiles} {rows}"
    identity = dict(suite="ops", name=call.op, implementation=name, dtype=call.dtype, batch=64, graphed=True)
    return (
        identity
        | numbers
        | times
        | dict(missing=None, extra={"choice": to_rows({call: {rows: Choice(impl, tiles)}})[0]})
    )


def result(*records, tuning=(), **environment):
    return {"environment": ENVIRONMENT | environment, "records": list(records), "tuning": list(tuning)}


def table(tuned, chip="H100"):
    return from_rows(tuned["chips"][chip])


def test_the_fastest_choice_wins_if_it_is_clearly_faster():
    found = tuned_of(
        result(
            record(QKV, 12288, DEFAULT, 0.100),
            record(QKV, 12288, "library", 0.090),
            record(QKV, 12288, "triton", 0.080, TILES),
            record(QKV, 192, DEFAULT, 0.100),
            record(QKV, 192, "library", 0.098),  # 2 %
            record(ATTENTION, 64, DEFAULT, 0.2),
            record(ATTENTION, 64, "sdpa:cudnn", 0.18, spread=0.1),  # within its spread
            record(ATTENTION, 8, "sdpa:cudnn", 0.1),  # without a default
            record(ATTENTION, 1, DEFAULT, 0.1),  # without a rival
        )
    )
    assert table(found) == {
        QKV: {12288: Choice("triton", TILES), 192: Choice(DEFAULT)},
        ATTENTION: {64: Choice(DEFAULT)},
    }
    assert found["format"] == 1 and list(found["chips"]) == ["H100"]
    assert found["measured"]["H100"]["commit"] == "abc123"
    assert tuned_of(result(record(QKV, 192, DEFAULT, 1.0), device="Xeon"))["chips"] == {}


def test_what_was_found_in_a_whole_model_comes_first():
    op = [record(QKV, 192, DEFAULT, 0.1), record(QKV, 192, "library", 0.05)]
    op += [record(ATTENTION, 1, DEFAULT, 0.1), record(ATTENTION, 1, "sdpa", 0.05)]
    model = {QKV: {192: Choice(DEFAULT)}, ATTENTION: {1: Choice("flash_attn"), 8: Choice("sdpa:flash")}}
    found = tuned_of(result(*op, tuning=[{"choices": to_rows(model)}]))
    assert table(found) == {
        QKV: {192: Choice(DEFAULT)},
        ATTENTION: {1: Choice("sdpa"), 8: Choice("sdpa:flash")},  # flash_attn is not installed everywhere
    }


def test_merging_replaces_only_what_was_measured_again():
    old = {"format": 1, "measured": {"A100": {"date": "a"}, "H100": {"date": "b"}}, "chips": {
        "A100": to_rows({QKV: {192: Choice("library")}}),
        "H100": to_rows({QKV: {192: Choice("library"), 1536: Choice("library")}, ATTENTION: {1: Choice("sdpa")}}),
    }}  # fmt: skip
    new = {"format": 1, "measured": {"H100": {"date": "c"}}, "chips": {
        "H100": to_rows({QKV: {192: Choice("triton", TILES)}, ATTENTION: {1: Choice(DEFAULT)}}),
    }}  # fmt: skip
    both = merged(old, new)
    assert both["chips"]["A100"] == old["chips"]["A100"]
    assert table(both) == {
        QKV: {192: Choice("triton", TILES), 1536: Choice("library")}
    }  # and only defaults are left out
    assert both["measured"] == {"A100": {"date": "a"}, "H100": {"date": "c"}}
    assert merged(both, new) == both == json.loads(text_of(both)) and merged({"format": 1, "chips": {}}, both) == both


def test_a_run_is_converted_and_shipped_and_the_ops_follow(tmp_path, monkeypatch, capsys):
    folder, package = tmp_path / "run", tmp_path / "package.json"
    folder.mkdir()
    append_line(folder / "results.jsonl", {"environment": ENVIRONMENT})
    for row in (record(QKV, 12288, DEFAULT, 0.1), record(QKV, 12288, "triton", 0.08, TILES)):
        append_line(folder / "results.jsonl", row)
    append_line(
        folder / "results.jsonl", {"tuning": {"batch": 1, "choices": to_rows({ATTENTION: {1: Choice("sdpa")}})}}
    )
    a100 = {"format": 1, "chips": {"A100": to_rows({QKV: {192: Choice("library")}})}}
    package.write_text(json.dumps(a100))
    out = tmp_path / "result.json"
    assert report.main(["convert", str(folder), "--out", str(out)]) == 0
    assert "2 records in" in (text := capsys.readouterr().out) and "2 choices for H100 in" in text
    assert len(load(out).records) == 2 and len(json.loads(out.read_text())["tuning"]) == 1
    tuned = tmp_path / "result-tuned.json"
    assert report.main(["ship", str(tuned), "--into", str(package)]) == 0
    assert "1 choices for A100, 2 choices for H100" in capsys.readouterr().out

    monkeypatch.setattr(choices, "_SHIPPED", package)
    choices._shipped.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: device)
    try:
        for device, call, expected in (
            ("NVIDIA H100 80GB HBM3", QKV, Choice("triton", TILES)),
            ("NVIDIA H100 80GB HBM3", ATTENTION, Choice("sdpa")),
            ("NVIDIA A100-SXM4-40GB", QKV, Choice("library")),
            ("NVIDIA A100-SXM4-40GB", ATTENTION, None),
            ("NVIDIA L4", QKV, None),
        ):
            x = type("OnGPU", (), dict(is_cuda=True, device=device))
            assert find(call, 192, x) == expected
    finally:
        choices._shipped.cache_clear()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "tuned.json: "),
        ("[]", 'expected {"format": 1, "chips": {...}}'),
        ('{"format": 2, "chips": {}}', 'expected {"format": 1'),
        ('{"format": 1, "chips": {}}', "holds no choices"),
        ('{"format": 1, "chips": {"GTX": []}}', "unknown chip 'GTX'"),
        ('{"format": 1, "chips": {"H100": [{}]}}', "choices: {} lacks 'op'"),
        ('{"format": 1, "chips": {"H100": []}, "measured": {"H100": {"quick": true}}}', "from a quick run"),
    ],
)
def test_a_file_that_cannot_be_shipped_is_refused_in_one_line(tmp_path, capsys, content, problem):
    path, package = tmp_path / "tuned.json", tmp_path / "package.json"
    path.write_text(content)
    assert report.main(["ship", str(path), "--into", str(package)]) == 1
    error = capsys.readouterr().err
    assert problem in error and error.count("\n") == 1 and not package.exists()


def test_the_shipped_file_is_one_that_is_written_here():
    shipped = read_tuned(report.SHIPPED)
    assert report.SHIPPED.samefile(choices._SHIPPED) and merged(shipped, shipped)["chips"] == shipped["chips"]
    assert report.SHIPPED.read_text(encoding="utf-8") == text_of(shipped)


def test_the_step_tune_of_a_rehearsal(root, tmp_path):
    """A tiny model on a CPU: one line per batch size, in the summary and for `convert`."""
    command = [sys.executable, "-W", "ignore", "-m", "vitpose_fast", "bench", "--device", "cpu", "--quick"]
    command += ["--budget", "100", "--steps", "tune", "--out", str(tmp_path / "out"), "--commit", "abc123"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "done: batch 1 " in done.stdout and "; batch 2 " in done.stdout
    rows = [row["tuning"] for row in read_lines(tmp_path / "out" / "results.jsonl") if "tuning" in row]
    assert [row["batch"] for row in rows] == [1, 2]
    for row in rows:
        assert from_rows(row["choices"]) and row["ms"]["default"] > 0 and row["error"]["chosen"] < 1e-3
    assert result_of(tmp_path / "out")["tuning"] == rows
