"""The order of samples: each once per epoch or balanced by task, and the same for any number of processes."""

from __future__ import annotations

from collections import Counter

import pytest

from vitpose_training.data.order import MicroBatches, Order


def test_an_epoch_is_every_sample_once_in_full_batches():
    order = Order(["coco"] * 10, 4, seed=1)
    epochs = [[k for step in range(3 * e, 3 * e + 3) for k in order.step(step)] for e in range(2)]
    for number, keys in enumerate(epochs):
        chosen = [k.sample for k in keys]
        assert sorted(chosen[:10]) == list(range(10)) and chosen[10:] == chosen[:2]
        assert {k.epoch for k in keys} == {number} and [k.position for k in keys] == [0, 1, 2, 3] * 3
    assert [k.sample for k in epochs[0]] != [k.sample for k in epochs[1]]
    assert Order(["coco"] * 10, 4, seed=1).step(4) == order.step(4) != Order(["coco"] * 10, 4, seed=2).step(4)


def test_balanced_sampling_repeats_small_sets_more_often():
    tasks = ["big"] * 30 + ["small"] * 4 + ["tiny"]
    proportional, balanced = (Order(tasks, 5, 0, kind) for kind in ("proportional", "balanced"))
    count = Counter(tasks[k.sample] for step in range(7 * 4) for k in proportional.step(step))
    assert count == {"big": 120, "small": 16, "tiny": 4}
    drawn = [k.sample for step in range(7 * 4) for k in balanced.step(step)]
    count = Counter(tasks[i] for i in drawn)
    assert all(abs(n - 140 / 3) <= 4 for n in count.values())  # per epoch: 12 of each are drawn, 35 of the 36 are used
    each = Counter(i for i in drawn if tasks[i] == "small")
    assert max(each.values()) - min(each.values()) <= 4


@pytest.mark.parametrize(("processes", "micro"), [(1, None), (1, 3), (2, None), (3, 2), (8, 1)])
def test_a_step_has_the_same_samples_for_any_processes_and_micro_batches(processes, micro):
    order = Order(["coco"] * 20, 8, seed=0)
    shares = [list(MicroBatches(order, range(1, 3), micro, r, processes)) for r in range(processes)]
    pieces = MicroBatches(order, range(1, 3), micro, 0, processes).pieces()
    for i, step in enumerate((1, 2)):
        parts = [part for share in shares for part in share[i * pieces : (i + 1) * pieces]]
        assert sorted(k for part in parts for k in part) == sorted(order.step(step))
        assert all(parts) and max(map(len, parts)) <= (micro or 8)
    assert all(len(share) == 2 * pieces for share in shares)
