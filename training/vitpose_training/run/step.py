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
from vitpose_training.data.batches import Batch
from vitpose_training.data.feeder import Feeder
from vitpose_training.data.people import Person
from vitpose_training.distributed import World, only_last, whole
from vitpose_training.randomness import drop_path_numbers
from vitpose_training.run.config import TrainConfig
from vitpose_training.run.optim import Ema


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
        """A batch, [depth, 2, B] numbers for drop path, samples of the update -> losses [T], finite bool [2, B].

        `finite` says whether a sample's keypoints and features are, and whether its heatmaps are as well: where
        BatchNorm sees all samples, a bad one spoils the heatmaps of all.
        """
        device = batch.crops.device
        ids = torch.zeros(len(batch.crops), dtype=torch.int64)
        for i, name in enumerate(self.model.tasks):
            if name in batch.parts:
                ids[batch.parts[name].rows] = i
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.autocast):
            features = self.model.backbone(batch.crops, ids.to(device, non_blocking=True), uniform)
            heatmaps = {name: self._heatmaps(name, features, batch) for name in self.model.tasks}
        losses = []
        finite = features.detach().float().sum((1, 2, 3)).isfinite().repeat(2, 1)
        for name, maps in heatmaps.items():
            part = batch.parts.get(name)
            if part is None:  # every head takes part in every update, with zero gradients if need be
                losses.append(0.0 * torch.stack([p.sum() for p in self.model.heads[name].parameters()]).sum())
                continue
            mean = self.codecs[name].loss(maps, part.keypoints, part.visible)
            losses.append(mean * ((part.rows.stop - part.rows.start) / samples))
            finite[:, part.rows] &= part.keypoints.isfinite().all(2).all(1)
            finite[1, part.rows] &= maps.detach().float().sum((1, 2, 3)).isfinite()
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
    """What happened in one update: loss of each task and gradient norm over all processes, which of this process's
    samples were not finite, how many images had to be replaced in all processes."""

    losses: dict[str, float]
    norm: float
    taken: bool
    bad: list[Person]
    images: int
    replaced: int

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
            with only_last(self.module, piece == pieces - 1):
                parts, good = self.module(batch, own, samples)
                (parts.sum() * self.world.size).backward()  # processes are averaged
            losses += parts.detach()
            finite.append(good)
            batches += batch.people
            if piece < pieces - 1 or device.type == "cuda":
                feeder.prepare()  # while the device computes
        norm = whole(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.optimizer.clip))
        good = torch.cat(finite, 1)
        images = torch.tensor([len(replaced)], dtype=torch.float64, device=device)
        counted = self.world.sum(torch.cat([losses.double(), (~good).sum().double().reshape(1), images]))
        *by_task, not_finite, all_replaced, length = torch.cat([counted, norm.double().reshape(1).to(device)]).tolist()
        taken = not not_finite and math.isfinite(sum(by_task)) and math.isfinite(length)
        if taken:
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update()
        else:
            with torch.no_grad():
                for now, then in zip(self.statistics, before):
                    now.copy_(then)
            self.optimizer.zero_grad(set_to_none=True)
        names = self.inner.model.tasks
        bad = [] if taken else self._at_fault(good, batches, bool(not_finite))
        return Update(dict(zip(names, by_task)), length, taken, bad, samples, int(all_replaced)), replaced

    @staticmethod
    def _at_fault(good: Tensor, people: list[Person], any_sample: bool) -> list[Person]:
        """Those with bad keypoints or features, else those with bad heatmaps; if a gradient overflowed, everybody."""
        if not any_sample:
            return people
        own, maps = good.tolist()
        return [p for p, fine in zip(people, maps if all(own) else own) if not fine]

    def _uniform(self, step: int) -> Tensor | None:
        """Numbers for drop path [depth, 2, samples], by seed, step and sample: the same however work is shared."""
        config = self.inner.model.config
        if not config.drop_path:
            return None
        return torch.from_numpy(drop_path_numbers(self.config.seed, step, config.depth, self.config.batch_size))
