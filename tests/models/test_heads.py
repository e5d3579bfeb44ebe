"""The heads against their formulas (docs/numerics.md 1.3), and their official parameter names."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as nnF

from vitpose_fast.models.config import preset
from vitpose_fast.models.heads import make_head

NORM = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
FINAL = ["final_layer.weight", "final_layer.bias"]


def head(decoder: str, stride: int = 16, keypoints: int = 5):
    return make_head(preset("vitpose-tiny", decoder=decoder, patch_stride=stride), keypoints)


@pytest.mark.parametrize(
    "decoder, stride, names",
    [
        (
            "classic",
            16,
            ["deconv_layers.0.weight", *(f"deconv_layers.1.{n}" for n in NORM)]
            + ["deconv_layers.3.weight", *(f"deconv_layers.4.{n}" for n in NORM), *FINAL],
        ),
        ("classic", 8, ["deconv_layers.0.weight", *(f"deconv_layers.1.{n}" for n in NORM), *FINAL]),
        ("simple", 16, FINAL),
        ("minimal", 16, FINAL),
    ],
)
def test_state_dict_has_the_official_names(decoder, stride, names):
    assert list(head(decoder, stride).state_dict()) == names


@pytest.mark.parametrize("stride", [16, 8])
@torch.no_grad()
def test_simple_is_relu_then_bilinear_then_3x3(scramble, stride):
    module, x = scramble(head("simple", stride)), torch.randn(2, 192, 4, 3)
    up = nnF.interpolate(x.clamp(min=0), size=(4 * stride // 4, 3 * stride // 4), mode="bilinear", align_corners=False)
    expected = nnF.conv2d(up, module.final_layer.weight, module.final_layer.bias, padding=1)
    torch.testing.assert_close(module(x), expected)
    wrong = nnF.interpolate(x, scale_factor=stride / 4, mode="bilinear", align_corners=False).relu()
    wrong = nnF.conv2d(wrong, module.final_layer.weight, module.final_layer.bias, padding=1)
    assert (wrong - expected).abs().max() > 0.01  # the order in the paper's text gives other heatmaps


@pytest.mark.parametrize("stride", [16, 8])
@torch.no_grad()
def test_classic_is_deconvolutions_with_batch_norm(scramble, stride):
    module, x = scramble(head("classic", stride)).eval(), torch.randn(2, 192, 4, 3)
    state, y = module.state_dict(), x
    for i in (0, 3)[: stride // 8]:
        y = nnF.conv_transpose2d(y, state[f"deconv_layers.{i}.weight"], stride=2, padding=1)
        norm = [state[f"deconv_layers.{i + 1}.{n}"] for n in ("running_mean", "running_var", "weight", "bias")]
        y = nnF.batch_norm(y, *norm, eps=1e-5).relu()
    expected = nnF.conv2d(y, state["final_layer.weight"], state["final_layer.bias"])
    torch.testing.assert_close(module(x), expected)
    assert expected.shape == (2, 5, stride, 3 * stride // 4)


@pytest.mark.parametrize("stride", [16, 8])
@torch.no_grad()
def test_minimal_is_depth_to_space(scramble, stride):
    module, x = scramble(head("minimal", stride)), torch.randn(2, 192, 4, 3)
    r = stride // 4
    flat = nnF.conv2d(x, module.final_layer.weight, module.final_layer.bias)
    out = module(x)
    assert out.shape == (2, 5, 4 * r, 3 * r)
    k, y, xx, dy, dx = 3, 2, 1, r - 1, 1
    torch.testing.assert_close(out[:, k, y * r + dy, xx * r + dx], flat[:, k * r * r + dy * r + dx, y, xx])


def test_fixed_predictor_does_not_learn():
    fixed, free = head("classic-fp"), head("classic")
    assert [n for n, p in fixed.named_parameters() if not p.requires_grad] == FINAL
    assert all(p.requires_grad for p in free.parameters())
    assert fixed.final_layer.weight.std() > 0  # random, not zero


@pytest.mark.parametrize("decoder", ["classic", "classic-fp", "simple", "minimal"])
def test_one_keypoint_works(decoder):
    assert head(decoder, keypoints=1)(torch.randn(2, 192, 4, 3)).shape == (2, 1, 16, 12)


@pytest.mark.parametrize("decoder", ["classic", "classic-fp", "simple", "minimal"])
def test_a_fresh_head_starts_as_in_the_official_code(decoder):
    """Weights of deconvolutions and predictor: normal, with a deviation of 0.001; biases 0; BatchNorm the identity."""
    torch.manual_seed(0)
    fresh = head(decoder, keypoints=17)
    weights = [m.weight for m in fresh.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.ConvTranspose2d))]
    assert len(weights) == (3 if decoder.startswith("classic") else 1)
    for weight in weights:
        assert weight.std().item() == pytest.approx(0.001, rel=0.05) and abs(weight.mean().item()) < 1e-4
    assert not fresh.final_layer.bias.any()
    for norm in [m for m in fresh.modules() if isinstance(m, torch.nn.BatchNorm2d)]:
        assert (norm.weight == 1).all() and not norm.bias.any()
