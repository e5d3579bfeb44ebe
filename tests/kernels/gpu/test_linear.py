"""The Triton kernels of linear against the float64 reference, and the GELU and tiles that they share with other ops."""

from __future__ import annotations

import math

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from vitpose_fast import functional as F
from vitpose_kernels.chips import ARCHITECTURES, usual_chip
from vitpose_kernels.gpu import linear as gpu
from vitpose_kernels.launch import run

HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16
# A tile without a tail, and one of 128 + 64 rows (BLOCK_M, TAIL, BLOCK_N, BLOCK_K, warps, stages). BLOCK_K is small, so
# that the loop over K takes several steps.
TILES = [gpu.Tiles(64, 0, 64, 32, 4, 2), gpu.Tiles(128, 64, 64, 32, 8, 2)]


def draw(rows, c, f, dtype, seed=0, offset=0.0):
    """Return random (x, weight, bias, residual, norm): x has a common offset, norm is for a LayerNorm of x."""
    g = torch.Generator().manual_seed(seed)
    x = (torch.randn(*rows, c, generator=g) + offset).to(dtype)
    weight = (torch.randn(f, c, generator=g) / c**0.5).to(dtype)
    bias, residual = torch.randn(f, generator=g).to(dtype), torch.randn(*rows, f, generator=g).to(dtype)
    rstd = (x.float().var(-1, unbiased=False) + 0.1).rsqrt()
    return x, weight, bias, residual, (x.float().mean(-1), rstd, weight.float().sum(1))


def to(value, *args):
    """Move or convert a tensor or a tuple of tensors; None stays None."""
    if isinstance(value, tuple):
        return tuple(to(v, *args) for v in value)
    return value if value is None else value.to(*args)


@triton.jit
def gelu_kernel(x_ptr, value_ptr, alone_ptr, slope_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, i < n, 0.0)
    value, slope = gpu.gelu_and_slope(x)
    tl.store(value_ptr + i, value, i < n)
    tl.store(alone_ptr + i, gpu.gelu(x), i < n)
    tl.store(slope_ptr + i, slope, i < n)


def gelu_and_slope(x):
    """Return the GELU of x and its derivative from the device functions, in float64 on the CPU."""
    value, alone, slope = (torch.full_like(x, -7.0) for _ in range(3))
    gelu_kernel[(triton.cdiv(len(x), 1024),)](x, value, alone, slope, len(x), 1024)
    assert torch.equal(value.nan_to_num(), alone.nan_to_num())
    return value.cpu().double(), slope.cpu().double()


def test_gelu_is_exact_to_float32_and_its_slope_is_its_derivative(device):
    x = torch.linspace(-20, 20, 400_001)
    value, slope = gelu_and_slope(x.to(device))
    z = x.double().requires_grad_()
    true = torch.nn.functional.gelu(z)
    (derivative,) = torch.autograd.grad(true.sum(), z)
    assert ((value - true).abs() <= 1.3e-7 + true.abs() * 2**-24).all()
    assert (slope - derivative).abs().max() < 3e-7


def test_gelu_of_large_and_non_finite_values(device):
    value, slope = gelu_and_slope(torch.tensor([-math.inf, -1e30, -100.0, 100.0, 1e30, math.inf, math.nan]).to(device))
    assert value[:6].tolist() == [0, 0, 0, 100, torch.tensor(1e30).item(), math.inf]
    assert slope[:6].tolist() == [0, 0, 0, 1, 1, 1]
    assert value[6].isnan() and slope[6].isnan()


