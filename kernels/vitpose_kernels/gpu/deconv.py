"""Triton kernel of `deconv`: a program computes one of the four phases for a block of tokens; one launch does them all.

Letters: B batch, (h, w) grid of tokens, Ci input and Co output channels, K keypoints.

The output of phase (py, px), with py and px 0 or 1, is the pixels (2 y + py, 2 x + px) for the tokens (y, x). Each
depends on four tokens, the taps: (y, x) and its neighbors in the direction of the phase. A phase is thus a 2x2
convolution, computed as a matrix product whose inner axis runs over blocks of channels and, within a block, over the
four taps. With a predictor a program holds all Co channels of its tokens, so that the heatmaps are computed in its
epilogue and the features are never stored.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitpose_kernels.chips import usual_chip
from vitpose_kernels.launch import Launch, block_size, cdiv, num_bytes

_FEW_PROGRAMS = 64  # fewer leave half of a large GPU idle: use smaller tiles (a batch of 1 or 2)


@triton.jit
def deconv_kernel(
    x_ptr, weight_ptr, bias_ptr, predictor_ptr, predictor_bias_ptr, out_ptr,
    stride_xb, stride_xn, num_tokens, h, w, in_channels, out_channels, num_keypoints,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_KEYPOINTS: tl.constexpr,
):  # fmt: skip
    """Compute one phase (py, px) of the output for BLOCK_M tokens and BLOCK_N output channels.

    num_tokens: B h w. BLOCK_KEYPOINTS: 0 without a predictor, 1 to compute one keypoint at a time without tensor cores,
    otherwise the number of keypoints of one `tl.dot`. With a predictor BLOCK_N is at least Co.
    """
    # Consecutive programs compute the four phases of one block of tokens. They read the same tokens from L2. The phases
    # px = 0 and px = 1 write alternating pixels of a row, so that they fill the same cache lines in L2.
    blocks_n = tl.cdiv(out_channels, BLOCK_N)
    n = (tl.program_id(0) % blocks_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    phase = tl.program_id(0) // blocks_n % 4
    py = phase // 2
    px = phase % 2
    start = (tl.program_id(0) // (4 * blocks_n)).to(tl.int64) * BLOCK_M
    valid = tl.arange(0, BLOCK_M) < num_tokens - start
    image = start // (h * w)
    token = (start - image * (h * w)).to(tl.int32) + tl.arange(0, BLOCK_M)
    b = image + token // (h * w)
    token = token % (h * w)
    y = token // w
    x = token % w

    k = tl.arange(0, BLOCK_K)
    x_tile = x_ptr + (b * stride_xb + token.to(tl.int64) * stride_xn)[:, None] + k[None, :]
    w_tile = weight_ptr + (phase * 4 * in_channels).to(tl.int64) * out_channels + k[:, None] * out_channels + n[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(0, 4 * tl.cdiv(in_channels, BLOCK_K)):
        tap = step % 4
        first = (step // 4) * BLOCK_K
        dy = (tap // 2) * (2 * py - 1)
        dx = (tap % 2) * (2 * px - 1)
        on_map = valid & (y + dy >= 0) & (y + dy < h) & (x + dx >= 0) & (x + dx < w)
        known = k < in_channels - first
        shift = (dy * w + dx).to(tl.int64) * stride_xn + first
        row = (tap * in_channels + first).to(tl.int64) * out_channels
        neighbors = tl.load(x_tile + shift, on_map[:, None] & known[None, :], 0.0)
        weight = tl.load(w_tile + row, known[:, None] & (n < out_channels)[None, :], 0.0)
        acc = tl.dot(neighbors, weight, acc, input_precision="tf32x3")

    bias = tl.load(bias_ptr + n, n < out_channels, 0.0).to(tl.float32)
    # ReLU, which propagates NaN as in torch. The features are rounded to the output dtype, so that the predictor gets
    # the numbers that it would get if they had been stored.
    features = tl.maximum(acc + bias[None, :], 0.0, propagate_nan=tl.PropagateNan.ALL).to(out_ptr.dtype.element_ty)
    pixel = (2 * y + py) * (2 * w) + 2 * x + px
    if BLOCK_KEYPOINTS == 0:
        out_tile = out_ptr + (b * (4 * h * w) + pixel)[:, None] * out_channels + n[None, :]
        tl.store(out_tile, features, valid[:, None] & (n < out_channels)[None, :])
    elif BLOCK_KEYPOINTS == 1:  # float32: a second tf32x3 product would spill registers
        for keypoint in tl.range(0, num_keypoints):
            weight = tl.load(predictor_ptr + keypoint * out_channels + n, n < out_channels, 0.0)
            heat = tl.sum(features * weight[None, :], 1) + tl.load(predictor_bias_ptr + keypoint)
            tl.store(out_ptr + (b * num_keypoints + keypoint) * (4 * h * w) + pixel, heat, valid)
    else:
        for start_keypoint in tl.range(0, num_keypoints, BLOCK_KEYPOINTS, num_stages=1):
            keypoint = start_keypoint + tl.arange(0, BLOCK_KEYPOINTS)
            known = keypoint < num_keypoints
            weight = tl.load(
                predictor_ptr + keypoint[None, :] * out_channels + n[:, None],
                known[None, :] & (n < out_channels)[:, None],
                0.0,
            )
            heat = tl.dot(features, weight) + tl.load(predictor_bias_ptr + keypoint, known, 0.0).to(tl.float32)[None, :]
            # Transposed, so that consecutive threads write neighboring pixels of one map: every second one, as the rest
            # belongs to the other phase.
            maps = out_ptr + (b[None, :] * num_keypoints + keypoint[:, None]) * (4 * h * w)
            heat = tl.trans(heat.to(out_ptr.dtype.element_ty))
            tl.store(maps + pixel[None, :], heat, known[:, None] & valid[None, :])


class Tiles(NamedTuple):
    """Shape of the tiles of a program, its number of warps and its pipeline stages: a tuple of plain integers.

    The output of a phase has tiles of BLOCK_M tokens and BLOCK_N channels; BLOCK_K inputs are multiplied at a time.
    """

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int

    @property
    def shape(self) -> dict[str, int]:
        """The compile-time arguments of the kernel by name: BLOCK_M, BLOCK_N and BLOCK_K."""
        return dict(BLOCK_M=self.BLOCK_M, BLOCK_N=self.BLOCK_N, BLOCK_K=self.BLOCK_K)


def choose_tiles(rows: int, channels: int, predictor: bool, dtype: torch.dtype, arch: int) -> Tiles:
    """Choose the tiles for `rows` tokens (of all samples) and `channels` outputs.

    With a `predictor` BLOCK_N covers all channels, up to 256. No shape of a released model spills registers.
    """
    full = block_size(channels, high=256)
    if dtype == torch.float32:
        return Tiles(32, full, 32, 8, 3) if predictor else Tiles(64, min(full, 128), 32, 8, 3)
    if 4 * cdiv(rows, 128) * cdiv(channels, full) < _FEW_PROGRAMS:
        return Tiles(32, full, 64, 8, 3) if predictor else Tiles(64, min(full, 64), 64, 4, 4)
    chip = usual_chip(arch)
    if chip.tensor_cores != "mma":
        return Tiles(128, full, 64, 8, 4)
    return Tiles(128, full, 32, 8, 4 if chip.has_large_shared_memory else 3)


def candidates(
    rows: int, channels: int, predictor: bool, dtype: torch.dtype, arch: int, processors: int | None = None
) -> list[Tiles]:
    """Return tiles that may be the fastest, `choose_tiles`'s first: at most six, all different.

    On no architecture does one of them spill registers at the shapes of the models.

    Args:
        rows, channels, predictor, dtype, arch: as in `choose_tiles`.
        processors: number of multiprocessors. Default: that of `usual_chip`.
    """
    chosen = choose_tiles(rows, channels, predictor, dtype, arch)
    full = block_size(channels, high=256)
    chip = usual_chip(arch)
    if dtype == torch.float32 or not chip.has_large_shared_memory:
        return [chosen]
    big = Tiles(128, full, 32 if chip.tensor_cores == "mma" else 64, 8, 4)
    if predictor:
        # Hopper's wgmma multiplies 64 rows. With 32 rows Triton takes the older instruction, at less than its rate.
        shapes = [big, Tiles(64, full, 64, 8, 3), Tiles(32, full, 64, 8, 3)]
    else:
        shapes = [big, big._replace(BLOCK_N=min(full, 128))]
        shapes += [Tiles(64, min(full, n), 64, 4, 4) for n in (128, 64, 32)]

    def cost(tiles: Tiles) -> int:
        """Model the time, as the choice of tiles of `linear` does."""
        m, n = tiles.BLOCK_M, tiles.BLOCK_N
        programs = 4 * cdiv(rows, m) * cdiv(channels, n)
        return cdiv(programs, processors or chip.multiprocessors) * (m * n + 64 * (m + n))

    slowest = 1.5 * min(map(cost, [chosen, *shapes]))  # the model is not exact
    return list(dict.fromkeys([chosen, *(tiles for tiles in shapes if cost(tiles) <= slowest)]))


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    grid: tuple[int, int],
    predictor_weight: Tensor | None,
    predictor_bias: Tensor | None,
    arch: int,
    tiles: Tiles | None = None,
) -> tuple[Tensor, list[Launch]]:
    """Return (out, launches); out is tokens [B, 4 h w, Co], or heatmaps [B, K, 2h, 2w] with a predictor.

    Args:
        x: [B, h w, Ci], tokens; copied if the channels are not contiguous. `out` has its dtype.
        weight: [4 phases, 4 taps, Ci, Co].
        bias: [Co].
        grid: (h, w).
        predictor_weight, predictor_bias: [K, Co] and [K], or both None.
        tiles: one of `candidates`. Default: `choose_tiles`.
    """
    (h, w), (b, n, in_channels), out_channels = grid, x.shape, weight.shape[-1]
    x = x if x.stride(-1) == 1 else x.contiguous()
    keypoints = 0 if predictor_weight is None else predictor_weight.shape[0]
    if predictor_weight is None or predictor_bias is None:
        out = x.new_empty((b, 4 * n, out_channels))
        block_keypoints = 0
    else:
        out = x.new_empty((b, keypoints, 2 * h, 2 * w))
        block_keypoints = 1 if x.dtype == torch.float32 else block_size(keypoints, high=32)
        predictor_weight, predictor_bias = predictor_weight.contiguous(), predictor_bias.contiguous()
    tiles = tiles or choose_tiles(b * n, out_channels, block_keypoints > 0, x.dtype, arch)
    arguments = dict(
        x_ptr=x,
        weight_ptr=weight.contiguous(),
        bias_ptr=bias.contiguous(),
        predictor_ptr=predictor_weight,
        predictor_bias_ptr=predictor_bias,
        out_ptr=out,
        stride_xb=x.stride(0),
        stride_xn=x.stride(1),
        num_tokens=b * n,
        h=h,
        w=w,
        in_channels=in_channels,
        out_channels=out_channels,
        num_keypoints=keypoints,
        BLOCK_KEYPOINTS=block_keypoints,
        **tiles.shape,
    )
    # With 128 registers two programs of 8 warps fit on a multiprocessor; on Hopper the compiler would take 132.
    limited = block_keypoints > 1 and tiles.BLOCK_M == 32 and usual_chip(arch).tensor_cores == "wgmma"
    launch = Launch(
        deconv_kernel,
        (cdiv(b * n, tiles.BLOCK_M) * 4 * cdiv(out_channels, tiles.BLOCK_N),),
        arguments,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        flops=2 * 4 * b * n * out_channels * (4 * in_channels + keypoints),
        bytes=num_bytes(x, weight, bias, predictor_weight, predictor_bias, out),
        maxnreg=128 if limited else None,
    )
    return out, [launch]
