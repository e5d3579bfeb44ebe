"""ONNX Runtime and OpenVINO on the CPU, running the ONNX export of Hugging Face's model.

Both get the ONNX file that torch.onnx writes for the batch size in question (a fixed shape is never slower than a
dynamic one), as many threads as PyTorch uses, and the options with which they answer a single caller fastest. Their
threads do not spin between two calls, which would slow down the contender whose turn is next.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Run = Callable[[Any], Any]  # float32 array [B, 3, H, W] -> heatmaps as an array

_PACKAGES = {"onnxruntime": ("onnxruntime", "onnx", "onnxscript"), "openvino": ("openvino", "onnx", "onnxscript")}


def why_missing(runtime: str) -> str | None:
    """Return which packages `runtime` ("onnxruntime" or "openvino") lacks, in words, or None if it can be used."""
    absent = [name for name in _PACKAGES[runtime] if find_spec(name) is None]
    return f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed" if absent else None


class _Heatmaps(nn.Module):
    """Hugging Face's model with a tensor as its output, as ONNX needs it."""

    def __init__(self, theirs: nn.Module) -> None:
        super().__init__()
        self.theirs = theirs

    def forward(self, images: Tensor) -> Tensor:
        return self.theirs(images).heatmaps


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the progress reports and warnings of exporting and quantizing."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def export(theirs: nn.Module, images: Tensor, path: Path) -> None:
    """Write the ONNX file of a float32 `VitPoseForPoseEstimation` for inputs of the shape of `images`."""
    with _quiet(), torch.inference_mode(False), torch.no_grad():
        model = _Heatmaps(theirs).eval()
        names = dict(input_names=["images"], output_names=["heatmaps"])
        torch.onnx.export(model, (images.clone(),), path, dynamo=True, external_data=False, **names)


def onnxruntime_session(path: Path, int8: bool = False) -> Run:
    """Load an ONNX file into ONNX Runtime.

    With `int8`, linear layers are quantized dynamically: weights to int8 with a scale for each output channel,
    activations to uint8 with a scale found in every call. Everything else stays float32.
    """
    import onnxruntime

    if int8:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantized, kinds = path.with_suffix(".int8.onnx"), ["MatMul", "Gemm"]
        if not quantized.exists():
            with _quiet():
                quantize_dynamic(path, quantized, kinds, per_channel=True, weight_type=QuantType.QInt8)
        path = quantized
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")  # threads spin within a call, not after it
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def openvino_request(path: Path, precision: str) -> Run:
    """Compile an ONNX file with OpenVINO to compute in `precision`, "f32" or "bf16".

    The precision is always given: by default OpenVINO computes in bfloat16 where the processor can, and such times must
    not be taken for float32.

    Raises:
        ValueError: OpenVINO would compute in another precision, because the processor lacks this one.
    """
    import openvino

    options = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = openvino.Core().compile_model(path, "CPU", options)
    used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if used != precision:
        raise ValueError(f"OpenVINO computes in {used} on this processor, not in {precision}")
    request = compiled.create_infer_request()
    return lambda images: request.infer({0: images}, share_inputs=True, share_outputs=True)[0]


class OnnxFiles:
    """The ONNX files of a model, one per input shape, in a temporary folder that is removed with this object.

    Args:
        twin: makes the float32 model, a `VitPoseForPoseEstimation` without experts; called for every export.
    """

    def __init__(self, twin: Callable[[], nn.Module]) -> None:
        self.twin = twin
        self.folder = tempfile.TemporaryDirectory()

    def path(self, images: Tensor) -> Path:
        """Return the path of the file for inputs of the shape of `images`, which is written on first use."""
        path = Path(self.folder.name) / f"{'x'.join(map(str, images.shape))}.onnx"
        if not path.exists():
            export(self.twin(), images, path)
        return path


class CPURuntime:
    """A runtime with Hugging Face's model: images [B, 3, H, W] of any float dtype -> heatmaps [B, K, h, w], float32.

    The first call with another batch size exports and compiles the model, which takes seconds; only the latest is kept.
    bfloat16 images are converted to float32, the dtype of the ONNX file's input, which takes less than a hundredth of
    the time.

    Args:
        files: the model.
        load: makes the function that runs an ONNX file, such as `onnxruntime_session`.
    """

    def __init__(self, files: OnnxFiles, load: Callable[[Path], Run]) -> None:
        self.files, self.load = files, load
        self.shape: tuple[int, ...] = ()
        self.run: Run | None = None

    def __call__(self, images: Tensor, experts: Tensor | None = None) -> Tensor:
        """Compute heatmaps; `experts` is ignored."""
        images = images.float()
        if self.run is None or self.shape != tuple(images.shape):
            self.run = None  # frees the memory of the previous one
            self.run, self.shape = self.load(self.files.path(images)), tuple(images.shape)
        return torch.from_numpy(self.run(images.numpy()))


def runtimes(twin: Callable[[], nn.Module], dtype: torch.dtype) -> list[tuple[str, CPURuntime | None, str | None]]:
    """Return (name, runtime or None, why it is missing or None) of the runtimes to compare in `dtype`.

    These are ONNX Runtime and OpenVINO in float32, OpenVINO in bfloat16 (ONNX Runtime's CPU operators have no
    bfloat16), and ONNX Runtime with int8 weights beside both.

    Args:
        twin: makes the float32 model, see `OnnxFiles`.
    """
    wanted: list[tuple[str, str, Callable[[Path], Run]]] = [
        ("ONNX Runtime int8", "onnxruntime", lambda path: onnxruntime_session(path, int8=True))
    ]
    if dtype == torch.float32:
        wanted.insert(0, ("ONNX Runtime float32", "onnxruntime", onnxruntime_session))
    precision = {torch.float32: "f32", torch.bfloat16: "bf16"}[dtype]
    name = f"OpenVINO {str(dtype).removeprefix('torch.')}"
    wanted.append((name, "openvino", lambda path: openvino_request(path, precision)))
    files, out = OnnxFiles(twin), []
    for name, package, load in wanted:
        reason = why_missing(package)
        out.append((name, None if reason else CPURuntime(files, load), reason))
    return out
