"""`vitpose-fast bench --model`: what it measures, how it finds the largest batch, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import vitpose_fast as vp
from vitpose_fast import measure
from vitpose_fast.__main__ import main


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(measure, "_SECONDS", 0.0)


def run(*args: str) -> int:
    """Run the command line and return its exit code."""
    with pytest.raises(SystemExit) as done:
        main(["bench", *args])
    return done.value.code


def rows_of(output: str) -> dict[str, list[str]]:
    """Return the words of the table's rows by dtype."""
    lines = [line.split() for line in output.splitlines() if line.startswith(("float", "bfloat"))]
    return {words[0]: words[1:] for words in lines}


@pytest.mark.parametrize("name", ["vitpose-tiny", "vitpose++-tiny"])
def test_a_model_by_name(name, capsys):
    assert run("--model", name, "--batch", "2", "--device", "cpu") == 0
    output = capsys.readouterr().out
    rows = rows_of(output)
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert set(rows) == ({"float32", "bfloat16"} if native else {"float32"})
    for median, _, people, weights, *_ in rows.values():
        assert float(people) == pytest.approx(2e3 / float(median), rel=1e-2) and int(weights) > 0
    assert f"{name} (random weights), task coco, 256x192, batch 2" in output and "torch 2" in output
    assert output.count("frozen to ") == len(rows) and "folded: " in output
    assert ("experts of the task" in output) == ("++" in name)


def test_a_checkpoint(tmp_path, capsys, monkeypatch):
    """In a folder without a checkout: nothing of the repository is needed but the package."""
    monkeypatch.chdir(tmp_path)
    vp.save_model(vp.create_model("vitpose-tiny", ("coco", "mpii"), image_size=(64, 48), depth=1), "weights")
    assert run("--model", "weights", "--task", "mpii", "--batch", "1", "--device", "cpu") == 0
    assert "weights (checkpoint), task mpii, 64x48, batch 1" in capsys.readouterr().out
    assert run("--model", "weights", "--device", "cpu") == 1
    error = capsys.readouterr().err
    assert "heads for coco, mpii; choose one" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "vitpose-xl"], "got --model vitpose-xl, expected a checkpoint or one of vitpose-"),
        (["--model", "no/such.pth"], "no/such.pth: no such file"),
        (["--model", "vitpose-tiny", "--task", "cats"], "cats"),
        (["--model", "vitpose-tiny", "--quick"], "--quick cannot be combined with --model"),
        (["--model", "vitpose-tiny", "-k", "x"], "-k cannot be combined with --model"),
        (["--batch", "2"], "--batch needs --model"),
        (["--tune", "2"], "--tune needs --model"),
    ],
)
def test_wrong_input_is_one_line(capsys, arguments, message):
    assert run(*arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("option", [["--batch", "0"], ["--batch", "x"], ["--tune", "-1"], ["--tune", "nan"]])
def test_wrong_numbers_are_wrong_usage(option):
    assert run("--model", "vitpose-tiny", *option) == 2


def test_tune_is_passed_on_only_if_given(monkeypatch):
    seen, freeze = [], measure.freeze

    def spy(model, task, dtype, **options):
        seen.append(options)
        return freeze(model, task, dtype)

    monkeypatch.setattr(measure, "freeze", spy)
    for more in ([], ["--tune", "3"]):
        assert run("--model", "vitpose-tiny", "--batch", "1", "--device", "cpu", *more) == 0
    assert [options for options in seen if options] == [{"tune": 3.0}] * (len(seen) // 2)


def test_a_batch_without_memory_is_one_line(monkeypatch, capsys):
    def full(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(measure, "measure", full)
    assert run("--model", "vitpose-tiny", "--batch", "4", "--device", "cpu") == 1
    error = capsys.readouterr().err
    assert "a batch of 4 does not fit into the memory of cpu; choose a smaller --batch" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("most", [8, 9, 100, 1000, 4095, 70000])
def test_the_largest_batch_is_found_to_three_percent(most):
    tried = []

    def fits(batch):
        tried.append(batch)
        return batch <= most

    found = measure.largest_batch(fits, 8, 1 << 16)
    assert min(most, 1 << 16) * 0.96 <= found <= min(most, 1 << 16)
    assert len(tried) < 24 and max(tried) <= 1 << 16 and len(set(tried)) == len(tried)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the memory of a process")
def test_memory_growth_is_the_peak_of_a_call():
    kept = torch.ones(64 << 20, dtype=torch.int8)  # memory of before does not count
    assert measure.memory_growth(lambda: None) < 8
    assert 95 < measure.memory_growth(lambda: torch.ones(100 << 20, dtype=torch.int8).max()) < 130
    assert kept.sum() == 64 << 20


def test_a_reader_that_stops_early_is_no_traceback(python_path):
    """The process writes into a pipe that nobody reads any more, as under `| head -0`."""
    environment = os.environ | {"PYTHONPATH": python_path()}
    for arguments in (["--help"], ["--version"], ["info"]):
        reader, writer = os.pipe()
        os.close(reader)
        command = [sys.executable, "-m", "vitpose_fast", *arguments]
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment)
        os.close(writer)
        assert (done.returncode, done.stderr) == (141, ""), arguments
