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
from vitpose_fast.frozen import FrozenBackbone, FrozenDecoder, Packing, pieces_call
from vitpose_fast.graphs import Graphs, in_pieces
from vitpose_fast.models.heads import ClassicHead
from vitpose_fast.models.vitpose import PoseModel, ViTPose
from vitpose_fast.modules import use_impl
from vitpose_fast.tune import Choices
from vitpose_fast.tune import tune as find_choices
from vitpose_kernels.choices import find, using
from vitpose_kernels.launch import HAS_TRITON
from vitpose_kernels.packed import supports

BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 72, 80, 96, 112, 128)
_CPU_PIECE = 24 << 20  # on a CPU batches are split so that the largest activation has at most this many bytes


@dataclass(frozen=True)
class FreezeReport:
    """What `freeze` folded, and what it costs in accuracy.

    Errors are measured against the unfrozen model, on smooth random crops and for all heads: on a GPU in float64 on two
    crops; on a CPU, where that would take longer than everything else in `freeze`, on one crop, in float64 if the
    frozen model is in float32, and else in float32.

    Attributes:
        folded: names of what was folded into other weights, such as "BatchNorm".
        dtype: dtype of the weights and activations.
        implementation: "Triton kernels" or "PyTorch operators".
        heatmap_error: root mean square error of the heatmaps, relative to their root mean square (see
            `_relative_error`).
        keypoint_error: (median, maximum) distance between the keypoints that the two models give, in crop pixels.
        weights_mib: size of the parameters in MiB.
        launches: number of GPU kernels and memory operations in a forward pass of one image through the first head (on
            a CPU, of operators; see `count_launches`). None until `FrozenViTPose.report` counts them.
        tuned: what tuning chose, a line for each batch size.
        notes: remarks for the user.
    """

    folded: tuple[str, ...]
    dtype: torch.dtype
    implementation: str
    heatmap_error: float
    keypoint_error: tuple[float, float]
    weights_mib: float
    launches: int | None = None
    tuned: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        median, worst = self.keypoint_error
        return "\n".join(
            [
                f"frozen to {str(self.dtype).removeprefix('torch.')}, {self.implementation}",
                f"folded: {', '.join(self.folded)}",
                "error against the unfrozen model, on smooth random crops: "
                f"heatmaps {self.heatmap_error:.2e} (relative), "
                f"keypoints {median:.3f} px median, {worst:.3f} px at most",
                f"weights {self.weights_mib:.1f} MiB"
                + ("" if self.launches is None else f", {self.launches} launches per forward pass"),
                *(f"tuned for {line}" for line in self.tuned),
                *(f"note: {note}" for note in self.notes),
            ]
        )


