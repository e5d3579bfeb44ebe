"""The model that a run starts with: newly initialized, from a pretrained backbone, or from another ViTPose."""

from __future__ import annotations

import dataclasses

import torch

from vitpose_fast.checkpoints import load_model, load_pretrained
from vitpose_fast.models.config import ModelConfig
from vitpose_fast.models.vitpose import ViTPose
from vitpose_training.run.config import TrainConfig

# Options in which a run may differ from the ViTPose that it starts from: tasks and experts (one task is taken and its
# experts merged), options that no flag sets (the checkpoint decides), and options of training only (the run decides).
_OF_TRAINING = ("drop_path", "freeze_attn", "freeze_ffn", "frozen_stages")
_MAY_DIFFER = (
    "tasks",
    "head_tasks",
    "part_features",
    "experts",
    "ffn_ratio",
    "layer_norm_eps",
    "rel_pos",
    *_OF_TRAINING,
)


def build_model(config: TrainConfig) -> ViTPose:
    """Build the model of a run, with random weights or with weights of the checkpoint `config.init`.

    What is taken from a checkpoint depends on the model of the run:

    - With several tasks or with experts: the backbone, and each head whose task name and shapes match.
    - With one task and without experts: from an MAE checkpoint the backbone. From a ViTPose the backbone and one head,
      that of the same task or else the first, as far as keypoints have the same names (`ViTPose.with_keypoints`).

    All other weights are random; torch's global generators are seeded with `config.seed` first. What was loaded is
    printed, except if one head of a ViTPose was taken.

    Raises:
        ValueError: the checkpoint is unusable or does not fit the model, or the model options are invalid.
        FileNotFoundError: there is no such checkpoint.
    """
    torch.manual_seed(config.seed)
    model = ViTPose(config.model_config())
    if config.init is None:
        return model
    source = load_model(config.init, image_size=config.image_size)
    pose = source.load_report.family != "mae"
    if not pose or model.config.has_experts or len(model.tasks) > 1:
        print(load_pretrained(model, config.init))
        if pose:
            _copy_heads(model, source)
        return model
    for name in (field.name for field in dataclasses.fields(ModelConfig) if field.name not in _MAY_DIFFER):
        found, wanted = getattr(source.config, name), getattr(model.config, name)
        if found != wanted and not (name == "window" and model.config.attention == "full"):
            raise ValueError(
                f"{config.init}: has {name} {found}, {config.model} has {wanted}; "
                f"choose --model and its options to match"
            )
    target = model.config.tasks[0]
    start = target.name if target.name in source.heads else next(iter(source.heads))
    training = {name: getattr(model.config, name) for name in _OF_TRAINING}
    return source.with_keypoints(target, start, **training)


def _copy_heads(model: ViTPose, source: ViTPose) -> None:
    """Copy weights into the heads of `model` from heads of `source` with the same task name and tensor shapes.

    Print which heads were copied and which stay newly initialized.
    """
    copied = []
    for name, head in model.heads.items():
        own, theirs = head.state_dict(), source.heads[name].state_dict() if name in source.heads else {}
        if {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in theirs.items()}:
            head.load_state_dict(theirs)
            copied.append(name)
    new = [name for name in model.heads if name not in copied]
    print(f"heads from the checkpoint: {', '.join(copied) or 'none'}; newly initialized: {', '.join(new) or 'none'}")
