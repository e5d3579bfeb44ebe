"""Infer the `ModelConfig` of a checkpoint from its tensors (docs/numerics.md 2.7).

The tensors have canonical names, see `vitpose_fast.checkpoints.formats`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vitpose_fast.checkpoints.formats import State
from vitpose_fast.keypoints import KEYPOINT_SETS, KeypointSet, custom_keypoint_set, keypoint_set
from vitpose_fast.models.config import PLUS_TASKS, ModelConfig
from vitpose_kernels.sizes import SIZES

_TASK_BY_COUNT = {17: "coco", 14: "aic", 16: "mpii", 133: "wholebody", 21: "interhand"}
_TASKS_IN_NAMES = ("wholebody", "ap10k", "apt36k", "ochuman", "crowdpose", "interhand", "aic", "mpii", "coco")
_NUM_HEADS_BY_WIDTH = {size.width: size.num_heads for size in SIZES.values()}
# Defaults of Hugging Face, which are left out of its config.json.
_HF_DEFAULTS = {"num_attention_heads": 12, "image_size": [256, 192], "layer_norm_eps": 1e-12}


@dataclass
class LoadReport:
    """What was found when a checkpoint was loaded; `str(report)` has one line for each kind of finding.

    Attributes:
        source: the path of the file.
        family: its format: "hf", "mmpose", "ours", "official" or "mae".
        missing: names of parameters and buffers of the model that are not in the file. They keep the values that they
            had before loading.
        unexpected: names of tensors in the file that the model does not have.
        ignored: names of tensors in the file that are left out on purpose, such as the decoder of MAE pretraining.
        reshaped: sentences about tensors that were resized, split or copied to fit the model.
        guesses: sentences about options of the model that the tensors do not determine and that were assumed.
    """

    source: str
    family: str = ""
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    guesses: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.family} checkpoint"]
        for kind in ("missing", "unexpected", "ignored", "reshaped", "guesses"):
            found = getattr(self, kind)
            if found:
                lines.append(f"  {kind} ({len(found)}): {', '.join(found)}")
        return "\n".join(lines)


def detect_config(
    state: State,
    path: Path,
    written: dict[str, Any],
    task: str | KeypointSet | None,
    num_heads: int | None,
    image_size: tuple[int, int] | None,
    report: LoadReport,
) -> tuple[State, ModelConfig]:
    """Infer the config of the model that the tensors of a checkpoint belong to.

    Args:
        state: tensors under canonical names.
        path: the file, for messages and because its name may tell the task.
        written: the contents of config.json, or {}.
        task: as in `load_model`; ignored if the file has several heads or experts.
        num_heads: as in `load_model`.
        image_size: (H, W) that decides how the position embedding forms a grid if neither config.json nor its length
            does (see `grid_of`).
        report: receives the guesses and the ignored tensors.

    Returns:
        (tensors, config): the tensors without those that the official splitting tool leaves over (see `_experts`).

    Raises:
        ValueError: If a needed tensor is missing, the tensors do not determine the model, or the head does not have the
            number of keypoints of `task`.
    """
    source = str(path)

    def shape(key: str) -> torch.Size:
        if key not in state:
            raise ValueError(
                f"{source}: weight {key} is not in the file; either it is no ViTPose checkpoint or it is incomplete"
            )
        return state[key].shape

    width = shape("backbone.patch_embed.proj.weight")[0]
    depth = 1 + max(int(m[1]) for k in state if (m := re.match(r"backbone\.blocks\.(\d+)\.", k)))
    backbone = _HF_DEFAULTS | written.get("backbone_config", {}) if written.get("model_type") == "vitpose" else {}
    heads = num_heads or backbone.get("num_attention_heads") or _NUM_HEADS_BY_WIDTH.get(width)
    if heads is None:
        raise ValueError(f"{source}: the number of attention heads is unknown for width {width}; pass num_heads=")
    state, experts, part = _experts(state, width, shape, report)
    found = {m[1] for k in state if (m := re.match(r"(keypoint_head|associate_keypoint_heads\.\d+)\.", k))}
    head_names = sorted(found, key=lambda n: (n != "keypoint_head", len(n), n))
    decoder, decoder_width, stride, counts = _decoder(state, head_names, width, report)
    tasks = _tasks(counts, experts, path, written, task, report)
    size = backbone.get("image_size")
    if isinstance(size, int):
        size = (size, size)
    if size is None:
        tokens = shape("backbone.pos_embed")[1] - 1
        wanted = None if image_size is None else (image_size[0] // stride, image_size[1] // stride)
        rows, columns = grid_of(tokens, wanted, source)
        size = (rows * stride, columns * stride)
        report.guesses.append(f"image size {size[0]}x{size[1]} from {tokens} tokens of patch stride {stride}")
    config = ModelConfig(
        width=width,
        depth=depth,
        num_heads=heads,
        part_features=part,
        decoder=decoder,
        decoder_width=decoder_width,
        image_size=(int(size[0]), int(size[1])),
        patch_stride=stride,
        tasks=tasks,
        head_tasks=tuple(t.name for t in tasks[: max(len(counts), 1)]),
        layer_norm_eps=backbone.get("layer_norm_eps", 1e-6),
    )
    if num_heads is None and not backbone:
        report.guesses.append(f"{heads} attention heads from the width {width}")
    return state, config


def _experts(state: State, width: int, shape: Any, report: LoadReport) -> tuple[State, int, int]:
    """Return (state, number of experts, output channels of each expert); the numbers are 0 without experts.

    The official splitting tool merges one expert into `fc2` but leaves the experts in the file. In a file where `fc2`
    has the full `width`, all experts and the heads of the other tasks are therefore removed from the returned state.
    """
    found = {int(m[1]) for k in state if (m := re.match(r"backbone\.blocks\.0\.mlp\.experts\.(\d+)\.weight", k))}
    if not found:
        return state, 0, 0
    if shape("backbone.blocks.0.mlp.fc2.weight")[0] < width:
        return state, max(found) + 1, shape("backbone.blocks.0.mlp.experts.0.weight")[0]
    leftover = [k for k in state if ".mlp.experts." in k or k.startswith("associate_keypoint_heads.")]
    report.ignored += leftover  # the other heads need features of experts, which the merged fc2 does not compute
    return {k: v for k, v in state.items() if k not in leftover}, 0, 0


def _decoder(state: State, head_names: list[str], width: int, report: LoadReport) -> tuple[str, int, int, list[int]]:
    """Return (decoder, decoder width, patch stride, list of the number of keypoints of each head).

    The first of `head_names` determines the decoder; a file without heads gets a new classic one. Only a classic
    decoder determines its width and, by its number of deconvolutions, the stride; other decoders get the defaults 256
    and 16.

    Raises:
        ValueError: If a head has no final layer, or the first one fits no decoder.
    """
    if not head_names:
        report.guesses.append("no head in the file, so the model gets a new classic head")
        return "classic", 256, 16, []
    first = head_names[0]
    weights = []
    for name in head_names:
        if f"{name}.final_layer.weight" not in state:
            raise ValueError(f"{report.source}: weight {name}.final_layer.weight is not in the file")
        weights.append(state[f"{name}.final_layer.weight"])
    deconv = state.get(f"{first}.deconv_layers.0.weight")
    if deconv is not None:
        stride = 16 if f"{first}.deconv_layers.3.weight" in state else 8
        return "classic", deconv.shape[1], stride, [w.shape[0] for w in weights]
    if weights[0].shape[-1] == 3:
        return "simple", 256, 16, [w.shape[0] for w in weights]
    if weights[0].shape[0] % 16 == 0:
        return "minimal", 256, 16, [w.shape[0] // 16 for w in weights]
    raise ValueError(
        f"{report.source}: {first}.final_layer.weight has shape {list(weights[0].shape)} and there are no "
        f"deconvolutions; expected a classic head, a 3x3 convolution (simple) or 16 channels per keypoint (minimal)"
    )


def _tasks(
    counts: list[int],
    experts: int,
    path: Path,
    written: dict[str, Any],
    task: str | KeypointSet | None,
    report: LoadReport,
) -> tuple[KeypointSet, ...]:
    """Return the keypoint sets of the model, in the order of the experts, or of the heads if there are no experts.

    Several experts or heads belong to `PLUS_TASKS`, in this order; a head with another number of keypoints gets a
    custom set, and `task` is ignored. A single head belongs to `task`, or else to the set that `_guess_task` returns.

    Args:
        counts: number of keypoints of each head.
        experts: number of experts.
        path, written, task, report: as in `detect_config`.

    Raises:
        ValueError: If the single head does not have the number of keypoints of `task`.
    """
    if experts > 1 or len(counts) > 1:
        total = max(experts, len(counts))
        names = PLUS_TASKS[:total] + tuple(f"task{i}" for i in range(len(PLUS_TASKS), total))
        out = []
        for i, name in enumerate(names):
            known = KEYPOINT_SETS.get(name)
            if i < len(counts) and (known is None or known.num_keypoints != counts[i]):
                known = custom_keypoint_set(counts[i], f"custom{i}")
                report.guesses.append(f"head {i} has {counts[i]} keypoints, unlike {name}, and is named {known.name}")
            out.append(known or custom_keypoint_set(1, name))
        return tuple(out)
    count = counts[0] if counts else None
    if task is not None:
        chosen = keypoint_set(task)
    else:
        chosen, reason = _guess_task(count, path, written)
        report.guesses.append(f"task {chosen.name} from {reason}")
    if count is not None and chosen.num_keypoints != count:
        raise ValueError(f"{path}: the head has {count} keypoints, task {chosen.name!r} has {chosen.num_keypoints}")
    return (chosen,)


def _guess_task(count: int | None, path: Path, written: dict[str, Any]) -> tuple[KeypointSet, str]:
    """Return (keypoint set of a single head, what it was inferred from).

    The head has `count` keypoints; None means that there is no head, and any set fits. The keypoint names in
    config.json decide first, then the name of the file or its folder, then `count` alone ("coco" without a head). If no
    built-in set has `count` keypoints, the result is a custom one.
    """
    fitting = {s.name: s for s in KEYPOINT_SETS.values() if count in (None, s.num_keypoints)}
    labels = tuple(written.get("id2label", {}).values())
    for known in fitting.values():
        if known.names == labels:
            return known, "config.json"
    for text in (path.name, path.resolve().parent.name):
        plain = re.sub("[-_]", "", text.lower())
        for name in _TASKS_IN_NAMES:
            if name.replace("_", "") in plain and name in fitting:
                return fitting[name], f"the name {text}"
    if count is None:
        return KEYPOINT_SETS["coco"], "the default"
    name = _TASK_BY_COUNT.get(count, "")
    return KEYPOINT_SETS[name] if name else custom_keypoint_set(count), f"{count} keypoints"


def grid_of(count: int, wanted: tuple[int, int] | None, source: str) -> tuple[int, int]:
    """Return (rows, columns) of a grid of `count` tokens: square (pretraining), else 4:3 (people), else `wanted`.

    `wanted` is the (rows, columns) to try last, or None; `source` is the file name in the error message.

    Raises:
        ValueError: If none of the three grids has `count` tokens.
    """
    side = round(count**0.5)
    if side * side == count:
        return side, side
    unit = round((count / 12) ** 0.5)
    if 12 * unit * unit == count:
        return 4 * unit, 3 * unit
    if wanted is not None and wanted[0] * wanted[1] == count:
        return wanted
    raise ValueError(
        f"{source}: backbone.pos_embed has {count} tokens, neither a square nor a 4:3 grid; pass image_size=(H, W), "
        f"the size the file was trained for"
    )
