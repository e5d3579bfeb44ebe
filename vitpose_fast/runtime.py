"""freeze: prepare a model for inference and report what it costs in accuracy."""

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
_CPU_PIECE = 24 << 20  # bytes
_SAMPLES = 2  # crops that the error is measured on


@dataclass(frozen=True)
class FreezeReport:
    """What `freeze` did and what it cost. Errors are against the model in float64, on smooth random crops.

    Attributes:
        folded: what became part of the weights.
        dtype, implementation: how it runs.
        heatmap_error: root mean square over all heads, relative to that of the heatmaps.
        keypoint_error: median and maximum distance of decoded keypoints, in crop pixels.
        weights_mib: memory of the weights.
        launches: GPU kernels (on a CPU: operators that are not views) of one forward pass, counted by `report()`.
        notes: what a user should know.
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
    """A model for inference only, used like `ViTPose`; made by `freeze`.

    On a GPU batches are replayed from CUDA graphs (`Graphs`); heatmaps are copies that stay what they are.
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
        height, width = self.config.image_size
        if images.dim() != 4 or tuple(images.shape[1:]) != (3, height, width):
            raise ValueError(f"images have shape {list(images.shape)}, expected [B, 3, {height}, {width}]")
        return super().forward(images, task)

    def run(self, name: str, function: Callable[..., Any], *inputs: Tensor) -> Any:
        """function(*inputs), on a GPU from the graph of that name: the name must stand for the whole computation.

        On a CPU in pieces whose largest activation stays below what malloc keeps: beyond it every layer gets fresh
        pages, which cost several percent of the time.
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
        """Print what was folded and what it cost, and return it."""
        assert self.freeze_report is not None
        if self.freeze_report.launches is None:
            images, head = torch.zeros(1, 3, *self.config.image_size, device=self.device), next(iter(self.heads))
            count = count_launches(lambda: self(images, head), self.device)
            self.freeze_report = replace(self.freeze_report, launches=count)
        print(self.freeze_report)
        return self.freeze_report

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> FrozenViTPose:
        if self.graphs is not None:  # they hold the addresses of the weights that are replaced here
            self.graphs = Graphs(self.graphs.buckets)
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> FrozenViTPose:
        """Always in evaluation mode."""
        return super().train(False)


def _frozen_head(head: nn.Module, dtype: torch.dtype, kernels: bool) -> nn.Module:
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
    """Make a model ready for inference; `.report()` of the result says what was folded and the error it brings.

    Folded are: the experts of `task`, slot 0 of the position into the others, BatchNorm into the deconvolutions, the
    scale of q into its weights (where there is no relative position), and for the kernels LayerNorm into the linear
    layer after it.

    Args:
        model: on its device; it is left as it is.
        task: keep this one only, its experts merged; None: all, for mixed batches.
        dtype: float32, bfloat16 or float16; None: bfloat16 where the device computes in it, else float32.
        fold_layer_norm: for the kernels only; None: if the measured error grows by a tenth at most.
        buckets: batch sizes for which CUDA graphs are recorded when first needed (larger ones are cut); None: none.
        impl: None (by device), "triton" or "reference".

    Raises:
        ValueError: no such task, another dtype, impl="triton" where Triton cannot run, a frozen model.
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
        notes.append("this processor has no bfloat16: it is emulated, float32 is faster")
    kernels = impl == "triton" or (impl is None and device.type == "cuda" and HAS_TRITON)
    if model.config.experts != "none" and task is None:
        raise ValueError(f"freeze: whole FFNs per task are frozen for one: give task= one of {', '.join(model.heads)}")
    plain = model.for_task(task) if task is not None else model

    images = _smooth_images(plain)
    # In float64: on a GPU float32 convolutions run in TF32 by default, whose error would hide that of freezing.
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
    out = ["experts of the task"] if merged else []
    out.append("position")
    if not model.config.has_rel_pos:
        out.append("scale of q")
    if any(isinstance(head, ClassicHead) for head in model.heads.values()):
        out.append("BatchNorm")
    return [*out, "LayerNorm"] if layer_norm else out


def _processor_has_bfloat16() -> bool:
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


def _smooth_images(model: ViTPose) -> Tensor:
    """Random pictures with structure at all scales, the same every time."""
    noise = torch.Generator().manual_seed(0)
    height, width = model.config.image_size
    out = torch.zeros(_SAMPLES, 3, height, width)
    for step in (64, 32, 16, 8, 4, 2):
        coarse = torch.randn(_SAMPLES, 3, -(-height // step), -(-width // step), generator=noise)
        out += nn.functional.interpolate(coarse, (height, width), mode="bilinear") * (step / 64) ** 0.5
    return (out / out.std()).to(model.device)


def _heatmaps(model: PoseModel, images: Tensor) -> dict[str, Tensor]:
    return {name: model(images, name).double() for name in model.heads}


def _relative_error(ours: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    errors = [(ours[n] - exact[n]).square().mean() / exact[n].square().mean().clamp(min=1e-30) for n in exact]
    return float(torch.stack(errors).mean().sqrt())


def _keypoint_error(model: ViTPose, ours: dict[str, Tensor], exact: dict[str, Tensor]) -> tuple[float, float]:
    distances = []
    for name in exact:
        codec = model.config.task(name).codec
        a, b = (F.heatmap_decode(maps[name], codec, impl="reference")[0] for maps in (ours, exact))
        stride = model.config.image_size[1] / model.config.heatmap_size[1]
        distances.append((a - b).norm(dim=-1).flatten() * stride)
    distance = torch.cat(distances)
    return float(distance.median()), float(distance.max())


class _CountOperators(TorchDispatchMode):
    """Counts operators that compute: neither views nor allocations."""

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
    """GPU kernels that `function` runs, memory operations included; on a CPU operators that are not views."""
    if device.type == "cuda":
        for _ in range(3):  # compile, warm up, record
            function()
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            function()
            torch.cuda.synchronize()
        return sum(e.device_type == torch.autograd.DeviceType.CUDA for e in profile.events())
    with _CountOperators() as counter:
        function()
    return counter.count
