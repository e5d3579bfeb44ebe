"""The softmax and products of attention on a CPU, for training in eager mode, without the whole score matrix in memory.

PyTorch's fused kernels run: they save the log-sum-exp of each query. Their backward pass is slow in 16 bit, so unless
something is added to the logits, batched matrix products run there, on a few attention heads at a time, so that their
scores stay in cache.

Letters: X samples, windows or both, H attention heads, L queries, S keys, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SCORES = 2**19  # scores that products compute at a time: 2 MiB in float32, about what the cache of a core holds


def by_products(q: Tensor, bias: Tensor | None) -> bool:
    """Return whether the backward pass runs as batched products."""
    return bias is None and q.dtype in (torch.float16, torch.bfloat16)


def forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Compute softmax(scale * q k^T + bias) v by PyTorch's fused kernel.

    Args:
        q, k, v: [X, H, L, D], [X, H, S, D] and [X, H, S, D].
        bias: [X, 1 or H, L, S], in the dtype of q, or None.
        scale: factor on q.k.

    Returns:
        out [X, H, L, D], and what `backward` needs: the log-sum-exp of the logits [X, H, L] float32 (float64 for
        float64), or an empty tensor.
    """
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = kernel(q, k, v, attn_mask=bias, scale=scale)
    return out, q.new_empty(0) if by_products(q, bias) else lse


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, out: Tensor | None, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of q, k and v from that of the output, `grad` [X, H, L, D] in the dtype of q.

    `out` and `lse` are the results of `forward`; `out` may be None if `lse` is empty.
    """
    if by_products(q, bias):
        return _products_backward(grad, q, k, v, scale)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    dq, dk, dv = kernel(grad, q, k, v, out, lse, 0.0, False, attn_mask=bias, scale=scale)
    return dq, dk, dv


def heads_at_a_time(queries: int, keys: int) -> int:
    """Return how many attention heads products compute at a time: a multiple of the number of threads."""
    threads = torch.get_num_threads()
    return max(_SCORES // (queries * keys) // threads, 1) * threads


def _products_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `backward` by batched products: logits and softmax in float32, the other products in 16 bit."""
    shape, dtype = q.shape, q.dtype
    grad, q, k, v = (x.flatten(0, 1) for x in (grad, q, k, v))  # [XH, L or S, D]
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    step = heads_at_a_time(q.shape[1], k.shape[1])
    scores = torch.empty(min(step, len(q)), q.shape[1], k.shape[1])
    for start in range(0, len(q), step):
        do, qs, ks, vs = (x[start : start + step] for x in (grad, q, k, v))
        p = scores[: len(qs)]
        torch.baddbmm(p, qs.float(), ks.float().transpose(1, 2), beta=0, alpha=scale, out=p)
        p = torch.softmax(p, -1, out=p).to(dtype)
        ds = torch.ops.aten._softmax_backward_data(do @ vs.transpose(1, 2), p, -1, dtype)
        torch.bmm(p.transpose(1, 2), do, out=dv[start : start + step])
        for out, a, b in ((dq, ds, ks), (dk, ds.transpose(1, 2), qs)):
            part = out[start : start + step]
            torch.baddbmm(part, a, b, beta=0, alpha=scale, out=part)
    dq, dk, dv = (x.unflatten(0, shape[:2]) for x in (dq, dk, dv))
    return dq, dk, dv
