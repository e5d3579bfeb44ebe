"""The Triton kernel of patch_embed against the float64 reference: values, invariants, and memory safety."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vitpose_fast as vp
from vitpose_fast import functional as F
from vitpose_kernels.gpu import patch_embed as gpu
from vitpose_kernels.launch import run

HALVES = [torch.float16, torch.bfloat16] if torch.cuda.is_available() else [torch.float16]


def make(dtype, batch=2, size=(32, 48), channels=16, stride=16, padding=2, seed=0, device="cpu"):
    """Return random inputs of patch_embed by name."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g).to(dtype).to(device)

    rows, columns = ((side + 2 * padding - 16) // stride + 1 for side in size)
    weight, bias, position = draw(channels, 3, 16, 16) / 768**0.5, draw(channels), draw(rows * columns, channels)
    images = draw(batch, 3, *size)
    return dict(images=images, weight=weight, bias=bias, position=position, stride=stride, padding=padding)


def compare(inputs, device, check):
    def moved(*to):
        return {n: v.to(*to) if isinstance(v, torch.Tensor) else v for n, v in inputs.items()}

    truth = F.patch_embed(**moved(torch.float64))
    plain = F.patch_embed(**moved(device), impl="reference")
    ours = F.patch_embed(**moved(device), impl="triton")
    check(ours, plain, truth)
    assert ours.is_contiguous()


@settings(max_examples=25)
@given(
    dtype=st.sampled_from([torch.float32, *HALVES]),
    batch=st.integers(0, 3),
    size=st.tuples(st.integers(14, 50), st.integers(14, 50)),
    channels=st.sampled_from([1, 16, 24, 70]),  # 70: several blocks of channels in 16-bit dtypes, the last one partial
    stride=st.sampled_from([16, 8, 5]),
    padding=st.sampled_from([2, 4, 6]),
    seed=st.integers(0, 2**16),
)
def test_any_shape_equals_the_reference(device, check_error_rule, dtype, batch, size, channels, stride, padding, seed):
    compare(make(dtype, batch, size, channels, stride, padding, seed), device, check_error_rule)


@pytest.mark.parametrize(("stride", "padding"), [(16, 2), (8, 4)])
def test_tiles_of_a_big_batch(stride, padding, dtype, device, check_error_rule, monkeypatch):
    monkeypatch.setattr(gpu, "_FEW_PROGRAMS", 0)
    inputs = make(dtype, 4, (112, 96), 24, stride, padding)  # several tiles, the last one partial
    compare(inputs, device, check_error_rule)


@pytest.mark.parametrize("pixels", [torch.float32, *HALVES])
def test_images_are_converted_to_the_dtype_of_the_weight(pixels, dtype, device):
    inputs = make(dtype, device=device)
    inputs["images"] = inputs["images"].to(pixels)
    ours = F.patch_embed(**inputs, impl="triton")
    assert ours.dtype == dtype
    assert torch.equal(ours, F.patch_embed(**inputs | {"images": inputs["images"].to(dtype)}, impl="triton"))


@torch.no_grad()
@pytest.mark.parametrize("stride", [16, 8])
def test_equals_the_layers_of_the_model(stride, dtype, device, check_error_rule, scramble):
    backbone = scramble(vp.create_model("vitpose-tiny", patch_stride=stride, image_size=(64, 48), depth=1)).backbone
    images = torch.randn(1, 3, 64, 48, generator=torch.Generator().manual_seed(0)).to(dtype)

    def embed(to):
        model = backbone.to(to)
        return model.patch_embed(images.to(to)) + (model.pos_embed[:, 1:] + model.pos_embed[:, :1])

    layer, padding = backbone.patch_embed.proj, backbone.config.patch_padding
    position = (backbone.pos_embed[:, 1:] + backbone.pos_embed[:, :1])[0]
    tensors = [t.to(device, dtype) for t in (images, layer.weight, layer.bias, position)]
    ours = F.patch_embed(*tensors, stride, padding, impl="triton")
    truth = embed(torch.float64)
    check_error_rule(ours.cpu(), embed(dtype), truth)


@pytest.mark.parametrize(("stride", "padding"), [(16, 2), (8, 4)])
def test_images_in_a_poisoned_frame(stride, padding, dtype, device, poisoned):
    """Neither the pixels that the padding replaces nor those between the images are read."""
    inputs = make(dtype, size=(40, 37), stride=stride, padding=padding, device=device)
    frame = torch.full((4, 5, 60, 60), float("nan"), dtype=dtype, device=device)
    inside = frame[1::2, 1:4, 9:49, 11:48]
    inside.copy_(inputs["images"])
    ours = F.patch_embed(**inputs | {"images": inside}, impl="triton")
    assert torch.equal(ours, F.patch_embed(**inputs, impl="triton")) and ours.isfinite().all()


@pytest.mark.parametrize("layout", ["channels last", "columns first", "one image for all"])
def test_any_strides(layout, dtype, device):
    inputs = make(dtype, device=device)
    images = inputs["images"]
    if layout == "channels last":
        images = images.contiguous(memory_format=torch.channels_last)
    elif layout == "columns first":
        images = images.transpose(2, 3).contiguous().transpose(2, 3)
    else:
        images = images[:1].expand(2, -1, -1, -1)
    ours = F.patch_embed(**inputs | {"images": images}, impl="triton")
    assert torch.equal(ours, F.patch_embed(**inputs | {"images": images.contiguous()}, impl="triton"))


def test_writes_nothing_outside_its_output(dtype, device):
    inputs = make(dtype, batch=1, channels=20, device=device)
    expected, [launch] = gpu.forward(*list(inputs.values())[:4], (2, 3), 16, 2, 80)
    guarded = torch.full((expected.numel() + 128,), 77.0, dtype=dtype, device=device)
    run(None, [launch, launch._replace(arguments=launch.arguments | {"out_ptr": guarded[64:-64]})])
    assert torch.equal(guarded[64:-64].view_as(expected), expected)
    assert (guarded[:64] == 77).all() and (guarded[-64:] == 77).all()


def test_batch_permutes(dtype, device):
    inputs, order = make(dtype, batch=5, device=device), [3, 0, 4, 4, 1]
    ours = F.patch_embed(**inputs | {"images": inputs["images"][order]}, impl="triton")
    torch.testing.assert_close(ours, F.patch_embed(**inputs, impl="triton")[order])


def test_a_nan_pixel_reaches_the_patches_that_hold_it(dtype, device):
    inputs = make(dtype, size=(64, 48), stride=8, padding=4, device=device)  # a grid of 8 x 6
    inputs["images"][1, 2, 20, 3] = float("nan")  # rows 8 i - 4 to 8 i + 11: i = 2 and 3; columns: j = 0
    broken = F.patch_embed(**inputs, impl="triton").isnan().all(-1)
    assert broken.nonzero().tolist() == [[1, 12], [1, 18]]


@pytest.mark.cuda
def test_opcheck(device):
    args = (*make(torch.float32, device=device).values(), True)
    assert set(torch.library.opcheck(torch.ops.vitpose_fast.patch_embed, args).values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", ["images", "weight"])
def test_float64_is_refused_in_one_line(name, device):
    inputs = make(torch.float64 if name == "weight" else torch.float32, device=device)
    inputs["images"] = inputs["images"].to(torch.float64 if name == "images" else torch.float32)
    with pytest.raises(ValueError, match=r"patch_embed: got torch.float64 .*, the Triton kernels take"):
        F.patch_embed(**inputs, impl="triton")
