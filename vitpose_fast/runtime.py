"""Prepare a model for inference (`freeze`) and report what it costs in accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vitpose_fast import functional as F
from vitpose_fast.frozen import FrozenBackbone, FrozenDecoder
from vitpose_fast.graphs import Graphs, in_pieces
from vitpose_fast.models.heads import ClassicHead
from vitpose_fast.models.vitpose import PoseModel, ViTPose
from vitpose_fast.modules import use_impl
from vitpose_kernels.launch import HAS_TRITON

BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 72, 80, 96, 112, 128)
_CPU_PIECE = 24 << 20  # bytes of the largest activation of a piece
_SAMPLES = 2  # crops on which the error is measured


@dataclass(frozen=True)
class FreezeReport:
    """What `freeze` folded, and what it costs in accuracy.

    Errors are measured against the unfrozen model in float64, on smooth random crops.

    Attributes:
        folded: names of what was folded into the weights.
        dtype: dtype of the weights and activations.
        implementation: "Triton kernels" or "PyTorch operators".
        heatmap_error: root mean square error of the heatmaps of all heads, relative to their root mean square.
        keypoint_error: median and maximum distance between decoded keypoints, in crop pixels.
        weights_mib: size of the weights in MiB.
        launches: GPU kernels per forward pass (on a CPU: operators that are not views); None until `report()` counts
            them.
        notes: remarks for the user.
    """

    folded: tuple[str, ...]
    dtype: torch.dtype
    implementation: str
    heatmap_error: float
    keypoint_error: tuple[float, float]
    weights_mib: float
    launches: int | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        median, worst = self.keypoint_error
        return "\n".join(
            [
                f"frozen to {str(self.dtype).removeprefix('torch.')}, {self.implementation}",
                f"folded: {', '.join(self.folded)}",
                f"error against float64, on smooth random crops: heatmaps {self.heatmap_error:.2e} (relative), "
                f"keypoints {median:.3f} px median, {worst:.3f} px at most",
                f"weights {self.weights_mib:.1f} MiB"
                + ("" if self.launches is None else f", {self.launches} launches per forward pass"),
                *(f"note: {note}" for note in self.notes),
            ]
        )


class FrozenViTPose(PoseModel):
    """A ViTPose for inference only, with the interface of `ViTPose`. Created by `freeze`.

    On a GPU forward passes are replayed from CUDA graphs (see `Graphs`). Heatmaps are copies that later calls do not
    overwrite.
    """

    def __init__(self, model: ViTPose, dtype: torch.dtype, kernels: bool, fold_norm: bool) -> None:
        super().__init__()
        self.config = model.config
        self.backbone = FrozenBackbone(model.backbone, dtype, fold_norm)
        self.heads = nn.ModuleDict({name: _frozen_head(head, dtype, kernels) for name, head in model.heads.items()})
        self.graphs: Graphs | None = None
        self.freeze_report: FreezeReport | None = None
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor, task: str | Sequence[str] | None = None) -> Any:
        """Map images to heatmaps, as `PoseModel.forward` does.

        Raises:
            ValueError: the images are not [B, 3, H, W] with the image size of the model.
        """
        height, width = self.config.image_size
        if images.dim() != 4 or tuple(images.shape[1:]) != (3, height, width):
            raise ValueError(f"images have shape {list(images.shape)}, expected [B, 3, {height}, {width}]")
        return super().forward(images, task)

    def run(self, name: str, function: Callable[..., Any], *inputs: Tensor) -> Any:
        """Return function(*inputs); on a GPU it is replayed from a CUDA graph, which `name` identifies (see `Graphs`).

        On a CPU the batch is split so that the largest activation stays below the size up to which malloc reuses
        memory. Larger ones get fresh pages from the system in every layer, which costs several percent of the time.
        """
        if torch.compiler.is_compiling():
            return function(*inputs)
        if self.graphs is not None:
            return self.graphs(f"{name}, {self.backbone.impl}", function, *inputs)
        if self.device.type != "cpu":
            return function(*inputs)
        rows, columns = self.config.grid
        hidden = rows * columns * 4 * self.config.width * self.dtype.itemsize
        return in_pieces(function, inputs, max(1, _CPU_PIECE // hidden))

    def report(self) -> FreezeReport:
        """Print and return the report of `freeze`. The first call runs the model to count its launches."""
        assert self.freeze_report is not None
        if self.freeze_report.launches is None:
            images, head = torch.zeros(1, 3, *self.config.image_size, device=self.device), next(iter(self.heads))
            count = count_launches(lambda: self(images, head), self.device)
            self.freeze_report = replace(self.freeze_report, launches=count)
        print(self.freeze_report)
        return self.freeze_report

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> FrozenViTPose:
        if self.graphs is not None:  # they contain the addresses of the weights that this replaces
            self.graphs = Graphs(self.graphs.buckets)
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> FrozenViTPose:
        """Stay in evaluation mode, whatever `mode` is."""
        return super().train(False)


def _frozen_head(head: nn.Module, dtype: torch.dtype, kernels: bool) -> nn.Module:
    """Freeze a head: fold a classic one, convert a copy of any other."""
    if isinstance(head, ClassicHead):
        return FrozenDecoder(head, dtype, kernels)
    return deepcopy(head).to(dtype)


@torch.no_grad()
def freeze(
    model: ViTPose,
    task: str | None = None,
    dtype: torch.dtype | None = None,
    fold_layer_norm: bool | None = None,
    buckets: Sequence[int] | None = BUCKETS,
    impl: str | None = None,
) -> FrozenViTPose:
    """Prepare a model for inference. `.report()` of the result tells what was folded and the error that it causes.

    The following is folded into other weights: the experts of `task` into a dense FFN, slot 0 of the position embedding
    (the class token) into the other slots, BatchNorm into the deconvolutions, the scale of q into the qkv weights
    (unless the model has relative position), and, for the Triton kernels, LayerNorm into the following linear layer.

    Args:
        model: the model, on the device that it shall run on. It is not modified.
        task: keep only this task and merge its experts. None keeps all tasks, for mixed batches.
        dtype: float32, bfloat16 or float16. Default: bfloat16 if the device computes in it natively, else float32.
        fold_layer_norm: whether to fold LayerNorm; ignored without the Triton kernels. Default: fold it if the measured
            error grows by at most 10 %.
        buckets: batch sizes for which CUDA graphs are captured on first use; larger batches are split. None disables
            CUDA graphs.
        impl: "triton" or "reference". Default: by device.

    Returns:
        A new model in evaluation mode, without gradients.

    Raises:
        ValueError: the task is unknown, the dtype is not one of the three, impl="triton" but Triton cannot run, the
            model is frozen already, or it has whole FFNs per task and `task` is None.
    """
    if not isinstance(model, ViTPose):
        raise ValueError(f"freeze: got a {type(model).__name__}, expected a ViTPose (load_model or create_model)")
    device, native = model.device, model.device.type == "cuda" or _processor_has_bfloat16()
    if dtype is None:
        dtype = torch.bfloat16 if native else torch.float32
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"freeze: got dtype={dtype}, expected float32, bfloat16 or float16")
    notes = []
    if dtype == torch.bfloat16 and not native:
        notes.append("this processor has no native bfloat16 and emulates it; float32 is faster")
    kernels = impl == "triton" or (impl is None and device.type == "cuda" and HAS_TRITON)
    if model.config.experts != "none" and task is None:
        tasks = ", ".join(model.heads)
        raise ValueError(
            f"freeze: a model with whole FFNs per task is frozen for one task; set task= to one of {tasks}"
        )
    plain = model.for_task(task) if task is not None else model

    images = _smooth_images(plain)
    # In float64, since float32 convolutions on a GPU use TF32 by default, whose error would hide the error of freezing.
    exact = _heatmaps(use_impl(deepcopy(plain).double().eval(), "reference"), images.double())
    if not kernels:
        fold_layer_norm = False

    def build(fold: bool) -> tuple[FrozenViTPose, dict[str, Tensor], float]:
        frozen = FrozenViTPose(plain, dtype, kernels, fold)
        use_impl(frozen, impl)
        found = _heatmaps(frozen, images)
        return frozen, found, _relative_error(found, exact)

    frozen, found, error = build(bool(fold_layer_norm))
    if fold_layer_norm is None:
        folded = build(True)
        if folded[-1] <= 1.1 * error:
            frozen, found, error = folded
            fold_layer_norm = True

    sizes = [t.numel() * t.element_size() for t in frozen.parameters()]
    frozen.freeze_report = FreezeReport(
        tuple(_folded(plain, task is not None and model.config.has_experts, bool(fold_layer_norm))),
        dtype,
        "Triton kernels" if kernels else "PyTorch operators",
        error,
        _keypoint_error(plain, found, exact),
        sum(sizes) / 2**20,
        notes=tuple(notes),
    )
    if device.type == "cuda" and buckets is not None:
        frozen.graphs = Graphs(buckets)
    return frozen


def _folded(model: ViTPose, merged: bool, layer_norm: bool) -> list[str]:
    """Return the names of what was folded, for the report."""
    out = ["experts of the task"] if merged else []
    out.append("position")
    if not model.config.has_rel_pos:
        out.append("scale of q")
    if any(isinstance(head, ClassicHead) for head in model.heads.values()):
        out.append("BatchNorm")
    return [*out, "LayerNorm"] if layer_norm else out


def _processor_has_bfloat16() -> bool:
    """Return whether the CPU has bfloat16 instructions (AVX512-BF16 or AMX)."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


