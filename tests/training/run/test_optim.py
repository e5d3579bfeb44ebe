"""Layer decay, weight decay groups and schedules match the numbers of docs/numerics.md 6.4, 6.5."""

from __future__ import annotations

import pytest

import vitpose_fast as vp
from vitpose_training.run.optim import OptimizerConfig, ScheduleConfig, lr_factor, make_optimizer, set_lr
from vitpose_training.run.presets import PRESETS


@pytest.mark.parametrize(("size", "first", "last"), [("s", 0.0550, 0.80), ("b", 0.02376, 0.75)])
def test_layer_scales(size, first, last):
    model = vp.create_model(f"vitpose-{size}", image_size=(64, 48))
    optimizer = make_optimizer(model, PRESETS[f"coco-{size}"][1].optimizer)
    names = {id(p): n for n, p in model.named_parameters()}
    scale = {names[id(p)]: g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
    decay = {names[id(p)]: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert set(scale) == {n for n, _ in model.named_parameters()}
    assert scale["backbone.pos_embed"] == scale["backbone.patch_embed.proj.bias"] == pytest.approx(first, rel=1e-2)
    assert scale["backbone.blocks.11.attn.qkv.weight"] == pytest.approx(last)
    assert scale["backbone.last_norm.weight"] == scale["heads.coco.final_layer.weight"] == 1
    undecayed = {n for n, d in decay.items() if d == 0}
    assert {"backbone.pos_embed", "backbone.blocks.0.norm1.weight", "heads.coco.deconv_layers.1.weight"} <= undecayed
    assert all(decay[n] == 0.1 for n in ("backbone.patch_embed.proj.weight", "heads.coco.deconv_layers.0.weight"))
    assert all(n.endswith(("bias", "pos_embed")) or "norm" in n or "deconv_layers" in n for n in undecayed)


def test_frozen_parameters_and_expert_biases():
    model = vp.create_model("vitpose++-tiny", image_size=(64, 48), freeze_attn=True)
    optimizer = make_optimizer(model, OptimizerConfig())
    inside = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    block = model.backbone.blocks[0]
    assert id(block.attn.qkv.weight) not in inside
    assert inside[id(block.mlp.expert_bias)] == 0 and inside[id(block.mlp.expert_weight)] == 0.1


def test_step_schedule_with_warmup():
    schedule = ScheduleConfig()
    assert lr_factor(schedule, 0, 0.0) == pytest.approx(0.001)
    assert lr_factor(schedule, 250, 0.0) == pytest.approx(1 - 0.5 * 0.999)
    assert lr_factor(schedule, 500, 169.9 / 210) == 1
    assert lr_factor(schedule, 9999, 170 / 210) == pytest.approx(0.1)
    assert lr_factor(schedule, 9999, 200 / 210) == pytest.approx(0.01)


def test_a_schedule_without_milestones_keeps_its_rate():
    assert [lr_factor(ScheduleConfig((), warmup=0), 9, p) for p in (0, 0.5, 1)] == [1, 1, 1]


def test_cosine_schedule_ends_at_zero_and_groups_follow():
    schedule = ScheduleConfig("cosine", warmup=0)
    assert [round(lr_factor(schedule, 9, p), 3) for p in (0, 0.5, 1, 1.2)] == [1, 0.5, 0, 0]
    optimizer = make_optimizer(vp.create_model("vitpose-tiny", image_size=(64, 48)), OptimizerConfig())
    set_lr(optimizer, 0.5 * 5e-4)
    assert all(g["lr"] == pytest.approx(5e-4 * 0.5 * g["lr_scale"]) for g in optimizer.param_groups)
