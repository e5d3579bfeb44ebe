"""The Triton kernel of deconv against the float64 reference: values, invariants, and memory safety."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vitpose_fast as vp
from vitpose_fast import functional as F
from vitpose_kernels.chips import ARCHITECTURES
from vitpose_kernels.deconv import pack_deconv
from vitpose_kernels.gpu import deconv as gpu
from vitpose_kernels.launch import run

HALVES = [torch.float16, torch.bfloat16] if torch.cuda.is_available() else [torch.float16]


def make(dtype, batch=2, grid=(3, 2), ci=16, co=16, k=None, seed=0):
    """Return random inputs of deconv by name, on the CPU."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g).to(dtype)

    x, weight, bias = draw(batch, grid[0] * grid[1], ci), draw(4, 4, ci, co) / (4 * ci) ** 0.5, draw(co)
    predictor = None if k is None else (draw(k, co) / co**0.5, draw(k))
    return dict(x=x, weight=weight, bias=bias, grid=grid, predictor=predictor)


def moved(inputs, *to):
    """Return the inputs with every tensor moved or converted."""

    def move(value):
        return value.to(*to) if isinstance(value, torch.Tensor) else value

    predictor = inputs["predictor"]
    return {n: move(v) for n, v in inputs.items()} | {"predictor": predictor and tuple(map(move, predictor))}


def compare(inputs, device, check, tiles=None):
    truth = F.deconv(**moved(inputs, torch.float64))
    plain = F.deconv(**moved(inputs, device), impl="reference")
    if tiles is None:
        ours = F.deconv(**moved(inputs, device), impl="triton")
    else:
        x, weight, bias, grid, predictor = moved(inputs, device).values()
        ours = run(*gpu.forward(x, weight, bias, grid, *(predictor or (None, None)), 80, tiles))
    check(ours, plain, truth)
    assert ours.is_contiguous()


@settings(max_examples=25)
@given(
    dtype=st.sampled_from([torch.float32, *HALVES]),
    batch=st.integers(0, 3),
    grid=st.sampled_from([(1, 1), (1, 5), (3, 1), (5, 3), (4, 7), (9, 8)]),  # the last one has more than one tile
    ci=st.sampled_from([1, 16, 20, 70]),  # 20 and 70: the last block of channels is partial
    co=st.sampled_from([1, 16, 24, 65]),
    k=st.sampled_from([None, 1, 17, 33]),  # 33: two blocks of keypoints in 16-bit dtypes
    seed=st.integers(0, 2**16),
)
def test_any_shape_equals_the_reference(device, check_error_rule, dtype, batch, grid, ci, co, k, seed):
    compare(make(dtype, batch, grid, ci, co, k, seed), device, check_error_rule)


@pytest.mark.parametrize("k", [None, 17, 133])
def test_all_channels_of_the_shipped_decoder(k, dtype, device, check_error_rule):
    compare(make(dtype, batch=1, grid=(3, 2), ci=48, co=256, k=k), device, check_error_rule)


@pytest.mark.parametrize("k", [None, 17])
def test_tiles_of_a_big_batch(k, dtype, device, check_error_rule, monkeypatch):
    monkeypatch.setattr(gpu, "_FEW_PROGRAMS", 0)
    compare(make(dtype, batch=3, grid=(7, 9), ci=40, co=24, k=k), device, check_error_rule)


def offered(predictor, channels):
    """Return all tiles that are offered for 16-bit maps of 16 x 12 tokens, in batches of 1 to 64."""
    calls = [(batch * 192, channels, predictor) for batch in (1, 2, 8, 64)]
    return sorted({t for arch in (80, 90, 100) for call in calls for t in gpu.candidates(*call, HALVES[0], arch)})


@settings(max_examples=12, deadline=None)
@given(
    data=st.data(),
    dtype=st.sampled_from(HALVES),
    grid=st.sampled_from([(1, 5), (9, 8), (13, 11)]),  # 143 tokens: two tiles of 128
    ci=st.sampled_from([20, 70]),
    co=st.sampled_from([24, 65, 256]),
    k=st.sampled_from([None, 5, 33]),
    seed=st.integers(0, 2**16),
)
def test_every_candidate_equals_the_reference(device, check_error_rule, data, dtype, grid, ci, co, k, seed):
    tiles = data.draw(st.sampled_from(offered(k is not None, co)))
    compare(make(dtype, 1, grid, ci, co, k, seed), device, check_error_rule, tiles)


def test_two_programs_of_32_rows_share_a_multiprocessor_of_hopper():
    """8 warps x 32 threads x 128 registers are half of 65536. Larger tiles would spill at 128."""
    x, weight, bias, grid, predictor = moved(make(torch.float32, co=256, k=17), torch.bfloat16).values()
    limits = {}
    for rows in (32, 64):
        tiles = gpu.Tiles(rows, 256, 64, 8, 3)
        for arch in (80, 90):
            _, [launch] = gpu.forward(x, weight, bias, grid, *predictor, arch, tiles)
            limits[rows, arch] = launch.maxnreg
    assert limits == {(32, 80): None, (32, 90): 128, (64, 80): None, (64, 90): None}


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_candidates_start_with_the_choice_and_have_64_rows_for_small_batches(arch, dtype):
    for batch in (1, 2, 8, 64):
        for call in ((192 * batch, 256, False), (768 * batch, 256, True)):
            found = gpu.candidates(*call, dtype, arch)
            assert found[0] == gpu.choose_tiles(*call, dtype, arch)
            assert len(set(found)) == len(found) <= 6
            assert all(gpu.Tiles(*map(int, tiles)) == tiles for tiles in found)
    if arch in (80, 90, 100) and dtype == torch.bfloat16:
        assert {32, 64} <= {tiles.BLOCK_M for tiles in gpu.candidates(768, 256, True, dtype, arch)}


