"""ONNX Runtime and OpenVINO as rivals: the same outputs as ours, the precision asked for, and quiet threads."""

from __future__ import annotations

import time

import pytest
import torch

from benchmarks.lineup import Lineup
from benchmarks.models import crops, random_model
from benchmarks.rivals import cpu_runtimes, hugging_face

CPU = torch.device("cpu")


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def exported():
    """Return (images, heatmaps of our model, the ONNX files of its twin)."""
    for package in ("transformers", "onnx", "onnxscript"):
        pytest.importorskip(package)
    model = random_model("vitpose-s", CPU)
    images = crops(0, 1, model, torch.float32)
    with torch.no_grad():
        expected = model(images, "coco")
    return images, expected, cpu_runtimes.OnnxFiles(lambda: hugging_face.twin(model))


@pytest.fixture(params=["onnxruntime float32", "onnxruntime int8", "openvino f32", "openvino bf16"])
def runtime(request, exported):
    """Return (images, expected heatmaps, runtime, largest relative error)."""
    package, kind = request.param.split()
    pytest.importorskip(package)
    images, expected, file = exported
    if package == "onnxruntime":
        run = cpu_runtimes.CPURuntime(file, lambda path: cpu_runtimes.onnxruntime_session(path, kind == "int8"))
        return images, expected, run, {"float32": 1e-5, "int8": 0.06}[kind]
    if kind == "bf16" and not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("this processor has no bfloat16 instructions")
    run = cpu_runtimes.CPURuntime(file, lambda path: cpu_runtimes.openvino_request(path, kind))
    return images, expected, run, {"f32": 1e-5, "bf16": 0.03}[kind]


def test_outputs_agree_for_each_batch_size(runtime):
    """Reduced precision must show: an error of float32 would mean that another precision was computed."""
    images, expected, run, most = runtime
    least = 1e-3 if most > 1e-3 else 0
    assert least < relative(run(images), expected) < most
    twice = run(torch.cat([images, images]))
    assert twice.shape == (2, *expected.shape[1:]) and least < relative(twice[1:], expected) < most
    assert run(images.bfloat16()).dtype == torch.float32


def test_threads_rest_after_a_call(runtime):
    """Threads that spin after a call would slow down the contender whose turn is next."""
    images, _, run, _ = runtime
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run(images)
        started = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - started < 0.06
    finally:
        torch.set_num_threads(threads)


def test_a_missing_package_is_a_record_with_a_reason(monkeypatch):
    monkeypatch.setattr(cpu_runtimes, "find_spec", lambda name: None if name == "openvino" else name)
    assert cpu_runtimes.why_missing("openvino") == "openvino is not installed"
    assert cpu_runtimes.why_missing("onnxruntime") is None
    monkeypatch.setattr(cpu_runtimes, "find_spec", lambda name: None)
    assert cpu_runtimes.why_missing("onnxruntime") == "onnxruntime and onnx and onnxscript are not installed"
    found = cpu_runtimes.runtimes(lambda: None, torch.float32)
    assert [name for name, *_ in found] == ["ONNX Runtime float32", "ONNX Runtime int8", "OpenVINO float32"]
    assert all(runtime is None and reason.endswith("not installed") for _, runtime, reason in found)
    monkeypatch.setattr(hugging_face, "why_missing", lambda: "transformers is not installed")
    contenders = Lineup(CPU, "vitpose-tiny", torch.bfloat16).contenders(compiled=False)
    absent = {c.name: c.missing for c in contenders if c.function is None}
    names = ("Hugging Face (SDPA)", "ONNX Runtime int8", "OpenVINO bfloat16")
    assert absent == dict.fromkeys(names, "transformers is not installed")


def test_another_precision_than_asked_for_is_refused(exported, monkeypatch):
    """OpenVINO computes in float32 where the processor lacks bfloat16, and says so only on request."""
    openvino = pytest.importorskip("openvino")
    images, _, file = exported
    compiled = openvino.CompiledModel
    monkeypatch.setattr(compiled, "get_property", lambda self, name: openvino.Type.f32)
    with pytest.raises(ValueError, match="computes in f32 on this processor, not in bf16"):
        cpu_runtimes.openvino_request(file.path(images), "bf16")