@settings(max_examples=40)
@given(
    dtype=st.sampled_from([torch.float32, HALF]),
    shape=st.sampled_from([((1,), 136), ((2, 3), 64), ((70,), 7), ((3, 67), 9), ((3, 67), 72)]),  # 201 rows: 192 + 9
    c=st.sampled_from([3, 8, 40, 64, 136]),
    tiles=st.sampled_from(TILES),
    gelu=st.booleans(),
    parts=st.sets(st.sampled_from(["bias", "residual", "norm"])),
    exact_residual=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_shape_equals_the_reference(
    device, check_error_rule, dtype, shape, c, tiles, gelu, parts, exact_residual, seed
):
    x, weight, bias, residual, norm = draw(shape[0], c, shape[1], dtype, seed, offset=1.0)
    if exact_residual:
        residual = residual.float()
    inputs = [x, weight, bias if "bias" in parts else None, gelu]
    inputs += [residual if "residual" in parts else None, norm if "norm" in parts else None]
    truth = F.linear(*(v if v is gelu else to(v, torch.float64) for v in inputs))
    plain = F.linear(*inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "choose_tiles", lambda *_: tiles)
        ours = F.linear(*(v if v is gelu else to(v, device) for v in inputs), impl="triton")
    check_error_rule(ours, plain, truth)


def has_descriptors(device):
    return device == "cpu" or torch.cuda.get_device_capability()[0] in (9, 10)


@settings(max_examples=15)
@given(
    shape=st.sampled_from([(1, 136), (70, 7), (201, 72), (500, 1), (500, 136)]),  # 500 rows: several tiles per program
    c=st.sampled_from([8, 40, 136]),
    tail=st.sampled_from([0, 64]),
    gelu=st.booleans(),
    folded=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_descriptors_give_what_pointers_give(device, check_error_rule, shape, c, tail, gelu, folded, seed):
    if not has_descriptors(device):
        pytest.skip("tensor descriptors need Hopper or data-center Blackwell")
    x, weight, bias, residual, norm = draw(shape[:1], c, shape[1], HALF, seed)
    inputs = (bias, gelu, residual, norm if folded else None)
    out = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "choose_tiles", lambda *_: gpu.Tiles(128 if tail else 64, tail, 64, 64, 8, 3))
        patch.setattr(gpu, "multiprocessors", lambda *_: 3)
        for arch, kernel in ((80, gpu.linear_kernel), (90, gpu.linear_descriptor_kernel)):
            moved = (v if v is gelu else to(v, device) for v in inputs)
            out[arch], launches = gpu.forward(x.to(device), weight.to(device), *moved, arch)
            assert [launch.kernel for launch in launches] == [kernel]
            run(out, launches)
    truth = F.linear(x.double(), weight.double(), *(v if v is gelu else to(v, torch.float64) for v in inputs))
    for ours in out.values():
        check_error_rule(ours, F.linear(x, weight, *inputs), truth)


def test_descriptors_are_for_aligned_rows_in_memory():
    x, weight = torch.zeros(6, 16, dtype=torch.float16), torch.zeros(5, 16, dtype=torch.float16)
    assert gpu.takes_descriptors(x, weight, 90) and gpu.takes_descriptors(x[::2], weight, 100)
    assert not any(gpu.takes_descriptors(x, weight, arch) for arch in (80, 86, 89, 120))
    assert not gpu.takes_descriptors(x.float(), weight.float(), 90)  # tf32x3 splits the operands in registers
    assert not gpu.takes_descriptors(x[:, 1:9], weight[:, :8], 90)  # starts at an offset of two bytes
    assert not gpu.takes_descriptors(x[:, :12].contiguous(), weight[:, :12], 90)  # rows of 24 bytes
    assert not gpu.takes_descriptors(x[:0], weight, 90)
    with FakeTensorMode():  # has no address
        assert not gpu.takes_descriptors(torch.zeros(6, 16).half(), torch.zeros(5, 16).half(), 90)


def inside(x, fill=math.nan):
    """Return a copy of `x` [R, C] as a view into a larger buffer of `fill`."""
    buffer = torch.full((x.shape[0] + 2, x.shape[1] + 16), fill, dtype=x.dtype, device=x.device)
    buffer[1:-1, 8:-8] = x
    return buffer[1:-1, 8:-8]


@pytest.mark.parametrize("arch", [80, 90])
def test_nothing_outside_is_read_or_written(device, poisoned, arch):
    if arch == 90 and not has_descriptors(device):
        pytest.skip("tensor descriptors need Hopper or data-center Blackwell")
    x, weight, bias, residual, norm = (to(v, device) for v in draw((70,), 40, 72, HALF))
    launched = {}
    for name, place in (("alone", lambda v: v), ("inside", inside)):
        before = torch.empty_like(residual)
        out, launches = gpu.forward(place(x), place(weight), bias, True, place(residual), norm, arch, before)
        canary = torch.full((out.numel() + 256,), 7.0, dtype=out.dtype, device=device)
        target = canary[128:-128].view(out.shape)
        run(target, [launch._replace(arguments={**launch.arguments, "out_ptr": target}) for launch in launches])
        assert (canary[:128] == 7).all() and (canary[-128:] == 7).all()
        assert target.isfinite().all() and before.isfinite().all()
        launched[name] = target, before
    assert all(torch.equal(a, b) for a, b in zip(*launched.values(), strict=True))


def test_any_strides(device, dtype):
    x, weight, bias, residual, _ = (to(v, device) for v in draw((6, 5), 40, 72, dtype))
    expected = F.linear(x, weight, bias, residual=residual, impl="triton")
    turned = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (x, residual)]
    every_other = [t.repeat_interleave(2, 1)[:, ::2] for t in (x, residual)]
    columns = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (x, residual)]
    for a, b in (turned, every_other, columns, (x, residual.transpose(0, 1).contiguous().transpose(0, 1))):
        assert torch.equal(F.linear(a, weight, bias, residual=b, impl="triton"), expected)
    assert torch.equal(F.linear(x, weight.T.contiguous().T, bias, residual=residual, impl="triton"), expected)


