"""Whole FFNs per task (ViTPose++ paper, Table 11): I-FFN and IS-FFN route samples, merge, and load dense weights."""

from __future__ import annotations

import pytest
import torch

import vitpose_fast as vp
from vitpose_fast.checkpoints import save_hf, save_official

SMALL = dict(image_size=(64, 48), depth=2, decoder_width=16)
TASKS = ("coco", "aic", "mpii")


def make(experts, **options):
    torch.manual_seed(0)
    return vp.create_model("vitpose-tiny", TASKS, experts=experts, **SMALL | options)


@pytest.fixture
def images():
    return torch.randn(4, 3, 64, 48, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("experts", ["instead", "added"])
def test_each_sample_runs_through_the_ffn_of_its_task(experts, scramble, images):
    """In the notation of the paper, I-FFN is FFN_t(x) and IS-FFN is FFN(x) + FFN_t(x)."""
    mlp = scramble(make(experts)).backbone.blocks[0].mlp
    x, task = torch.randn(4, 12, 192), torch.tensor([2, 0, 0, 1])
    out, residual = mlp(x, task), torch.randn(4, 12, 192)
    for i, t in enumerate(task.tolist()):
        hidden = torch.nn.functional.gelu(x[i] @ mlp.fc1_weight[t].T + mlp.fc1_bias[t])
        expected = hidden @ mlp.fc2_weight[t].T + mlp.fc2_bias[t]
        if experts == "added":
            expected = expected + mlp.shared(x[i])
        torch.testing.assert_close(out[i], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mlp(x, task, residual), out + residual)


@torch.no_grad()
@pytest.mark.parametrize("experts", ["instead", "added"])
def test_for_task_merges_experts_into_a_plain_model(experts, scramble, images, tmp_path):
    model = scramble(make(experts)).eval()
    plain = model.for_task("aic")
    assert (plain.config.experts, plain.config.ffn_ratio) == ("none", 8 if experts == "added" else 4)
    wanted = model(images, task="aic")
    torch.testing.assert_close(plain(images), wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())
    frozen = vp.freeze(model, "aic", torch.float32)
    torch.testing.assert_close(frozen(images), wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item())
    for saved in (model, plain):
        vp.save_model(saved, tmp_path / saved.config.experts)
        again = vp.load_model(tmp_path / saved.config.experts)
        assert again.config == saved.config and torch.equal(again(images, task="aic"), saved(images, task="aic"))
    with pytest.raises(ValueError, match="frozen for one task; set task= to one of coco, aic, mpii"):
        vp.freeze(model)


def test_table_11_counts(images):
    """Parameters of one task at inference: 86 M for I-FFN, and 142 M for IS-FFN, for which the paper says 143 M."""
    with torch.device("meta"):
        models = {kind: vp.create_model("vitpose-b", TASKS, experts=kind) for kind in ("instead", "added")}
        counts = {
            kind: sum(p.numel() for p in vp.create_model("vitpose-b", ffn_ratio=ratio).backbone.parameters()) / 1e6
            for kind, ratio in (("instead", 4), ("added", 8))
        }
    assert round(counts["instead"]) == 86 and round(counts["added"]) == 142
    dense = sum(p.numel() for p in models["instead"].backbone.parameters())
    assert sum(p.numel() for p in models["added"].backbone.parameters()) - dense == 12 * (8 * 768**2 + 5 * 768)


def test_a_task_without_samples_gets_zero_gradients(images):
    model = make("instead").train()
    sum(maps.square().mean() for _, maps in model(images, task=["coco", "coco", "mpii", "coco"]).values()).backward()
    grad = model.backbone.blocks[0].mlp.fc1_weight.grad
    assert not grad[1].any() and grad[0].any() and grad[2].any()


@torch.no_grad()
@pytest.mark.parametrize("experts", ["instead", "added"])
def test_load_pretrained_makes_all_experts_equal(experts, scramble, images, tmp_path):
    """I-FFN: every expert is the dense FFN. IS-FFN: the shared FFN is, and experts output 0 (docs/numerics.md 1.4)."""
    dense = scramble(vp.create_model("vitpose-tiny", **SMALL)).eval()
    vp.save_model(dense, tmp_path / "dense")
    model = make(experts).eval()
    report = vp.load_pretrained(model, tmp_path / "dense")
    for task in range(3):
        ids = torch.full((4,), task)
        torch.testing.assert_close(model.backbone(images, ids), dense.backbone(images), rtol=1e-4, atol=1e-4)
    assert len(report.reshaped) == 2


def test_contradictions_are_refused(tmp_path):
    for options, message in {
        (("experts", "both"),): "experts 'both', expected one of none, instead, added",
        (("experts", "added"), ("part_features", 48)): "exclude each other; choose one",
        (("experts", "added"), ("ffn_ratio", 8)): "ffn_ratio 8, expected 4 in models with experts",
    }.items():
        with pytest.raises(ValueError, match=message):
            vp.create_model("vitpose-tiny", TASKS, **SMALL, **dict(options))
    for save in (save_official, save_hf):
        with pytest.raises(ValueError, match="it has no whole FFNs per task"):
            save(make("instead"), tmp_path / "x.pth")
