"""ViTPose and ViTPose++ models: a backbone and one head per task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vitpose_fast.keypoints import KeypointSet, keypoint_set
from vitpose_fast.models.backbone import Backbone, Block
from vitpose_fast.models.config import ModelConfig, preset
from vitpose_fast.models.heads import make_head
from vitpose_fast.modules import SplitFFN, TaskFFN


class PoseModel(nn.Module):
    """Base class of `ViTPose` and `FrozenViTPose`: a backbone, one head per task, and the forward pass through them.

    Attributes:
        config: the options of the model.
        backbone: maps B images and their task ids (indices into `config.tasks`) to features [B, C, rows, columns], with
            C = `config.width` and the rows and columns of `config.grid`.
        heads: task name -> head, which maps features to heatmaps [B, K, h, w] of the K keypoints of the task.
    """

    config: ModelConfig
    backbone: nn.Module
    heads: nn.ModuleDict

    @property
    def device(self) -> torch.device:
        return next(self.backbone.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.backbone.parameters()).dtype

    def run(self, name: str, function: Callable[..., Any], *inputs: Tensor) -> Any:
        """Return function(*inputs).

        A frozen model overrides this method: on a GPU it replays a CUDA graph that it keeps under `name`, see
        `FrozenViTPose.run`.
        """
        return function(*inputs)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of all tasks of the model in the order of the task ids, also of tasks without a head."""
        return tuple(t.name for t in self.config.tasks)

    def resolve_task(self, task: str | None) -> str:
        """Return `task` if it has a head; for None, return the only task that has one.

        Raises:
            ValueError: If the task has no head in this model, or if `task` is None and there are several heads. Lists
                the valid names.
        """
        valid = ", ".join(self.heads)
        if task is None:
            if len(self.heads) != 1:
                raise ValueError(f"this model has heads for {valid}; choose one with task=")
            return next(iter(self.heads))
        if task not in self.heads:
            known = (
                f"task {task!r} has an expert but no head in this model"
                if task in self.tasks
                else f"unknown task {task!r}"
            )
            raise ValueError(f"{known}; heads: {valid}")
        return task

    def forward(
        self, images: Tensor, task: str | Sequence[str] | None = None
    ) -> Tensor | dict[str, tuple[Tensor, Tensor]]:
        """Compute the heatmaps of normalized images.

        Args:
            images: [B, 3, H, W].
            task: the task of the whole batch, or a sequence with one task name per sample. None means the only head.

        Returns:
            For one task, heatmaps [B, K, h, w]. For a task per sample, a dict from the name of each task that occurs to
            (ascending indices of its n samples int64 [n], their heatmaps [n, K, h, w]), in the order of the heads. Each
            head, including its BatchNorm in training, sees only the samples of its task.

        Raises:
            ValueError: If a task has no head, `task` is None and there are several heads, a sequence does not have one
                name per sample, or the images do not have the image size of the model.
        """
        if task is None or isinstance(task, str):
            name = self.resolve_task(task)

            def heatmaps(images: Tensor) -> Tensor:
                ids = torch.full((images.shape[0],), self.tasks.index(name), dtype=torch.int64, device=images.device)
                return self.heads[name](self.backbone(images, ids))

            return self.run(f"heatmaps of {name}", heatmaps, images)
        names = [self.resolve_task(t) for t in task]
        if len(names) != images.shape[0]:
            raise ValueError(f"got {len(names)} task names for {images.shape[0]} images, expected one per image")
        ids = torch.tensor([self.tasks.index(n) for n in names], dtype=torch.int64, device=images.device)
        # Samples are selected from tokens [B, N, C], the contiguous layout of the features: this copies whole rows.
        tokens = self.run("features", lambda *inputs: self.backbone(*inputs).flatten(2).transpose(1, 2), images, ids)
        out = {}
        for name in self.heads:
            if name in names:
                index = torch.tensor([i for i, n in enumerate(names) if n == name], device=images.device)
                out[name] = index, self.run(f"head of {name}", self._head(name), tokens.index_select(0, index))
        return out

    def _head(self, name: str) -> Callable[[Tensor], Tensor]:
        """Return a function that maps tokens [B, rows * columns, C] to the heatmaps [B, K, h, w] of one head."""
        return lambda tokens: self.heads[name](tokens.transpose(1, 2).unflatten(2, self.config.grid))


