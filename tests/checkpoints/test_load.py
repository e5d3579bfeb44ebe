"""A file in each format of docs/numerics.md 2 loads and gives the heatmaps of the model it was made from."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as nnF
from safetensors.torch import save_file

import vitpose_fast as vp
from vitpose_fast.keypoints import KeypointSet

PEN = KeypointSet.from_dict({"name": "pen", "names": ["tip", "cap"], "skeleton": [["tip", "cap"]]})


@torch.no_grad()
@pytest.mark.parametrize("decoder", ["classic", "simple", "minimal"])
def test_official(decoder, make, official, images, tmp_path, check_same, store):
    model = make(decoder=decoder, decoder_width=96)
    state = official(model) | {"backbone.cls_token": torch.zeros(1, 1, 192)}
    loaded = vp.load_model(store(tmp_path / "model.pth", state))
    report = check_same(loaded, model, images)
    assert report.family == "official" and report.ignored == ["backbone.cls_token"]
    assert report.missing == report.unexpected == report.reshaped == []
    config = loaded.config
    assert (config.decoder, config.depth, config.image_size) == (decoder, 4, (64, 48))
    assert config.decoder_width == 96 or decoder != "classic"
    assert config.layer_norm_eps == 1e-6


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: s,  # easy_ViTPose
        lambda s: {"model": s, "epoch": 3},
        lambda s: {"module": s},
    ],
)
def test_wrappings(wrap, make, official, images, tmp_path, check_same):
    model = make()
    torch.save(wrap(official(model)), tmp_path / "m.pth")
    check_same(vp.load_model(tmp_path / "m.pth"), model, images)
    torch.save(wrap(official(model)), tmp_path / "m.pth", _use_new_zipfile_serialization=False)  # before torch 1.6
    check_same(vp.load_model(str(tmp_path / "m.pth")), model, images)


def to_mmpose(state):
    """Convert tensors with official names to mmpose 1.x: other names, and a position embedding without class slot.

    The class slot is added to the other slots.
    """
    out = {}
    for key, value in state.items():
        for ours, theirs in (
            ("backbone.blocks.", "backbone.layers."),
            (".norm1.", ".ln1."),
            (".norm2.", ".ln2."),
            (".mlp.fc1.", ".ffn.layers.0.0."),
            (".mlp.fc2.", ".ffn.layers.1."),
            ("patch_embed.proj.", "patch_embed.projection."),
            ("backbone.last_norm.", "backbone.ln1."),
            ("keypoint_head.", "head."),
        ):
            key = key.replace(ours, theirs)
        out[key] = value
    position = out["backbone.pos_embed"]
    return out | {"backbone.pos_embed": position[:, 1:] + position[:, :1]}


def test_mmpose(make, official, images, tmp_path, check_same, store):
    model = make()
    state = to_mmpose(official(model))
    assert not any("blocks" in k or "norm" in k or "mlp" in k for k in state)
    report = check_same(vp.load_model(store(tmp_path / "m.pth", state)), model, images)
    assert report.family == "mmpose" and report.missing == report.unexpected == []


def test_mmpose_meta_with_numpy_arrays(make, official, images, tmp_path, check_same, store):
    import numpy as np

    model = make()
    sets = {"sigmas": np.ones(17, np.float32), "flip_indices": [0, 2, 1], "best": np.float64(0.75), "n": np.int64(3)}
    path = store(tmp_path / "m.pth", to_mmpose(official(model)), dataset_meta=sets)
    check_same(vp.load_model(path), model, images)


def mae(model, patch=14, side=4):
    """Return (tensors of an MAE checkpoint for a model, those of them that the model does not use).

    The checkpoint has a class token, a position embedding for a grid of `side` x `side` tokens, patches of `patch`
    pixels, a decoder and MAE's final norm.
    """
    state = {k.removeprefix("backbone."): v for k, v in model.backbone.state_dict().items() if "last_norm" not in k}
    state["patch_embed.proj.weight"] = torch.randn(192, 3, patch, patch) / 24
    state["pos_embed"] = 0.2 * torch.randn(1, 1 + side * side, 192)
    foreign = {
        "cls_token": torch.zeros(1, 1, 192),
        "mask_token": torch.zeros(1, 1, 64),
        "norm.weight": torch.randn(192),
    }
    foreign |= {"norm.bias": torch.randn(192), "decoder_pos_embed": torch.zeros(1, 17, 64)}
    foreign |= {"decoder_blocks.0.attn.qkv.weight": torch.zeros(3, 64), "head.weight": torch.zeros(10, 192)}
    return state | foreign, foreign


def expected_from_mae(model, state, grid):
    """Return the backbone tensors that docs/numerics.md 1.6 derives from MAE tensors, for a grid (rows, columns)."""
    pos = state["pos_embed"]
    side = int((pos.shape[1] - 1) ** 0.5)
    square = pos[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    tokens = nnF.interpolate(square, size=grid, mode="bicubic", align_corners=False).flatten(2).mT
    border = (16 - state["patch_embed.proj.weight"].shape[-1]) // 2
    out = {k: state[k] for k in state if k.startswith("blocks.")}
    out["pos_embed"] = torch.cat([pos[:, :1], tokens], 1)
    out["patch_embed.proj.weight"] = nnF.pad(state["patch_embed.proj.weight"], (border,) * 4)
    out["patch_embed.proj.bias"] = state["patch_embed.proj.bias"]
    return out | {"last_norm.weight": torch.ones(192), "last_norm.bias": torch.zeros(192)}


@pytest.mark.parametrize("patch", [14, 16])
@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_mae_as_a_model(make, tmp_path, patch, prefix):
    state, foreign = mae(make(), patch)
    path = tmp_path / "mae_pretrain.pth"
    torch.save({"model": {f"{prefix}{k}": v for k, v in state.items()}, "epoch": 800}, path)
    loaded = vp.load_model(path)
    assert loaded.config.image_size == (256, 192) and loaded.tasks == ("coco",)
    want = expected_from_mae(loaded, state, (16, 12))
    got = loaded.backbone.state_dict()
    assert got.keys() == want.keys()
    for key in want:
        torch.testing.assert_close(got[key], want[key], msg=key, atol=1e-6, rtol=1e-6)
    report = loaded.load_report
    assert sorted(report.ignored) == sorted(prefix + k if not prefix else k for k in foreign)
    assert [m for m in report.missing if not m.startswith("heads.coco.")] == [
        "backbone.last_norm.weight",
        "backbone.last_norm.bias",
    ]
    assert report.reshaped == ["backbone.pos_embed resized from 4x4 to 16x12"]


def test_only_what_the_file_does_not_have_is_initialized(make, official, tmp_path):
    """Drawing random weights would take most of the time of loading."""
    model = make()
    torch.save(official(model), tmp_path / "full.pth")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    loaded = vp.load_model(tmp_path / "full.pth")
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(t.is_meta for t in loaded.state_dict().values()) and all(
        p.requires_grad for p in loaded.parameters()
    )
    torch.save({"model": mae(model)[0]}, tmp_path / "mae.pth")
    torch.manual_seed(3)
    partial = vp.load_model(tmp_path / "mae.pth")
    torch.manual_seed(3)
    random = vp.ViTPose(partial.config)
    for name, value in random.heads.state_dict().items():
        torch.testing.assert_close(partial.heads.state_dict()[name], value, rtol=0, atol=0)


def test_mae_is_square_for_any_image_size(make, tmp_path):
    state, _ = mae(make(), side=6)  # 36 tokens, as many as a 12 x 3 grid has
    torch.save({"model": state}, tmp_path / "mae.pth")
    loaded = vp.load_model(tmp_path / "mae.pth", image_size=(192, 48))
    want = expected_from_mae(loaded, state, (12, 3))["pos_embed"]
    torch.testing.assert_close(loaded.backbone.state_dict()["pos_embed"], want)


@pytest.mark.parametrize("name", ["vitpose-tiny", "vitpose++-tiny"])
def test_load_pretrained_from_mae(name, make, tmp_path):
    state, foreign = mae(make(seed=5))
    torch.save({"model": state}, tmp_path / "mae.pth")
    tasks = ("coco", "aic", "mpii")
    model = make(name, tasks=tasks)
    heads = {k: v.clone() for k, v in model.heads.state_dict().items()}
    norm = {k: v.clone() for k, v in model.backbone.last_norm.state_dict().items()}
    report = vp.load_pretrained(model, tmp_path / "mae.pth")
    got = model.backbone.state_dict()
    for key, value in expected_from_mae(model, state, (4, 3)).items():
        if "last_norm" in key:
            assert torch.equal(got[key], norm[key.removeprefix("last_norm.")])  # unchanged
        elif "mlp.fc2" in key and "++" in name:
            assert torch.equal(got[key], value[:144])
            for t in range(3):
                assert torch.equal(got[key.replace("fc2", f"experts.{t}")], value[144:])
        else:
            torch.testing.assert_close(got[key], value, msg=key, atol=1e-6, rtol=1e-6)
    assert all(torch.equal(heads[k], v) for k, v in model.heads.state_dict().items())
    assert set(report.ignored) >= set(foreign)
    assert {"backbone.last_norm.weight", "backbone.last_norm.bias"} <= set(report.missing)
    assert all(n.startswith(("heads.", "backbone.last_norm")) for n in report.missing)
    split = [r for r in report.reshaped if "3 experts" in r]
    assert len(split) == (8 if "++" in name else 0)
    assert model.load_report is None


def test_load_pretrained_from_a_pose_model_and_window_tables(make, official, tmp_path, store):
    source = make()
    path = store(tmp_path / "m.pth", official(source))
    model = make(seed=4, attention="window", window=(2, 2), image_size=(128, 96))
    report = vp.load_pretrained(model, path)
    got, want = model.backbone.state_dict(), source.backbone.state_dict()
    assert all(torch.equal(got[k], v) for k, v in want.items() if k != "pos_embed")
    assert torch.equal(got["pos_embed"][:, :1], want["pos_embed"][:, :1])
    assert [m for m in report.missing if m.startswith("backbone.")] == [
        f"backbone.blocks.{i}.attn.rel_pos_{a}" for i in range(4) for a in "hw"
    ]
    assert "keypoint_head.final_layer.weight" in report.ignored


def test_load_pretrained_names_a_misfit(make, official, tmp_path, check_refusal, store):
    path = store(tmp_path / "m.pth", official(make("vitpose++-tiny", tasks=("coco", "aic"))))
    shapes = ("backbone.blocks.0.mlp.fc2.weight", "[144, 768] in the file", "[192, 768] in the model", path)
    check_refusal(lambda: vp.load_pretrained(make(), path), *shapes)


@pytest.mark.parametrize("ours", [False, True])
def test_another_image_size_resizes_the_grid_and_keeps_the_class_slot(ours, make, official, tmp_path, store):
    model = make(image_size=(64, 64))
    path = tmp_path / "ours" if ours else store(tmp_path / "m.pth", official(model))
    if ours:
        vp.save_model(model, path)
    loaded = vp.load_model(path, image_size=(96, 48))
    position, want = loaded.backbone.pos_embed.detach(), model.backbone.pos_embed.detach()
    tokens = want[:, 1:].reshape(1, 4, 4, 192).permute(0, 3, 1, 2)
    tokens = nnF.interpolate(tokens, size=(6, 3), mode="bicubic", align_corners=False)
    torch.testing.assert_close(position[:, 1:], tokens.flatten(2).mT)
    assert torch.equal(position[:, :1], want[:, :1])
    assert loaded(torch.randn(1, 3, 96, 48)).shape == (1, 17, 24, 12)
    assert loaded.load_report.reshaped == ["backbone.pos_embed resized from 4x4 to 6x3"]


def test_our_files_are_resized_to_another_grid_of_as_many_tokens(make, tmp_path):
    """Grids of 3 x 4 and 4 x 3 have tensors of the same shape, which does not show that a resize is needed."""
    model = make()
    vp.save_model(model, tmp_path / "m")
    loaded = vp.load_model(tmp_path / "m", image_size=(48, 64))
    assert loaded.load_report.reshaped == ["backbone.pos_embed resized from 4x3 to 3x4"]
    assert not torch.equal(loaded.backbone.pos_embed, model.backbone.pos_embed)


def test_a_folder_with_one_file_of_any_name(make, official, images, tmp_path, check_same):
    model = make()
    save_file(official(model), tmp_path / "weights.safetensors")
    check_same(vp.load_model(tmp_path), model, images)


def test_unexpected_tensors_are_reported(make, official, images, tmp_path, check_same, store):
    model = make()
    state = official(model) | {"backbone.extra.weight": torch.ones(2), "ema_decay": torch.ones(())}
    report = check_same(vp.load_model(store(tmp_path / "m.pth", state)), model, images)
    assert report.unexpected == ["backbone.extra.weight", "ema_decay"]
    assert "unexpected (2): backbone.extra.weight, ema_decay" in str(report)


def test_counters_of_batch_norm_may_be_missing(make, official, images, tmp_path, check_same, store):
    model = make()
    state = {k: v for k, v in official(model).items() if "num_batches" not in k}
    check_same(vp.load_model(store(tmp_path / "m.pth", state)), model, images)


def test_half_precision_files_give_a_full_precision_model(make, official, tmp_path, store):
    state = {k: v.half() if v.is_floating_point() else v for k, v in official(make()).items()}
    loaded = vp.load_model(store(tmp_path / "m.pth", state))
    assert loaded.backbone.pos_embed.dtype == torch.float32


def test_official_files_are_resized_to_another_grid_of_as_many_tokens(make, official, tmp_path):
    path = tmp_path / "m.pth"
    torch.save(official(make(image_size=(64, 48))), path)
    model = vp.load_model(path, image_size=(48, 64))
    assert model.config.grid == (3, 4) and "resized from 4x3 to 3x4" in model.load_report.reshaped[0]
