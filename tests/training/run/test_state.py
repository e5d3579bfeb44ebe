"""What a run builds before its first optimizer step: optimizer and codecs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import vitpose_fast as vp
from vitpose_training.distributed import World
from vitpose_training.run.presets import PRESETS
from vitpose_training.run.state import start_state

CPU = World(torch.device("cpu"))


def started(preset, tmp_path, **changes):
    """Build the initial state of a preset's run, with a small model instead of the preset's own."""
    small = dict(model="vitpose-tiny", image_size=(64, 48), out=tmp_path / "run", device="cpu")
    return start_state(replace(PRESETS[preset][1], **{**small, **changes}), CPU, resumes=False)


def test_a_run_is_optimized_by_adamw_with_the_usual_betas(tmp_path):
    optimizer = started("coco-b", tmp_path).optimizer
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["betas"] == (0.9, 0.999) and optimizer.defaults["eps"] == 1e-8
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.999)}


@pytest.mark.parametrize("preset", ["coco-b", "joint-b"])
def test_targets_of_a_run_have_a_sigma_of_2_heatmap_pixels(preset, tmp_path):
    model = "vitpose++-tiny" if preset == "joint-b" else "vitpose-tiny"
    codecs = started(preset, tmp_path, model=model).loss.codecs
    assert {codec.sigma for codec in codecs.values()} == {2.0}
    visible, points = torch.ones(1, 17), torch.zeros(1, 17, 2)
    points[:, :, 0], points[:, :, 1] = 5 * 47 / 11, 5 * 63 / 15  # cell (5, 5) of a 12x16 heatmap
    maps, _ = codecs["coco"].encode(points, visible)
    assert maps[0, 0, 5, 5:8].tolist() == pytest.approx([1, 0.8824969, 0.6065307])  # exp(-n * n / 8)


def test_a_run_that_starts_from_another_model_trains_it_by_its_own_options(tmp_path):
    """A loaded model is in evaluation mode, and has the drop path and the frozen parts of its own training."""
    vp.save_model(vp.create_model("vitpose-tiny", image_size=(64, 48), frozen_stages=1), tmp_path / "other")
    model = started("coco-b", tmp_path, init=str(tmp_path / "other"), freeze_attn=True).model
    assert (model.config.drop_path, model.config.freeze_attn, model.config.frozen_stages) == (0.3, True, -1)
    assert [block.drop_path.rate for block in model.backbone.blocks] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert model.training and model.backbone.blocks[-1].drop_path.training
    assert all(m.training for m in model.heads.modules())