def test_a_map_of_one_pixel_uses_one_tap_per_phase(dtype, device, check_error_rule):
    inputs = make(dtype, grid=(1, 1))

    def taps(to):
        x, weight, bias = (inputs[n].to(to) for n in ("x", "weight", "bias"))
        return torch.stack([x[:, 0] @ weight[phase, 0] + bias for phase in range(4)], 1).relu()

    check_error_rule(F.deconv(**moved(inputs, device), impl="triton"), taps(dtype), taps(torch.float64))


@torch.no_grad()
@pytest.mark.parametrize("grid", [(4, 3), (5, 5)])
def test_equals_the_head_of_the_model(grid, dtype, device, check_error_rule, scramble):
    head = scramble(vp.create_model("vitpose-tiny").heads["coco"]).eval()
    x = torch.randn(2, 192, *grid, generator=torch.Generator().manual_seed(0)).to(dtype)
    first, norm, _, last, last_norm, _ = head.deconv_layers
    packed = [
        [t.to(device, dtype) for t in pack_deconv(d.weight, b.weight, b.bias, b.running_mean, b.running_var, b.eps)]
        for d, b in ((first, norm), (last, last_norm))
    ]
    predictor = tuple(t.to(device, dtype) for t in (head.final_layer.weight[:, :, 0, 0], head.final_layer.bias))
    tokens = F.deconv(x.to(device).flatten(2).transpose(1, 2), *packed[0], grid, impl="triton")
    heatmaps = F.deconv(tokens, *packed[1], (2 * grid[0], 2 * grid[1]), predictor, impl="triton")
    truth = head.double()(x.double())
    check_error_rule(heatmaps.cpu(), head.to(dtype)(x), truth)


@pytest.mark.parametrize("k", [None, 5])
def test_strided_tokens_with_poison_between_them(k, dtype, device, poisoned):
    inputs = moved(make(dtype, batch=2, grid=(3, 3), ci=24, k=k), device)
    around = torch.full((4, 20, 40), float("nan"), dtype=dtype, device=device)
    strided = around[1:3, 1:19:2, 3:27]
    strided.copy_(inputs["x"])
    ours = F.deconv(**inputs | {"x": strided}, impl="triton")
    assert torch.equal(ours, F.deconv(**inputs, impl="triton")) and ours.isfinite().all()


@pytest.mark.parametrize("k", [None, 5])
def test_writes_nothing_outside_its_output(k, dtype, device):
    inputs = moved(make(dtype, batch=1, grid=(3, 5), co=20, k=k), device)
    (expected, [launch]) = gpu.forward(*list(inputs.values())[:4], *(inputs["predictor"] or (None, None)), 80)
    guarded = torch.full((expected.numel() + 128,), 77.0, dtype=dtype, device=device)
    run(None, [launch, launch._replace(arguments=launch.arguments | {"out_ptr": guarded[64:-64]})])
    assert torch.equal(guarded[64:-64].view_as(expected), expected)
    assert (guarded[:64] == 77).all() and (guarded[-64:] == 77).all()


def test_reads_maps_as_tokens(dtype, device):
    """Features [B, C, h, w] viewed as tokens, whose channels are not contiguous."""
    inputs = moved(make(dtype), device)
    maps = inputs["x"].transpose(1, 2).contiguous()
    ours = F.deconv(**inputs | {"x": maps.transpose(1, 2)}, impl="triton")
    assert torch.equal(ours, F.deconv(**inputs, impl="triton"))


@pytest.mark.parametrize("k", [None, 5])
def test_batch_permutes(k, dtype, device):
    inputs, order = moved(make(dtype, batch=5, grid=(4, 5), k=k), device), [3, 0, 4, 4, 1]
    ours = F.deconv(**inputs | {"x": inputs["x"][order]}, impl="triton")
    torch.testing.assert_close(ours, F.deconv(**inputs, impl="triton")[order])


@pytest.mark.parametrize("k", [None, 5])
def test_a_nan_reaches_its_16_pixels_and_no_other(k, dtype, device):
    inputs = moved(make(dtype, batch=3, grid=(4, 4), k=k), device)
    inputs["x"][1, 5, 3] = float("nan")  # row 1, column 1: affects rows and columns 1 to 4 of the doubled grid
    broken = F.deconv(**inputs, impl="triton").isnan()
    broken = broken.all(1)[1] if k else broken.all(-1)[1].unflatten(0, (8, 8))
    expected = torch.zeros(8, 8, dtype=torch.bool, device=device)
    expected[1:5, 1:5] = True
    assert torch.equal(broken, expected)
    assert F.deconv(**inputs, impl="triton")[[0, 2]].isfinite().all()


@pytest.mark.cuda
@pytest.mark.parametrize("k", [None, 5])
def test_opcheck(k, device):
    inputs = moved(make(torch.float32, k=k), device)
    args = (*list(inputs.values())[:3], [3, 2], *(inputs["predictor"] or (None, None)), True)
    assert set(torch.library.opcheck(torch.ops.vitpose_fast.deconv, args).values()) == {"SUCCESS"}


def test_refuses_in_one_line(device):
    inputs = moved(make(torch.float32, co=257, k=2), device)
    with pytest.raises(ValueError, match="deconv: got 257 channels before the predictor, the Triton kernel takes 256"):
        F.deconv(**inputs, impl="triton")
    assert F.deconv(**inputs | {"predictor": None}, impl="triton").shape == (2, 24, 257)
    with pytest.raises(ValueError, match=r"deconv: got torch.float64 .*, the Triton kernels take"):
        F.deconv(**moved(inputs, torch.float64), impl="triton")
