"""Tests of the patch embedding op, against patches cut one by one and against the layers of the model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as nnF
from hypothesis import given, settings
from hypothesis import strategies as st

import vitpose_fast as vp
from vitpose_fast import functional as F


@settings(max_examples=25)
@given(
    height=st.integers(14, 40),
    width=st.integers(14, 40),
    stride=st.sampled_from([16, 8, 5]),
    padding=st.sampled_from([2, 4]),
    seed=st.integers(0, 99),
)
def test_a_token_is_its_patch_times_the_weight(height, width, stride, padding, seed):
    g = torch.Generator().manual_seed(seed)
    images, weight, bias = (
        torch.randn(*s, generator=g).double() for s in ((2, 3, height, width), (5, 3, 16, 16), (5,))
    )
    rows, columns = ((side + 2 * padding - 16) // stride + 1 for side in (height, width))
    position = torch.randn(rows * columns, 5, generator=g).double()
    out = F.patch_embed(images, weight, bias, position, stride, padding)
    padded = nnF.pad(images, [padding] * 4)
    for i in range(rows):
        for j in range(columns):
            patch = padded[:, :, stride * i : stride * i + 16, stride * j : stride * j + 16]
            expected = torch.einsum("bcyx,ocyx->bo", patch, weight) + bias + position[i * columns + j]
            torch.testing.assert_close(out[:, i * columns + j], expected)
    assert out.shape[1] == rows * columns and out.is_contiguous()


@torch.no_grad()
@pytest.mark.parametrize("stride", [16, 8])
def test_equals_the_layers_of_the_model(stride, scramble):
    backbone = scramble(vp.create_model("vitpose-tiny", patch_stride=stride, image_size=(64, 48), depth=1)).backbone
    images = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    expected = backbone.patch_embed(images) + backbone.pos_embed[:, 1:] + backbone.pos_embed[:, :1]
    position = (backbone.pos_embed[:, 1:] + backbone.pos_embed[:, :1])[0]
    layer = backbone.patch_embed.proj
    ours = F.patch_embed(images, layer.weight, layer.bias, position, stride, backbone.config.patch_padding)
    torch.testing.assert_close(ours, expected)


def test_last_two_rows_and_columns_are_never_read():
    """Padding 2 at stride 16 moves the patches up and left by two pixels (docs/numerics.md 1.2)."""
    images = torch.zeros(1, 3, 64, 48)
    images[:, :, -2:] = images[:, :, :, -2:] = float("nan")
    out = F.patch_embed(images, torch.ones(4, 3, 16, 16), torch.zeros(4), torch.zeros(12, 4))
    assert torch.equal(out, torch.zeros(1, 12, 4))


def test_images_take_the_dtype_of_the_weight():
    inputs = [torch.randn(*s, dtype=torch.bfloat16) for s in ((4, 3, 16, 16), (4,), (12, 4))]
    images = torch.randn(1, 3, 64, 48)
    ours = F.patch_embed(images, *inputs)
    assert ours.dtype == torch.bfloat16 and torch.equal(ours, F.patch_embed(images.bfloat16(), *inputs))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(F.patch_embed(images, *(t.float() for t in inputs)), ours)


def test_opcheck():
    args = (torch.randn(2, 3, 32, 48), torch.randn(4, 3, 16, 16), torch.randn(4), torch.randn(6, 4), 16, 2, False)
    assert set(torch.library.opcheck(torch.ops.vitpose_fast.patch_embed, args).values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(images=torch.zeros(3, 32, 32)), r"images are torch.float32 \[3, 32, 32\], expected floating"),
        (dict(images=torch.zeros(1, 3, 32, 32, dtype=torch.uint8)), "images are torch.uint8"),
        (dict(images=torch.zeros(1, 3, 32, 8)), "images of 32x8 do not hold a 16x16 patch with padding 2"),
        (dict(weight=torch.zeros(4, 3, 14, 14)), r"weight has shape \[4, 3, 14, 14\], expected \[C, 3, 16, 16\]"),
        (dict(bias=torch.zeros(3)), r"bias has shape \[3\], expected \[4\]"),
        (dict(position=torch.zeros(5, 4)), r"position has shape \[5, 4\], expected \[4, 4\] for a grid of 2x2"),
        (dict(position=torch.zeros(4, 4).half()), "position is torch.float16, weight is torch.float32; cast one"),
        (dict(stride=0), "got stride=0, padding=2, expected stride >= 1 and padding >= 0"),
        (dict(padding=-1), "got stride=16, padding=-1"),
        (
            dict(weight=torch.zeros(4, 3, 16, 16, requires_grad=True)),
            "no backward pass; call it under torch.no_grad",
        ),
        (dict(impl="cudnn"), "got impl='cudnn'"),
    ],
)
def test_refuses_in_one_line(options, message):
    images, weight = torch.zeros(1, 3, 32, 32), torch.zeros(4, 3, 16, 16)
    given = dict(images=images, weight=weight, bias=torch.zeros(4), position=torch.zeros(4, 4)) | options
    with pytest.raises(ValueError, match=message) as error:
        F.patch_embed(**given)
    assert "\n" not in str(error.value)
