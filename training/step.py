"""One update: crops to losses, gradients over micro-batches and processes, and a step that is taken only if finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vitpose_fast.codec import HeatmapCodec
from vitpose_fast.models.vitpose import ViTPose
from vitpose_fast.training.augment import DROP_PATH, draws
from vitpose_fast.training.config import TrainConfig
from vitpose_fast.training.data import Batch, Feeder
from vitpose_fast.training.distributed import World, only_last, whole
from vitpose_fast.training.optim import Ema
from vitpose_fast.training.people import Person


class PoseLoss(nn.Module):
    """A model and its losses: what is wrapped to be trained in several processes.

    The loss is that of SPEC 4.6: the sum over the tasks of their weighted mean squared errors, whose mean runs over all
    samples of the update, whatever their task.

    Args:
        model: on its device.
        codecs: task -> codec, in the order of the task ids.
        batchnorm: "all": a head computes the samples of all tasks, so that its BatchNorm sees them all (the official
            code); "own": only its own.
        autocast: compute the network in bfloat16; the losses are in float32.
    """

    def __init__(
        self, model: ViTPose, codecs: Mapping[str, HeatmapCodec], batchnorm: Literal["all", "own"], autocast: bool
    ) -> None:
        super().__init__()
        self.model, self.codecs, self.batchnorm, self.autocast = model, dict(codecs), batchnorm, autocast

    def forward(self, batch: Batch, uniform: Tensor | None, samples: int) -> tuple[Tensor, Tensor]:
        """A batch, [depth, 2, B] numbers for drop path, samples of the update -> losses [T], finite bool [B].

        `finite` says whether the keypoints and heatmaps of a sample are.
        """
        device = batch.crops.device
        ids = torch.zeros(len(batch.crops), dtype=torch.int64)
        for i, name in enumerate(self.model.tasks):
            if name in batch.parts:
                ids[batch.parts[name].rows] = i
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.autocast):
            features = self.model.backbone(batch.crops, ids.to(device, non_blocking=True), uniform)
            heatmaps = {name: self._heatmaps(name, features, batch) for name in self.model.tasks}
        losses, finite = [], torch.ones(len(batch.crops), dtype=torch.bool, device=device)
        for name, maps in heatmaps.items():
            part = batch.parts.get(name)
            if part is None:  # every head takes part in every update, with zero gradients if need be
                losses.append(0.0 * torch.stack([p.sum() for p in self.model.heads[name].parameters()]).sum())
                continue
            mean = self.codecs[name].loss(maps, part.keypoints, part.visible)
            losses.append(mean * ((part.rows.stop - part.rows.start) / samples))
            good = part.keypoints.isfinite().all((1, 2)) if part.keypoints.ndim == 3 else True
            finite[part.rows] = maps.detach().float().sum((1, 2, 3)).isfinite() & good
        return torch.stack(losses), finite

    def _heatmaps(self, name: str, features: Tensor, batch: Batch) -> Tensor:
        part, head = batch.parts.get(name), self.model.heads[name]
        if part is None:
            return head(features) if self.batchnorm == "all" else features.new_empty(0)
        if self.batchnorm == "all" or len(batch.parts) == 1:
            return head(features)[part.rows]
        return head(features[part.rows])


@dataclass
class Update:
    """What happened in one update: loss of each task, gradient norm, and which samples were not finite."""

    losses: dict[str, float]
    norm: float
    taken: bool
    bad: list[Person]
    images: int

    @property
    def loss(self) -> float:
        return sum(self.losses.values())


class Updater:
    """Makes updates of a (wrapped) `PoseLoss`."""

    def __init__(
        self, module: nn.Module, inner: PoseLoss, optimizer: torch.optim.Optimizer, config: TrainConfig, world: World
    ) -> None:
        self.module, self.inner, self.optimizer, self.config, self.world = module, inner, optimizer, config, world
        self.parameters = [p for p in inner.parameters() if p.requires_grad]
        self.statistics = list(inner.model.buffers())  # of BatchNorm
        self.ema = None if config.ema is None else Ema(self.parameters, config.ema)

    def __call__(self, step: int, feeder: Feeder, pieces: int) -> tuple[Update, list[tuple[str, str]]]:
        """Update `step` from the next `pieces` micro-batches: (what happened, images that were replaced).

        Nothing changes, neither parameters nor BatchNorm's statistics, if a loss or the gradient is not finite.

        Raises:
            ValueError: out of memory, with the setting to lower.
        """
        before = [b.clone() for b in self.statistics]
        self.optimizer.zero_grad(set_to_none=True)
        samples = self.config.batch_size
        uniform = self._uniform(step)
        device, replaced, batches = self.world.device, [], []
        losses = torch.zeros(len(self.inner.model.tasks), device=device)
        finite = []
        for piece in range(pieces):
            batch, bad_images = feeder.take()
            replaced += bad_images
            own = None if uniform is None else uniform[..., batch.positions].to(device, non_blocking=True)
            try:
                with only_last(self.module, piece == pieces - 1):
                    parts, good = self.module(batch, own, samples)
                    (parts.sum() * self.world.size).backward()  # processes are averaged
            except RuntimeError as error:
                raise _explained(error, self.config, len(batch.positions)) from None
            losses += parts.detach()
            finite.append(good)
            batches += batch.people
            if piece < pieces - 1 or device.type == "cuda":
                feeder.prepare()  # while the device computes
        norm = whole(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip))
        mask = torch.cat(finite)
        counted = self.world.sum(torch.cat([losses.double(), (~mask).sum().double().reshape(1)]))
        *by_task, bad_samples, norm_value = torch.cat([counted, norm.double().reshape(1).to(device)]).tolist()
        taken = not bad_samples and math.isfinite(sum(by_task)) and math.isfinite(norm_value)
        if taken:
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update()
        else:
            with torch.no_grad():
                for now, then in zip(self.statistics, before):
                    now.copy_(then)
            self.optimizer.zero_grad(set_to_none=True)
        bad = [] if taken else [p for p, good in zip(batches, mask.tolist()) if not good]
        # a gradient can overflow where every sample is finite
        named = batches if not taken and not bad_samples else bad
        return Update(dict(zip(self.inner.model.tasks, by_task)), norm_value, taken, named, samples), replaced

    def _uniform(self, step: int) -> Tensor | None:
        """Numbers for drop path [depth, 2, samples], by seed, step and sample: the same however work is shared."""
        config = self.inner.model.config
        if not config.drop_path:
            return None
        rng = draws(self.config.seed, DROP_PATH, step)
        return torch.from_numpy(rng.random((config.depth, 2, self.config.batch_size), dtype="float32"))


def _explained(error: RuntimeError, config: TrainConfig, samples: int) -> Exception:
    """An error of the computation; out of memory in one line that says what to lower."""
    from vitpose_fast.predictor import is_out_of_memory

    if not is_out_of_memory(error):
        return error
    levels = f"raise --recompute (now {config.recompute})"
    return ValueError(
        f"out of memory with {samples} samples at once in one process: lower --micro-batch (now "
        f"{config.micro_batch or 'the whole share'}; the updates stay the same), {levels}, or use --precision bf16"
    )
