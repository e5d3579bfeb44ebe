"""The report on made-up result files: what it prints, what it refuses, and what it leaves alone."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from PIL import Image

from benchmarks.figures import bubbles
from benchmarks.paper import PAPER_RATIOS, PAPER_ROWS
from benchmarks.records import load
from benchmarks.report import main

NUMBERS = ("median_ms", "p10_ms", "p90_ms", "p99_ms", "per_second", "peak_mib", "flops", "bytes", "roofline_fraction")
PAPER = dict(zip(PAPER_ROWS, (829, 428, 309, 309, 653, 602, 309, 158, 78, 1439, 944, 411, 241, 1439, 944, 411, 241)))
AP = dict(
    zip(
        PAPER_ROWS, (73.5, 75.8, 76.3, 77.2, 73.3, 75.8, 75.8, 75.6, 77.2, 73.8, 75.8, 78.3, 79.1, 75.8, 77, 78.6, 79.4)
    )
)
SIZES = dict(zip(PAPER_ROWS, (69, 29, 64, 64, 84, 28, 18, 43, 43, 24, 90, 309, 637, 24, 90, 309, 637)))


def record(name="x", implementation="ours", ms=1.0, *, suite="model", spread=0.02, **more):
    """Return a record of batch 64 with a median of `ms`; `more` replaces fields.

    With `missing`, its numbers are None.
    """
    row = {"suite": suite, "name": name, "implementation": implementation, "dtype": "bfloat16", "batch": 64}
    row |= {"graphed": False, "median_ms": ms, "p10_ms": ms * (1 - spread / 2), "p90_ms": ms * (1 + spread / 2)}
    row |= {"p99_ms": ms * 2, "per_second": 64e3 / (ms or 1), "peak_mib": 512.0, "flops": 10**9, "bytes": 10**6}
    row |= {"roofline_fraction": 0.5, "missing": None, "extra": {}}
    if more.get("missing"):
        row |= dict.fromkeys(NUMBERS)
    return row | more


def table12(speedup=1.0, rows=PAPER_ROWS, **speeds):
    """Return eager records with the paper's speeds times `speedup` and, for ViTPose, records of ours twice as fast.

    `speeds` replaces the speeds (samples per second) of single rows.
    """
    out = []
    for name in rows:
        fps = speeds.get(name, PAPER[name] * speedup)
        extra = {"params_m": SIZES[name], "gmacs": 10.0, "paper_fps": PAPER[name], "paper_ap": AP[name]}
        extra |= {"paper_memory_m": 4321.0, "paper_params_m": 60.0, "paper_gflops": 15.7}
        out.append(record(name, "eager", 64e3 / fps, suite="table12", extra=extra))
        if name.startswith("ViTPose"):
            out.append(record(name, "vitpose_fast frozen", 32e3 / fps, suite="table12", graphed=True, extra=extra))
    return out


def layer(model, name, calls, ms, **more):
    return record(
        f"{name} {model}", "ours", ms, suite="ops", extra={"model": model, "layer": name, "calls": calls}, **more
    )


@pytest.fixture
def write(tmp_path):
    """write(records, **environment): write a result file of a GPU and return its path.

    `environment` replaces values of the file's environment.
    """
    numbers = itertools.count()

    def write(records, **environment):
        machine = {"device": "NVIDIA H200", "driver": "570.1", "torch": "2.11.0", "triton": "3.5.0"}
        machine |= {"commit": "0123456789abcdef", "dirty": False, "matmul_tflops": 700.0, "copy_tb_s": 4.2}
        machine |= {"date": "2026-01-31", "command": "pytest benchmarks/", "quick": False, "threads": 2}
        path = tmp_path / f"results{next(numbers)}.json"
        path.write_text(json.dumps({"environment": machine | environment, "records": records}), encoding="utf-8")
        return path

    return write


@pytest.fixture
def call(capsys):
    """call(*arguments): run a command of benchmarks/report.py; return (exit code, standard output, standard error)."""

    def call(*arguments):
        code = main([str(a) for a in arguments])
        return (code, *capsys.readouterr())

    return call


def output_of(call, *arguments):
    """Run a command that must succeed, and return its output."""
    code, output, error = call(*arguments)
    assert code == 0 and not error, error
    return output


def row_of(output, name):
    """Return the cells of the only table row whose first cell is `name`."""
    (line,) = [line for line in output.splitlines() if line.startswith(f"| {name} |")]
    return re.split(r"(?<!\\) \| ", line.strip("| "))


# --- tables


def test_head_says_where_the_numbers_come_from(write, call):
    output = output_of(call, "tables", write([record()], dirty=True))
    head = output.splitlines()[0]
    for part in ("NVIDIA H200", "2.11.0", "3.5.0", "0123456789 (dirty)", "2026-01-31", "`pytest benchmarks/`"):
        assert part in head
    features = dict(processor="Xeon", features=["AVX2", "AMX bf16"], cores=2)
    cpu = write([record(peak_mib=None)], device="Xeon, 2 threads", driver=None, **features)
    head = output_of(call, "tables", cpu).splitlines()[0]
    assert head.startswith("**Xeon, 2 threads on 2 cores with AVX2, AMX bf16**")
    assert "AMX" not in output_of(call, "tables", write([record()], **features))  # a GPU's numbers
    assert "(dirty)" not in output_of(call, "tables", write([record()]))
    assert "commit unknown" in output_of(call, "tables", write([record()], commit=None, dirty=None))


def test_ratio_is_rival_over_ours(write, call):
    records = [record("x", "ours", 2.0), record("x", "sdpa", 3.0), record("y", "ours", 4.0), record("y", "sdpa", 3.0)]
    output = output_of(call, "tables", write([r | {"suite": "ops"} for r in records]))
    cells = row_of(output, "x")
    assert cells[:5] == ["x", "bfloat16", "64", "no", "ours<br>sdpa"]
    assert cells[5] == "2 (1.98..2.02)<br>3 (2.97..3.03)" and cells[6] == "32000<br>21333"
    assert cells[7:10] == ["512<br>512", "50 %<br>50 %", "-<br>1.50"]
    assert row_of(output, "y")[9] == "-<br>0.75"


def test_a_missing_rival_has_a_reason_and_no_numbers(write, call):
    records = [record("x", "vitpose_fast frozen", 2.0, graphed=True), record("x", "fla|sh", missing="not | here\nnow")]
    cells = row_of(output_of(call, "tables", write(records)), "x")
    assert cells[3] == "yes"  # grouped with ours, though it was never captured in a graph
    assert cells[5].endswith(r"<br>missing: not \| here now")
    assert all(cell.endswith("<br>-") for cell in cells[6:10])


def test_rows_are_split_by_graphed(write, call):
    records = [record("x", "vitpose_fast frozen", 1.0, graphed=True), record("x", "eager", 3.0)]
    lines = [line for line in output_of(call, "tables", write(records)).splitlines() if line.startswith("| x ")]
    assert len(lines) == 2 and "3.00 (ours graphed)" in lines[1]
    records.append(record("x", "vitpose_fast frozen", 2.0))
    lines = [line for line in output_of(call, "tables", write(records)).splitlines() if line.startswith("| x ")]
    assert len(lines) == 2 and "| 1.50<br>- |" in lines[1] and "(ours" not in lines[1]


def test_batches_and_dtypes_are_not_compared_with_each_other(write, call):
    records = [record("x", "ours", 1.0), record("x", "sdpa", 2.0, batch=1), record("x", "sdpa", 3.0, dtype="float32")]
    output = output_of(call, "tables", write(records))
    assert "2.00" not in output and "3.00" not in output


def test_extra_values_have_their_names(write, call):
    extra = {"people_per_frame": 5, "cpu_seconds_per_1000": 3.25, "flip_test": True}
    output = output_of(call, "tables", write([record(suite="pipeline", extra=extra)]))
    assert "people per frame 5, CPU seconds per 1000 3.25, flip test yes" in output
    output = output_of(call, "tables", write([record(suite="training", extra={"mfu": 0.4, "paper_memory_m": 4589})]))
    assert "MFU 0.4, the paper's A100 memory (M) 4589" in output


def test_quick_is_marked(write, call, tmp_path):
    quick, full = write(table12(), quick=True), write(table12())
    page = tmp_path / "speed.md"
    for file, marked in ((quick, True), (full, False)):
        page.write_text("<!-- speed --><!-- /speed -->")
        output_of(call, "docs", file, "--page", page)
        output = output_of(call, "tables", file)
        assert ("**Quick run" in output) == ("(quick run)" in output) == marked
        assert ("Quick run" in page.read_text()) == marked
        assert ("quick run: " in output_of(call, "compare", full, file)) == marked


def test_a_file_without_records_says_so(write, call):
    assert "no records" in output_of(call, "tables", write([]))


# --- Table 12


def test_columns_of_the_paper_are_marked(write, call):
    output = output_of(call, "tables", write(table12(speedup=3)[::-1]))
    head = row_of(output, "name")
    cells = dict(zip(head, row_of(output, "HRNet-W32 384x288")))
    assert cells["per second"] == "1284" and cells["paper: A100 fps"] == "428"
    assert cells["paper: A100 memory M"] == "4321" and cells["paper: params M, decoder left out"] == "60"
    names = [line.split(" | ")[0].strip("| ") for line in output.splitlines() if line.startswith("| ")]
    assert tuple(names[2:]) == PAPER_ROWS


@pytest.mark.parametrize("speedup", [0.5, 1.0, 7.3])
def test_the_papers_own_speeds_are_the_papers_verdict(write, call, speedup):
    output = output_of(call, "tables", write(table12(speedup)))
    assert "Order of speed: equals the paper's in all " in output
    assert output.count(": reproduced.") == len(PAPER_RATIOS) and "not reproduced" not in output
    assert "cannot be judged" not in output


def test_ratios_are_those_of_the_papers_column():
    for ours, rival, ratio in PAPER_RATIOS:
        assert PAPER[ours] / PAPER[rival] == pytest.approx(ratio, abs=0.006)


def test_pairs_out_of_order_are_named(write, call):
    output = output_of(call, "tables", write(table12(**{"ViTPose-L 256x192": 450.0})))
    assert "in 1 of " in output and "HRNet-W32 384x288 428 not above ViTPose-L 256x192 450" in output
    assert "equals the paper's" not in output


@pytest.mark.parametrize(("factor", "verdict"), [(0.74, "not "), (0.76, ""), (1.24, ""), (1.26, "not ")])
def test_reproduced_within_a_quarter(write, call, factor, verdict):
    output = output_of(call, "tables", write(table12(**{"ViTPose-H 256x192": 158 * 1.53 * factor})))
    found = f"paper 1.53, measured {1.53 * factor:.2f}: {verdict}reproduced."
    assert f"ViTPose-H 256x192 / HRFormer-B 256x192: {found}" in output


def test_a_file_from_a_cpu_is_not_judged(write, call):
    records = [r | {"peak_mib": None} for r in table12()]
    output = output_of(call, "tables", write(records, device="Some CPU, 2 threads", driver=None))
    assert "cannot be judged from this file: Some CPU, 2 threads is not a GPU" in output
    assert "reproduced" not in output and "Order of speed" not in output
    assert "reproduced" in output_of(call, "tables", write(table12(), driver=None))  # a GPU with an unknown driver


def test_a_missing_row_cannot_be_judged(write, call):
    gone = "HRFormer-B 256x192"
    absent = table12(rows=[n for n in PAPER_ROWS if n != gone])
    unmeasured = [record(gone, "eager", suite="table12", missing="out of memory", extra={"paper_fps": 158})]
    for records in (absent, absent + unmeasured):
        output = output_of(call, "tables", write(records))
        assert f"Order of speed: cannot be judged from this file, missing: {gone}." in output
        assert f"ViTPose-H 256x192 / {gone}: cannot be judged from this file, missing: {gone}." in output
        assert output.count(": reproduced.") == len(PAPER_RATIOS) - 1


def test_split_networks_are_the_same_rows(write, call):
    output = output_of(call, "tables", write(table12(rows=[n for n in PAPER_ROWS if "++" not in n])))
    assert (
        "Order of speed: equals the paper's in all 75 pairs." in output
    )  # of 78, because three rows have 309 frames per second in the paper


def test_only_eager_rows_are_judged(write, call):
    rival = "SimpleBaseline-R152 256x192"
    compiled = record(rival, "torch.compile", 1.0, suite="table12", extra={"paper_fps": 829})
    assert "not reproduced" not in output_of(call, "tables", write([*table12(), compiled]))
    ours = [r for r in table12() if r["implementation"] != "eager"]
    assert "cannot be judged from this file: it has no eager rows" in output_of(call, "tables", write(ours))


# --- compare


def compared(write, call, old, new, *options):
    return call("compare", write(old), write(new), *options)


@pytest.mark.parametrize(("growth", "code"), [(0.04, 0), (0.06, 1), (-0.5, 0)])
def test_growth_beyond_the_threshold_is_a_regression(write, call, growth, code):
    found, output, _ = compared(write, call, [record(ms=2.0)], [record(ms=2.0 * (1 + growth))])
    assert found == code and ("slower: model x" in output) == bool(code)
    assert compared(write, call, [record(ms=2.0)], [record(ms=2.0 * (1 + growth))], "--threshold", 0.1)[0] == 0


@pytest.mark.parametrize("noisy", ["old", "new"])
def test_growth_within_a_spread_is_noise(write, call, noisy):
    spread = {"old": 0.02, "new": 0.02} | {noisy: 0.3}
    for ms, code in ((1.25, 0), (1.35, 1)):
        old, new = record(ms=1.0, spread=spread["old"]), record(ms=ms, spread=spread["new"])
        assert compared(write, call, [old], [new])[0] == code


def test_vanished_records_are_listed_with_the_reason(write, call):
    old = [record(n, graphed=True) for n in "xyz"]
    code, output, _ = compared(write, call, old, [record("x", graphed=True), record("y", missing="no such kernel")])
    assert code == 0
    assert re.search("vanished: model y, .*: missing: no such kernel", output)
    assert re.search("vanished: model z, .*: not in the new file", output)
    assert "1 compared, 0 slower by more than 5 % and the spread, 2 vanished" in output


@pytest.mark.parametrize("change", [{"batch": 1}, {"dtype": "float16"}, {"graphed": True}, {"suite": "training"}])
def test_other_records_are_not_compared(write, call, change):
    output = compared(write, call, [record(), record("y")], [record(ms=9.0, **change), record("y")])
    assert output[0] == 0 and "1 compared" in output[1]


def test_nothing_in_common_is_a_failure(write, call):
    code, output, error = compared(write, call, [record("x")], [record("y")])
    assert (code, output) == (1, "") and "no measured record in common" in error


def test_other_devices_are_compared_only_on_request(write, call):
    old, new = write([record()]), write([record()], device="NVIDIA A100")
    code, output, error = call("compare", old, new)
    assert (code, output) == (1, "") and "--any-device" in error and error.count("\n") == 1
    assert call("compare", old, new, "--any-device")[0] == 0


# --- docs/speed.md

BEFORE, AFTER = "# Title\r\n\n<!-- speed -->", "<!-- /speed -->\nThe end, not ended"


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "speed.md"
    path.write_bytes(f"{BEFORE}\nold{AFTER}".encode())
    return path


def test_the_page_is_rewritten_between_the_markers(write, call, page):
    page.chmod(0o640)
    ops = [record("o", "ours", 2.0, suite="ops"), record("o", "sdpa", 1.0, suite="ops")]
    files = [
        write(
            [record("x", "vitpose_fast frozen", 2.0), record("x", "eager", 5.0), record("x", "trt", missing="no"), *ops]
        ),
        write([record("x", "vitpose_fast frozen", 4.0), record("x", "eager", 5.0)], device="NVIDIA A100"),
    ]
    output_of(call, "docs", *files, "--page", page)
    text = page.read_bytes().decode()
    assert text.startswith(BEFORE) and text.endswith(AFTER) and "old" not in text
    both = "A: vitpose_fast frozen: 2 ms, 32000/s<br>B: vitpose_fast frozen: 4 ms, 16000/s"
    assert f"| x | bfloat16 | 64 | {both} | eager 1.25 on B (A: 2.50)<br>trt missing: no |" in text
    assert text.index("A: **NVIDIA H200**") < text.index("B: **NVIDIA A100**")
    one = "ours is faster in 0 of 1 comparisons; the lowest ratio is 0.50 (o, bfloat16, batch 64, against sdpa"
    assert f"{one}, A)" in text
    assert text.count("`pytest benchmarks/`") == 2 and "commit 0123456789" in text
    assert page.stat().st_mode & 0o777 == 0o640 and not list(page.parent.glob(".speed*"))
    output_of(call, "docs", *reversed(files), "--page", page)
    assert page.read_bytes().decode() == text
    output_of(call, "docs", files[0], "--page", page)
    text = page.read_bytes().decode()
    assert "| x | bfloat16 | 64 | vitpose_fast frozen: 2 ms, 32000/s | eager 2.50<br>trt missing: no |" in text
    assert "batch 64, against sdpa)" in text and "\n\n**NVIDIA H200**" in text


def test_gpus_and_cpus_are_not_compared_with_each_other(write, call, page):
    gpu = write([record("x", "vitpose_fast", 2.0), record("x", "eager", 5.0)])
    slow = [record("x", "vitpose_fast", 20.0, peak_mib=None), record("x", "eager", 30.0, peak_mib=None)]
    output_of(call, "docs", gpu, write(slow, device="Xeon, 2 threads", driver=None), "--page", page)
    assert "| eager 2.50 on A |" in page.read_text() and "| eager 1.50 on B |" in page.read_text()


def test_the_page_has_a_line_for_each_comparison(write, call, page):
    fast = [record("x", "vitpose_fast frozen", 2.0, graphed=True), record("x", "vitpose_fast frozen", 3.0)]
    rivals = [record("x", "eager", 5.0), record("x", "compile", 3.0, graphed=True)]
    output_of(call, "docs", write([*fast, *rivals, record("only ours", "vitpose_fast")]), "--page", page)
    (line,) = [line for line in page.read_text().splitlines() if "bfloat16" in line]
    assert line.endswith("| vitpose_fast frozen, graphed: 2 ms, 32000/s | eager 2.50<br>compile, graphed 1.50 |")


def test_text_from_a_file_cannot_close_the_section(write, call, page):
    file = write(
        [record("<!-- /speed -->", "vitpose_fast"), record("<!-- /speed -->", "eager")], device="<!-- speed -->"
    )
    for _ in range(2):
        output_of(call, "docs", file, "--page", page)
    assert page.read_bytes().decode().endswith(AFTER)


def test_ours_missing_is_not_hidden(write, call, page):
    records = [record("x", "vitpose_fast frozen", missing="too large"), record("x", "eager", 5.0)]
    output_of(call, "docs", write(records), "--page", page)
    assert "| missing: too large | eager - |" in page.read_text()


@pytest.mark.parametrize(
    "text", ["", "<!-- speed -->", "<!-- /speed --><!-- speed -->", "<!-- speed --><!-- speed --><!-- /speed -->"]
)
def test_a_page_without_markers_is_left_alone(write, call, page, text):
    page.write_text(text)
    code, _, error = call("docs", write([record()]), "--page", page)
    assert code == 1 and "expected <!-- speed -->" in error and error.count("\n") == 1
    assert page.read_text() == text


def test_the_chart_beside_the_page_has_a_bar_for_each_rival(write, call, page):
    """Bars start at x = 320; 350 pixels stand for the largest ratio."""
    name = "A<B frame to keypoints, 8 people"
    frames = [record(name, "vitpose_fast", 2.0, suite="pipeline"), record(name, "HF", 8.0, suite="pipeline")]
    frames += [record(name, "other", 1.0, suite="pipeline"), record(name, "broken", suite="pipeline", missing="no")]
    output_of(call, "docs", write([record()]), write(frames), write(frames[:1]), "--page", page)
    svg = page.with_suffix(".svg").read_text(encoding="utf-8")
    assert re.findall(r'x="320" y="\d+" width="([\d.]+)"', svg) == ["350.0", "43.8"]
    assert re.findall(r">([\d.]+x)<", svg) == ["4.00x", "0.50x"] and svg.count("A&lt;B, 8 people, bf16") == 2
    assert "relative to HF / other<" in svg and "NVIDIA H200, torch 2.11.0" in svg
    assert "not measured" not in svg and "QUICK" not in svg
    ElementTree.fromstring(svg)
    output_of(call, "docs", write(frames, driver=None, quick=True), "--page", page)
    assert "QUICK RUN, not to be quoted" in page.with_suffix(".svg").read_text(encoding="utf-8")


def test_the_chart_has_the_lowest_ratio_of_several_machines(write, call, page):
    """Each case is quoted from the machine on which ours gains least, and both machines are named."""

    def frames(first, second):
        rows = [("a frame to keypoints", first), ("b frame to keypoints", second)]
        return [record(n, i, ms, suite="pipeline") for n, hf in rows for i, ms in (("vitpose_fast", 1.0), ("HF", hf))]

    known = dict(driver=None, processor="Xeon", cores=2)
    slow = [r | {"peak_mib": None} for r in frames(3.0, 4.0)]
    fast = [r | {"peak_mib": None} for r in frames(2.0, 5.0)]
    one = write(slow, device="EPYC, 2 threads", features=["AVX2"], **known)
    other = write(fast, device="Xeon, 2 threads", features=["AVX-512", "AMX bf16"], **known)
    output_of(call, "docs", other, one, "--page", page)
    svg = page.with_suffix(".svg").read_text(encoding="utf-8")
    assert re.findall(r">([\d.]+)x</tspan> \(64000 people/s, (.)\)", svg) == [("2.00", "B"), ("4.00", "A")]
    assert ">A: EPYC, 2 threads on 2 cores with AVX2, torch" in svg and "lowest ratio is shown" in svg
    assert ">B: Xeon, 2 threads on 2 cores with AVX-512, AMX bf16, torch" in svg and "GPU: not measured yet" in svg
    ElementTree.fromstring(svg)


def test_without_a_comparison_the_chart_is_left_alone(write, call, page):
    page.with_suffix(".svg").write_text("old")
    output_of(call, "docs", write([record("x frame to keypoints", "vitpose_fast", suite="pipeline")]), "--page", page)
    assert page.with_suffix(".svg").read_text() == "old"


def test_a_bad_file_leaves_the_page_alone(write, call, page):
    before = page.read_bytes()
    assert call("docs", write([record()]), write([record(ms=-1.0)]), "--page", page)[0] == 1
    assert page.read_bytes() == before


# --- malformed files


def without(field):
    return {k: v for k, v in record().items() if k != field}


@pytest.mark.parametrize(
    ("bad", "where"),
    [
        (record(ms=0.0), "records[1].median_ms: expected a positive finite number, found 0.0"),
        (record(ms=-1.0), "records[1].median_ms: expected a positive finite number, found -1.0"),
        (record(ms=math.nan), "records[1].median_ms: expected a positive finite number, found NaN"),
        (record(median_ms=math.inf), "records[1].median_ms: expected a positive finite number, found Infinity"),
        (record(median_ms=10**400), "records[1].median_ms: expected a positive finite number, found 1000"),
        (record(median_ms=True), "records[1].median_ms: expected a positive finite number, found true"),
        (record(median_ms=None), "records[1].median_ms: expected a positive finite number, found null"),
        (record(p90_ms=0.5), "records[1].median_ms: expected p10_ms <= median_ms <= p90_ms"),
        (record(missing="gone", per_second=3.0), "records[1].per_second: expected null"),
        (record(missing=""), "records[1].missing: expected a non-empty string or null"),
        (record(suite="op"), "records[1].suite: expected one of table12, model, pipeline, start, training, ops, found"),
        (record(suite=["ops"]), "records[1].suite: expected one of"),
        (record(batch=0), "records[1].batch: expected a positive integer, found 0"),
        (record(batch=64.0), "records[1].batch: expected a positive integer, found 64.0"),
        (record(graphed=1), "records[1].graphed: expected true or false, found 1"),
        (record(peak_mib="8"), 'records[1].peak_mib: expected a non-negative finite number or null, found "8"'),
        (record(extra=None), "records[1].extra: expected an object, found null"),
        (record(extra={"paper_fps": "fast"}), "records[1].extra.paper_fps: expected a positive finite number or null"),
        (
            record(suite="ops", extra={"model": "B"}),
            "records[1].extra.layer: expected a non-empty string, found no",
        ),
        (without("p90_ms"), "records[1].p90_ms: expected a positive finite number, found no such field"),
        (
            record("first"),
            "records[1].name: expected suite, name, implementation, dtype, batch or graphed to differ",
        ),
        ([1], "records[1]: expected an object, found [1]"),
    ],
)
def test_bad_records_are_refused_in_one_line(write, call, bad, where):
    path = write([record("first"), bad])
    for command in (["tables", path], ["compare", path, path], ["figures", path, "--out", path.parent / "out"]):
        code, output, error = call(*command)
        assert (code, output) == (1, "") and error.startswith(f"report: {path}: {where}"), error
        assert error.count("\n") == 1
    assert not (path.parent / "out").exists()


@pytest.mark.parametrize(
    ("environment", "where"),
    [
        ({"device": None}, "environment.device: expected a non-empty string, found null"),
        ({"date": "31.01.2026"}, "environment.date: expected a date, YYYY-MM-DD"),
        ({"quick": "no"}, "environment.quick: expected true or false"),
        ({"copy_tb_s": math.nan}, "environment.copy_tb_s: expected a non-negative finite number"),
        ({"features": ["AVX2"], "processor": "x"}, "environment.cores: expected a positive integer, found no such"),
        ({"features": "AVX2"} | dict(cores=1, processor="x"), "environment.features: expected a list of non-empty"),
    ],
)
def test_bad_environments_are_refused(write, call, environment, where):
    path = write([record()], **environment)
    code, _, error = call("tables", path)
    assert code == 1 and error.startswith(f"report: {path}: {where}")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"records": []}', '{"environment": {}, "records": 3}', "[" * 100_000, "\xff"]
)
def test_files_that_are_not_results_are_refused(tmp_path, call, text):
    path = tmp_path / "bad.json"
    path.write_bytes(text.encode("latin-1"))
    code, output, error = call("tables", path)
    assert (code, output) == (1, "") and str(path) in error and "expected" in error and error.count("\n") == 1


def test_an_absent_file_is_reported_in_one_line(tmp_path, call):
    code, _, error = call("tables", tmp_path / "none.json")
    assert code == 1 and "none.json" in error and error.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["tables"], ["figures", "x"], ["compare", "x"], ["paint", "x"]])
def test_wrong_usage_exits_with_two(call, arguments):
    assert call(*arguments)[0] == 2


@pytest.mark.parametrize("threshold", ["-0.1", "nan", "much"])
def test_wrong_thresholds_are_wrong_usage(write, call, threshold):
    file = write([record()])
    assert call("compare", file, file, f"--threshold={threshold}")[0] == 2


def test_runs_as_a_script(root, write, tmp_path):
    command = [sys.executable, str(root / "benchmarks" / "report.py"), "tables", str(write([record("named")]))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "| named |" in done.stdout, done.stderr


# --- figures


def test_figures_are_drawn(write, call, tmp_path):
    both = [*table12(), *(r | {"dtype": "float32"} for r in table12(0.5))]
    layers = [layer(m, n, 12, ms) for m in "SB" for n, ms in (("qkv", 0.1), ("attention", 0.2), ("fc1", 0.3))]
    layers += [layer("B", "deconv", 1, 0.2, roofline_fraction=None), layer("B", "decode", 1, 1, missing="no kernel")]
    output = output_of(call, "figures", write([*both, *layers]), "--out", tmp_path / "new" / "pictures")
    assert output.count("written") == 2
    for name in ("fig1.png", "layers.png"):
        with Image.open(tmp_path / "new" / "pictures" / name) as image:
            colors = image.convert("RGB").getcolors(1 << 24)
        background = max(count for count, _ in colors)
        assert sum(count for count, _ in colors) - background > 1000 and len(colors) > 100


def test_no_label_covers_another_or_a_bubble(write):
    figure, _ = bubbles(load(write(table12())))
    (axes,) = figure.axes
    figure.canvas.draw()
    boxes = [t.get_window_extent() for t in axes.texts if t.get_text()]
    assert len(boxes) == len(PAPER_ROWS)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    for bubble in axes.collections:
        x, y = axes.transData.transform(bubble.get_offsets()[0])
        assert not any(b.x0 < x < b.x1 and b.y0 < y < b.y1 for b in boxes)
    frame = axes.get_window_extent()
    assert all(frame.x0 <= b.x0 and b.x1 <= frame.x1 and frame.y0 <= b.y0 and b.y1 <= frame.y1 for b in boxes)


def test_bubbles_are_at_the_measured_values(write):
    figure, _ = bubbles(load(write(table12(rows=["ViTPose-B 256x192"]))))
    places = sorted(tuple(c.get_offsets()[0]) for c in figure.axes[0].collections)
    assert places == [pytest.approx((944, 75.8)), pytest.approx((1888, 75.8))]
    caption = " ".join(t.get_text() for t in figure.texts)
    assert "NVIDIA H200" in caption and "commit 0123456789" in caption and "Quick" not in caption


def test_figures_without_records_are_skipped_with_a_reason(write, call, tmp_path):
    unknown = record("SimpleBaseline-R50 256x192", "eager", suite="table12", extra={"params_m": 34.0, "paper_ap": None})
    for records in ([record()], [unknown, record("o", suite="ops"), layer("B", "qkv", 1, 1, missing="no")]):
        output = output_of(call, "figures", write(records), "--out", tmp_path)
        assert [line.split(",")[0] for line in output.splitlines()] == ["fig1.png: skipped", "layers.png: skipped"]
    assert not list(tmp_path.glob("*.png"))


def test_drawing_leaves_the_process_alone(write, root):
    code = f"""
import sys
from benchmarks.report import main
assert "matplotlib" not in sys.modules
assert main(["figures", {str(write([layer("B", "qkv", 1, 1.0)]))!r}, "--out", {str(write([]).parent)!r}]) == 0
assert "matplotlib.pyplot" not in sys.modules and "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
