"""Decode heatmaps to keypoints: optional flip merge, arg-max, sub-pixel refinement, conversion to image coordinates.

    udp:    p - H⁻¹ g  with g, H the gradient and Hessian of log(clip(blur(map), 0.001, 50)) at the arg-max p
            (Gaussian blur with OpenCV's sigma for `blur_kernel`, border reflect-101; the log map's border is repeated)
    msra:   p moved by a quarter pixel, in x and in y, towards the higher neighbor, if 1 < x < w - 1 and 1 < y < h - 1
    argmax: p without refinement

p is the arg-max of the map: of its largest values the first in row-major order. Its value is the score.

Letters: B batch, K keypoints, (h, w) map in pixels. heatmaps [B, K, h, w] -> keypoints [B, K, 2] (x, y), scores [B, K].
Bytes: each map is read once; 12 bytes are written per keypoint, 16 more with its covariance. Memory-bound.
Source: docs/numerics.md 5.1 to 5.5 (paper sec. 3, UDP and DARK papers).

Special maps:
  * A maximum <= 0 gives the keypoint (-1, -1), in image coordinates too, and a covariance of NaN. The score is still
    the maximum.
  * A NaN in a map makes its keypoint, score and covariance NaN. No other keypoint is affected.
  * A positive constant map gives its first pixel, (0, 0).
  * If the determinant of the Hessian is exactly 0, p is not refined.
  * The refinement of "udp" is not bounded, as in the official code. A maximum on the border moves half a pixel outwards
    if the mixed second derivative is 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vitpose_kernels.autocast import without_autocast
from vitpose_kernels.checks import check_device, choose_impl, may_look_at_values
from vitpose_kernels.eager import triton_op
from vitpose_kernels.gaussian import EPSILON, gaussian_taps
from vitpose_kernels.launch import run


def merge_flipped(heatmaps: Tensor, flipped: Tensor, permutation: Sequence[int], shift: bool) -> Tensor:
    """Average `heatmaps` with `flipped`, the heatmaps of the mirrored crops, both [B, K, h, w] (docs/numerics.md 5.1).

    Before that, `flipped` is mirrored back: channel i is taken from channel `permutation[i]`, with its columns in
    reverse. With `shift` it is then moved one column to the right, while column 0 keeps its value.
    """
    back = flipped[:, list(permutation)].flip(-1)
    if shift:
        back = torch.cat([back[..., :1], back[..., :-1]], -1)
    return (heatmaps + back).mul_(0.5)


def _reflect101(index: Tensor, size: int) -> Tensor:
    """Mirror indices outside [0, size) about the first or last pixel, which is not repeated, as often as needed."""
    if size == 1:
        return torch.zeros_like(index)
    index = index.remainder(2 * (size - 1))
    return torch.minimum(index, 2 * (size - 1) - index)


def _log_neighborhood(maps: Tensor, x: Tensor, y: Tensor, blur_kernel: int) -> Tensor:
    """Compute log(clip(blur(map))) at the 3x3 pixels around (x, y).

    A pixel outside the map gets the value of the nearest pixel in it. Only what the blur at these pixels needs is read:
    a patch of blur_kernel + 2 rows and columns per map.

    Args:
        maps: [M, h, w], M maps.
        x, y: int64 [M], column and row of one pixel of each map.

    Returns:
        [M, 3 (rows), 3 (columns)], float64.
    """
    m, h, w = maps.shape
    size = blur_kernel + 2
    taps = torch.tensor(gaussian_taps(blur_kernel), dtype=maps.dtype, device=maps.device)
    reach = torch.arange(size, device=maps.device) - size // 2
    rows, columns = _reflect101(y[:, None] + reach, h), _reflect101(x[:, None] + reach, w)
    place = rows[:, :, None] * w + columns[:, None, :]
    patch = maps.flatten(1).gather(1, place.flatten(1)).view(m, size, size)
    step = torch.arange(-1, 2, device=maps.device)
    # Take the rows above, at and below y, with the border row again for a row outside the map. The same for columns.
    # Each sum runs over contiguous numbers, so that all sums are rounded in the same way and a flat map stays flat.
    above, left = ((p[:, None] + step).clamp(0, last - 1) - p[:, None] + 1 for p, last in ((y, h), (x, w)))
    strips = (patch.unfold(1, blur_kernel, 1).contiguous() * taps).sum(-1)  # [M, 3, size]
    strips = strips.gather(1, above[:, :, None].expand(-1, -1, size))
    blurred = (strips.unfold(2, blur_kernel, 1).contiguous() * taps).sum(-1)  # [M, 3, 3]
    return blurred.gather(2, left[:, None].expand(-1, 3, -1)).clamp(0.001, 50).log().double()


def _newton(log: Tensor, covariance: bool = False) -> tuple[Tensor, Tensor | None]:
    """Compute the Newton step from each center of the 3x3 log neighborhoods [M, 3, 3] to the maximum, float64.

    Returns:
        offset: [M, 2] (x, y) in heatmap pixels; 0 if the determinant of the Hessian is 0.
        covariance: [M, 2, 2], the negative inverse Hessian, NaN where the log map is not concave. None without
            `covariance`.
    """
    dx = 0.5 * (log[:, 1, 2] - log[:, 1, 0])
    dy = 0.5 * (log[:, 2, 1] - log[:, 0, 1])
    dxx = log[:, 1, 2] - 2 * log[:, 1, 1] + log[:, 1, 0] + EPSILON
    dyy = log[:, 2, 1] - 2 * log[:, 1, 1] + log[:, 0, 1] + EPSILON
    corners = log[:, 2, 2] - log[:, 1, 2] - log[:, 2, 1] + 2 * log[:, 1, 1] - log[:, 1, 0] - log[:, 0, 1] + log[:, 0, 0]
    dxy = 0.5 * corners
    determinant = dxx * dyy - dxy * dxy
    safe = torch.where(determinant == 0, 1.0, determinant)
    inverse = torch.stack([dyy, -dxy, -dxy, dxx], -1).reshape(-1, 2, 2) / safe[:, None, None]
    offset = -(inverse @ torch.stack([dx, dy], -1)[..., None])[..., 0]
    offset = torch.where((determinant == 0)[:, None], 0.0, offset)
    if not covariance:
        return offset, None
    concave = (determinant > 0) & (dxx < 0)
    return offset, torch.where(concave[:, None, None], -inverse, math.nan)


def heatmap_decode_reference(
    heatmaps: Tensor,
    codec: str,
    blur_kernel: int,
    flipped: Tensor | None,
    flip_permutation: Sequence[int],
    centers: Tensor | None,
    scales: Tensor | None,
    covariance: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Reference implementation in plain PyTorch, which specifies the op.

    Returns keypoints [B, K, 2], scores [B, K] and covariances [B, K, 2, 2] (an empty tensor without `covariance`), as
    `heatmap_decode` does. `flip_permutation` is only used with `flipped`.
    """
    dtype = torch.float64 if heatmaps.dtype == torch.float64 else torch.float32
    heatmaps = heatmaps.to(dtype)
    if flipped is not None:
        heatmaps = merge_flipped(heatmaps, flipped.to(dtype), flip_permutation, shift=codec == "msra")
    b, k, h, w = heatmaps.shape
    maps = heatmaps.reshape(b * k, h, w)
    best = maps.flatten(1).argmax(1)  # the first maximum in row-major order; a NaN counts as the largest
    scores = maps.flatten(1).gather(1, best[:, None])[:, 0]
    x, y = best % w, best // w
    points = torch.stack([x, y], -1).double()
    spread = None
    if codec == "udp" or covariance:
        offset, spread = _newton(_log_neighborhood(maps, x, y, blur_kernel), covariance)
        if codec == "udp":
            points = points + offset
    if codec == "msra":
        row = maps.gather(1, y[:, None, None].expand(-1, 1, w))[:, 0]
        column = maps.gather(2, x[:, None, None].expand(-1, h, 1))[..., 0]
        right, left = row.gather(1, (x + 1).clamp(max=w - 1)[:, None]), row.gather(1, (x - 1).clamp(min=0)[:, None])
        below, above = (
            column.gather(1, (y + 1).clamp(max=h - 1)[:, None]),
            column.gather(1, (y - 1).clamp(min=0)[:, None]),
        )
        inner = (x > 1) & (x < w - 1) & (y > 1) & (y < h - 1)
        points = points + 0.25 * torch.cat([right - left, below - above], -1).sign() * inner[:, None]
    points = points.reshape(b, k, 2)
    spread = None if spread is None else spread.reshape(b, k, 2, 2)
    scores = scores.reshape(b, k)
    if centers is not None and scales is not None:
        cells = (max(w - 1, 1), max(h - 1, 1)) if codec == "udp" else (w, h)
        scales = scales.double()[:, None]
        factor = scales / torch.tensor(cells, dtype=torch.float64, device=scales.device)
        points = points * factor + centers.double()[:, None] - scales / 2
        spread = None if spread is None else spread * factor[..., None] * factor[..., None, :]
    points = torch.where((scores <= 0)[..., None], -1.0, points)
    broken = scores.isnan()
    points = torch.where(broken[..., None], math.nan, points)
    if spread is None:
        return points.to(dtype), scores, points.new_empty(0, dtype=dtype)
    spread = torch.where((broken | (scores <= 0))[..., None, None], math.nan, spread)
    return points.to(dtype), scores, spread.to(dtype)