class FrozenViTPose(PoseModel):
    """A ViTPose for inference only, with the interface of `PoseModel`. Created by `freeze`.

    A model that was frozen on a GPU replays its forward passes from CUDA graphs, unless `freeze` got `buckets=None`.
    The heatmaps that it returns are copies, which later calls do not overwrite.

    Args:
        model: the model to freeze.
        dtype: dtype of the weights and activations.
        kernels, fold_norm: lay the weights out for the Triton kernels; fold LayerNorm into the following linear layers.

    Attributes:
        graphs: the captured CUDA graphs, or None if no graphs are used.
        choices: the implementations that tuning chose, or None for the defaults.
        freeze_report: the report of `freeze`, which sets it.
    """

    def __init__(self, model: ViTPose, dtype: torch.dtype, kernels: bool, fold_norm: bool) -> None:
        super().__init__()
        self.config = model.config
        self.backbone = FrozenBackbone(model.backbone, dtype, fold_norm)
        self.heads = nn.ModuleDict({name: _frozen_head(head, dtype, kernels) for name, head in model.heads.items()})
        self.graphs: Graphs | None = None
        self.choices: Choices | None = None
        self.freeze_report: FreezeReport | None = None
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor, task: str | Sequence[str] | None = None) -> Any:
        """Map images to heatmaps, with the arguments and results of `PoseModel.forward`.

        Raises:
            ValueError: the images are not [B, 3, H, W] with the image size (H, W) of the model, or as in
                `PoseModel.forward`.
        """
        height, width = self.config.image_size
        if images.dim() != 4 or tuple(images.shape[1:]) != (3, height, width):
            raise ValueError(f"images have shape {list(images.shape)}, expected [B, 3, {height}, {width}]")
        return super().forward(images, task)

    def run(self, name: str, function: Callable[..., Any], *inputs: Tensor) -> Any:
        """Return function(*inputs), computed in the way that suits the device.

        With CUDA graphs, replay the graph that was captured under `name` (see `Graphs`). On a CPU, split the batch so
        that the largest activation of a piece has at most `_CPU_PIECE` bytes, below the size up to which malloc reuses
        memory: larger activations get fresh pages from the system in every layer, which costs several percent of the
        time. In all other cases, and under torch.compile, just call the function.

        Args:
            name: identifies the computation; the same name must always mean the same function.
            function: maps tensors to a tensor or a tuple of tensors, sample by sample.
            inputs: tensors with the batch as first dimension.
        """
        if torch.compiler.is_compiling():
            return function(*inputs)
        with using(None if self.choices is None else self.choices.table):
            if self.graphs is not None:
                return self.graphs(f"{name}, {self.backbone.impl}", function, *inputs)
            if self.device.type != "cpu":
                return function(*inputs)
            choice = find(pieces_call(self.config, self.dtype), len(inputs[0]), inputs[0])
            tokens = self.config.grid[0] * self.config.grid[1]
            hidden = tokens * 4 * self.config.width * self.dtype.itemsize
            size = max(1, _CPU_PIECE // hidden) if choice is None else choice.tiles[0]
            return in_pieces(function, inputs, size)

    def report(self) -> FreezeReport:
        """Print and return the report of `freeze`. The first call also runs the model, to count its launches."""
        assert self.freeze_report is not None
        if self.freeze_report.launches is None:
            images, head = torch.zeros(1, 3, *self.config.image_size, device=self.device), next(iter(self.heads))
            count = count_launches(lambda: self(images, head), self.device)
            self.freeze_report = replace(self.freeze_report, launches=count)
        print(self.freeze_report)
        return self.freeze_report

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> FrozenViTPose:
        before = self.device.type
        super()._apply(fn, recurse)
        if self.graphs is not None:  # graphs contain the addresses of the weights, which .to() and the like replace
            self.graphs = Graphs(self.graphs.buckets) if self.device.type == before else None
        return self

    def train(self, mode: bool = True) -> FrozenViTPose:
        """Return the model, which stays in evaluation mode whatever `mode` is."""
        return super().train(False)


def _frozen_head(head: nn.Module, dtype: torch.dtype, kernels: bool) -> nn.Module:
    """Return a head for inference: a `FrozenDecoder` for a classic head, a copy in `dtype` for any other head."""
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
    tune: float | Choices | None = None,
    tune_batches: Sequence[int] | None = None,
    int8: bool = False,
) -> FrozenViTPose:
    """Prepare a model for inference. `.report()` of the result tells what was folded and how large its error is.

    The following is folded into other weights: the experts of `task` into dense FFNs (if `task` is given), slot 0 of
    the position embedding (the class token) into the other slots, BatchNorm into the deconvolutions, the scale of q
    into the qkv weights (unless the model has relative position), and, for the Triton kernels, LayerNorm into the
    following linear layer.

    Args:
        model: the model, on the device that it shall run on. It is not modified.
        task: keep only the head of this task and merge its experts. None keeps all tasks, so that a batch may mix them.
        dtype: float32, bfloat16 or float16. Default: bfloat16 on a GPU or on a CPU with bfloat16 instructions, else
            float32.
        fold_layer_norm: whether to fold LayerNorm; ignored without the Triton kernels. Default: fold it if the measured
            error of the heatmaps grows by at most 10 %.
        buckets: ascending batch sizes for which CUDA graphs are captured on first use. Other batches are padded to the
            next larger bucket, and split if they exceed the largest. None disables CUDA graphs. Ignored on a CPU.
        impl: "triton" or "reference" (PyTorch). Default: "triton" on a GPU if Triton is installed, else the fastest of
            PyTorch's operators.
        tune: seconds to spend on finding the fastest implementation of each part on this machine (see
            `vitpose_fast.tune`; what was found before is read from a file), or the `choices` of another model that was
            tuned. The numbers that a tuned model returns may differ in rounding from machine to machine. None follows
            the choices that this package ships for the device, and its rules where there are none.
        tune_batches: batch sizes to tune for. Default: 1 and 64 on a GPU, 1 and 8 on a CPU.
        int8: on a CPU, multiply 8-bit integers in the linear layers of the backbone: weights with one scale per output
            channel, inputs with one scale that is measured at each call; all else in `dtype` (float32 or bfloat16). The
            report tells the error. The model also keeps its exact weights, which torch.compile and torch.export use.

    Returns:
        A new model on the same device, in evaluation mode, without gradients. It shares no memory with `model`.

    Raises:
        ValueError: `model` is not a `ViTPose` (it may be frozen already), the task has no head, the dtype is not one of
            the three, `buckets` are not ascending, `impl` is unknown, impl="triton" but Triton cannot run, the model
            has whole FFNs per task and `task` is None, `tune` is not positive or is given together with `impl`, or
            `int8` is not supported.
    """
    if not isinstance(model, ViTPose):
        raise ValueError(f"freeze: got a {type(model).__name__}, expected a ViTPose (load_model or create_model)")
    if tune is not None and impl is not None:
        raise ValueError(f"freeze: got tune={tune} and impl={impl!r}; pass one, since tuning chooses implementations")
    device, native = model.device, model.device.type == "cuda" or _processor_has_bfloat16()
    if dtype is None:
        dtype = torch.bfloat16 if native else torch.float32
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"freeze: got dtype={dtype}, expected float32, bfloat16 or float16")
    if int8 and (device.type != "cpu" or impl is not None or not supports("int8", dtype)):
        raise ValueError(
            f"freeze: got int8=True for {dtype} on {device} with impl={impl!r}; it needs float32 or bfloat16 on an "
            "x86 CPU, and impl=None"
        )
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
    # The truth is in float64 (float32 on a GPU uses TF32 by default), unless freezing rounds far more than float32.
    wide = torch.float32 if device.type == "cpu" and dtype != torch.float32 else torch.float64
    exact = _heatmaps(use_impl(_cast_copy(plain, wide).eval(), "reference"), images.to(wide))
    if not kernels:
        fold_layer_norm = False

    def build(fold: bool) -> tuple[FrozenViTPose, dict[str, Tensor], float]:
        frozen = FrozenViTPose(plain, dtype, kernels, fold)
        use_impl(frozen, impl)
        for module in frozen.modules():
            if isinstance(module, Packing):
                module.int8 = int8
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
        "Triton kernels" if kernels else "PyTorch operators" + (", linear layers in int8" if int8 else ""),
        error,
        _keypoint_error(plain, found, exact),
        sum(sizes) / 2**20,
        notes=tuple(notes),
    )
    if device.type == "cuda" and buckets is not None:
        frozen.graphs = Graphs(buckets)
    if isinstance(tune, Choices):
        frozen.choices = tune
    elif tune is not None:

        def error_now() -> float:
            return _relative_error(_heatmaps(frozen, images), exact)

        batches = tune_batches or ((1, 64) if device.type == "cuda" else (1, 8))
        frozen.choices = find_choices(frozen, float(tune), batches, error_now)
    if frozen.choices is not None:
        frozen.freeze_report = replace(
            frozen.freeze_report,
            heatmap_error=_relative_error(found := _heatmaps(frozen, images), exact),
            keypoint_error=_keypoint_error(plain, found, exact),
            tuned=tuple(map(str, frozen.choices.measured)),
        )
    return frozen


