"""Tests of heatmap decoding: golden numbers (docs/numerics.md 12.3), official formulas with OpenCV, special maps."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitpose_fast import functional as F
from vitpose_kernels.gaussian import gaussian_taps

Y, X = torch.meshgrid(torch.arange(64.0), torch.arange(48.0), indexing="ij")
TARGET = F.heatmap_target(torch.tensor([[[100.3, 77.7]]]), torch.ones(1, 1))[0][0, 0]
BORDER = F.heatmap_target(torch.tensor([[[1.0, 254.9]]]), torch.ones(1, 1))[0][0, 0]
TILTED = 0.8 * torch.exp(-((X - 20.3) ** 2 / 8 + (Y - 40.6) ** 2 / 10 + (X - 20.3) * (Y - 40.6) / 20))
TWO_PEAKS = 0.8 * torch.exp(-((X - 20.3) ** 2 / 8 + (Y - 40.6) ** 2 / 10)) + 0.3 * torch.exp(
    -((X - 24) ** 2 + (Y - 38) ** 2) / 8
)


@pytest.mark.parametrize(
    ("heat", "expected", "score"),
    [
        (TARGET, (24.681116, 19.196503), 0.98261964),
        (BORDER, (-0.5, 63.5), 0.99238384),
        (TILTED, (20.300081, 40.599926), 0.78317934),
        (TWO_PEAKS, (20.706263, 40.285881), 0.79167545),
    ],
    ids=["target", "border", "tilted", "two peaks"],
)
def test_golden_numbers(heat, expected, score):
    points, scores = F.heatmap_decode(heat[None, None])
    assert points[0, 0].tolist() == pytest.approx(expected, abs=1e-5)
    assert scores.item() == pytest.approx(score, rel=1e-6)


def official_udp(heat: np.ndarray, kernel: int = 11) -> tuple[np.ndarray, float]:
    """Decode one map [h, w] with OpenCV's blur and the formulas of docs/numerics.md 5.3.

    Returns (keypoint (x, y) in heatmap cells, determinant of the Hessian).
    """
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    log = np.log(np.clip(cv2.GaussianBlur(heat, (kernel, kernel), 0), 0.001, 50))
    p = np.pad(log, 1, mode="edge").astype(np.float64)[y : y + 3, x : x + 3]
    dx, dy = (p[1, 2] - p[1, 0]) / 2, (p[2, 1] - p[0, 1]) / 2
    dxx, dyy = p[1, 2] - 2 * p[1, 1] + p[1, 0], p[2, 1] - 2 * p[1, 1] + p[0, 1]
    dxy = (p[2, 2] - p[1, 2] - p[2, 1] + 2 * p[1, 1] - p[1, 0] - p[0, 1] + p[0, 0]) / 2
    hessian = np.array([[dxx, dxy], [dxy, dyy]]) + np.finfo(np.float32).eps * np.eye(2)
    return np.array([x, y]) - np.linalg.solve(hessian, np.array([dx, dy])), np.linalg.det(hessian)


@pytest.mark.parametrize("kernel", [3, 5, 7, 11, 13])
@pytest.mark.parametrize("size", [(64, 48), (16, 12), (7, 9)])
def test_equals_opencv_blur_on_random_maps(kernel, size):
    rng = np.random.default_rng(kernel)
    y, x = np.mgrid[: size[0], : size[1]]
    maps = []
    for _ in range(40):
        cy, cx = rng.uniform(0, size[0] - 1), rng.uniform(0, size[1] - 1)
        peak = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / rng.uniform(4, 12)) * rng.uniform(0.3, 1)
        maps.append((peak + 0.02 * rng.random(size)).astype(np.float32))
    points, _ = F.heatmap_decode(torch.from_numpy(np.stack(maps))[None], blur_kernel=kernel)
    for heat, point in zip(maps, points[0].numpy(), strict=True):
        expected, determinant = official_udp(heat, kernel)
        if abs(determinant) > 1e-4:  # a nearly singular Hessian amplifies the last bit of the blur
            np.testing.assert_allclose(point, expected, atol=2e-3 if abs(determinant) < 1e-2 else 1e-4)


def test_taps_equal_opencv():
    for size in (1, 3, 5, 7, 11, 13, 15):
        np.testing.assert_allclose(gaussian_taps(size), cv2.getGaussianKernel(size, 0)[:, 0], rtol=1e-7)


# The special maps, each with its documented result.


def test_flat_map_is_its_first_pixel():
    points, scores = F.heatmap_decode(torch.full((1, 1, 8, 6), 0.25))
    assert points[0, 0].tolist() == [0, 0] and scores.item() == 0.25


def test_map_without_a_positive_value():
    for heat in (torch.zeros(1, 1, 8, 6), -torch.rand(1, 1, 8, 6)):
        for options in ({}, dict(centers=torch.tensor([[50.0, 60.0]]), scales=torch.tensor([[30.0, 40.0]]))):
            points, scores = F.heatmap_decode(heat, **options)
            assert points[0, 0].tolist() == [-1, -1] and scores.item() == heat.max()


@pytest.mark.parametrize("codec", ["udp", "msra", "argmax"])
def test_one_pixel(codec):
    heat = torch.zeros(1, 1, 64, 48)
    heat[0, 0, 30, 20] = 1
    assert F.heatmap_decode(heat, codec)[0][0, 0].tolist() == pytest.approx([20, 30], abs=1e-5)
    points, scores = F.heatmap_decode(torch.ones(1, 1, 1, 1), codec)  # the smallest possible map
    assert points[0, 0].tolist() == [0, 0] and scores.item() == 1


def test_border_peak_is_half_a_pixel_outside():
    for x, y, expected in ((0, 30, -0.5), (47, 30, 47.5)):
        heat = torch.exp(-((X - x) ** 2 + (Y - y) ** 2) / 8)
        assert F.heatmap_decode(heat[None, None])[0][0, 0].tolist() == pytest.approx([expected, 30], abs=1e-4)


def test_nan_and_infinity_touch_only_their_own_keypoint():
    clean = torch.stack([TARGET, TILTED, TWO_PEAKS])[None]
    dirty = clean.clone()
    dirty[0, 1, 5, 5] = math.nan
    a, b = F.heatmap_decode(clean, covariance=True), F.heatmap_decode(dirty, covariance=True)
    for x, y in zip(a, b, strict=True):
        assert y[0, 1].isnan().all() and torch.equal(x[0, [0, 2]], y[0, [0, 2]])
    dirty[0, 1, 5, 5] = -math.inf
    assert torch.equal(F.heatmap_decode(dirty)[0], a[0])  # far from the peak, where it counts like any low value


def test_no_map_reads_another():
    alone = F.heatmap_decode(-torch.ones(1, 1, 8, 6) * 0.5)[0]
    beside = torch.full((1, 3, 8, 6), 9.0)
    beside[0, 1] = -0.5
    assert torch.equal(F.heatmap_decode(beside)[0][0, 1], alone[0, 0])


def test_first_maximum_in_row_major_order():
    heat = torch.zeros(1, 1, 8, 6)
    heat[0, 0, 2, 4] = heat[0, 0, 5, 1] = 1
    assert F.heatmap_decode(heat, "argmax")[0][0, 0].tolist() == [4, 2]


# Other codecs, flips and image coordinates.


def test_msra_moves_a_quarter_towards_the_higher_neighbor():
    heat = torch.zeros(1, 3, 8, 6)
    heat[0, :, 3, 2], heat[0, 0, 3, 3], heat[0, 0, 2, 2] = 1, 0.5, 0.5
    heat[0, 2] = 0
    heat[0, 2, 3, 1], heat[0, 2, 3, 2] = 1, 0.5  # x = 1 is too close to the border: no move
    points, _ = F.heatmap_decode(heat, "msra")
    assert points[0].tolist() == [[2.25, 2.75], [2, 3], [1, 3]]


def test_back_to_the_image():
    center, scale = torch.tensor([[110.0, 70.0]]), torch.tensor([[250.0, 1000 / 3]])
    heat = torch.zeros(1, 1, 64, 48)
    heat[0, 0, 63, 47] = 1
    corner = F.heatmap_decode(heat, "argmax", centers=center, scales=scale)[0][0, 0]
    assert corner.tolist() == pytest.approx([47 * 250 / 48 + 110 - 125, 63 * 1000 / 3 / 64 + 70 - 500 / 3], rel=1e-6)
    udp = F.heatmap_decode(TARGET[None, None], centers=center, scales=scale)[0][0, 0]
    x, y = F.heatmap_decode(TARGET[None, None])[0][0, 0].tolist()
    assert udp.tolist() == pytest.approx([x * 250 / 47 + 110 - 125, y * 1000 / 3 / 63 + 70 - 500 / 3], rel=1e-5)


@pytest.mark.parametrize("codec", ["udp", "msra", "argmax"])
def test_flip_merge_is_the_average_of_both(codec):
    maps = torch.rand(2, 4, 16, 12, dtype=torch.float64)
    other = torch.rand(2, 4, 16, 12, dtype=torch.float64)
    back = other.flip(-1)[:, [1, 0, 2, 3]]
    if codec == "msra":
        back = torch.cat([back[..., :1], back[..., :-1]], -1)
    a = F.heatmap_decode(maps, codec, flipped=other, flip_pairs=[(0, 1)])
    b = F.heatmap_decode((maps + back) / 2, codec)
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_decode_commutes_with_flip():
    maps = torch.stack([TARGET, TILTED])[None].double()
    points, scores = F.heatmap_decode(maps)
    mirrored, same = F.heatmap_decode(maps.flip(-1))
    # The results are not exactly equal: the official code takes the mixed derivative along one diagonal only.
    torch.testing.assert_close(mirrored[..., 0], 47 - points[..., 0], rtol=0, atol=1e-4)
    torch.testing.assert_close(mirrored[..., 1], points[..., 1], rtol=0, atol=1e-4)
    assert torch.equal(scores, same)


def test_covariance_equals_that_of_the_blurred_gaussian():
    heat = torch.exp(-((X - 20) ** 2 / 8 + (Y - 30) ** 2 / 18)).double()[None, None]  # variances 4 and 9, blur adds 4
    cov = F.heatmap_decode(heat, covariance=True)[2][0, 0]
    torch.testing.assert_close(cov, torch.diag(torch.tensor([8.0, 13.0]).double()), rtol=0.02, atol=1e-4)
    image = F.heatmap_decode(
        heat, covariance=True, centers=torch.zeros(1, 2), scales=torch.tensor([[47.0 * 2, 63.0 * 3]])
    )
    torch.testing.assert_close(image[2][0, 0], cov * torch.tensor([[4.0, 6.0], [6.0, 9.0]]))
    assert F.heatmap_decode(torch.full((1, 1, 8, 6), 0.25), covariance=True)[2].isnan().all()


@settings(max_examples=40)
@given(h=st.integers(1, 9), w=st.integers(1, 9), k=st.integers(1, 3), b=st.integers(0, 2), seed=st.integers(0, 999))
def test_any_size_is_finite_and_scored_by_its_maximum(h, w, k, b, seed):
    maps = torch.rand(b, k, h, w, generator=torch.Generator().manual_seed(seed)) + 0.01
    points, scores = F.heatmap_decode(maps)
    assert points.isfinite().all() and points.shape == (b, k, 2)
    assert torch.equal(scores, maps.amax((2, 3)))


def test_half_precision_maps_decode_in_float32():
    points, scores = F.heatmap_decode(TARGET[None, None].bfloat16())
    assert points.dtype == scores.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(F.heatmap_decode(TARGET[None, None])[0], F.heatmap_decode(TARGET[None, None])[0].float())


def test_opcheck_and_compile():
    maps = torch.stack([TARGET, TILTED, TWO_PEAKS]).expand(2, 3, 64, 48).contiguous()
    args = (maps, "udp", 11, maps.flip(-1), [0, 1, 2], torch.rand(2, 2), torch.rand(2, 2), True, False)
    assert set(torch.library.opcheck(torch.ops.vitpose_fast.heatmap_decode, args).values()) == {"SUCCESS"}
    compiled = torch.compile(F.heatmap_decode, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(maps), F.heatmap_decode(maps))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(codec="dark"), "expected 'udp', 'msra' or 'argmax'"),
        (dict(blur_kernel=10), "expected an odd size"),
        (dict(flipped=torch.zeros(1, 2, 8, 5)), "flipped has shape"),
        (dict(centers=torch.zeros(1, 2)), "pass both or neither"),
        (dict(centers=torch.zeros(2, 2), scales=torch.zeros(2, 2)), "centers has shape"),
        (dict(flip_pairs=[(0, 2)]), "does not fit 2 keypoints"),
    ],
)
def test_refuses_in_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        F.heatmap_decode(torch.zeros(1, 2, 8, 6), **options)