@triton_op("vitpose_fast::heatmap_decode")
def _heatmap_decode(
    heatmaps: Tensor,
    codec: str,
    blur_kernel: int,
    flipped: Tensor | None,
    flip_permutation: Sequence[int],
    centers: Tensor | None,
    scales: Tensor | None,
    covariance: bool,
    triton: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = heatmaps, codec, blur_kernel, flipped, flip_permutation, centers, scales, covariance
    if not triton:
        return heatmap_decode_reference(*arguments)
    from vitpose_kernels.gpu import heatmap_decode as gpu

    return run(*gpu.forward(*arguments))


def flip_permutation(num_keypoints: int, flip_pairs: Sequence[Sequence[int]] | None) -> list[int]:
    """Return, for every keypoint i, the channel in which a mirrored image has its heatmap: its partner in a pair, or i.

    Raises:
        ValueError: a pair names a channel outside 0..num_keypoints - 1, or a channel occurs in two pairs.
    """
    permutation = list(range(num_keypoints))
    for pair in () if flip_pairs is None else flip_pairs:
        a, b = map(int, pair)
        fits = min(a, b) >= 0 and max(a, b) < num_keypoints and permutation[a] == a and permutation[b] == b
        if not fits:
            raise ValueError(
                f"flip_pairs: pair {tuple(pair)} does not fit {num_keypoints} keypoints, each in at most one pair"
            )
        permutation[a], permutation[b] = b, a
    return permutation


def heatmap_decode(
    heatmaps: Tensor,
    codec: str = "udp",
    blur_kernel: int = 11,
    flipped: Tensor | None = None,
    flip_pairs: Sequence[Sequence[int]] | None = None,
    centers: Tensor | None = None,
    scales: Tensor | None = None,
    covariance: bool = False,
    impl: str | None = None,
) -> tuple[Tensor, ...]:
    """Decode heatmaps to keypoints and scores. The module docstring has the formulas and the special maps.

    Args:
        heatmaps: [B, K, h, w], raw network output.
        codec: "udp", "msra" or "argmax".
        blur_kernel: size of the Gaussian blur before the logarithm, in pixels, odd. Matters for "udp" and `covariance`.
        flipped: [B, K, h, w], raw network output for the mirrored crops. It is mirrored back and averaged with
            `heatmaps` (for "msra" after a shift by one column). Default: no flip test.
        flip_pairs: pairs of channels that swap in a mirrored image, for `flipped`. Default: no pairs.
        centers, scales: [B, 2], center (x, y) and size (width, height) in image pixels of the region that was cropped,
            as in the result of `box_to_center_scale`; pass both or neither.
        covariance: also return the covariance of each keypoint, the negative inverse Hessian of the log map at p.
        impl: None (chosen by device), "triton" or "reference".

    Returns:
        keypoints: [B, K, 2] (x, y), in image pixels with `centers` and `scales`, otherwise in heatmap pixels.
        scores: [B, K], the maximum of each map, after averaging with `flipped`.
        covariances: [B, K, 2, 2] in the same pixels squared, only with `covariance`. NaN where the log map is not
            concave, the maximum is <= 0, or the map has a NaN.

        All are float32 (float64 for float64 heatmaps) and not differentiable.

    Raises:
        ValueError: shapes or devices do not fit each other, the codec is unknown, `flip_pairs` names a channel that
            does not exist or the same one in two pairs, only one of `centers` and `scales` is given, `blur_kernel` is
            even or less than 1, or `impl` does not support the call.
    """
    op = "heatmap_decode"
    triton = choose_impl(op, impl, heatmaps) == "triton"
    if not (heatmaps.dim() == 4 and min(heatmaps.shape[-2:]) >= 1):
        raise ValueError(f"{op}: heatmaps have shape {list(heatmaps.shape)}, expected [B, K, h, w] with h, w >= 1")
    if codec not in ("udp", "msra", "argmax"):
        raise ValueError(f"{op}: got codec={codec!r}, expected 'udp', 'msra' or 'argmax'")
    if not (blur_kernel >= 1 and blur_kernel % 2 == 1):
        raise ValueError(f"{op}: got blur_kernel={blur_kernel}, expected an odd size >= 1")
    if flipped is not None:
        if flipped.shape != heatmaps.shape:
            raise ValueError(f"{op}: flipped has shape {list(flipped.shape)}, expected {list(heatmaps.shape)}")
        check_device(op, heatmaps, flipped=flipped)
        flipped = flipped.detach()
    if (centers is None) != (scales is None):
        raise ValueError(f"{op}: got only one of centers and scales; pass both or neither")
    boxes = []
    for name, value in (("centers", centers), ("scales", scales)):
        if value is not None:
            if tuple(value.shape) != (heatmaps.shape[0], 2):
                raise ValueError(f"{op}: {name} has shape {list(value.shape)}, expected {[heatmaps.shape[0], 2]}")
            value = value.detach().to(heatmaps.device)
        boxes.append(value)
    permutation = flip_permutation(heatmaps.shape[1], flip_pairs)
    if not triton and type(heatmaps) is Tensor and not heatmaps.is_cuda and may_look_at_values(heatmaps):
        # Nothing traces this call, and the result is not differentiable: call the reference directly. The dispatch of
        # the registered op would take a fifth of the time of decoding a few people.
        with torch.no_grad(), without_autocast(heatmaps):
            arguments = (
                heatmaps.detach(),
                codec,
                blur_kernel,
                flipped,
                permutation,
                boxes[0],
                boxes[1],
                bool(covariance),
            )
            found = heatmap_decode_reference(*arguments)
        return found if covariance else found[:2]
    with without_autocast(heatmaps):
        points, scores, spread = _heatmap_decode(
            heatmaps.detach(), codec, blur_kernel, flipped, permutation, *boxes, bool(covariance), triton
        )
    return (points, scores, spread) if covariance else (points, scores)
