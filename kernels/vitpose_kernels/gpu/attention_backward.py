"""Launches of the backward pass of `attention`: what is computed, in which order, with which tiles."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vitpose_kernels.gpu.attention import extra_arguments, is_full, pool, shape_arguments
from vitpose_kernels.gpu.attention_gradients import attention_backward_kernel, attention_pooled_backward_kernel
from vitpose_kernels.launch import Launch, block_size, cdiv, num_bytes
from vitpose_kernels.windows import Windows


class Gradients(NamedTuple):
    """What the backward kernels fill; what nobody asked for is None. The partial sums still have to be added up."""

    qkv: Tensor
    rel_h: Tensor | None  # [programs, 2h - 1, D] float32
    rel_w: Tensor | None
    pooled: Tensor | None  # [shares, B, G, 2, H, D] float32

    def summed(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        rel_h, rel_w, pooled = (None if x is None else x.sum(0) for x in (self.rel_h, self.rel_w, self.pooled))
        return self.qkv, rel_h, rel_w, pooled


def backward(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    qkv: Tensor,
    windows: Windows,
    with_pool: bool,
    rel_h: Tensor | None,
    rel_w: Tensor | None,
    scale: float,
    pooled: Tensor | None,
    want_tables: bool,
    want_pooled: bool,
    arch: int,
) -> tuple[Gradients, list[Launch]]:
    """(gradients, launches that fill them). grad and out [B, N, C] contiguous."""
    b, n, _, heads, width = qkv.shape
    (h, w), (windows_y, windows_x) = windows.window, windows.windows
    launches = []
    if with_pool:
        pooled, launch = pool(qkv, windows)
        launches.append(launch)
    length, num_pooled = h * w, 0 if pooled is None else pooled.shape[1]
    relative = rel_h is not None
    both = fits_one_tile(length, width, qkv.element_size(), relative, arch)
    shape = shape_arguments(qkv, windows, scale)
    extra = extra_arguments(qkv, windows, rel_h, rel_w, pooled)
    saved = dict(lse_ptr=lse, grad_ptr=grad)

    delta, d_pooled, num_shares = lse, None, 1
    if not both or num_pooled > 0:
        delta = torch.empty_like(lse)
        pooling = num_pooled > 0 and (with_pool or want_pooled)
        block_g = extra["BLOCK_G"]
        programs = b * heads * cdiv(num_pooled, block_g) if pooling else b * heads
        num_shares = max(1, min(cdiv(264, max(programs, 1)), cdiv(n, 256)))  # two programs per multiprocessor
        if pooling:
            d_pooled = qkv.new_empty((num_shares, b, num_pooled, 2, heads, width), dtype=torch.float32)
        names = ("qkv_ptr", "num_heads", "scale", "stride_b", "stride_n", "stride_h", "stride_d", "D", "D1", "D2")
        names_pooled = ("pooled_ptr", "num_pooled", "stride_pb", "stride_pg", "stride_p2", "stride_ph", "stride_pd")
        launches.append(
            Launch(
                attention_pooled_backward_kernel,
                (programs * num_shares,),
                {k: shape[k] for k in names}
                | {k: extra[k] for k in names_pooled}
                | saved
                | dict(
                    out_ptr=out,
                    delta_ptr=delta,
                    d_pooled_ptr=delta if d_pooled is None else d_pooled,
                    tokens=n,
                    num_shares=num_shares,
                    BLOCK_M=32 if qkv.element_size() == 4 or width > 64 else 64,
                    BLOCK_G=block_g,
                    POOLED=pooling,
                ),
                num_stages=3 if arch == 100 else 2,  # where two spill, three do not
                flops=8 * b * n * num_pooled * heads * width if pooling else 0,
                bytes=num_bytes(grad, out, delta) + (num_bytes(qkv) // 3 + num_bytes(d_pooled) if pooling else 0),
            )
        )
    d_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    tables = relative and want_tables
    for keys, queries in ((True, True),) if both else ((True, False), (False, True)):
        one, other, warps, stages = backward_tile(length, width, qkv.element_size(), relative, both, arch)
        grid = cdiv(length, one) * heads * windows_y * windows_x * b
        d_rel_h = d_rel_w = None
        if queries and tables:
            d_rel_h, d_rel_w = (qkv.new_empty((grid, 2 * size - 1, width), dtype=torch.float32) for size in (h, w))
        arguments = shape | extra | saved
        arguments |= dict(
            delta_ptr=delta,
            d_pooled_ptr=delta if d_pooled is None else d_pooled,
            d_qkv_ptr=d_qkv,
            d_rel_h_ptr=delta if d_rel_h is None else d_rel_h,
            d_rel_w_ptr=delta if d_rel_w is None else d_rel_w,
            num_shares=num_shares,
            BLOCK_M=one,
            BLOCK_N=other,
            KEYS=keys,
            QUERIES=queries,
            STORED_DELTA=delta is not lse,
            POOL=with_pool,
            FULL=is_full(windows, max(one, other)),
            TABLES=queries and tables,
        )
        products_each = 2 + 2 * keys + queries  # logits, dp; dk, dv; dq
        launches.append(
            Launch(
                attention_backward_kernel,
                (grid,),
                arguments,
                num_warps=warps,
                num_stages=stages,
                flops=2 * b * n * heads * width * (products_each * length + (3 * num_pooled if queries else 0)),
                bytes=num_bytes(qkv, grad, lse) + num_bytes(qkv) * (2 * keys + queries) // 3,
            )
        )
    return Gradients(d_qkv, d_rel_h, d_rel_w, None if with_pool else d_pooled), launches


def fits_one_tile(length: int, width: int, element_size: int, relative: bool, arch: int) -> bool:
    """Whether one program takes a whole window, as keys and as queries at once, without spilling registers."""
    if element_size == 4 or (relative and (arch == 120 or (arch not in (90, 100) and width > 64))):
        return length <= 32
    return length <= 64


def backward_tile(
    length: int, width: int, element_size: int, relative: bool, both: bool, arch: int
) -> tuple[int, int, int, int]:
    """(own slots, other slots, warps, stages) of a program for windows of `length` tokens; spill-free in 16 bits."""
    if both:
        return block_size(length), block_size(length), 8 if relative and length > 32 else 4, 1
    if element_size == 4:
        return 32, 32, 4, 1
    if arch in (90, 100):
        return 64, 64, 4, 1
    own = 16 if arch == 120 and relative and width > 64 else 32
    return (own, 32 if relative or width > 64 else 64, 4, 1)
