"""Triton kernels of `linear`, with the tile order, GELU, epilogue and choice of tiles that `split_ffn` shares.

Letters: x [M, C] has M rows (tokens) of C inputs, weight [F, C] has F outputs, the columns of the result [M, F].

Two kernels have the same epilogue. `linear_kernel` loads through pointers and runs on every GPU. Its rows may be
grouped into samples of num_tokens rows each, and the last columns of the result may be computed with the weight of an
expert that is chosen for each sample, as `split_ffn` needs. `linear_descriptor_kernel` is a persistent kernel that
loads through tensor descriptors (TMA), on Hopper and data-center Blackwell.

A tile has BLOCK_M + TAIL rows, computed as two products that share one tile of the weight. 128 + 64 = 192 rows are the
tokens of a 256 x 192 image, so that a tile can be one sample; such tiles also fill 132 multiprocessors better than
tiles whose number of rows is a power of two.

If the result has fewer tiles than the GPU has multiprocessors, the inputs can be cut into slices. Both kernels then
store the product of each slice in float32, and `add_slices_kernel` adds them up, in a fixed order, before the epilogue.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from vitpose_kernels.chips import usual_chip
from vitpose_kernels.gpu.tiles import Tiles, choose_tiles, in_halves
from vitpose_kernels.launch import Launch, cdiv, has_address, multiprocessors, num_bytes


@triton.jit
def normal_cdf(x):
    """Compute the upper tail of the standard normal distribution at |x|, for fp32 x.

    Returns (a, q, e): a = min(|x|, 16), q = P(Z > a) for a standard normal Z, e = exp(-a^2 / 2). NaN gives NaN.

    q = e t (c1 + c2 t + ... + c5 t^4), t = 1 / (1 + p a): Hastings' form (Abramowitz and Stegun 7.1.26), refitted so
    that the error of q max(a, 1) is at most 9.1e-8. In fp32 this is as accurate as erf, with half the instructions.
    """
    a = tl.minimum(tl.abs(x), 16.0, propagate_nan=tl.PropagateNan.ALL)
    t = 1.0 / (1.0 + 0.33298835 * a)
    e = tl.exp2(a * a * -0.72134752)
    q = (((-0.108993022 * t + 0.362899957) * t - 0.076693141) * t + 0.198708627) * t + 0.124077488
    return a, q * t * e, e


@triton.jit
def gelu(x):
    """Return the exact (erf) GELU x P(Z < x) of fp32 values, within 1.3e-7 + half a rounding step of the true value."""
    a, q, _ = normal_cdf(x)
    return tl.maximum(x, 0.0) - a * q


@triton.jit
def gelu_and_slope(x):
    """Return gelu(x) and its derivative P(Z < x) + x exp(-x^2 / 2) / sqrt(2 pi), within 3e-7 of the true one."""
    a, q, e = normal_cdf(x)
    below = q - a * (e * 0.39894228)
    return tl.maximum(x, 0.0) - a * q, tl.where(x > 0, 1.0 - below, below)


@triton.jit
def tile_order(pid, blocks_m, blocks_n, GROUP: tl.constexpr):
    """Return (block of rows, block of columns) of tile number `pid` of a result of blocks_m x blocks_n tiles.

    Consecutive tiles run down GROUP blocks of rows before they move on to the next block of columns, so that the
    operands that they share stay in L2.
    """
    group = pid // (GROUP * blocks_n)
    height = tl.minimum(blocks_m - group * GROUP, GROUP)
    inside = pid % (GROUP * blocks_n)
    return group * GROUP + inside % height, inside // height


@triton.jit
def load(block, inside, EVEN: tl.constexpr):
    """Load a tile through the pointers `block`, with zeros where not `inside`. EVEN: ignore `inside` and load all."""
    if EVEN:
        return tl.load(block)
    else:
        return tl.load(block, inside, 0.0)


class Epilogue(NamedTuple):
    """Operands of the epilogue of a product. A step of the epilogue is skipped if its pointer is None.

    Attributes:
        mean_ptr, rstd_ptr: [M] float32, statistics of the rows for the LayerNorm that is folded into the weight.
        weight_sums_ptr: [F] float32, sums of the rows of that weight. None if and only if mean_ptr and rstd_ptr are.
        residual_ptr: [M, F], added after the GELU; stride_residual is the stride of its rows.
        before_ptr: [M, F], where to store the input of the GELU.
        out_ptr: [M, F], where to store the result; never None.
    """

    mean_ptr: tl.tensor
    rstd_ptr: tl.tensor
    weight_sums_ptr: tl.tensor
    residual_ptr: tl.tensor
    before_ptr: tl.tensor
    out_ptr: tl.tensor
    stride_residual: tl.tensor


@triton.jit
def finish_tile(acc, bias, epilogue, r, row, left, column, num_columns, GELU: tl.constexpr):
    """Apply the epilogue to a tile of a product: folded LayerNorm, bias, GELU, residual, store.

    acc is the tile, in fp32. Its rows are `row + r`, of which those with r < left exist. Its columns are `column`, of
    which those below num_columns exist. bias has one number per column. The steps are those of `Epilogue`.
    """
    keep = (r < left)[:, None] & (column < num_columns)[None, :]
    if epilogue.mean_ptr is not None:
        mean = tl.load(epilogue.mean_ptr + row + r, r < left, 0.0)
        rstd = tl.load(epilogue.rstd_ptr + row + r, r < left, 0.0)
        sums = tl.load(epilogue.weight_sums_ptr + column, column < num_columns, 0.0)
        acc = rstd[:, None] * (acc - mean[:, None] * sums[None, :])
    acc += bias[None, :]
    place = row * num_columns + (r[:, None] * num_columns + column[None, :])
    if epilogue.before_ptr is not None:
        tl.store(epilogue.before_ptr + place, acc.to(epilogue.before_ptr.dtype.element_ty), keep)
    if GELU:
        acc = gelu(acc)
    if epilogue.residual_ptr is not None:
        stride = epilogue.stride_residual
        residual = epilogue.residual_ptr + row * stride + (r[:, None] * stride + column[None, :])
        acc += tl.load(residual, keep, 0.0).to(tl.float32)
    tl.store(epilogue.out_ptr + place, acc.to(epilogue.out_ptr.dtype.element_ty), keep)


@triton.jit
def finish(acc, bias, epilogue, r, row, left, first, num_columns, GELU: tl.constexpr, HALVES: tl.constexpr):
    """Apply `finish_tile` to a tile whose columns start at `first`, with HALVES to one half of them at a time."""
    N: tl.constexpr = acc.shape[1]
    if not HALVES:
        finish_tile(acc, bias, epilogue, r, row, left, first + tl.arange(0, N), num_columns, GELU)
    else:
        HALF: tl.constexpr = N // 2
        acc_0, acc_1 = tl.split(tl.permute(tl.reshape(acc, [acc.shape[0], 2, HALF]), (0, 2, 1)))
        bias_0, bias_1 = tl.split(tl.permute(tl.reshape(bias, [2, HALF]), (1, 0)))
        column = first + tl.arange(0, HALF)
        finish_tile(acc_0, bias_0, epilogue, r, row, left, column, num_columns, GELU)
        finish_tile(acc_1, bias_1, epilogue, r, row, left, column + HALF, num_columns, GELU)


@triton.jit
def linear_kernel(
    x_ptr, weight_ptr, bias_ptr, expert_weight_ptr, expert_bias_ptr, task_ptr, mean_ptr, rstd_ptr, weight_sums_ptr,
    residual_ptr, before_ptr, out_ptr,
    num_samples, num_tokens, num_columns, num_inputs, num_tasks, part, stride_x, stride_weight, stride_residual,
    GELU: tl.constexpr, EVEN_K: tl.constexpr, ALIGNMENT: tl.constexpr, SPLIT: tl.constexpr, HALVES: tl.constexpr,
    BLOCK_M: tl.constexpr, TAIL: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Compute a tile of BLOCK_M + TAIL rows of one sample and BLOCK_N columns, loaded through pointers.

    M is num_samples * num_tokens, F is num_columns, and C is num_inputs.
    SPLIT: number of slices of the inputs. A program multiplies one slice, and out_ptr is then [SPLIT, M, F].
    HALVES: see `tiles.in_halves`.
    task_ptr: None, or the task of every sample. The last `part` columns are then computed with the expert of that task,
    from expert_weight_ptr [num_tasks, part, C] and expert_bias_ptr [num_tasks, part], and weight_ptr and bias_ptr hold
    the other F - part columns. A task outside 0..num_tasks - 1 makes the last `part` columns NaN.
    EVEN_K: C is a multiple of SPLIT * BLOCK_K. ALIGNMENT: bytes to which the rows of both weights are aligned, with
    task_ptr.
    """
    blocks = tl.cdiv(num_tokens, BLOCK_M + TAIL)
    blocks_n = tl.cdiv(num_columns, BLOCK_N)
    block_m, block_n = tile_order(tl.program_id(0) // SPLIT, num_samples * blocks, blocks_n, 8)
    sample = block_m // blocks
    first = (block_m % blocks) * (BLOCK_M + TAIL)
    row = sample.to(tl.int64) * num_tokens + first
    left = num_tokens - first
    column = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    # Rows and columns beyond the end are clamped to the last one: the loop needs no mask, and the epilogue drops them.
    n = tl.minimum(column, num_columns - 1)
    w_row = weight_ptr + n.to(tl.int64) * stride_weight
    expert = 0
    poison = 0.0
    if task_ptr is not None:
        # Every column reads its row of the weight from the shared part or from the expert of this sample.
        task = tl.load(task_ptr + sample)
        known = (task >= 0) & (task < num_tasks)
        # Column n reads row `expert + n` of the weights of all experts, [num_tasks * part, C].
        expert = tl.where(known, task, 0) * part - (num_columns - part)
        poison = tl.where(known, 0.0, float("nan"))
        w_row = tl.where(n < num_columns - part, w_row, expert_weight_ptr + (expert + n) * num_inputs)
        # Selecting between two pointers hides their alignment from the compiler, which would load single elements.
        w_row = tl.multiple_of(w_row, ALIGNMENT)

    slice_inputs = tl.cdiv(num_inputs, SPLIT * BLOCK_K) * BLOCK_K
    first_input = tl.program_id(0) % SPLIT * slice_inputs
    k = tl.arange(0, BLOCK_K)
    r = tl.arange(0, BLOCK_M)
    tail = BLOCK_M + tl.arange(0, TAIL if TAIL else 1)
    x_tile = x_ptr + row * stride_x + first_input
    x_block = x_tile + (tl.minimum(r, left - 1)[:, None] * stride_x + k[None, :])
    x_tail_block = x_tile + (tl.minimum(tail, left - 1)[:, None] * stride_x + k[None, :])
    w_block = w_row[None, :] + (first_input + k)[:, None]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    acc_tail = tl.zeros([TAIL if TAIL else 1, BLOCK_N], tl.float32)
    for start in range(0, slice_inputs, BLOCK_K):
        inside = k < num_inputs - first_input - start
        w = load(w_block, inside[:, None], EVEN_K)
        acc = tl.dot(load(x_block, inside[None, :], EVEN_K), w, acc, input_precision="tf32x3")
        if TAIL:
            x_tail = load(x_tail_block, inside[None, :], EVEN_K)
            acc_tail = tl.dot(x_tail, w, acc_tail, input_precision="tf32x3")
        w_block += BLOCK_K
        x_block += BLOCK_K
        x_tail_block += BLOCK_K

    # Loaded after the loop: before it, the values would occupy registers that the accumulators need.
    bias = tl.zeros([BLOCK_N], tl.float32)
    if bias_ptr is not None:
        bias += tl.load(bias_ptr + column, column < num_columns - part, 0.0).to(tl.float32)
    if task_ptr is not None:
        mine = (column >= num_columns - part) & (column < num_columns)
        bias += tl.load(expert_bias_ptr + expert + column, mine, 0.0).to(tl.float32)
        bias += tl.where(mine, poison, 0.0)  # an unknown task has used expert 0: return NaN instead
    row += (tl.program_id(0) % SPLIT) * (num_samples * num_tokens)  # in all slices
    epilogue = Epilogue(mean_ptr, rstd_ptr, weight_sums_ptr, residual_ptr, before_ptr, out_ptr, stride_residual)
    finish(acc, bias, epilogue, r, row, left, block_n * BLOCK_N, num_columns, GELU, HALVES)
    if TAIL:
        finish(acc_tail, bias, epilogue, tail, row, left, block_n * BLOCK_N, num_columns, GELU, HALVES)


@triton.jit
def linear_descriptor_kernel(
    x_descriptor, x_tail_descriptor, weight_descriptor, bias_ptr, mean_ptr, rstd_ptr, weight_sums_ptr, residual_ptr,
    before_ptr, out_ptr, num_rows, num_columns, num_inputs, num_programs, stride_residual,
    GELU: tl.constexpr, SPLIT: tl.constexpr, HALVES: tl.constexpr,
    BLOCK_M: tl.constexpr, TAIL: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Compute every num_programs-th tile, starting with the program's index, loaded through tensor descriptors.

    A tile has BLOCK_M + TAIL rows and BLOCK_N columns. num_rows, num_columns, num_inputs: M, F and C. x_tail_descriptor
    loads the last TAIL rows of a tile; it is None if TAIL is 0. SPLIT, HALVES: as in `linear_kernel`; every tile is
    computed SPLIT times, each time from one slice of the inputs.
    """
    epilogue = Epilogue(mean_ptr, rstd_ptr, weight_sums_ptr, residual_ptr, before_ptr, out_ptr, stride_residual)
    blocks_m = tl.cdiv(num_rows, BLOCK_M + TAIL)
    blocks_n = tl.cdiv(num_columns, BLOCK_N)
    slice_inputs = tl.cdiv(num_inputs, SPLIT * BLOCK_K) * BLOCK_K
    # Flattened with the loop over K, so that software pipelining loads the next tile during the epilogue of this one.
    for tile in tl.range(tl.program_id(0), blocks_m * blocks_n * SPLIT, num_programs, flatten=True):
        block_m, block_n = tile_order(tile // SPLIT, blocks_m, blocks_n, 8)
        first_input = tile % SPLIT * slice_inputs  # descriptors load zeros beyond the last input
        first = block_m * (BLOCK_M + TAIL)
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        acc_tail = tl.zeros([TAIL if TAIL else 1, BLOCK_N], tl.float32)
        for start in range(0, slice_inputs, BLOCK_K):
            w = weight_descriptor.load([block_n * BLOCK_N, first_input + start]).T
            acc = tl.dot(x_descriptor.load([first, first_input + start]), w, acc)
            if TAIL:
                acc_tail = tl.dot(x_tail_descriptor.load([first + BLOCK_M, first_input + start]), w, acc_tail)
        column = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
        bias = tl.zeros([BLOCK_N], tl.float32)
        if bias_ptr is not None:
            bias += tl.load(bias_ptr + column, column < num_columns, 0.0).to(tl.float32)
        row = first.to(tl.int64) + tile % SPLIT * num_rows  # in all slices
        left = num_rows - first
        finish(acc, bias, epilogue, tl.arange(0, BLOCK_M), row, left, block_n * BLOCK_N, num_columns, GELU, HALVES)
        if TAIL:
            r = BLOCK_M + tl.arange(0, TAIL)
            finish(acc_tail, bias, epilogue, r, row, left, block_n * BLOCK_N, num_columns, GELU, HALVES)


@triton.jit
def add_slices_kernel(
    slices_ptr, bias_ptr, mean_ptr, rstd_ptr, weight_sums_ptr, residual_ptr, before_ptr, out_ptr,
    num_rows, num_columns, stride_slice, stride_residual,
    GELU: tl.constexpr, SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Add up slices_ptr [SPLIT, M, F] float32 in order, and apply the epilogue, for BLOCK_M rows and BLOCK_N columns.

    num_rows and num_columns are M and F, and stride_slice is M F.
    """
    blocks_n = tl.cdiv(num_columns, BLOCK_N)
    row = (tl.program_id(0) // blocks_n).to(tl.int64) * BLOCK_M
    left = num_rows - row
    r = tl.arange(0, BLOCK_M)
    column = tl.program_id(0) % blocks_n * BLOCK_N + tl.arange(0, BLOCK_N)
    keep = (r < left)[:, None] & (column < num_columns)[None, :]
    block = slices_ptr + row * num_columns + (r[:, None] * num_columns + column[None, :])
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for _ in tl.static_range(SPLIT):
        acc += tl.load(block, keep, 0.0)
        block += stride_slice
    bias = tl.zeros([BLOCK_N], tl.float32)
    if bias_ptr is not None:
        bias += tl.load(bias_ptr + column, column < num_columns, 0.0).to(tl.float32)
    epilogue = Epilogue(mean_ptr, rstd_ptr, weight_sums_ptr, residual_ptr, before_ptr, out_ptr, stride_residual)
    finish_tile(acc, bias, epilogue, r, row, left, column, num_columns, GELU)


def address(x: Tensor) -> int:
    """Return the address of `x`; while tracing, its offset in bytes in its storage, which is aligned to 16 bytes."""
    return x.data_ptr() if has_address(x) else int(x.storage_offset()) * x.element_size()


def alignment(*tensors: Tensor) -> int:
    """Return the alignment in bytes of the rows of all `tensors` (contiguous): 16, or else the size of an element."""
    size = tensors[0].element_size()
    return 16 if all((address(t) | t.shape[-1] * size) % 16 == 0 for t in tensors) else size


def takes_descriptors(x: Tensor, weight: Tensor, arch: int) -> bool:
    """Return whether x [M, C] and weight [F, C] are loaded through tensor descriptors.

    This requires Hopper or data-center Blackwell, a 16-bit dtype, rows aligned to 16 bytes, and that neither tensor is
    empty. A descriptor contains the address of its tensor, which does not exist while tracing (nor does PyTorch record
    descriptors), so compiled models load through pointers.
    """
    if not usual_chip(arch).has_descriptors or x.element_size() != 2 or not x.numel() or not weight.numel():
        return False
    return all(has_address(t) and (t.data_ptr() | t.stride(0) * 2) % 16 == 0 for t in (x, weight))


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gelu: bool,
    residual: Tensor | None,
    norm: tuple[Tensor, Tensor, Tensor] | None,
    arch: int,
    before: Tensor | None = None,
    tiles: Tiles | None = None,
) -> tuple[Tensor, list[Launch]]:
    """Return (out [M, F], launches). `out` has the dtype of the residual, or without a residual that of x.

    Args:
        x, weight: [M, C] and [F, C], with contiguous channels.
        bias: [F], or None.
        gelu: whether to apply the GELU.
        residual: [M, F] with contiguous channels, added after the GELU, or None.
        norm: (mean [M], rstd [M], weight_sums [F]) of the folded LayerNorm (see `Epilogue`), or None.
        before: [M, F], contiguous, which the launches fill with the input of the GELU, or None.
        tiles: one of `tiles.candidates`. Default: `choose_tiles`.
    """
    m, f = x.shape[0], weight.shape[0]
    out = x.new_empty((m, f), dtype=x.dtype if residual is None else residual.dtype)
    tiles = tiles or choose_tiles(1, m, f, x.dtype, arch, multiprocessors(x, arch))
    mean, rstd, weight_sums = norm or (None, None, None)
    operands = dict(
        bias_ptr=bias,
        mean_ptr=mean,
        rstd_ptr=rstd,
        weight_sums_ptr=weight_sums,
        residual_ptr=residual,
        before_ptr=before,
        out_ptr=out,
    )
    rest = dict(num_columns=f, stride_residual=0 if residual is None else residual.stride(0), SPLIT=tiles.split)
    if tiles.split == 1:
        return out, [_product(x, weight, operands, rest | dict(GELU=gelu), tiles, arch)]
    slices = x.new_empty((tiles.split, m, f), dtype=torch.float32)
    none = dict.fromkeys(operands) | dict(out_ptr=slices)
    product = _product(x, weight, none, rest | dict(stride_residual=0, GELU=False), tiles, arch)
    block_m, block_n = 8, 128  # 8 elements per thread
    arguments = operands | rest
    arguments |= dict(slices_ptr=slices, num_rows=m, stride_slice=m * f, GELU=gelu, BLOCK_M=block_m, BLOCK_N=block_n)
    programs = cdiv(m, block_m) * cdiv(f, block_n)
    moved = num_bytes(slices, *operands.values())
    return out, [product, Launch(add_slices_kernel, (programs,), arguments, bytes=moved)]


def _product(
    x: Tensor, weight: Tensor, operands: dict[str, Tensor | None], rest: dict[str, int], tiles: Tiles, arch: int
) -> Launch:
    """Return the launch that multiplies x [M, C] by weight [F, C].

    `operands` (tensors or None, by the names of the fields of `Epilogue`) and `rest` are the other arguments that both
    kernels have in common.
    """
    (m, c), f = x.shape, weight.shape[0]
    arguments: dict[str, Any] = operands | rest | tiles.shape | dict(num_inputs=c, HALVES=in_halves(tiles, arch))
    work = dict(
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        flops=2 * m * f * c,
        bytes=num_bytes(x, weight, *operands.values()),
    )
    programs = cdiv(m, tiles.BLOCK_M + tiles.TAIL) * cdiv(f, tiles.BLOCK_N) * tiles.split
    if tiles.descriptors and takes_descriptors(x, weight, arch):

        def descriptor(t: Tensor, rows: int) -> TensorDescriptor | None:
            return TensorDescriptor.from_tensor(t, [rows, tiles.BLOCK_K]) if rows else None

        programs = min(programs, multiprocessors(x, arch) * tiles.residents)
        arguments |= dict(
            x_descriptor=descriptor(x, tiles.BLOCK_M),
            x_tail_descriptor=descriptor(x, tiles.TAIL),
            weight_descriptor=descriptor(weight, tiles.BLOCK_N),
            num_rows=m,
            num_programs=programs,
        )
        return Launch(linear_descriptor_kernel, (programs,), arguments, **work)
    arguments |= dict(
        x_ptr=x,
        weight_ptr=weight,
        num_samples=1,
        num_tokens=m,
        stride_x=x.stride(0),
        stride_weight=weight.stride(0),
        EVEN_K=c % (tiles.split * tiles.BLOCK_K) == 0,
        **dict(expert_weight_ptr=None, expert_bias_ptr=None, task_ptr=None, num_tasks=0, part=0, ALIGNMENT=1),
    )
    return Launch(linear_kernel, (programs,), arguments, **work)
