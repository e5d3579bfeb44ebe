"""Every shipped kernel compiles for Ampere, Hopper and Blackwell: no spills, fits the chip, uses the tensor cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from vitpose_fast.kernel_report import problem_of, programs_per_multiprocessor
from vitpose_kernels.calls import OPS

pytest.importorskip("triton", reason="triton is not installed")

from vitpose_kernels.gpu.aot import Resources


@pytest.fixture(scope="module")
def kernels_command(tmp_path_factory):
    """kernels_command(*options): run `vitpose-fast kernels` in a process without Triton's interpreter.

    Returns (exit code, standard output and error, content of the JSON file or None if there is none).
    """

    def call(*options):
        file = tmp_path_factory.mktemp("kernels") / "report.json"
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        command = [sys.executable, "-m", "vitpose_fast", "kernels", "--json", str(file), *options]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        return done.returncode, done.stdout + done.stderr, json.loads(file.read_text()) if file.is_file() else None

    return call


PRODUCTS = (
    "attention",
    "split_ffn",
    "linear",
    "patch_embed",
    "deconv",
)  # the ops whose kernels differ most between chips


@pytest.mark.parametrize(
    ("arch", "cores", "ops"), [("sm_80", "mma", PRODUCTS), ("sm_90", "wgmma", OPS), ("sm_100", "tcgen05", PRODUCTS)]
)
def test_shipped_kernels_fit_their_chip(kernels_command, arch, cores, ops):
    """Covers batch 64 and 1 of model B on three chips; `vitpose-fast kernels` covers the other models and chips."""
    code, output, report = kernels_command("--arch", arch, "--models", "B", "--ops", *ops)
    assert code == 0, output
    kernels = report["kernels"]
    assert {k["op"] for k in kernels} == set(ops) and len(kernels) <= (100 if ops == OPS else 70)
    assert all(k["tensor_cores"] in (cores, "mma") for k in kernels if k["has_dot"])
    attention = [k["tensor_cores"] for k in kernels if k["kernel"] == "attention_forward_kernel"]
    assert attention and set(attention) == {cores}


@pytest.mark.parametrize(("arch", "cores"), [("sm_80", "mma"), ("sm_90", "wgmma"), ("sm_100", "tcgen05")])
def test_candidates_of_the_tuner_fit_their_chip(kernels_command, arch, cores):
    """Covers batch 64, 8 and 1 of model B on three chips."""
    code, output, report = kernels_command("--candidates", "--arch", arch, "--models", "B")
    assert code == 0, output
    kernels = report["kernels"]
    assert {k["op"] for k in kernels} == {"linear", "deconv"} and len(kernels) <= 80
    assert all(k["tensor_cores"] in (cores, "mma") for k in kernels if k["has_dot"])
    assert all(k["programs"] >= 1 for k in kernels)
    split = "; ".join(user for k in kernels if k["kernel"] == "add_slices_kernel" for user in k["used_by"])
    assert ", batch 1" in split and ", batch 64" not in split
    wide = [n for n in report["launches"] if "linear qkv 192 (128, 0, 256" in n["op"] and n["op"].endswith("batch 64")]
    assert [n["gflop"] for n in wide] == [pytest.approx(2 * 64 * 192 * 768 * 2304 / 1e9)]


def test_costs_follow_from_the_shapes(kernels_command):
    code, output, report = kernels_command("--arch", "sm_90", "--models", "B", "--ops", "attention")
    assert code == 0, output
    whole = next(n for n in report["launches"] if n["op"] == "attention whole 16x12, batch 64")
    assert whole["gflop"] == pytest.approx(4 * 64 * 192 * 192 * 768 / 1e9)
    assert whole["mbytes"] == pytest.approx(
        4 * 64 * 192 * 768 * 2 / 1e6, rel=0.02
    )  # read qkv, write the output and statistics
    assert whole["floor_us"]["H200"] == pytest.approx(whole["mbytes"] * 1e6 / 4.3e12 * 1e6)


def test_problems_of_a_kernel_are_reported():
    """`problem_of` reports too much shared memory, spills, missing tensor cores and failed compilation."""
    fine = Resources(shared=100_000, tensor_cores="mma", has_dot=True)
    assert problem_of(fine, 0, 80) == ""
    assert "shared memory" in problem_of(fine._replace(shared=102_000), 0, 86)
    assert problem_of(fine._replace(spills=16), 8, 80) == "spills 16 bytes"
    assert "without tensor cores" in problem_of(fine._replace(tensor_cores=""), 0, 90)
    assert problem_of(Resources(error="at 59:40: no"), 0, 90) == "does not compile: at 59:40: no"


def test_programs_of_a_multiprocessor():
    """By registers, by shared memory, and by warps."""
    used = Resources(registers=128, shared=1000)
    assert programs_per_multiprocessor(used, 8, 90) == 2
    assert programs_per_multiprocessor(used._replace(registers=129), 8, 90) == 1  # in units of 8 registers: 136
    assert programs_per_multiprocessor(used._replace(shared=75 << 10), 4, 90) == 3  # 228 KiB
    assert programs_per_multiprocessor(used._replace(shared=75 << 10), 4, 86) == 1  # 100 KiB
    assert [programs_per_multiprocessor(used._replace(registers=16), 8, a) for a in (80, 89)] == [8, 6]
    assert programs_per_multiprocessor(Resources(error="no"), 4, 90) == 0


def test_the_interpreter_is_refused(capsys):
    from vitpose_fast.__main__ import main
    from vitpose_kernels.launch import interpreting

    if not interpreting():
        pytest.skip("the interpreter is off")
    with pytest.raises(SystemExit) as done:
        main(["kernels"])
    assert done.value.code == 1
    assert capsys.readouterr().err == (
        "vitpose-fast: error: kernels: TRITON_INTERPRET is set, which disables the compiler; unset it\n"
    )
