"""The Triton kernel of heatmap_decode: msra and argmax equal the reference bit for bit, udp is close to float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitpose_fast import functional as F
from vitpose_kernels.heatmap_decode import _log_neighborhood, _newton, flip_permutation, merge_flipped

CODECS = ("udp", "msra", "argmax")


def bumps(batch, keypoints, size, seed, width=(1.5, 3.0), noise=0.02):
    """Maps [batch, keypoints, *size] with one circular Gaussian each, at a sub-pixel center, plus a little noise."""
    g = torch.Generator().manual_seed(seed)
    y, x = (torch.arange(float(n)) for n in size)
    cy, cx, wide, high = torch.rand(4, batch, keypoints, 1, 1, generator=g)
    wide = width[0] + (width[1] - width[0]) * wide
    square = (y[:, None] - cy * (size[0] - 1)).square() + (x - cx * (size[1] - 1)).square()
    maps = (0.3 + 0.7 * high) * torch.exp(-square / (2 * wide.square()))
    return maps + noise * torch.rand(maps.shape, generator=g)


def lay_out(x, layout):
    """Return the same values with other strides; "slice" is a view into a buffer of NaN."""
    if layout == "channels last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "slice":
        b, k, h, w = x.shape
        wide = x.new_full((b + 1, k + 2, h + 3, w + 5), math.nan)
        return wide[1:, 1:-1, 2:-1, 3:-2].copy_(x)
    return x


def on(device, **options):
    """Return the options with tensors moved to a device."""
    return {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in options.items()}


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.sampled_from([(16, 12), (33, 17), (1, 1), (1, 7), (40, 30)]),  # the last one takes several search steps
    keypoints=st.integers(1, 3),
    codec=st.sampled_from(["msra", "argmax"]),
    layout=st.sampled_from(["contiguous", "channels last", "slice"]),
    flip=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_msra_and_argmax_give_the_bits_of_the_reference(device, dtype, size, keypoints, codec, layout, flip, seed):
    """16-bit maps have many ties for the maximum; the first one counts."""
    g = torch.Generator().manual_seed(seed)
    maps, other = torch.rand(2, 2, keypoints, *size, generator=g).to(dtype) - 0.25
    options = dict(codec=codec, flip_pairs=[(0, 1)] if keypoints > 1 else None)
    expected = F.heatmap_decode(maps, flipped=other if flip else None, **options)
    maps, other = (lay_out(x.to(device), layout) for x in (maps, other))
    ours = F.heatmap_decode(maps, flipped=other if flip else None, impl="triton", **options)
    assert torch.equal(ours[0].cpu(), expected[0]) and torch.equal(ours[1].cpu(), expected[1])


@pytest.mark.parametrize(
    ("width", "noise", "limit"),
    [((1.5, 3.0), 0.02, 1e-4), ((10.0, 20.0), 0.0, 2e-3)],
    ids=["as in practice", "flat"],
)
def test_udp_is_as_exact_as_the_reference_in_float32(device, check_error_rule, width, noise, limit):
    maps = bumps(1, 50, (16, 12), 1, width, noise)
    truth, _ = F.heatmap_decode(maps.double())
    plain, _ = F.heatmap_decode(maps)
    ours, _ = F.heatmap_decode(maps.to(device), impl="triton")
    check_error_rule(ours, plain, truth)
    assert (ours.cpu() - truth).abs().max() < limit


def test_image_coordinates_and_covariances(device, check_error_rule):
    maps = bumps(3, 8, (24, 18), 2)
    options = dict(
        covariance=True,
        centers=torch.tensor([[110.5, 70.25], [960, 540], [5.1, 3.3]]),
        scales=torch.tensor([[250, 1000 / 3], [60, 80], [1500.7, 2000.1]]),
    )
    for codec in CODECS:
        truth = F.heatmap_decode(maps.double(), codec, **options)
        plain = F.heatmap_decode(maps, codec, **options)
        ours = F.heatmap_decode(maps.to(device), codec, impl="triton", **on(device, **options))
        check_error_rule(ours[0], plain[0], truth[0])
        valid = truth[2].isfinite()
        assert valid.sum() > 70 and torch.equal(ours[2].cpu().isfinite(), valid)
        check_error_rule(ours[2].cpu()[valid], plain[2][valid], truth[2][valid])


@settings(max_examples=20)
@given(
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    blur_kernel=st.sampled_from([1, 3, 5, 7, 11, 17]),  # below and above 16 taps, with and without OpenCV's tables
    layout=st.sampled_from(["contiguous", "channels last", "slice"]),
    flip=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_udp_on_tiny_maps_is_as_exact_as_float32_logarithms_allow(device, h, w, blur_kernel, layout, flip, seed):
    """A nearly singular Hessian amplifies the rounding errors of the logarithms without limit.

    The error is therefore bounded by how far noise on the log map moves the keypoint.
    """
    g = torch.Generator().manual_seed(seed)
    maps, other = torch.rand(2, 2, 2, h, w, generator=g) + 0.01
    merged = merge_flipped(maps, other, [1, 0], shift=False) if flip else maps
    truth = F.heatmap_decode(merged.double(), blur_kernel=blur_kernel)[0]
    x, y = F.heatmap_decode(merged, "argmax")[0].long().view(-1, 2).T
    log = _log_neighborhood(merged.double().view(-1, h, w), x, y, blur_kernel)
    rows, columns = ((at[:, None] + torch.arange(-1, 2)).clamp(0, n - 1) for at, n in ((y, h), (x, w)))
    noise = 2**-15 * (2 * torch.rand(30, 4, h, w, generator=g) - 1)  # for the whole log map, whose border is replicated
    noise = noise[:, torch.arange(4)[:, None, None], rows[:, :, None], columns[:, None, :]]
    spread = torch.stack([_newton(log + n)[0] - _newton(log)[0] for n in noise]).abs().amax(0).view_as(truth)

    maps, other = (lay_out(m.to(device), layout) for m in (maps, other))
    options = dict(blur_kernel=blur_kernel, flipped=other if flip else None, flip_pairs=[(0, 1)])
    ours, scores = F.heatmap_decode(maps, impl="triton", **options)
    assert ours.isfinite().all() and torch.equal(scores.cpu(), merged.amax((2, 3)))
    well_posed = spread.amax(-1) < 0.5
    assert ((ours.cpu() - truth).abs() <= spread / 16 + 1e-5)[well_posed].all()  # 2**-15 / 16: a few rounding steps


@pytest.mark.parametrize("codec", CODECS)
def test_scores_are_the_first_maximum_at_any_position(device, dtype, codec):
    h, w = 70, 50
    maps = torch.rand(1, 8, h * w, generator=torch.Generator().manual_seed(3)).to(dtype)
    peaks = torch.tensor([0, w - 1, w, 1023, 1024, 2222, h * w - w, h * w - 1])
    later = (peaks + 1024).clamp(max=h * w - 1)  # an equal maximum in the same lane, one step later
    maps[0, torch.arange(8), peaks] = maps[0, torch.arange(8), later] = 2
    points, scores = F.heatmap_decode(maps.view(1, 8, h, w).to(device), codec, impl="triton")
    assert torch.equal(scores.cpu(), torch.full((1, 8), 2.0))
    if codec == "argmax":
        assert torch.equal(points[0].cpu(), torch.stack([peaks % w, peaks // w], -1).float())


def odd_maps():
    """Edge cases as maps [1, K, 9, 7]."""
    h, w = 9, 7
    flat = torch.full((h, w), 0.25)
    single, spike, both, hole, last = (torch.zeros(h, w) for _ in range(5))
    single[4, 3] = 1
    spike[4, 3] = math.inf
    both[4, 3], both[5, 4] = math.inf, -math.inf
    hole[4, 3], hole[0, 0] = 1, math.nan
    last[2, 4] = last[5, 1] = 1
    y, x = torch.arange(float(h))[:, None], torch.arange(float(w))
    border = torch.exp(-(x.square() + (y - 3.3).square()) / 8)
    some = [0 * flat, -flat, -0.0 * flat, flat - math.inf, flat * math.nan, flat, 1000 * flat, 1e-6 * flat]
    faint = 0.028 * single  # after the blur 0.0011, with less than 0.001 beside it
    return torch.stack([*some, single, faint, spike, both, hole, last, border])[None]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("boxes", [{}, dict(centers=torch.tensor([[50.0, 60]]), scales=torch.tensor([[30.0, 40]]))])
def test_odd_maps_as_in_the_reference(device, codec, boxes):
    """No positive value, NaN, infinities, flat, a single pixel, two maxima, a faint one, a maximum on the border."""
    expected = F.heatmap_decode(odd_maps(), codec, covariance=True, **boxes)
    ours = F.heatmap_decode(odd_maps().to(device), codec, covariance=True, impl="triton", **on(device, **boxes))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=2e-3, equal_nan=True)
    assert boxes or ours[0][0, 5:8].abs().max() == 0  # flat: exactly the first pixel


def test_a_singular_hessian_gives_no_refinement(device):
    """The epsilon of the official code cancels log differences of pixels one and two rounding steps below 0.5."""
    one = torch.nextafter(torch.tensor(0.5), torch.tensor(0.0)).item()
    two = 2 * one - 0.5
    maps = torch.tensor([[two, one, one], [one, 0.5, one], [one, one, two]], device=device)[None, None]
    assert F.heatmap_decode(maps, blur_kernel=1, impl="triton")[0].tolist() == [[[1, 1]]]


def test_nan_changes_no_other_bit(device):
    maps = bumps(2, 3, (16, 12), 4)
    dirty, other = maps.clone(), maps.flip(-1)[:, [1, 0, 2]].clone()
    dirty[0, 2, 0, 0] = other[1, 0, 15, 0] = math.nan  # channel 0 of the mirrored image is keypoint 1
    options = dict(flip_pairs=[(0, 1)], covariance=True, impl="triton", blur_kernel=3)  # far from the maximum
    clean = F.heatmap_decode(maps.to(device), flipped=maps.flip(-1)[:, [1, 0, 2]].to(device), **options)
    broken = F.heatmap_decode(dirty.to(device), flipped=other.to(device), **options)
    hit = torch.zeros(2, 3, dtype=torch.bool, device=device)
    hit[0, 2] = hit[1, 1] = True
    for a, b in zip(clean, broken, strict=True):
        assert b[hit].isnan().all() and torch.equal(a[~hit], b[~hit])


@pytest.mark.parametrize("codec", CODECS)
def test_permuting_keypoints_permutes_the_outputs(device, codec):
    maps, order = bumps(1, 4, (16, 12), 5).to(device), [2, 0, 3, 1]
    for a, b in zip(*(F.heatmap_decode(m, codec, covariance=True, impl="triton") for m in (maps, maps[:, order]))):
        assert torch.equal(a[:, order], b)


@pytest.mark.parametrize("codec", ["udp", "argmax"])
def test_decode_commutes_with_flip(device, codec):
    maps = bumps(1, 4, (20, 15), 6, noise=0).to(device)
    points, scores = F.heatmap_decode(maps, codec, impl="triton")
    mirrored, same = F.heatmap_decode(maps.flip(-1), codec, impl="triton")
    torch.testing.assert_close(
        mirrored, points * points.new_tensor([-1, 1]) + points.new_tensor([14, 0]), atol=1e-4, rtol=0
    )
    assert torch.equal(scores, same)


@pytest.mark.parametrize("codec", ["udp", "argmax"])
def test_merging_the_own_mirror_image_changes_nothing(device, codec):
    maps = bumps(1, 5, (16, 12), 7).to(device)
    pairs = [(1, 2), (3, 4)]
    twin = maps.flip(-1)[:, flip_permutation(5, pairs)]
    merged = F.heatmap_decode(maps, codec, flipped=twin, flip_pairs=pairs, impl="triton")
    alone = F.heatmap_decode(maps, codec, impl="triton")
    torch.testing.assert_close(merged[0], alone[0], rtol=0, atol=1e-4)
    assert torch.equal(merged[1], alone[1])


def test_whole_body_flip(device):
    maps, other = torch.rand(2, 1, 133, 4, 3, generator=torch.Generator().manual_seed(8))
    pairs = [(i, i + 66) for i in range(66)]
    expected = F.heatmap_decode(maps, "argmax", flipped=other, flip_pairs=pairs)
    ours = F.heatmap_decode(maps.to(device), "argmax", flipped=other.to(device), flip_pairs=pairs, impl="triton")
    assert torch.equal(ours[0].cpu(), expected[0]) and torch.equal(ours[1].cpu(), expected[1])


def test_decode_of_the_rendered_target_gives_back_the_keypoint(device):
    g = torch.Generator().manual_seed(9)
    points = 24 + torch.rand(1, 6, 2, generator=g) * torch.tensor([143.0, 207.0])  # the blur stays inside 64 x 48
    target, _ = F.heatmap_target(points.to(device), torch.ones(1, 6, device=device), impl="triton")
    found, _ = F.heatmap_decode(target, impl="triton")
    cells = points * torch.tensor([47 / 191, 63 / 255])
    torch.testing.assert_close(found.cpu(), cells, rtol=0, atol=0.002)


def test_half_precision_maps_decode_as_their_float32_copies(device, dtype):
    maps = bumps(1, 4, (16, 12), 10).to(device, dtype)
    ours, copies = (F.heatmap_decode(x, covariance=True, impl="triton") for x in (maps, maps.float()))
    for a, b in zip(ours, copies, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_writes_every_output(device, poisoned):
    maps = bumps(2, 3, (16, 12), 11)
    expected = F.heatmap_decode(maps, covariance=True)
    for a, b in zip(F.heatmap_decode(lay_out(maps.to(device), "slice"), covariance=True, impl="triton"), expected):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-3, atol=1e-4, equal_nan=True)


def test_empty_batch(device):
    ours = F.heatmap_decode(torch.zeros(0, 3, 8, 6, device=device), covariance=True, impl="triton")
    assert [x.shape for x in ours] == [(0, 3, 2), (0, 3), (0, 3, 2, 2)]


def test_float64_is_refused_in_one_line(device):
    with pytest.raises(ValueError, match=r"heatmap_decode: got torch.float64 .*, the Triton kernels take"):
        F.heatmap_decode(torch.zeros(1, 1, 8, 6, device=device).double(), impl="triton")


@pytest.mark.cuda
def test_captured_graph_replays_on_new_maps():
    first, second = (bumps(2, 5, (64, 48), seed).cuda() for seed in (12, 13))
    boxes = torch.rand(2, 2).cuda() * 100 + 50
    options = dict(flip_pairs=[(1, 2), (3, 4)], centers=boxes, scales=boxes, impl="triton")
    expected = [F.heatmap_decode(x, flipped=x.flip(-1), **options) for x in (first, second)]
    maps, twin = first.clone(), first.flip(-1).clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ours = F.heatmap_decode(maps, flipped=twin, **options)
    for x, wanted in zip((first, second), expected, strict=True):
        maps.copy_(x), twin.copy_(x.flip(-1))
        graph.replay()
        assert torch.equal(ours[0], wanted[0]) and torch.equal(ours[1], wanted[1])


@pytest.mark.cuda
def test_opcheck():
    maps, boxes = bumps(2, 3, (64, 48), 14).cuda(), torch.rand(2, 2).cuda()
    args = (maps, "udp", 11, maps.flip(-1), [0, 2, 1], boxes, boxes, True, True)
    assert set(torch.library.opcheck(torch.ops.vitpose_fast.heatmap_decode, args).values()) == {"SUCCESS"}
