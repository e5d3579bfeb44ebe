"""The feeder: batches come in order, waiting time is counted, and no worker outlives it."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import time

import pytest
import torch

from vitpose_fast.codec import HeatmapCodec
from vitpose_training.data import feeder
from vitpose_training.data.batches import SampleSet
from vitpose_training.data.catalog import data_set
from vitpose_training.data.feeder import Feeder
from vitpose_training.data.order import MicroBatches, Order
from vitpose_training.data.read import read_labels

SIZE = (64, 48)
COCO = data_set("coco")


@pytest.fixture
def samples(data):
    return SampleSet([read_labels(COCO, data / "annotations.json", data / "images")], SIZE)


@pytest.fixture
def keys(samples):
    return MicroBatches(Order(samples.task_of, 4, 0), range(0, 3), 2)


@pytest.fixture
def start_feeder(samples, keys):
    """start_feeder(workers) -> a `Feeder` of six micro-batches of two people."""
    codecs = {"coco": HeatmapCodec(COCO.keypoint_set, SIZE)}
    return lambda workers: Feeder(samples, keys, codecs, torch.device("cpu"), workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_feeder_gives_the_batches_in_order_and_counts_waiting(samples, keys, start_feeder, workers):
    with start_feeder(workers) as fed:
        for expected in keys:
            batch, bad = fed.take()
            fed.prepare()
            assert [p.annotation_id for p in batch.people] == [samples.people[k.sample].annotation_id for k in expected]
            assert bad == []
        assert fed.waited > 0
        with pytest.raises(StopIteration):
            fed.take()


def test_workers_end_with_the_feeder_even_if_a_traceback_holds_it(start_feeder):
    def fail():
        with start_feeder(2) as fed:
            fed.take()
            assert len(multiprocessing.active_children()) == 2
            raise KeyError("something else")

    with pytest.raises(KeyError) as error:
        fail()
    assert error.traceback[-1].frame.f_locals["fed"] is not None
    assert multiprocessing.active_children() == []
    with start_feeder(0) as fed:
        fed.take()


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="workers are forked")
def test_workers_end_when_the_training_is_killed_while_they_start(start_feeder, monkeypatch):
    """In this case torch's own check of the parent process comes too late."""
    real, (readable, writable) = feeder._end_with_parent, os.pipe()

    def slow(worker):
        real(worker)
        os.write(writable, os.getpid().to_bytes(8, "little"))
        time.sleep(1)

    child = os.fork()
    if child == 0:
        try:
            monkeypatch.setattr(feeder, "_end_with_parent", slow)
            with start_feeder(2):
                time.sleep(60)
        finally:
            os._exit(1)
    os.close(writable)
    workers = [int.from_bytes(os.read(readable, 8), "little") for _ in range(2)]
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    gone = select.select([readable], [], [], 20)[0] and os.read(readable, 1) == b""  # no writer is left
    os.close(readable)
    if not gone:
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
    assert gone
