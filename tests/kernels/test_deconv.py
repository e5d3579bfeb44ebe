"""Tests of the deconvolution op and its packing, against torch's layers and the head of the model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as nnF
from hypothesis import given, settings
from hypothesis import strategies as st

import vitpose_fast as vp
from vitpose_fast import functional as F
from vitpose_kernels.deconv import pack_deconv


def layer(ci, co, seed=0, dtype=torch.float64):
    """Draw a weight [ci, co, 4, 4] and a BatchNorm (weight, bias, mean, variance), [co] each, none with 0 or 1."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(ci, co, 4, 4, generator=g) / (4 * ci) ** 0.5
    norm = [torch.randn(co, generator=g) for _ in range(3)] + [0.5 + torch.rand(co, generator=g)]
    return weight.to(dtype), [t.to(dtype) for t in norm]


def torch_layer(x, grid, weight, norm, eps):
    """Compute deconvolution, BatchNorm and ReLU with torch.nn.functional: tokens [B, h * w, ci] -> [B, co, 2h, 2w]."""
    gamma, beta, mean, variance = norm
    y = nnF.conv_transpose2d(x.transpose(1, 2).unflatten(2, grid), weight, stride=2, padding=1)
    return nnF.batch_norm(y, mean, variance, gamma, beta, eps=eps).relu()


@settings(max_examples=40)
@given(
    batch=st.integers(0, 2),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    ci=st.integers(1, 6),
    co=st.integers(1, 6),
    k=st.integers(1, 4),
    eps=st.sampled_from([1e-5, 0.3]),
    seed=st.integers(0, 99),
)
def test_packed_is_transposed_convolution_batch_norm_relu_and_predictor(batch, grid, ci, co, k, eps, seed):
    weight, norm = layer(ci, co, seed)
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, grid[0] * grid[1], ci, generator=g, dtype=torch.float64)
    predictor = [torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((k, co), (k,))]
    maps = torch_layer(x, grid, weight, norm, eps)
    packed = pack_deconv(weight, *norm, eps)
    tokens = F.deconv(x, *packed, grid)
    torch.testing.assert_close(tokens, maps.flatten(2).transpose(1, 2))
    heatmaps = F.deconv(x, *packed, grid, tuple(predictor))
    torch.testing.assert_close(heatmaps, nnF.conv2d(maps, predictor[0][:, :, None, None], predictor[1]))
    assert tokens.is_contiguous() and heatmaps.is_contiguous()


def test_packed_taps_are_in_the_documented_order():
    """weight[2 py + px, 2 ty + tx] has kernel rows 1, 3 (py = 0) or 2, 0 (py = 1) for ty = 0, 1; columns likewise."""
    weight, norm = layer(2, 3)
    packed, _ = pack_deconv(weight, *norm)
    scale = norm[0] / (norm[3] + 1e-5).sqrt()
    rows = {(0, 0): 1, (0, 1): 3, (1, 0): 2, (1, 1): 0}
    for (py, ty), row in rows.items():
        for (px, tx), column in rows.items():
            torch.testing.assert_close(packed[2 * py + px, 2 * ty + tx], weight[:, :, row, column] * scale)


def test_packing_rounds_once():
    weight, norm = layer(8, 5, dtype=torch.bfloat16)
    packed = pack_deconv(weight, *norm)
    exact = pack_deconv(weight.double(), *(t.double() for t in norm))
    for ours, truth in zip(packed, exact):
        assert ours.dtype == torch.bfloat16 and torch.equal(ours, truth.bfloat16())


@torch.no_grad()
def test_equals_the_head_of_the_model(scramble):
    head = scramble(vp.create_model("vitpose-tiny").heads["coco"]).eval()
    x = torch.randn(2, 192, 4, 3, generator=torch.Generator().manual_seed(0))
    tokens, grid = x.flatten(2).transpose(1, 2), (4, 3)
    first, norm, _, last, last_norm, _ = head.deconv_layers
    for deconv, bn, predictor in (
        (first, norm, None),
        (last, last_norm, (head.final_layer.weight[:, :, 0, 0], head.final_layer.bias)),
    ):
        packed = pack_deconv(deconv.weight, bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.eps)
        tokens = F.deconv(tokens, *packed, grid, predictor)
        grid = (2 * grid[0], 2 * grid[1])
    torch.testing.assert_close(tokens, head(x), rtol=1e-4, atol=1e-5)


def test_autocast_decides_the_dtype():
    weight, norm = layer(4, 3, dtype=torch.float32)
    packed = pack_deconv(weight, *norm)
    with torch.autocast("cpu", torch.bfloat16):
        assert F.deconv(torch.randn(1, 6, 4), *packed, (2, 3)).dtype == torch.bfloat16


@pytest.mark.parametrize("predictor", [(None, None), (torch.randn(5, 3), torch.randn(5))], ids=["tokens", "heatmaps"])
def test_opcheck(predictor):
    args = (torch.randn(2, 6, 4), torch.randn(4, 4, 4, 3), torch.randn(3), [2, 3], *predictor, False, ())
    assert set(torch.library.opcheck(torch.ops.vitpose_fast.deconv, args).values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(x=torch.zeros(6, 4)), r"x has shape \[6, 4\], expected \[B, h \* w, Ci\]"),
        (dict(grid=(3, 3)), r"got grid=\(3, 3\) for 6 tokens"),
        (dict(grid=(-2, -3)), r"got grid=\(-2, -3\) for 6 tokens"),
        (dict(weight=torch.zeros(4, 3, 4, 4)), r"expected \[4, 4, 4, Co\] \(see pack_deconv\)"),
        (dict(bias=torch.zeros(4)), r"bias has shape \[4\], expected \[3\]"),
        (dict(predictor=(torch.zeros(5, 3, 1, 1), torch.zeros(5))), r"predictor has shapes .*, expected \[K, 3\]"),
        (dict(predictor=(torch.zeros(5, 3), torch.zeros(4))), r"predictor has shapes \[5, 3\] and \[4\]"),
        (dict(bias=torch.zeros(3).half()), "bias is torch.float16, x is torch.float32; cast one"),
        (dict(weight=torch.zeros(4, 4, 4, 3, requires_grad=True)), "no backward pass; call it under torch.no_grad"),
        (dict(impl="cudnn"), "got impl='cudnn'"),
    ],
)
def test_refuses_in_one_line(options, message):
    given = dict(x=torch.zeros(1, 6, 4), weight=torch.zeros(4, 4, 4, 3), bias=torch.zeros(3), grid=(2, 3)) | options
    with pytest.raises(ValueError, match=message) as error:
        F.deconv(**given)
    assert "\n" not in str(error.value)


@torch.no_grad()
def test_parameters_are_accepted_without_grad_mode():
    out = F.deconv(torch.ones(1, 1, 2), torch.ones(4, 4, 2, 3, requires_grad=True), torch.ones(3), (1, 1))
    assert torch.equal(out, torch.full((1, 4, 3), 3.0))  # one token: one tap in the map, two channels, bias 1
