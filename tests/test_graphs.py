"""CUDA graphs by batch bucket, with a fake graph that replays on the CPU.

Frozen models that replay from such graphs are tested in test_runtime.py.
"""

from __future__ import annotations

import copy
import pickle
import threading
import time
from contextlib import nullcontext

import pytest
import torch

from vitpose_fast import graphs
from vitpose_fast.graphs import Graphs


def test_batches_are_padded_to_buckets_and_split(recorder):
    replay = Graphs((1, 4))

    seen = []

    def function(x, y):
        seen.append(x.shape[0])
        return 2 * x + y, x.sum(1)

    for batch in (1, 2, 3, 4, 5, 11, 0):
        x, y = torch.randn(batch, 3), torch.randn(batch, 3)
        a, b = replay("function", function, x, y)
        assert torch.equal(a, 2 * x + y) and torch.equal(b, x.sum(1))
    assert set(seen) == {0, 1, 4}
    assert sorted(recorder) == [1, 4]  # once per bucket


def test_outputs_survive_the_next_replay_and_names_do_not_collide(recorder):
    replay = Graphs((2,))
    first = replay("plus", lambda x: x + 1, torch.zeros(2))
    assert replay("plus", lambda x: x + 1, torch.ones(2)).tolist() == [2, 2] and first.tolist() == [1, 1]
    assert replay("minus", lambda x: x - 1, torch.zeros(2)).tolist() == [-1, -1]
    assert replay("plus", lambda x: x + 1, torch.zeros(2, dtype=torch.float64)).dtype == torch.float64
    inner = replay("outer", lambda x: replay("plus", lambda y: y + 1, x) * 2, torch.zeros(2))
    assert inner.tolist() == [2, 2] and recorder == [2] * 4  # no capture within a capture
    with torch.inference_mode():
        replay("both", lambda x: x + 1, torch.zeros(2))
    assert replay("both", lambda x: x + 1, torch.ones(2)).tolist() == [2, 2]
    recorder.pop()
    for other in (copy.deepcopy(replay), pickle.loads(pickle.dumps(replay))):
        assert other.buckets == (2,) and not other._recorded


@pytest.mark.parametrize("locked", [True, False])
def test_one_frozen_model_serves_many_threads(monkeypatch, locked):
    """A replay reads its static input some time after it was filled; without the lock, threads get wrong results."""

    def record(self, function, inputs):
        out = function(*inputs)

        class Slow:
            def replay(_):
                given = inputs[0].clone()
                time.sleep(0.002)
                out.copy_(function(given))
                time.sleep(0.002)

        return graphs._Recorded(Slow(), inputs, (out,))

    monkeypatch.setattr(Graphs, "_record", record)
    replay = Graphs((1, 4))
    replay("double", lambda x: 2 * x, torch.zeros(3, 5))
    if not locked:
        replay._lock = nullcontext()
    wrong = []

    def serve(number):
        for step in range(10):
            x = torch.full((3, 5), 100.0 * number + step)
            if not torch.equal(replay("double", lambda x: 2 * x, x), 2 * x):
                wrong.append((number, step))

    threads = [threading.Thread(target=serve, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bool(wrong) != locked, f"{len(wrong)} of 80 answers wrong"


def test_calls_during_a_capture_become_part_of_it(recorder):
    """This includes calls through another model's graphs on the same thread: CUDA cannot nest captures."""
    outer, inner = Graphs((2,)), Graphs((2,))
    assert outer("outer", lambda x: inner("inner", lambda y: y + 1, x) * 2, torch.ones(2)).tolist() == [4, 4]
    assert len(outer._recorded) == 1 and not inner._recorded
    assert inner("inner", lambda y: y + 1, torch.ones(2)).tolist() == [2, 2] and len(inner._recorded) == 1
