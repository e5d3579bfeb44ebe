"""Build a model from a checkpoint of any supported format, and load pretrained backbones into a model."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitpose_fast.checkpoints import formats
from vitpose_fast.checkpoints.detect import LoadReport, detect_config, grid_of
from vitpose_fast.checkpoints.formats import State
from vitpose_fast.checkpoints.read import find_checkpoint, read_checkpoint
from vitpose_fast.keypoints import KeypointSet, keypoint_set
from vitpose_fast.models.config import PLUS_TASKS, ModelConfig
from vitpose_fast.models.vitpose import ViTPose, unset_model

log = logging.getLogger("vitpose_fast")


def load_model(
    source: str | os.PathLike,
    task: str | KeypointSet | None = None,
    num_heads: int | None = None,
    image_size: tuple[int, int] | None = None,
) -> ViTPose:
    """Load a model from a checkpoint in any of the supported formats.

    Supported are our own files, official ViTPose and ViTPose++ files, easy_ViTPose, Hugging Face, mmpose 1.x and MAE
    pretraining (docs/numerics.md 2). Files that this library wrote in our own or the official format store the options
    of the model; for other files the options are inferred from the tensors and config.json. All heads and experts are
    kept, except in files of the official splitting tool, which have the expert of one task merged into fc2: the
    leftover experts and the heads of the other tasks are ignored. No code in the file is ever executed. Missing and
    unexpected tensors and guesses are logged and kept in `model.load_report`.

    Args:
        source: a file, a folder, or a hub id `owner/name`.
        task: a keypoint set: its name, the path of a JSON file, or a `KeypointSet`. In a file without stored options
            and with at most one head and one expert, it is the keypoint set of the head; by default this is inferred
            from config.json, the name of the file or its folder, or the number of keypoints. In other files `task` must
            be one of the tasks that have a head, and has no other effect.
        num_heads: number of attention heads, needed if neither the stored options, config.json nor the width determines
            it. It overrides them.
        image_size: (H, W) of the images that the model will get; the position embedding is resized to fit. Default: the
            size in the file, or (256, 192) for MAE pretraining.

    Returns:
        The model, on the CPU and in eval mode.

    Raises:
        FileNotFoundError: If there is no such file, if the folder has no or several weights files, or if the hub id
            cannot be downloaded.
        ValueError: If the file cannot be loaded, or `task` has no head in it: one line with what was found and what was
            expected. It names the first missing weight, or the first weight of the wrong shape with both shapes.
    """
    path = find_checkpoint(source)
    try:
        model, report = _load(path, task, num_heads, image_size)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:  # malformed shapes or types
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: damaged, or not a ViTPose checkpoint ({type(error).__name__}: {reason})") from None
    model.load_report = report
    level = logging.WARNING if report.missing or report.unexpected or report.guesses else logging.INFO
    log.log(level, "%s", report)
    return model.eval()


def _load(
    path: Path, task: str | KeypointSet | None, num_heads: int | None, image_size: tuple[int, int] | None
) -> tuple[ViTPose, LoadReport]:
    state, written, report = _open(path, "a ViTPose checkpoint")
    family = report.family
    if family == "ours" and "vitpose_fast" not in written:
        raise ValueError(f"{path}: our weights, but no config (a training state?); load the folder model/ or best/")
    if "vitpose_fast" in written:
        try:
            config = ModelConfig.from_dict(written["vitpose_fast"])
        except ValueError as error:
            raise ValueError(f"{path}: its config cannot be used ({error})") from None
        config = replace(config, num_heads=num_heads or config.num_heads)
    else:
        pretraining = family == "mae"  # its grid is always square, so image_size must not decide it
        state, config = detect_config(
            state, path, written, task, num_heads, None if pretraining else image_size, report
        )
    file_grid = config.grid
    if image_size is None and family == "mae":
        image_size = (256, 192)
    if image_size is not None:
        config = replace(config, image_size=(image_size[0], image_size[1]))
    state = _name_heads(state, config)
    model = unset_model(config, torch.device("cpu"))
    if not model.state_dict().keys() <= state.keys():
        model = ViTPose(config)  # what is not in the file keeps its initial values
    if task is not None:
        model.resolve_task(task if isinstance(task, str) and task in model.tasks else keypoint_set(task).name)
    _fill(model, state, file_grid, report, backbone_only=family == "mae")
    return model, report


def _open(path: Path, what: str) -> tuple[State, dict[str, Any], LoadReport]:
    """Return (tensors under canonical names, the config stored with them or {}, a new report) of a file.

    Raises:
        ValueError: If the file cannot be read (see `read_checkpoint`), or its format is unknown. The message says that
            it is not `what`, such as "a ViTPose checkpoint".
    """
    state, written = read_checkpoint(path)
    family = formats.family_of(state)
    if family is None:
        raise ValueError(f"{path}: not {what}; its first keys are {', '.join(list(state)[:4])}")
    report = LoadReport(str(path), family)
    state, report.ignored = formats.to_canonical(state, family)
    return state, written, report


def load_pretrained(model: ViTPose, source: str | os.PathLike) -> LoadReport:
    """Load the backbone of a checkpoint, usually of MAE pretraining, into `model` in place. Its heads are not changed.

    The checkpoint may have any format that `load_model` reads. These tensors are adapted (docs/numerics.md 1.6):

    - The position embedding is resized to the grid of the model by bicubic interpolation.
    - The 14x14 patch convolution of MAE's ViT-H is zero-padded to 16x16.
    - Experts of a split FFN are matched by task name. A task that the file does not have starts from the file's first
      expert.
    - For a model with experts, dense FFNs are converted. Split FFN: the first rows of fc2 become the shared part, and
      each expert starts as a copy of the last rows. I-FFN: each expert starts as a copy of the FFN. IS-FFN: the FFN
      becomes the shared FFN, and the experts keep their weights.

    Returns:
        The names of missing, unexpected and ignored tensors, and what was reshaped. The heads of the model always count
        as missing. The report does not list the tensors that were loaded.

    Raises:
        FileNotFoundError: As in `load_model`.
        ValueError: If the file cannot be read, or a weight of the backbone is missing in it or has the wrong shape; the
            message names the first one. The last LayerNorm, the tables of relative position and the experts of an
            IS-FFN may be missing, and keep their values.
    """
    state, written, report = _open(find_checkpoint(source), "a ViT backbone")
    report.ignored += [k for k in state if not k.startswith("backbone.")]
    state = {k: v for k, v in state.items() if k.startswith("backbone.")}
    own = written.get("vitpose_fast")
    config = ModelConfig.from_dict(own) if own else None
    if model.config.has_experts:
        _match_experts(state, model.config, PLUS_TASKS if config is None else [t.name for t in config.tasks], report)
        _split_dense(state, model.config, report)
    file_grid = config.grid if config else None
    _fill(model, state, file_grid, report, backbone_only=True)
    log.info("%s", report)
    return report


def _match_experts(state: State, config: ModelConfig, tasks: Sequence[str], report: LoadReport) -> None:
    """Renumber the experts of split FFNs in `state`, from the file's order `tasks` to the order of `config.tasks`.

    A task that is not in `tasks` gets the file's first expert, which goes to the report. The state is changed in place.
    """
    pattern = re.compile(r"(backbone\.blocks\.\d+\.mlp\.experts)\.(\d+)\.(weight|bias)")
    found = {(m[1], int(m[2]), m[3]): state.pop(k) for k in list(state) if (m := pattern.fullmatch(k))}
    if not found:
        return
    source = {t.name: tasks.index(t.name) if t.name in tasks else 0 for t in config.tasks}
    for (stem, number, kind), value in found.items():
        for i, task in enumerate(config.tasks):
            if source[task.name] == number:
                state[f"{stem}.{i}.{kind}"] = value
    new = [name for name in source if name not in tasks]
    if new:
        report.reshaped.append(f"experts of {', '.join(new)} start from the expert of {tasks[0]}")


def _split_dense(state: State, config: ModelConfig, report: LoadReport) -> None:
    """Convert the dense FFNs in `state` to the FFNs with experts that `config` asks for (docs/numerics.md 1.4).

    Split FFN: the first rows of fc2 become the shared part, and each expert gets the last `part_features` rows. I-FFN:
    each expert gets a copy of the dense FFN. IS-FFN: the dense FFN becomes the shared FFN; the state gets no experts,
    so that the model keeps its own, which output zero if they are newly initialized. The state is changed in place.
    """
    for i in range(config.depth):
        if config.experts != "none":
            mlp = f"backbone.blocks.{i}.mlp"
            names = [f"fc{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")]
            dense = {name: state.pop(f"{mlp}.{name}") for name in names if f"{mlp}.{name}" in state}
            for name, value in dense.items():
                if config.experts == "added":
                    state[f"{mlp}.shared.{name}"] = value
                else:
                    state[f"{mlp}.{name.replace('.', '_')}"] = value.repeat(len(config.tasks), *[1] * value.dim())
            report.reshaped.append(
                f"{mlp} copied to {'the shared FFN' if config.experts == 'added' else 'every expert'}"
            )
            continue
        for kind in ("weight", "bias"):
            name = f"backbone.blocks.{i}.mlp.fc2.{kind}"
            if name in state and state[name].shape[0] == config.width:
                shared, part = state[name].split([config.width - config.part_features, config.part_features])
                state[name] = shared
                report.reshaped.append(f"{name} split into fc2 and {len(config.tasks)} experts")
                for t in range(len(config.tasks)):
                    state[f"backbone.blocks.{i}.mlp.experts.{t}.{kind}"] = part


def _fill(
    model: ViTPose, state: State, file_grid: tuple[int, int] | None, report: LoadReport, backbone_only: bool
) -> None:
    """Load the tensors in `state` into the model; the names of missing and unexpected tensors go to the report.

    Args:
        state: tensors under the names of the model. The position embedding in it is replaced by a resized one.
        file_grid: (rows, columns) of the file's position embedding. None means square, 4:3 or the model's grid (see
            `grid_of`).
        backbone_only: allow the heads, the last LayerNorm and the experts of an IS-FFN to be missing. The tables of
            relative position and the batch counters of BatchNorm may always be missing.

    Raises:
        ValueError: If any other tensor is missing, or one has the wrong shape; the message names the first.
    """
    expected = model.state_dict()
    position = state.get("backbone.pos_embed")
    if position is not None and (
        position.shape != expected["backbone.pos_embed"].shape or file_grid != model.config.grid
    ):
        state["backbone.pos_embed"] = _resize_position(position, file_grid, model.config.grid, report)
    report.missing = [k for k in expected if k not in state]
    report.unexpected = [k for k in state if k not in expected]
    optional: tuple[str, ...] = ("num_batches_tracked", "rel_pos_h", "rel_pos_w")
    if backbone_only and model.config.experts == "added":  # experts keep their initial weights
        optional += tuple(f"mlp.fc{n}_{kind}" for n in (1, 2) for kind in ("weight", "bias"))
    needed = [k for k in report.missing if not k.endswith(optional)]
    if backbone_only:
        needed = [k for k in needed if k.startswith("backbone.") and "last_norm" not in k]
    if needed:
        raise ValueError(
            f"{report.source}: {len(needed)} weights of the model are not in the file, the first is {needed[0]}"
        )
    for key, value in state.items():
        if key in expected and value.shape != expected[key].shape:
            shapes = f"{list(value.shape)} in the file, {list(expected[key].shape)} in the model"
            raise ValueError(f"{report.source}: {key} does not fit: {shapes}")
    model.load_state_dict({k: v for k, v in state.items() if k in expected}, strict=False)


def _resize_position(
    position: Tensor, file_grid: tuple[int, int] | None, grid: tuple[int, int], report: LoadReport
) -> Tensor:
    """Resize a position embedding [1, 1 + n, C] to `grid` by bicubic interpolation, keeping slot 0 (the class token).

    `file_grid` and `grid` are the (rows, columns) of the file and of the model; n = rows * columns of the file. If
    `file_grid` is None, `grid_of` chooses it. Source: docs/numerics.md 1.6.

    Raises:
        ValueError: If the embedding has another shape, or no grid fits n.
    """
    count = position.shape[1] - 1 if position.dim() == 3 else 0
    rows, columns = file_grid or grid_of(count, grid, report.source)
    if rows * columns != count:
        raise ValueError(
            f"{report.source}: backbone.pos_embed does not fit: {list(position.shape)} in the file, "
            f"expected [1, {1 + rows * columns}, C] for a {rows}x{columns} grid"
        )
    if (rows, columns) == grid:
        return position
    image = position[:, 1:].reshape(1, rows, columns, -1).permute(0, 3, 1, 2).float()
    image = torch.nn.functional.interpolate(image, size=grid, mode="bicubic", align_corners=False)
    report.reshaped.append(f"backbone.pos_embed resized from {rows}x{columns} to {grid[0]}x{grid[1]}")
    return torch.cat([position[:, :1], image.flatten(2).transpose(1, 2).to(position.dtype)], 1)


def _name_heads(state: State, config: ModelConfig) -> State:
    """Return the tensors with the heads renamed from official names to `heads.<task>.*`, in the order of `head_tasks`.

    A head beyond the last of `config.head_tasks` keeps its name.
    """
    out = {}
    for key, value in state.items():
        match = re.match(r"(?:keypoint_head|associate_keypoint_heads\.(\d+))\.(.+)", key)
        if match:
            index = 0 if match[1] is None else int(match[1]) + 1
            if index < len(config.head_tasks):
                key = f"heads.{config.head_tasks[index]}.{match[2]}"
        out[key] = value
    return out