def test_empty_inputs(device):
    x, weight, bias, *_ = (to(v, device) for v in draw((2, 3), 8, 5, torch.float32))
    assert F.linear(x[:0], weight, bias, impl="triton").shape == (0, 3, 5)
    assert F.linear(x, weight[:0], bias[:0], impl="triton").shape == (2, 3, 0)


def test_a_nan_row_affects_no_other_row(device):
    x, weight, bias, residual, norm = (to(v, device) for v in draw((9,), 40, 72, torch.float32))
    good = F.linear(x, weight, bias, True, residual, norm, impl="triton")
    x[4, 7] = math.nan
    broken = F.linear(x, weight, bias, True, residual, norm, impl="triton")
    others = [i for i in range(9) if i != 4]
    assert broken[4].isnan().all() and torch.equal(broken[others], good[others])


def test_folded_layer_norm_survives_outliers_as_well_as_plain_ops(device, check_error_rule):
    """With a mean of 8 standard deviations and two channels of 200, the mean term cancels almost the whole product."""
    g = torch.Generator().manual_seed(0)
    x = (torch.randn(40, 64, generator=g) + 8 + 200.0 * (torch.arange(64) < 2)).to(HALF)
    weight, bias = (torch.randn(48, 64, generator=g) / 8).to(HALF), torch.randn(48, generator=g).to(HALF)
    truth = torch.nn.functional.linear(
        torch.nn.functional.layer_norm(x.double(), (64,)), weight.double(), bias.double()
    )
    plain = torch.nn.functional.linear(torch.nn.functional.layer_norm(x, (64,)), weight, bias)
    exact = x.float()
    rstd = (exact.var(-1, unbiased=False) + 1e-5).rsqrt()
    norm = (exact.mean(-1), rstd, weight.float().sum(1))
    ours = F.linear(*(to(v, device) for v in (x, weight, bias)), norm=to(norm, device), impl="triton")
    check_error_rule(ours, plain, truth)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_tiles_fit_into_shared_memory_and_waste_no_row_of_a_192_token_sample(arch):
    for dtype in (torch.float32, torch.bfloat16):
        for sections, rows, columns in ((1, 12288, 768), (64, 192, 768), (64, 192, 3072), (6, 320, 5120), (1, 3, 5)):
            tiles = gpu.choose_tiles(sections, rows, columns, dtype, arch, 132)
            loaded = (tiles.BLOCK_M + tiles.TAIL + tiles.BLOCK_N) * tiles.BLOCK_K * dtype.itemsize
            assert loaded * tiles.num_stages <= usual_chip(arch).shared_memory
            assert rows != 192 or rows % (tiles.BLOCK_M + tiles.TAIL) == 0


def test_tiles_follow_the_last_wave():
    """12288 x 768 on 132 multiprocessors: 4.4 waves of 128 x 128 tiles (so 5), or 2.9 of 192 x 128 tiles (so 3)."""
    tiles = gpu.choose_tiles(1, 64 * 192, 768, torch.bfloat16, 90, 132)
    assert (tiles.BLOCK_M, tiles.TAIL, tiles.BLOCK_N) == (128, 64, 128)
    tiles = gpu.choose_tiles(1, 192, 768, torch.bfloat16, 90, 132)  # one image: small tiles, for more programs
    assert (tiles.BLOCK_M, tiles.TAIL, tiles.BLOCK_N) == (64, 0, 64)


@pytest.mark.cuda
def test_opcheck():
    x, weight, bias, residual, norm = (to(v, "cuda") for v in draw((2, 3), 8, 5, torch.float32))
    args = (x, weight, bias, True, residual, *norm, True)
    assert set(torch.library.opcheck(torch.ops.vitpose_fast.linear, args).values()) == {"SUCCESS"}


@pytest.mark.cuda
def test_compiles_in_one_graph():
    inputs = [to(v, "cuda") for v in draw((2, 200), 64, 72, torch.bfloat16)][:3]
    compiled = torch.compile(lambda *a: F.linear(*a, gelu=True), fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), F.linear(*inputs, gelu=True))
