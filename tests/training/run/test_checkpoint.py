"""Training states: never half-written, verified by their file names, and complete to resume from."""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vitpose_fast as vp
from vitpose_training.run.checkpoint import States, put_back, read_state, run_state
from vitpose_training.run.config import TrainConfig
from vitpose_training.run.optim import Ema, OptimizerConfig, ScheduleConfig, make_optimizer


def state(step, size=1000):
    return {"step": step, "values": torch.full((size,), float(step))}


def load(states):
    """Return (file, content) of the most recent undamaged state."""
    path = states.last()
    return path, torch.load(path, weights_only=True)


def test_the_last_states_are_kept_and_the_last_undamaged_one_is_read(tmp_path, caplog):
    states = States(tmp_path, keep=2)
    assert states.last() is None
    for step in (5, 10, 15):
        states.save(step, state(step))
    assert [p.name[:13] for p in states.files()] == ["step-00000015", "step-00000010"]
    last, before = states.files()
    path, found = load(states)
    assert path == last and found["step"] == 15
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1  # one bit
    last.write_bytes(content)
    path, found = load(states)
    assert path == before and found["step"] == 10 and f"{last}: damaged (its checksum differs)" in caplog.text
    before.write_bytes(b"")
    with pytest.raises(ValueError, match="all 2 states are damaged; pass --overwrite to start the run again"):
        states.last()


def test_one_state_is_enough_even_after_a_damaged_one(tmp_path):
    """State 14 is damaged, so the run resumes from 10; when it saves 12, state 14 is removed, or it would hide 12."""
    states = States(tmp_path, keep=2)
    for step in (10, 14):
        states.save(step, state(step))
    states.files()[0].write_bytes(b"")
    states = States(tmp_path, keep=1)
    assert load(states)[1]["step"] == 10
    states.save(12, state(12))
    assert [p.name[:13] for p in states.files()] == ["step-00000012"]


def test_saving_a_step_again_replaces_it(tmp_path):
    states = States(tmp_path, keep=2)
    states.save(5, state(5))
    states.save(5, {**state(5), "more": 1})
    assert len(states.files()) == 1 and load(states)[1]["more"] == 1


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_leaves_the_state_before(tmp_path, monkeypatch, reason):
    states = States(tmp_path, keep=1)
    states.save(5, state(5))

    def full(*_, **__):
        raise OSError(reason, os.strerror(reason))

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match=os.strerror(reason)):
            states.save(10, state(10))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError):
            states.save(10, state(10))
    assert load(states)[1]["step"] == 5
    assert [p.name[:13] for p in tmp_path.iterdir()] == ["step-00000005"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_thirty_times_killed_while_saving_leaves_no_unreadable_state(tmp_path):
    states, rng, steps = States(tmp_path, keep=2), random.Random(0), []
    model = vp.create_model("vitpose-tiny", depth=1, image_size=(64, 48))
    started = time.monotonic()
    States(tmp_path / "other").save(0, state(0, 200_000))
    vp.save_model(model, tmp_path / "other" / "best")
    once = time.monotonic() - started  # seconds to save both on this disk
    for round_ in range(30):
        child = os.fork()
        if child == 0:  # saves models and states as fast as it can
            try:
                for step in range(1000 * round_, 1000 * round_ + 1000):
                    states.save(step, state(step, 200_000))
                    vp.save_model(model, tmp_path / "best", overwrite=True)
            finally:
                os._exit(1)
        time.sleep(rng.uniform(0.1, 3) * once)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if states.last() is not None:
            found = load(states)
            step = found[1]["step"]
            assert (found[1]["values"] == step).all() and found[0] == states.files()[0]
            steps.append(step)
        if (tmp_path / "best").exists():
            vp.load_model(tmp_path / "best")
    assert steps == sorted(steps) and len(set(steps)) > 10  # the children did save states before they were killed
    assert (tmp_path / "best").exists()


def test_a_state_of_another_version_is_refused_in_one_line(tmp_path):
    """The first state has flat options, as in versions before optimizer and schedule became nested configs."""
    config = TrainConfig()
    flat = {**config.to_dict(), "schedule": "step", "warmup": 500}
    flat |= flat.pop("optimizer")
    lacking = {name: value for name, value in config.to_dict().items() if name != "schedule"}
    lacking_one_that_may_change = {name: value for name, value in config.to_dict().items() if name != "track"}
    path = tmp_path / "state.pt"
    for written, said in ((flat, "has schedule"), (lacking, "lacks schedule.decay")):
        torch.save({"config": written}, path)
        message = f"it was written by a version with other options (it {said}); pass --overwrite to start the run again"
        with pytest.raises(ValueError, match=re.escape(f"{path}: cannot resume, {message}")):
            read_state(path, tmp_path, config)
    torch.save({"config": lacking_one_that_may_change}, path)
    read_state(path, tmp_path, config)
    torch.save({"config": [1]}, path)
    with pytest.raises(ValueError, match="cannot resume from it"):
        read_state(path, tmp_path, config)


def test_a_state_puts_everything_back(tmp_path):
    def parts(seed):
        torch.manual_seed(seed)
        model = vp.create_model("vitpose++-tiny", ("coco", "aic"), image_size=(64, 48), depth=1)
        optimizer = make_optimizer(model, config.optimizer)
        return model, optimizer, Ema([p for p in model.parameters() if p.requires_grad], 0.9)

    def update(model, optimizer, ema):
        out = model(torch.randn(2, 3, 64, 48), task=["coco", "aic"])
        sum(maps.square().mean() for _, maps in out.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update()

    config = TrainConfig(image_size=(64, 48), ema=0.9)
    first = parts(0)
    update(*first)
    states = States(tmp_path)
    states.save(7, run_state(config, *first, 7, 1.5))
    second = parts(1)
    path = states.last()
    saved = read_state(path, tmp_path, config)
    assert put_back(saved, path, *second) == (7, 1.5)
    for a, b in ((first, second),):
        torch.manual_seed(3)
        update(*a)
        torch.manual_seed(3)
        update(*b)
        assert all(torch.equal(x, b[0].state_dict()[n]) for n, x in a[0].state_dict().items())
        assert all(torch.equal(x, y) for x, y in zip(a[2].average, b[2].average))
    with pytest.raises(ValueError, match=r"cannot resume with another optimizer.lr: it was 0.0005, it is now 0.1"):
        read_state(path, tmp_path, replace(config, optimizer=OptimizerConfig(lr=0.1)))
    with pytest.raises(ValueError, match=r"another schedule.decay: it was \[0.8.*\], it is now cosine"):
        read_state(path, tmp_path, replace(config, schedule=ScheduleConfig("cosine")))
    read_state(path, tmp_path, replace(config, workers=7, micro_batch=3, out=Path("x")))
    other = vp.create_model("vitpose-tiny", image_size=(64, 48), depth=1)
    with pytest.raises(ValueError, match="cannot resume from it .it holds other weights: "):
        put_back(saved, path, other, make_optimizer(other, config.optimizer), None)
    head = saved["model"]["heads.aic.final_layer.bias"]
    narrow = {**saved, "model": {**saved["model"], "heads.aic.final_layer.bias": head[:1]}}  # would fill all channels
    with pytest.raises(ValueError, match=r"cannot resume from it .got a tensor of shape \[1\], expected \[14\]"):
        put_back(narrow, path, *second)
    with pytest.raises(ValueError, match="holds no state to resume from; start without --resume"):
        read_state(None, tmp_path, config)
    path.write_bytes(b"not a state")
    with pytest.raises(ValueError, match="cannot resume from it"):
        read_state(path, tmp_path, config)
