"""The model that a run starts with: newly initialized, from a pretrained backbone, or from another ViTPose."""

from __future__ import annotations

import torch

from vitpose_fast.checkpoints import load_model, load_pretrained
from vitpose_fast.models.vitpose import ViTPose
from vitpose_training.run.config import TrainConfig


def build_model(config: TrainConfig) -> ViTPose:
    """Build the model of a run, with seeded random weights or, if given, the weights of `config.init`.

    - An MAE backbone, or any checkpoint for a model with experts or several tasks: the backbone is loaded, and so are
      the heads of a ViTPose whose task name and shapes match.
    - A ViTPose for a plain single-task model: its backbone and head are copied (see `ViTPose.with_keypoints`), from the
      head of the same task, else from the first head.

    Raises:
        ValueError: the checkpoint does not fit the model.
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
    for name in ("width", "depth", "num_heads", "decoder", "decoder_width", "patch_stride", "attention"):
        found, wanted = getattr(source.config, name), getattr(model.config, name)
        if found != wanted:
            raise ValueError(
                f"{config.init}: has {name} {found}, {config.model} has {wanted}; "
                f"choose --model and its options to match"
            )
    target = model.config.tasks[0]
    start = target.name if target.name in source.heads else next(iter(source.heads))
    training = {n: getattr(model.config, n) for n in ("drop_path", "freeze_attn", "freeze_ffn", "frozen_stages")}
    return source.with_keypoints(target, start, **training)


def _copy_heads(model: ViTPose, source: ViTPose) -> None:
    """Copy the heads whose task name and shapes match those of the source, and print which were copied."""
    copied = []
    for name, head in model.heads.items():
        own, theirs = head.state_dict(), source.heads[name].state_dict() if name in source.heads else {}
        if {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in theirs.items()}:
            head.load_state_dict(theirs)
            copied.append(name)
    new = [name for name in model.heads if name not in copied]
    print(f"heads from the checkpoint: {', '.join(copied) or 'none'}; newly initialized: {', '.join(new) or 'none'}")
