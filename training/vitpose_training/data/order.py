"""The order of training samples. It depends only on seed and step, not on the number of processes or micro-batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from vitpose_training.randomness import ORDER, draws


class Key(NamedTuple):
    """A sample in an epoch, and its position in the global batch of its optimizer step."""

    epoch: int
    sample: int  # index in the sample set
    position: int


class Order:
    """The samples of each optimizer step.

    Every global batch is full: the last batch of an epoch is filled up with the first samples of that epoch.

    Args:
        tasks: The task name of every sample.
        batch_size: The number of samples in a global batch.
        seed: The seed of the run.
        sampling: With "proportional" an epoch holds every sample once. With "balanced" it holds as many samples, but
            about the same number from every task.
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
        """Return the `share` samples of a task in an epoch. The task cycles through `own`, reshuffled each round."""
        places = np.arange(epoch * share, (epoch + 1) * share)
        rounds = np.unique(places // len(own))
        orders = np.stack([draws(self.seed, ORDER, int(r), 1 + int(own[0])).permutation(own) for r in rounds])
        return orders[places // len(own) - rounds[0], places % len(own)]

    def step(self, step: int) -> list[Key]:
        """Return the keys of the global batch of an optimizer step."""
        epoch, place = divmod(step, self.steps)
        chosen = self._epoch(epoch)[place * self.batch_size : (place + 1) * self.batch_size]
        return [Key(epoch, int(index), position) for position, index in enumerate(chosen)]


class MicroBatches(Sampler):
    """The micro-batches of one process: its share of every global batch, in pieces of at most `micro` samples.

    Args:
        order: The samples of each optimizer step.
        steps: The optimizer steps to go through.
        micro: The largest number of samples in a micro-batch. None means the whole share of the process.
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
            for i in range(pieces):  # sizes differ by one at most
                yield own[i * len(own) // pieces : (i + 1) * len(own) // pieces]