def _smooth_images(model: ViTPose) -> Tensor:
    """Return random images with structure at all scales; always the same ones."""
    noise = torch.Generator().manual_seed(0)
    height, width = model.config.image_size
    out = torch.zeros(_SAMPLES, 3, height, width)
    for step in (64, 32, 16, 8, 4, 2):
        coarse = torch.randn(_SAMPLES, 3, -(-height // step), -(-width // step), generator=noise)
        out += nn.functional.interpolate(coarse, (height, width), mode="bilinear") * (step / 64) ** 0.5
    return (out / out.std()).to(model.device)


def _heatmaps(model: PoseModel, images: Tensor) -> dict[str, Tensor]:
    """Return the heatmaps of every head, in float64."""
    return {name: model(images, name).double() for name in model.heads}


def _relative_error(ours: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """Return the root mean square error relative to the root mean square of `exact`, over all heads."""
    errors = [(ours[n] - exact[n]).square().mean() / exact[n].square().mean().clamp(min=1e-30) for n in exact]
    return float(torch.stack(errors).mean().sqrt())


def _keypoint_error(model: ViTPose, ours: dict[str, Tensor], exact: dict[str, Tensor]) -> tuple[float, float]:
    """Return the median and maximum distance between the decoded keypoints, in crop pixels."""
    distances = []
    for name in exact:
        codec = model.config.task(name).codec
        a, b = (F.heatmap_decode(maps[name], codec, impl="reference")[0] for maps in (ours, exact))
        stride = model.config.image_size[1] / model.config.heatmap_size[1]
        distances.append((a - b).norm(dim=-1).flatten() * stride)
    distance = torch.cat(distances)
    return float(distance.median()), float(distance.max())


class _CountOperators(TorchDispatchMode):
    """Count the operators that compute something, which excludes views and allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        allocates = func.__name__.startswith(("empty", "new_empty", "detach", "lift_fresh"))
        if not allocates and not any(r.alias_info is not None for r in func._schema.returns):
            self.count += 1
        return out


def count_launches(function: Callable[[], Any], device: torch.device) -> int:
    """Count the GPU kernels and memory operations that `function` runs; on a CPU, the operators that are not views."""
    if device.type == "cuda":
        for _ in range(3):  # warm up: compile, capture graphs
            function()
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            function()
            torch.cuda.synchronize()
        return sum(e.device_type == torch.autograd.DeviceType.CUDA for e in profile.events())
    with _CountOperators() as counter:
        function()
    return counter.count
