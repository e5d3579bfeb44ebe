"""Launches of the `attention` backward pass: which kernels run, in which order, and with which tiles.

The kernels are in `attention_gradients`. The letters and the term slot are defined in `attention_steps`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitpose_kernels.chips import usual_chip
from vitpose_kernels.gpu.attention import extra_arguments, is_full, pool, shape_arguments
from vitpose_kernels.gpu.attention_gradients import key_backward, pooled_backward, query_backward, window_backward
from vitpose_kernels.launch import Launch, block_size, cdiv, num_bytes
from vitpose_kernels.windows import Windows


class Gradients(NamedTuple):
    """Outputs of the backward kernels. A gradient is None if it is not wanted, or if its input is None.

    All but `qkv` are float32 partial sums, which `summed` adds up over the first dimension.

    Attributes:
        qkv: [B, N, 3, H, D], contiguous, the gradient in the dtype of qkv.
        rel_h, rel_w: [programs, 2h - 1, D] and [programs, 2w - 1, D], a partial sum from every program.
        pooled: [num_shares, B, G, 2, H, D], a partial sum from every share of the tokens (see `attention_gradients`).
            None if the pooled keys are means of windows: `qkv` then includes their gradient.
    """

    qkv: Tensor
    rel_h: Tensor | None
    rel_w: Tensor | None
    pooled: Tensor | None

    def summed(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients of (qkv, rel_h, rel_w, pooled), without the dimension of the partial sums.

        To be called after the kernels have run.
        """
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
    """Return the gradients, still to be filled, and the launches that fill them, in order.

    Args:
        grad: [B, N, C], contiguous, in the dtype of qkv: the gradient of the output.
        out: [B, N, C], contiguous: the output of the forward pass.
        lse: [B, H, N] float32: the log-sum-exp of the logits from the forward pass.
        qkv, rel_h, rel_w, scale: as in the forward pass.
        with_pool: whether the pooled keys are the means of the windows. They are recomputed, and `pooled` is ignored.
        pooled: [B, G, 2, H, D], given pooled keys and values, or None.
        want_tables: whether to compute the gradients of rel_h and rel_w.
        want_pooled: whether to compute the gradient of `pooled`.
    """
    b, n, _, heads, width = qkv.shape
    (h, w), (windows_y, windows_x) = windows.window, windows.windows
    launches = []
    if with_pool:
        pooled, launch = pool(qkv, windows)
        launches.append(launch)
    length, num_pooled = h * w, 0 if pooled is None else pooled.shape[1]
    relative = rel_h is not None
    both = fits_one_tile(length, width, qkv.element_size(), relative, arch)
    shape = shape_arguments(qkv, windows, scale) | dict(lse_ptr=lse, grad_ptr=grad)
    extra = extra_arguments(rel_h, rel_w, pooled)

    delta, d_pooled, num_shares = None, None, 1
    if not both or num_pooled > 0:
        delta = torch.empty_like(lse)
        pooling = num_pooled > 0 and (with_pool or want_pooled)
        block_g = extra["BLOCK_G"]
        programs = b * heads * cdiv(num_pooled, block_g) if pooling else b * heads
        num_shares = max(1, min(cdiv(264, max(programs, 1)), cdiv(n, 256)))  # 264 programs: two for each of 132 SMs
        if pooling:
            d_pooled = qkv.new_empty((num_shares, b, num_pooled, 2, heads, width), dtype=torch.float32)
        arguments = shape | extra
        arguments |= dict(
            pooled_ptr=pooled if pooling else None,
            out_ptr=out,
            delta_ptr=delta,
            d_pooled_ptr=d_pooled,
            tokens=n,
            num_shares=num_shares,
            stride_share=0 if d_pooled is None else d_pooled.stride(0),
            BLOCK_M=32 if qkv.element_size() == 4 or width > 64 else 64,
        )
        launches.append(
            Launch(
                pooled_backward,
                (programs * num_shares,),
                of_kernel(pooled_backward, arguments),
                num_stages=3 if usual_chip(arch).tensor_cores == "tcgen05" else 2,  # 2 stages spill there
                flops=8 * b * n * num_pooled * heads * width if pooling else 0,
                bytes=num_bytes(grad, out, delta)
                + (num_bytes(qkv) // 3 + num_bytes(lse, pooled, d_pooled) if pooling else 0),
            )
        )
    d_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    one, other, warps, stages = backward_tile(length, width, qkv.element_size(), relative, both, arch)
    programs = cdiv(length, one) * heads * windows_y * windows_x * b
    d_rel_h = d_rel_w = None
    if relative and want_tables:
        d_rel_h, d_rel_w = (qkv.new_empty((programs, 2 * size - 1, width), dtype=torch.float32) for size in (h, w))
    arguments = shape | extra
    arguments |= dict(
        delta_ptr=delta,
        d_pooled_ptr=d_pooled if with_pool else None,
        d_qkv_ptr=d_qkv,
        d_rel_h_ptr=d_rel_h,
        d_rel_w_ptr=d_rel_w,
        num_shares=num_shares,
        stride_share=0 if d_pooled is None else d_pooled.stride(0),
        BLOCK_M=one,
        BLOCK_N=other,
        FULL=is_full(windows, max(one, other)),
    )
    read = num_bytes(qkv, grad, lse, delta, rel_h, rel_w)
    key_bytes = num_bytes(d_pooled if with_pool else None) + num_bytes(qkv) * 2 // 3
    query_bytes = num_bytes(pooled, d_rel_h, d_rel_w) + num_bytes(qkv) // 3
    # (kernel, matrix products with the keys of a window, matrix products with the pooled keys, bytes)
    if both:
        work = [(window_backward, 5, 3, read + key_bytes + query_bytes)]
    else:  # both kernels compute the logits and their gradients
        work = [(key_backward, 4, 0, read + key_bytes), (query_backward, 3, 3, read + query_bytes)]
    # With 128 registers two programs of 8 warps fit on a multiprocessor. Triton 3.6 would take 129.
    limited = both and warps == 8 and width <= 32 and num_shares == 1 and usual_chip(arch).tensor_cores == "wgmma"
    for kernel, products, pooled_products, moved in work:
        launches.append(
            Launch(
                kernel,
                (programs,),
                of_kernel(kernel, arguments),
                num_warps=warps,
                num_stages=stages,
                flops=2 * b * n * heads * width * (products * length + pooled_products * num_pooled),
                bytes=moved,
                maxnreg=128 if limited else None,
            )
        )
    return Gradients(d_qkv, d_rel_h, d_rel_w, None if with_pool else d_pooled), launches


def of_kernel(kernel: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of `arguments` that are parameters of `kernel`. All of its parameters must be there."""
    return {name: arguments[name] for name in kernel.arg_names}


def fits_one_tile(length: int, width: int, element_size: int, relative: bool, arch: int) -> bool:
    """Return whether one program can hold a whole window of `length` slots, as keys and as queries at once.

    The limits are such that no registers spill, except for `aot.KNOWN_SPILLS`. `width` is the head width D; `relative`
    says whether there are relative position terms.
    """
    chip = usual_chip(arch)
    if element_size == 4 or (relative and (chip.needs_more_registers or (chip.tensor_cores == "mma" and width > 64))):
        return length <= 32
    return length <= 64


def backward_tile(
    length: int, width: int, element_size: int, relative: bool, both: bool, arch: int
) -> tuple[int, int, int, int]:
    """Choose (BLOCK_M, BLOCK_N, warps, stages) of a program for windows of `length` slots.

    A program of `key_backward` computes the gradients of BLOCK_M keys, BLOCK_N queries at a time; a program of
    `query_backward` computes the gradients of BLOCK_M queries, BLOCK_N keys at a time. With `both` (`window_backward`)
    a program holds all slots of a window. No tile for a 16-bit dtype spills registers, except for `aot.KNOWN_SPILLS`.
    """
    if both:
        return block_size(length), block_size(length), 8 if relative and length > 32 else 4, 1
    if element_size == 4:
        return 32, 32, 4, 1
    if usual_chip(arch).tensor_cores != "mma":
        return 64, 64, 4, 1
    own = 16 if usual_chip(arch).needs_more_registers and relative and width > 64 else 32
    return (own, 32 if relative or width > 64 else 64, 4, 1)
