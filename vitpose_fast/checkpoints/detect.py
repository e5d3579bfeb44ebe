"""Infer the config of a model from its tensors, under canonical names (docs/numerics.md 2.7)."""

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
        missing: parameters of the model that are not in the file; they keep the values they had.
        unexpected: tensors of the file that the model does not have.
        ignored: tensors of the file that are known to belong to its format but not to the model.
        reshaped: tensors that were resized, split or copied to fit the model, described in words.
        guesses: assumptions about what the tensors do not determine, described in words.
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
    """Infer the config of the model that canonical tensors belong to.

    Args:
        state: tensors under canonical names.
        path: the file, for messages and because its name may tell the task.
        written: the contents of config.json, or {}.
        task, num_heads, image_size: as in `load_model`.
        report: receives the guesses and the ignored tensors.

    Returns:
        The tensors, without the leftovers of the official splitting tool, and the config.

    Raises:
        ValueError: If a needed tensor is missing, or the tensors do not determine the model.
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
    """Return (state, number of experts, channels of an expert).

    The official splitting tool merges one expert into `fc2` but leaves the experts in the file: then all experts, and
    the heads of the other tasks, are removed from the state.
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
    """Return (decoder, decoder width, patch stride, number of keypoints of each head)."""
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
    """Return the keypoint sets in the order of the experts, or of the heads if there are no experts."""
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
    """Return (keypoint set of a single head, what it was inferred from), among sets with `count` keypoints."""
    fitting = {s.name: s for s in KEYPOINT_SETS.values() if count in (None, s.num_keypoints)}
    labels = tuple(written.get("id2label", {}).values())
    for known in fitting.values():
        if known.names == labels:
            return known, "config.json"
    for text in (path.name, path.resolve().parent.name):
        plain = re.sub("[-_]", "", text.lower())
        for name in _TASKS_IN_NAMES:
            if name in plain and name in fitting:
                return fitting[name], f"the name {text}"
    if count is None:
        return KEYPOINT_SETS["coco"], "the default"
    name = _TASK_BY_COUNT.get(count, "")
    return KEYPOINT_SETS[name] if name else custom_keypoint_set(count), f"{count} keypoints"


def grid_of(count: int, wanted: tuple[int, int] | None, source: str) -> tuple[int, int]:
    """Return (rows, columns) of a grid of `count` tokens: square (pretraining), else 4:3 (people), else `wanted`.

    Raises:
        ValueError: If none of the three has `count` tokens.
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
