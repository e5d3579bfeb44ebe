"""Every tile that a tuner may choose for linear: its results, the limits of the chips, and its launches."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitpose_fast import functional as F
from vitpose_kernels.chips import ARCHITECTURES, usual_chip
from vitpose_kernels.gpu import linear as gpu
from vitpose_kernels.gpu.tiles import Tiles, candidates, choose_tiles
from vitpose_kernels.launch import run
from vitpose_kernels.sizes import MODELS

HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16


def layers(width):
    """Yield (columns, inputs, gelu) of the linear layers of a block."""
    yield from ((3 * width, width, False), (width, width, False), (4 * width, width, True), (width, 4 * width, False))


def offered(dtype, archs, gelu):
    """Return all tiles that are offered for a layer of a model with or without GELU, at batch 64, 8 and 1."""
    calls = [(batch * 192, *c) for m in MODELS.values() for batch in (64, 8, 1) for c in layers(m.width)]
    return sorted({t for arch in archs for *shape, g in calls for t in candidates(*shape, dtype, arch, g) if g == gelu})


def architectures(device):
    """Return the architectures whose kernels run here: all that differ, or that of the GPU."""
    return (80, 90, 100) if device == "cpu" else (10 * torch.cuda.get_device_capability()[0],)


def draw(m, c, f, dtype, seed=0):
    """Return random x [m, c], weight [f, c], bias, residual, and the norm that a LayerNorm of x would need."""
    g = torch.Generator().manual_seed(seed)
    x = (torch.randn(m, c, generator=g) + 1).to(dtype)
    weight = (torch.randn(f, c, generator=g) / c**0.5).to(dtype)
    bias, residual = torch.randn(f, generator=g).to(dtype), torch.randn(m, f, generator=g).to(dtype)
    norm = (x.float().mean(-1), (x.float().var(-1, unbiased=False) + 0.1).rsqrt(), weight.float().sum(1))
    return x, weight, bias, residual, norm


def to(value, *args):
    """Move or convert a tensor or a tuple of tensors; everything else stays as it is."""
    if isinstance(value, tuple):
        return tuple(to(v, *args) for v in value)
    return value.to(*args) if isinstance(value, torch.Tensor) else value


@settings(max_examples=30, deadline=None)
@given(
    data=st.data(),
    dtype=st.sampled_from([torch.float32, HALF]),
    m=st.sampled_from([1, 70, 201]),
    f=st.sampled_from([7, 72, 264]),  # 264: two tiles of 256
    c=st.sampled_from([8, 40, 200, 256]),  # 200: slices of different lengths, and empty ones
    gelu=st.booleans(),
    parts=st.sets(st.sampled_from(["bias", "residual", "norm", "before"])),
    exact_residual=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_every_candidate_equals_the_reference(
    device, check_error_rule, data, dtype, m, f, c, gelu, parts, exact_residual, seed
):
    arch = data.draw(st.sampled_from(architectures(device)))
    tiles = data.draw(st.sampled_from(offered(dtype, (arch,), gelu)))
    x, weight, bias, residual, norm = draw(m, c, f, dtype, seed)
    residual = residual.float() if exact_residual else residual
    inputs = [x, weight, bias if "bias" in parts else None, gelu]
    inputs += [residual if "residual" in parts else None, norm if "norm" in parts else None]
    before = torch.full((m, f), math.nan, dtype=dtype, device=device) if "before" in parts else None
    ours = run(*gpu.forward(*(to(v, device) for v in inputs), arch, before, tiles))
    truth, plain = F.linear(*(to(v, torch.float64) for v in inputs)), F.linear(*inputs)
    check_error_rule(ours, plain, truth)
    if before is not None:
        inputs[3:5] = False, None
        truth, plain = F.linear(*(to(v, torch.float64) for v in inputs)), F.linear(*inputs)
        check_error_rule(before, plain, truth)


@pytest.mark.parametrize("tiles", [Tiles(64, 0, 64, 32, 4, 3, 3), Tiles(128, 0, 256, 64, 8, 3)], ids=str)
@pytest.mark.parametrize("arch", [80, 90])
def test_nothing_outside_is_read_or_written(device, poisoned, arch, tiles):
    if arch == 90 and device == "cuda" and 90 not in architectures(device):
        pytest.skip("tensor descriptors need Hopper or data-center Blackwell")
    x, weight, bias, residual, norm = (to(v, device) for v in draw(70, 200, 72, HALF))
    x, weight, residual = (torch.full((t.shape[0] + 2, t.shape[1] + 16), math.nan).to(t) for t in (x, weight, residual))
    inside = [t[1:-1, 8:-8] for t in (x, weight, residual)]
    for view, value in zip(inside, draw(70, 200, 72, HALF)[:2] + (draw(70, 200, 72, HALF)[3],), strict=True):
        view.copy_(value)
    x, weight, residual = inside
    out, launches = gpu.forward(x, weight, bias, True, residual, norm, arch, None, tiles)
    assert len(launches) == (2 if tiles.split > 1 else 1)
    guarded = {}  # every output, and its buffer with margins of sevens
    for launch in launches:
        target = launch.arguments["out_ptr"]
        guarded[target] = torch.full((target.numel() + 256,), 7.0, dtype=target.dtype, device=device)
    for i, launch in enumerate(launches):
        moved = {
            n: guarded[v][128:-128].view(v.shape)
            for n, v in launch.arguments.items()
            if v is not None and n in ("out_ptr", "slices_ptr")
        }
        launches[i] = launch._replace(arguments=launch.arguments | moved)
    run(out, launches)
    for buffer in guarded.values():
        assert (buffer[:128] == 7).all() and (buffer[-128:] == 7).all() and buffer[128:-128].isfinite().all()
    expected = run(*gpu.forward(x.contiguous(), weight.contiguous(), bias, True, residual, norm, arch, None, tiles))
    assert torch.equal(guarded[out][128:-128].view(out.shape), expected)


@pytest.mark.parametrize("arch", [80, 90])
def test_launches_of_a_split_say_what_they_cost(arch):
    m, c, f = 70, 256, 72
    x, weight, bias, residual, norm = draw(m, c, f, torch.float16)
    _, (product, total) = gpu.forward(x, weight, bias, False, residual, norm, arch, None, Tiles(64, 0, 64, 64, 4, 3, 4))
    slices = 4 * m * f * 4
    assert (product.flops, total.flops) == (2 * m * c * f, 0)
    assert product.bytes == 2 * (m * c + f * c) + slices
    assert total.bytes == slices + 2 * f + 4 * (2 * m + f) + 2 * 2 * m * f
    assert product.arguments["bias_ptr"] is product.arguments["residual_ptr"] is product.arguments["mean_ptr"] is None
    assert product.grid == (2 * 2 * 4,) and total.grid == (9,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_candidates_are_few_distinct_plain_and_fit_the_chip(arch, dtype):
    for width in (m.width for m in MODELS.values()):
        for batch in (64, 8, 1):
            for columns, inputs, gelu in layers(width):
                found = candidates(batch * 192, columns, inputs, dtype, arch, gelu)
                assert found[0] == choose_tiles(1, batch * 192, columns, dtype, arch, usual_chip(arch).multiprocessors)
                assert len(set(found)) == len(found) <= 8
                for t in found:
                    assert Tiles(*json.loads(json.dumps(t))) == t and all(type(n) is int for n in t)
                    loaded = (t.BLOCK_M + t.TAIL + t.BLOCK_N) * t.BLOCK_K * dtype.itemsize * t.num_stages
                    assert loaded * t.residents <= usual_chip(arch).shared_memory
                    assert inputs % (t.split * t.BLOCK_K) == 0 or t.split == 1


def test_small_grids_are_split_and_large_ones_have_wide_tiles():
    """fc2 of B at batch 1 is 36 tiles of 64 x 64 for 132 multiprocessors, each with 48 steps."""
    one = candidates(192, 768, 3072, torch.bfloat16, 90)
    assert Tiles(64, 0, 64, 64, 4, 4, split=3) in one  # 108 programs of 16 steps
    many = candidates(64 * 192, 768, 3072, torch.bfloat16, 90)
    assert {t.split for t in many} == {1} and Tiles(128, 0, 256, 64, 8, 3) in many
    assert candidates(192, 768, 3072, torch.bfloat16, 90, processors=36)[1:] != one[1:]


@pytest.mark.cuda
def test_a_split_is_deterministic():
    x, weight, bias, residual, norm = (to(v, "cuda") for v in draw(192, 3072, 768, torch.bfloat16))
    arch = architectures("cuda")[0]
    tiles = next(t for t in candidates(192, 768, 3072, torch.bfloat16, arch) if t.split > 1)
    first, again = (run(*gpu.forward(x, weight, bias, False, residual, norm, arch, None, tiles)) for _ in range(2))
    assert torch.equal(first, again)
