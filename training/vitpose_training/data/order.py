"""The order of training samples.

Which samples an optimizer step uses does not depend on the number of processes or micro-batches. Epochs and steps count
from 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from vitpose_training.randomness import ORDER, draws


class Key(NamedTuple):
    """A sample in an epoch, and its position in the global batch of the optimizer step that uses it."""

    epoch: int
    sample: int  # index in the sample set
    position: int  # counted from 0


class Order:
    """The samples of each optimizer step, a random order that depends only on the arguments.

    Every epoch has the same number of optimizer steps, `steps`, and every global batch is full: the last batch of an
    epoch is filled up with the first samples of that epoch, which are then used twice (or more often, if there are
    fewer samples than `batch_size`).

    Args:
        tasks: The task of every sample, in the order of the sample set.
        batch_size: The number of samples in a global batch.
        seed: The seed of the run.
        sampling: With "proportional" an epoch uses every sample once. With "balanced" an epoch has the same length, but
            about the same number of samples of every task: samples of small tasks are repeated, and large tasks take
            several epochs to use all their samples.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        batch_size: int,
        seed: int,
        sampling: Literal["proportional", "balanced"] = "proportional",
    ) -> None:
        self.tasks, self.batch_size, self.seed, self.sampling = np.array(tasks), batch_size, seed, sampling
        self.steps = math.ceil(len(tasks) / batch_size)  # per epoch
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def _make_epoch(self, epoch: int) -> np.ndarray:
        size, rng = len(self.tasks), draws(self.seed, ORDER, epoch)
        chosen = np.arange(size)
        if self.sampling == "balanced":
            names = np.unique(self.tasks)
            share = math.ceil(size / len(names))
            chosen = np.concatenate([self._cycle(np.flatnonzero(self.tasks == n), epoch, share) for n in names])
        order = rng.permutation(chosen)[:size]
        return np.resize(order, self.steps * self.batch_size)  # repeats from the start

    def _cycle(self, own: np.ndarray, epoch: int, share: int) -> np.ndarray:
        """Return the indices of the `share` samples that one task contributes to an epoch.

        `own` are the indices of all samples of the task. The task goes through all of them in a random order before it
        starts again in a new random order, and each epoch continues where the epoch before it ended.
        """
        places = np.arange(epoch * share, (epoch + 1) * share)
        rounds = np.unique(places // len(own))
        orders = np.stack([draws(self.seed, ORDER, int(r), 1 + int(own[0])).permutation(own) for r in rounds])
        return orders[places // len(own) - rounds[0], places % len(own)]

    def step(self, step: int) -> list[Key]:
        """Return the keys of the global batch of an optimizer step, counted from 0 over the whole run.

        They are in the order of their positions.
        """
        epoch, place = divmod(step, self.steps)
        chosen = self._epoch(epoch)[place * self.batch_size : (place + 1) * self.batch_size]
        return [Key(epoch, int(index), position) for position, index in enumerate(chosen)]


class MicroBatches(Sampler):
    """The micro-batches of one process, each a list of keys.

    Of every global batch a process gets the positions rank, rank + processes, rank + 2 * processes, ... This share is
    divided into `pieces()` micro-batches of consecutive keys, whose sizes differ by at most one. If the share has fewer
    than `pieces()` samples, some micro-batches are empty.

    Args:
        order: The samples of each optimizer step.
        steps: The optimizer steps to iterate over.
        micro: The largest number of samples in a micro-batch. None means that the whole share is one micro-batch.
        rank: The rank of this process.
        processes: The number of processes.
    """

    def __init__(self, order: Order, steps: range, micro: int | None, rank: int = 0, processes: int = 1) -> None:
        self.order, self.steps, self.micro, self.rank, self.processes = order, steps, micro, rank, processes

    def pieces(self) -> int:
        """Return the number of micro-batches in an optimizer step, which is the same for every process."""
        largest_share = math.ceil(self.order.batch_size / self.processes)
        return math.ceil(largest_share / (self.micro or largest_share))

    def __iter__(self) -> Iterator[list[Key]]:
        pieces = self.pieces()
        for step in self.steps:
            own = self.order.step(step)[self.rank :: self.processes]
            for i in range(pieces):
                yield own[i * len(own) // pieces : (i + 1) * len(own) // pieces]
