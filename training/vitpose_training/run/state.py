"""The state of a run, which every optimizer step changes: weights, optimizer, EMA and progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from vitpose_fast.codec import HeatmapCodec
from vitpose_fast.models.vitpose import ViTPose
from vitpose_training.distributed import World, share, whole
from vitpose_training.run.checkpoint import States, put_back, read_state
from vitpose_training.run.config import TrainConfig
from vitpose_training.run.optim import make_optimizer
from vitpose_training.run.recompute import set_recompute
from vitpose_training.run.starting_model import build_model
from vitpose_training.run.step import PoseLoss, Updater


@dataclass
class State:
    """A model in training after `step` optimizer steps, with its optimizer."""

    model: ViTPose
    """The model on the device of the run; under FSDP its parameters are sharded."""
    loss: PoseLoss
    """The module that computes the losses of `model`, not wrapped by DDP."""
    optimizer: torch.optim.AdamW
    updater: Updater
    """Makes the optimizer steps, and holds the EMA of the parameters (`updater.ema`, None without EMA)."""
    step: int = 0
    """Optimizer steps done, skipped ones and those before a resume included."""
    seconds: float = 0.0
    """Seconds that the earlier parts of a resumed run took; 0 for a new run."""

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Return a context manager during which the model has its averaged weights. Without EMA, it does nothing."""
        ema = self.updater.ema
        if ema is None:
            yield
            return
        ema.swap()
        try:
            yield
        finally:
            ema.swap()

    def whole_model(self) -> ViTPose:
        """Return the unsharded model: under FSDP a copy on the same device, otherwise the model itself.

        Under FSDP every process must call this, and gets a copy with the gathered parameters and its own BatchNorm
        statistics.
        """
        if not any(hasattr(p, "full_tensor") for p in self.model.parameters()):
            return self.model
        copy = ViTPose(self.model.config).to(next(self.model.parameters()).device)
        own = {**dict(copy.named_parameters()), **dict(copy.named_buffers())}
        with torch.no_grad():
            for name, value in (*self.model.named_parameters(), *self.model.named_buffers()):
                own[name].copy_(whole(value.detach()))
        return copy


def start_state(config: TrainConfig, world: World, resumes: bool) -> State:
    """Build the initial state of a run, or restore the last saved state if it resumes. Every process must call this.

    Raises:
        ValueError, OSError: the checkpoint `config.init` is unusable or does not fit the model, the model options are
            invalid, or the state cannot be resumed. If building the model or reading the state fails in one process,
            the others raise ValueError with its message.
    """
    model, loss = world.agree(lambda: _model_and_loss(config, world.device))
    module = share(loss, list(model.backbone.blocks), world, config.parallel)
    if config.compile:
        model.backbone.compile()
    optimizer = make_optimizer(model, config.optimizer)
    updater = Updater(module, loss, optimizer, config, world)
    if not resumes:
        return State(model, loss, optimizer, updater)
    states = States(config.out / "states", config.keep)
    path = world.gather(world.agree(lambda: states.last() if world.first else None))[0]
    saved = world.agree(lambda: read_state(path, states.folder, config))
    step, seconds = put_back(saved, path, model, optimizer, updater.ema)
    return State(model, loss, optimizer, updater, step, seconds)


def _model_and_loss(config: TrainConfig, device: torch.device) -> tuple[ViTPose, PoseLoss]:
    """Build the model of a run, in training mode on `device`, and the module that computes its losses."""
    model = build_model(config).to(device).train()
    shape = model.config
    codecs = {t.name: HeatmapCodec(t, shape.image_size, shape.heatmap_size, config.sigma) for t in shape.tasks}
    set_recompute(model.backbone, config.recompute)
    return model, PoseLoss(model, codecs, config.batchnorm, config.precision == "bf16")
