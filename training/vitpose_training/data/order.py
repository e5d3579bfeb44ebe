"""Which sample comes when: depends on seed and step alone, however many processes share the work."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from vitpose_training.randomness import ORDER, draws


class Key(NamedTuple):
    """Which sample, when, and where in its step's batch."""

    epoch: int
    sample: int
    position: int


class Order:
    """Which samples make up each update: global batches, all full; the last of an epoch takes its first samples again.

    Args:
        tasks: task name of every sample.
        batch_size: samples of an update.
        sampling: "proportional": an epoch is every sample once. "balanced": as many, of every task equally many.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        batch_size: int,
        seed: int,
        sampling: Literal["proportional", "balanced"] = "proportional",
    ) -> None:
        self.tasks, self.batch_size, self.seed, self.sampling = np.array(tasks), batch_size, seed, sampling
        self.steps = math.ceil(len(tasks) / batch_size)  # of an epoch
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def _make_epoch(self, epoch: int) -> np.ndarray:
        size, rng = len(self.tasks), draws(self.seed, ORDER, epoch)
        chosen = np.arange(size)
        if self.sampling == "balanced":
            names = np.unique(self.tasks)
            share = math.ceil(size / len(names))
            chosen = np.concatenate([self._turns(np.flatnonzero(self.tasks == n), epoch, share) for n in names])
        order = rng.permutation(chosen)[:size]
        return np.resize(order, self.steps * self.batch_size)  # repeats from the start

    def _turns(self, own: np.ndarray, epoch: int, share: int) -> np.ndarray:
        """The `share` samples of a task in an epoch: it goes round its own, in a new order each time."""
        places = np.arange(epoch * share, (epoch + 1) * share)
        rounds = np.unique(places // len(own))
        orders = np.stack([draws(self.seed, ORDER, int(r), 1 + int(own[0])).permutation(own) for r in rounds])
        return orders[places // len(own) - rounds[0], places % len(own)]

    def step(self, step: int) -> list[Key]:
        """The samples of an update."""
        epoch, place = divmod(step, self.steps)
        chosen = self._epoch(epoch)[place * self.batch_size : (place + 1) * self.batch_size]
        return [Key(epoch, int(index), position) for position, index in enumerate(chosen)]


class MicroBatches(Sampler):
    """What one process computes, in order: its share of each update, in pieces of at most `micro` samples."""

    def __init__(self, order: Order, steps: range, micro: int | None, rank: int = 0, processes: int = 1) -> None:
        self.order, self.steps, self.micro, self.rank, self.processes = order, steps, micro, rank, processes

    def pieces(self) -> int:
        """Micro-batches of an update; the same for every process."""
        largest_share = math.ceil(self.order.batch_size / self.processes)
        return math.ceil(largest_share / (self.micro or largest_share))

    def __iter__(self) -> Iterator[list[Key]]:
        pieces = self.pieces()
        for step in self.steps:
            own = self.order.step(step)[self.rank :: self.processes]
            for i in range(pieces):  # sizes differ by one at most
                yield own[i * len(own) // pieces : (i + 1) * len(own) // pieces]
