"""One optimizer step over micro-batches and processes. A step with a non-finite loss or gradient is skipped."""

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
    """A model and its losses in one module, which DDP or FSDP can wrap.

    The total loss (docs/numerics.md 4.6) is the sum of one loss per task. The loss of a task is the weighted mean
    squared error of its heatmaps. The mean is over all samples of the optimizer step; samples of other tasks add 0.

    Args:
        model: the model, on its device. Every task has a head.
        codecs: codec of each task by name, in the order of `model.tasks`.
        batchnorm: "all" passes all samples of a micro-batch through every head, so that its BatchNorm sees them all, as
            in the official code; "own" passes only the samples of the head's task.
        autocast: compute the network in bfloat16 autocast. The losses are computed in float32 in any case.
    """

    def __init__(
        self, model: ViTPose, codecs: Mapping[str, HeatmapCodec], batchnorm: Literal["all", "own"], autocast: bool
    ) -> None:
        super().__init__()
        self.model, self.codecs, self.batchnorm, self.autocast = model, dict(codecs), batchnorm, autocast

    def forward(self, batch: Batch, uniform: Tensor | None, samples: int) -> tuple[Tensor, Tensor]:
        """Compute what a micro-batch contributes to the losses of its optimizer step.

        Args:
            batch: crops and targets of B samples.
            uniform: numbers for drop path [depth, 2, B] in [0, 1) (depth is the number of blocks), or None to draw them
                from torch's global generator if the model uses drop path.
            samples: number of samples in the whole optimizer step, by which the losses are divided.

        Returns:
            The losses [T] of the T tasks in the order of `model.tasks`, 0 for a task without samples here; their sums
            over all micro-batches are the losses of the step. And bool [2, B], with the samples in the order of
            `batch`: row 0 says whether keypoints and features of a sample are finite, row 1 whether keypoints,
            features and heatmaps are. The heatmaps count separately, because through BatchNorm one bad sample makes
            those of all samples non-finite.
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
            if part is None:  # a head without samples still takes part in the step, with zero gradients
                losses.append(0.0 * torch.stack([p.sum() for p in self.model.heads[name].parameters()]).sum())
                continue
            mean = self.codecs[name].loss(maps, part.keypoints, part.visible)
            losses.append(mean * ((part.rows.stop - part.rows.start) / samples))
            finite[:, part.rows] &= part.keypoints.isfinite().all(2).all(1)
            finite[1, part.rows] &= maps.detach().float().sum((1, 2, 3)).isfinite()
        return torch.stack(losses), finite

    def _heatmaps(self, name: str, features: Tensor, batch: Batch) -> Tensor:
        """Return the heatmaps of task `name` [n, K, h, w] for its n samples in the batch.

        If n is 0, the result is not meant to be used. With "all", the head still runs, to update its BatchNorm.
        """
        part, head = batch.parts.get(name), self.model.heads[name]
        if part is None:
            return head(features) if self.batchnorm == "all" else features.new_empty(0)
        if self.batchnorm == "all" or len(batch.parts) == 1:
            return head(features)[part.rows]
        return head(features[part.rows])


@dataclass
class Update:
    """The outcome of one optimizer step. All values except `bad` are for all processes together."""

    losses: dict[str, float]
    """Loss of each task by name; their sum is the total loss."""
    norm: float
    """L2 norm of the gradient before clipping."""
    taken: bool
    """False if the step was skipped because a loss, the gradient or a value of a sample was not finite."""
    bad: list[Person]
    """The samples of this process that may have caused a skipped step; empty if the step was taken."""
    images: int
    """Number of samples: the global batch size."""
    replaced: int
    """Number of unusable images that were replaced."""

    @property
    def loss(self) -> float:
        """The total loss, the sum over the tasks."""
        return sum(self.losses.values())


class Updater:
    """Makes the optimizer steps of a run.

    Args:
        module: the `PoseLoss` as wrapped by `distributed.share`.
        inner: the same `PoseLoss`, not wrapped.

    Attributes:
        ema: the moving average of the trainable parameters, None if `config.ema` is None.
    """

    def __init__(
        self, module: nn.Module, inner: PoseLoss, optimizer: torch.optim.Optimizer, config: TrainConfig, world: World
    ) -> None:
        self.module, self.inner, self.optimizer, self.config, self.world = module, inner, optimizer, config, world
        self.parameters = [p for p in inner.parameters() if p.requires_grad]
        self.statistics = list(inner.model.buffers())  # of BatchNorm
        self.ema = None if config.ema is None else Ema(self.parameters, config.ema)

    def __call__(self, step: int, feeder: Feeder, pieces: int) -> tuple[Update, list[tuple[str, str]]]:
        """Make optimizer step number `step`, counted from 0, from the next `pieces` micro-batches of the feeder.

        Every process must call this. If a loss, the gradient, or the keypoints, features or heatmaps of a sample are
        not finite in any process, all processes skip the step: neither the parameters nor the optimizer, the EMA or
        the BatchNorm statistics change.

        Returns:
            The outcome, and (image path, reason) of every unusable image that was replaced in this process.
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
                (parts.sum() * self.world.size).backward()  # gradients are averaged over processes, but must add up
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
        bad = [] if taken else self._samples_to_blame(good, batches, bool(not_finite))
        return Update(dict(zip(names, by_task)), length, taken, bad, samples, int(all_replaced)), replaced

    @staticmethod
    def _samples_to_blame(good: Tensor, people: list[Person], any_bad: bool) -> list[Person]:
        """Return the samples of this process that may have caused a non-finite step.

        These are its samples with non-finite keypoints or features; if it has none, its samples with non-finite
        heatmaps, which may be none either. If no sample of any process is bad (a gradient overflowed), all its samples.

        Args:
            good: bool [2, n] for the n samples of this process in the step, as from `PoseLoss.forward`.
            people: the n samples.
            any_bad: whether `good` is False anywhere in any process.
        """
        if not any_bad:
            return people
        own, maps = good.tolist()
        return [p for p, fine in zip(people, maps if all(own) else own) if not fine]

    def _uniform(self, step: int) -> Tensor | None:
        """Return the drop path numbers [depth, 2, batch_size] of a step on the CPU, or None if the rate is 0.

        They depend only on seed, step and position in the global batch, not on how the batch is divided.
        """
        config = self.inner.model.config
        if not config.drop_path:
            return None
        return torch.from_numpy(drop_path_numbers(self.config.seed, step, config.depth, self.config.batch_size))