def _folded(model: ViTPose, merged: bool, layer_norm: bool) -> list[str]:
    """Return the names of what was folded, for the report.

    `merged` tells whether experts were merged into dense FFNs, `layer_norm` whether LayerNorm was folded.
    """
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


def _cast_copy(model: ViTPose, dtype: torch.dtype) -> ViTPose:
    """Return a copy of a model with `dtype` weights. It shares all tensors that need no conversion with the model."""
    tensors = [*model.parameters(), *model.buffers()]
    return deepcopy(model, {id(t): t.to(dtype) if t.is_floating_point() else t for t in tensors})


def _smooth_images(model: ViTPose) -> Tensor:
    """Return random images in the input size of the model, on its device: float32 [B, 3, H, W], B = 1 on a CPU, else 2.

    They have structure at scales from 2 to 64 pixels and a standard deviation of 1. Every call returns the same images.
    """
    noise = torch.Generator().manual_seed(0)
    height, width = model.config.image_size
    count = 1 if model.device.type == "cpu" else 2
    out = torch.zeros(count, 3, height, width)
    for step in (64, 32, 16, 8, 4, 2):
        coarse = torch.randn(count, 3, -(-height // step), -(-width // step), generator=noise)
        out += nn.functional.interpolate(coarse, (height, width), mode="bilinear") * (step / 64) ** 0.5
    return (out / out.std()).to(model.device)


def _heatmaps(model: PoseModel, images: Tensor) -> dict[str, Tensor]:
    """Return the heatmaps of every head by task name, converted to float64 [B, K, h, w]."""
    return {name: model(images, name).double() for name in model.heads}


def _relative_error(ours: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """Return the root mean square error of heatmaps, relative to the root mean square of the `exact` ones.

    With several heads, the squared relative errors of the heads are averaged before the root.
    """
    errors = [(ours[n] - exact[n]).square().mean() / exact[n].square().mean().clamp(min=1e-30) for n in exact]
    return float(torch.stack(errors).mean().sqrt())


def _keypoint_error(model: ViTPose, ours: dict[str, Tensor], exact: dict[str, Tensor]) -> tuple[float, float]:
    """Return the (median, maximum) distance between keypoints decoded from two sets of heatmaps, in crop pixels.

    They are taken over the keypoints of all heads and samples.
    """
    distances = []
    for name in exact:
        codec = model.config.task(name).codec
        a, b = (F.heatmap_decode(maps[name], codec, impl="reference")[0] for maps in (ours, exact))
        less = 1 if codec == "udp" else 0  # crop pixels per heatmap pixel: (W - 1) / (w - 1) for udp, else W / w
        crop, heatmap = (
            torch.tensor(size[::-1]) - less for size in (model.config.image_size, model.config.heatmap_size)
        )
        distances.append(((a - b).cpu() * crop / heatmap).norm(dim=-1).flatten())
    distance = torch.cat(distances)
    return float(distance.median()), float(distance.max())


class _CountOperators(TorchDispatchMode):
    """Context manager that counts operators whose result is a new tensor, except allocations.

    Views and in-place operators are not counted, because they return a tensor that aliases an input.
    """

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
    """Return how many GPU kernels and memory operations (copies, fills) one call of `function` launches.

    On a GPU, three calls before it warm up. On a CPU, the operators that `_CountOperators` counts are returned instead.
    """
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
