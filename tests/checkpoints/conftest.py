"""Fixtures that make checkpoints in the formats of docs/numerics.md 2, independently of the code under test."""

from __future__ import annotations

import re

import pytest
import torch

import vitpose_fast as vp

SMALL = dict(image_size=(64, 48), depth=4)  # 4 x 3 tokens


@pytest.fixture
def make(scramble):
    """make(name="vitpose-tiny", seed=0, **options) -> a small random model in evaluation mode."""
    return lambda name="vitpose-tiny", seed=0, **options: scramble(
        vp.create_model(name, **SMALL | options), seed
    ).eval()


@pytest.fixture
def official():
    """official(model) -> the tensors of a model under the names of the official code."""

    def rename(model):
        out = {}
        for key, value in model.state_dict().items():
            if match := re.match(r"heads\.(\w+)\.(.+)", key):
                index = list(model.heads).index(match[1])
                prefix = "keypoint_head" if index == 0 else f"associate_keypoint_heads.{index - 1}"
                key = f"{prefix}.{match[2]}"
            out[key] = value.clone()
        return out

    return rename


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def check_refusal():
    """check_refusal(call, *words, error=ValueError): assert that `call()` raises `error`; return its message.

    The message must be one line and contain all words.
    """

    def check(call, *words, error=ValueError):
        with pytest.raises(error) as caught:
            call()
        text = str(caught.value)
        assert "\n" not in text
        assert [w for w in words if str(w) not in text] == [], text
        return text

    return check


@pytest.fixture
def check_same():
    """check_same(loaded, model, images, task="coco", source_task=None): return the load report of `loaded`.

    Asserts that `loaded` is in evaluation mode, and that its heatmaps of `task` equal the heatmaps of `model` for
    `source_task`, by default the same task.
    """

    def check(loaded, model, images, task="coco", source_task=None):
        expected = model(images, task=source_task or task)
        assert expected.std() > 0.1
        torch.testing.assert_close(loaded(images, task=task), expected, atol=1e-5, rtol=1e-5)
        assert not loaded.training
        return loaded.load_report

    return check


@pytest.fixture
def store():
    """store(path, state, **extra): save tensors as `state_dict` of a training checkpoint; return the path.

    `extra` are further entries beside it.
    """

    def save(path, state, **extra):
        torch.save(
            {"meta": {"epoch": 210, "note": "text"}, "state_dict": state, "optimizer": {"lr": 1e-4}, **extra}, path
        )
        return path

    return save
