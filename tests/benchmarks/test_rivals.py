"""The rivals of Table 12: published sizes, output resolutions, and an official-style ViTPose that equals ours."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import vitpose_fast as vp
from benchmarks.rivals import count
from benchmarks.rivals.fastpose import FastPose, duc
from benchmarks.rivals.hrformer import HRFormer, WindowAttention
from benchmarks.rivals.hrnet import HRNet
from benchmarks.rivals.layers import Attend, sine_positions, use_sdpa
from benchmarks.rivals.official_vitpose import OfficialViTPose
from benchmarks.rivals.simple_baseline import SimpleBaseline
from benchmarks.rivals.table import RIVALS, rival
from benchmarks.rivals.tokenpose import TokenPoseL
from benchmarks.rivals.transpose import TransPoseH
from vitpose_fast.models.config import ATTENTION

NAMES = [r.name for r in RIVALS]


def on_meta(build):
    with torch.device("meta"):
        return build()


# --- the published networks


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_the_published_ones(name):
    row = rival(name)
    model = on_meta(row.build)
    assert count.parameters(model) / 1e6 == pytest.approx(row.published_params_m, rel=0.02)
    assert row.counting(model, row.image_size) == pytest.approx(row.published_gmacs, rel=row.tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_heatmaps_have_a_quarter_of_the_resolution(name):
    row = rival(name)
    height, width = row.image_size
    out = on_meta(row.build).eval()(torch.empty(2, 3, height, width, device="meta"))
    assert out.shape == (2, 17, height // 4, width // 4)


def test_counts_of_layers_that_can_be_worked_out_by_hand():
    size = (8, 8)
    conv = nn.Conv2d(3, 5, 3, padding=1)
    assert count.macs(conv, size) == 64 * 5 * 3 * 9
    assert count.macs(nn.Conv2d(3, 6, 3, padding=1, groups=3), size) == 64 * 6 * 9
    assert count.parameters(conv) == 5 * 3 * 9 + 5
    assert conv.weight.device.type == "cpu" and conv.training, "counting must not change the model"
    deconv = nn.ConvTranspose2d(3, 5, 4, stride=2, padding=1)
    assert count.macs(deconv, size) == 64 * 5 * 3 * 16
    assert count.hrnet_tool(deconv, size) * 2**30 == 4 * 64 * 5 * 3 * 16


@pytest.mark.parametrize("sdpa", [False, True])
def test_attention_is_counted_in_both_forms(sdpa):
    class Pixels(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 12, bias=False)
            self.attend = Attend(sdpa)

        def forward(self, x):
            tokens = self.linear(x.flatten(2).transpose(1, 2)).unflatten(-1, (2, 6)).transpose(1, 2)
            return self.attend(tokens, tokens, tokens)

    linear, products = 64 * 3 * 12, 2 * 2 * 64 * 64 * 6
    assert count.macs(Pixels(), (8, 8)) == linear + products
    assert count.macs(Pixels(), (8, 8), attention=False) == linear


SIZE = (64, 96)  # multiples of 32 for the trunks, of 3 patches for TokenPose
SMALL = {
    "SimpleBaseline": lambda: SimpleBaseline(50, width=16),
    "FastPose": lambda: FastPose(50, convolutions=(2, 1, 1)),
    "HRNet": lambda: HRNet(8),
    "HRFormer": lambda: HRFormer(32),
    "TokenPose": lambda: TokenPoseL(SIZE, depth=3, trunk_width=8),
    "TransPose": lambda: TransPoseH(SIZE, depth=2, trunk_width=8),
}


# Mean, standard deviation and two values of the heatmaps of a seeded model. They were recorded when the rivals had been
# verified against the authors' code at the authors' sizes (HRFormer without the position term, which that code omits).
FINGERPRINTS = {
    "SimpleBaseline": [0.132693, 0.423678, 0.265196, 0.317371],
    "FastPose": [-0.129129, 0.324388, -0.014975, 0.292271],
    "HRNet": [-72.6781, 615.206, -100.539, 81.9139],
    "HRFormer": [0.50245, 33.9024, 30.0614, 15.1759],
    "TokenPose": [-0.000980963, 1.06188, 0.183008, 0.414292],
    "TransPose": [-0.147911, 1.27758, -0.547624, 0.606157],
}


@pytest.mark.parametrize("name", SMALL)
def test_small_rivals_run_and_train(name):
    torch.manual_seed(0)
    model = SMALL[name]()
    images = torch.randn(2, 3, *SIZE)
    out = model(images.to(memory_format=torch.channels_last))
    assert out.shape == (2, 17, 16, 24) and out.isfinite().all()
    out.square().mean().backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, f"parameters without a gradient: {missing}"
    model.eval()
    with torch.no_grad():
        plain = model(images)
        last = model.to(memory_format=torch.channels_last)(images)
        torch.testing.assert_close(last, plain, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(use_sdpa(model)(images), plain, rtol=1e-3, atol=1e-4)
        half = model.bfloat16()(images.bfloat16())
    assert half.dtype == torch.bfloat16 and half.isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_rivals_compute_the_same_as_the_originals(scramble, name):
    model = SMALL[name]()
    with torch.no_grad():
        scramble(model, 3)
        out = model.double().eval()(torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0)).double())
    found = [out.mean(), out.std(), out[0, 3, 2, 1], out[1, 16, -1, -1]]
    assert [x.item() for x in found] == pytest.approx(FINGERPRINTS[name], rel=1e-3)


def test_sine_positions_tell_rows_from_columns():
    table = sine_positions(3, 4, 8).unflatten(0, (3, 4))
    assert (table[:, :1, :4] == table[:, :, :4]).all() and (table[:1, :, 4:] == table[:, :, 4:]).all()
    assert table.flatten(0, 1).unique(dim=0).shape[0] == 12
    # DETR: the last row is at one full turn, frequencies fall by 10000^(2 i / half), sine and cosine alternate
    turn = torch.tensor([2 * math.pi, 2 * math.pi / 100])
    torch.testing.assert_close(table[2, 0, :4], torch.stack([turn.sin(), turn.cos()], -1).flatten(), rtol=0, atol=1e-5)


def test_windows_of_hrformer_see_their_window_only():
    torch.manual_seed(0)
    layer = WindowAttention(8, 2, window=3).requires_grad_(False)
    x = torch.randn(1, 5, 7, 8)  # padded to 6 x 9: no row above, one below, one column on either side
    changed = x.clone()
    changed[0, 0, 0] += 1
    moved = (layer(changed) - layer(x)).abs().amax(-1)[0] > 0
    expected = torch.zeros(5, 7, dtype=torch.bool)
    expected[:3, :2] = True
    assert moved.equal(expected)


def test_relative_position_of_hrformer_depends_on_the_offset():
    layer = WindowAttention(8, 2, window=3)
    index = layer.index.reshape(3, 3, 3, 3)
    assert index[0, 0, 1, 2] == index[1, 0, 2, 2] and index[0, 0, 0, 1] != index[0, 0, 1, 0]
    assert index.unique().numel() == 25 == layer.table.shape[0]


def test_dense_upsampling_keeps_the_first_layers_narrow():
    shapes = [tuple(m.weight.shape[:2]) for m in duc(64, 32, 3).modules() if isinstance(m, nn.Conv2d)]
    assert shapes == [(16, 16), (16, 16), (32, 16)]


# --- the official-style ViTPose


def pair(scramble, name="vitpose-tiny", sdpa=False, **options):
    options = {"image_size": (128, 96), "depth": 4, **options}
    ours = vp.create_model(name, **options)
    with torch.no_grad():
        scramble(ours, 1)
    official = OfficialViTPose(ours.config, sdpa)
    official.load_state_dict(ours.state_dict())
    return ours.eval(), official.eval()


def images(config, batch=2):
    return torch.randn(batch, 3, *config.image_size, generator=torch.Generator().manual_seed(0))


def assert_equal_heatmaps(ours, official, **options):
    batch = images(ours.config, options.pop("batch", 2))
    with torch.no_grad():
        expected, found = ours(batch, **options), official(batch, **options)
    if isinstance(expected, dict):
        assert list(expected) == list(found)
        assert all(found[task][0].equal(index) for task, (index, _) in expected.items())
        expected, found = (torch.cat([maps.flatten() for _, maps in out.values()]) for out in (expected, found))
    assert expected.std() > 0.1, "the outputs are too small to compare"
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sdpa", [False, True])
@pytest.mark.parametrize("decoder", ["classic", "simple"])
def test_plain_equals_ours(scramble, sdpa, decoder):
    assert_equal_heatmaps(*pair(scramble, sdpa=sdpa, decoder=decoder))


def test_mixed_tasks_equal_ours(scramble):
    ours, official = pair(scramble, "vitpose++-tiny", tasks=("coco", "aic", "mpii"))
    assert_equal_heatmaps(ours, official, task=["mpii", "coco", "mpii", "aic"], batch=4)
    assert_equal_heatmaps(ours, official, task="aic")
    assert_equal_heatmaps(ours, official, task=["mpii", "mpii"])


# 16 x 12 tokens: 8 x 8 windows need padding, 4 x 4 windows none, 5 x 5 windows in both directions; 16 x 12 is the map.
@pytest.mark.parametrize("sdpa", [False, True])
@pytest.mark.parametrize("window", [(8, 8), (4, 4), (5, 5), (16, 12)])
@pytest.mark.parametrize("attention", ATTENTION[1:])
def test_windows_equal_ours(scramble, attention, window, sdpa):
    assert_equal_heatmaps(*pair(scramble, sdpa=sdpa, patch_stride=8, attention=attention, window=window, width=48))


def test_a_shifted_window_of_the_whole_odd_map_equals_ours(scramble):
    # Odd sizes, because shifting an even map by half only swaps its quarters.
    options = dict(patch_stride=8, attention="window+shift", window=(15, 11), width=48, image_size=(120, 88))
    assert_equal_heatmaps(*pair(scramble, **options))


@pytest.mark.parametrize("rel_pos", [False, True])
@pytest.mark.parametrize("attention", ["full", "window+shift+pool"])
def test_relative_position_can_be_switched(scramble, attention, rel_pos):
    options = dict(patch_stride=8, attention=attention, rel_pos=rel_pos, window=(5, 5), width=48)
    assert_equal_heatmaps(*pair(scramble, **options))


@pytest.mark.parametrize("sdpa", [False, True])
def test_gradients_equal_ours(scramble, sdpa):
    options = dict(patch_stride=8, attention="window+shift+pool", window=(5, 5), width=48, drop_path=0.3)
    ours, official = pair(scramble, "vitpose++-tiny", sdpa, tasks=("coco", "aic"), part_features=12, **options)
    weights = torch.randn(3, 17, 32, 24, generator=torch.Generator().manual_seed(2))
    grads = []
    for model in (ours, official):
        torch.manual_seed(5)  # the same samples are dropped
        model.train()
        (model(images(model.config, 3), "coco") * weights).mean().backward()
        state = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        for n in [n for n in state if n.endswith(("expert_weight", "expert_bias"))]:
            kind = n.rsplit("_", 1)[1]
            for i, g in enumerate(state.pop(n)):
                state[f"{n.rsplit('.', 1)[0]}.experts.{i}.{kind}"] = g
        grads.append(state)
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        close = torch.linalg.vector_norm(grads[1][name] - grad) <= 1e-3 * torch.linalg.vector_norm(grad) + 1e-7
        assert close, f"{name}: the gradients differ"


def test_freezing_is_refused():
    config = vp.create_model("vitpose-tiny", freeze_attn=True).config
    with pytest.raises(ValueError, match="freez"):
        OfficialViTPose(config)


def test_a_decoder_that_the_official_code_lacks_is_refused():
    config = vp.create_model("vitpose-tiny", decoder="minimal").config
    with pytest.raises(ValueError, match="no minimal decoder, expected one of classic, classic-fp, simple"):
        OfficialViTPose(config)


@pytest.mark.parametrize("decoder", ["classic", "classic-fp", "simple"])
def test_the_official_model_has_no_module_of_ours(decoder):
    """Else a mistake in that module would be on both sides of every comparison."""
    ours = vp.create_model("vitpose++-tiny", ("coco", "aic"), decoder, drop_path=0.1)
    official = OfficialViTPose(ours.config)
    assert {type(m).__module__.split(".")[0] for m in official.modules()} == {"torch", "benchmarks"}
    trained = [{n: p.shape for n, p in m.heads.named_parameters() if p.requires_grad} for m in (ours, official)]
    assert trained[0] == trained[1]


@pytest.mark.parametrize("stride", [16, 8])
@pytest.mark.parametrize("decoder", ["classic", "simple"])
def test_heads_in_training_equal_ours(scramble, decoder, stride):
    """With BatchNorm by the batch: heatmaps, statistics and gradients."""
    ours, official = pair(scramble, decoder=decoder, patch_stride=stride, depth=1)
    features = torch.randn(3, ours.config.width, *ours.config.grid, generator=torch.Generator().manual_seed(0))
    found = []
    for model in (ours, official):
        head, x = model.heads["coco"].train(), features.clone().requires_grad_()
        maps = head(x)
        maps.square().mean().backward()
        found.append([maps, x.grad, *(p.grad for p in head.parameters()), *head.buffers()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decoder", ["classic", "simple"])
def test_dropped_paths_equal_ours(scramble, decoder):
    ours, official = pair(scramble, decoder=decoder, drop_path=0.5)
    batch, found = images(ours.config, 8), []
    for model in (ours, official):
        model.train()
        torch.manual_seed(5)
        found.append(model(batch))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