class ViTPose(PoseModel):
    """A trainable ViTPose or ViTPose++ model.

    Attributes:
        load_report: the `LoadReport` of the checkpoint, if `load_model` made the model; otherwise None.

    Raises:
        ValueError: If the name of a task with a head cannot be the name of a submodule: it is no Python identifier, or
            an attribute of `nn.ModuleDict`.
    """

    backbone: Backbone

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        reserved = [t for t in config.head_tasks if hasattr(nn.ModuleDict(), t) or not t.isidentifier()]
        if reserved:
            raise ValueError(
                f"{reserved[0]!r} cannot be the name of a keypoint set in a model; choose another name of letters, "
                f"digits and _"
            )
        self.heads = nn.ModuleDict({t: make_head(config, config.task(t).num_keypoints) for t in config.head_tasks})
        self.load_report: Any = None

    def for_task(self, task: str | None = None) -> ViTPose:
        """Return a copy for one task, without experts and other heads, that gives the same heatmaps.

        Experts are merged into dense FFNs. The copy has the device, dtype and training mode of this model. `task` None
        means the only task with a head.

        Raises:
            ValueError: If the task has no head, or if `task` is None and there are several heads.
        """
        name = self.resolve_task(task)
        index = self.tasks.index(name)
        ratio = 8 if self.config.experts == "added" else self.config.ffn_ratio
        own = (self.config.task(name),)
        config = replace(self.config, part_features=0, experts="none", ffn_ratio=ratio, tasks=own, head_tasks=(name,))
        plain = unset_model(config, self.device).to(self.dtype)
        state = {k: v for k, v in self.state_dict().items() if k in plain.state_dict()}
        for i, block in enumerate(self.backbone.blocks):
            if isinstance(block, Block) and isinstance(block.mlp, (SplitFFN, TaskFFN)):
                merged = block.mlp.merged(index).state_dict()
                state.update({f"backbone.blocks.{i}.mlp.{k}": v for k, v in merged.items()})
        plain.load_state_dict(state)
        return plain.train(self.training)

    def with_keypoints(self, spec: str | KeypointSet, source: str | None = None, **options: Any) -> ViTPose:
        """Return a single-task copy for another keypoint set, to fine-tune on it.

        Args:
            spec: the new keypoint set: a `KeypointSet`, a key of `KEYPOINT_SETS`, or the path of a JSON file.
            source: the task whose expert and head are copied. None means the only task with a head.
            options: training options of `ModelConfig` to change: drop_path, freeze_attn, freeze_ffn, frozen_stages.

        Returns:
            A model without experts. The backbone (with the expert of `source` merged into it) and the deconvolutions
            are copied. In the last convolution of the head, keypoints whose name (ignoring case) occurs in the old
            keypoint set start from the weights of that keypoint, the others from random weights.

        Raises:
            FileNotFoundError: If the JSON file does not exist.
            ValueError: If the keypoint set or an option is invalid, or `source` has no head.
        """
        target = keypoint_set(spec)
        old = self.for_task(source)
        known = [n.lower() for n in old.config.tasks[0].names]
        model = ViTPose(replace(old.config, tasks=(target,), head_tasks=(), **options)).to(old.backbone.pos_embed)
        model.backbone.load_state_dict(old.backbone.state_dict())
        before, after = old.heads[old.tasks[0]], model.heads[target.name]
        state = after.state_dict()
        for key, value in before.state_dict().items():
            if not key.startswith("final_layer"):
                state[key] = value
                continue
            rows = state[key].unflatten(0, (target.num_keypoints, -1))  # minimal: r * r channels per keypoint
            for i, name in enumerate(target.names):
                if name.lower() in known:
                    rows[i] = value.unflatten(0, (len(known), -1))[known.index(name.lower())]
        after.load_state_dict(state)
        return model.train(self.training)


def unset_model(config: ModelConfig, device: torch.device) -> ViTPose:
    """Build a model whose tensors have no values yet, for a caller that sets all of them: this skips initialization."""
    with torch.device("meta"):
        model = ViTPose(config)
    return model._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device=device))  # `to_empty` imports sympy: 0.5 s


def create_model(
    name: str,
    tasks: Sequence[str | KeypointSet] = ("coco",),
    decoder: str = "classic",
    image_size: tuple[int, int] = (256, 192),
    **options: Any,
) -> ViTPose:
    """Build a randomly initialized model from a preset such as "vitpose-b" or "vitpose++-s".

    Args:
        name: one of `PRESETS`.
        tasks: keypoint sets, each as its name, the path of a JSON file, or a `KeypointSet`. Each gets a head, and in
            "vitpose++-*" presets an expert.
        decoder: "classic", "classic-fp", "simple" or "minimal".
        image_size: (H, W) of the network input in pixels.
        options: any other field of `ModelConfig`, e.g. patch_stride=8, attention="window+shift+pool".

    Raises:
        FileNotFoundError: If the JSON file of a keypoint set does not exist.
        ValueError: If the preset, a task or an option is unknown (lists the valid ones), or if options contradict each
            other.
    """
    tasks = (tasks,) if isinstance(tasks, (str, KeypointSet)) else tuple(tasks)
    return ViTPose(preset(name, tasks, decoder=decoder, image_size=image_size, **options))
