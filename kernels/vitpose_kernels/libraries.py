"""Attention over a whole map by the kernels of other libraries: PyTorch, flash-attn and xformers.

    "sdpa"            PyTorch's scaled_dot_product_attention, which chooses among its back ends
    "sdpa:flash"      the same, pinned to one back end: FlashAttention,
    "sdpa:efficient"  the memory-efficient one,
    "sdpa:cudnn"      cuDNN's,
    "sdpa:math"       or plain operators, with the softmax in at least float32
    "products"        two batched matrix products of PyTorch and the softmax between them, in the dtype of qkv
    "flash_attn"      the package flash-attn
    "xformers"        the package xformers

All are differentiable. On a CPU there are "sdpa", "sdpa:flash", "sdpa:math" and "products".
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
import torch.nn.functional as nnF
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vitpose_kernels.attention_cpu import heads_at_a_time

_BACKENDS = {
    "sdpa:flash": SDPBackend.FLASH_ATTENTION,
    "sdpa:efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa:cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa:math": SDPBackend.MATH,
}
_PACKAGES = ("flash_attn", "xformers")
LIBRARIES = ("sdpa", *_BACKENDS, "products", *_PACKAGES)


def library_attention(qkv: Tensor, scale: float, impl: str) -> Tensor:
    """Compute attention among all N tokens of each sample, qkv [B, N, 3, H, D] -> [B, N, H * D].

    Args:
        qkv: queries, keys and values, as in `attention`.
        scale: factor on q.k.
        impl: one of `LIBRARIES`; see the module docstring.

    Raises:
        ValueError: the library is not installed, or does not take the device, dtype or head width of `qkv`.
    """
    if impl in _PACKAGES:
        if find_spec(impl) is None:
            package = impl.replace("_", "-")
            raise ValueError(f"attention: got impl={impl!r}, but {impl} is not installed; pip install {package}")
        if not qkv.is_cuda:
            raise ValueError(f"attention: got impl={impl!r} for tensors on {qkv.device}; it needs CUDA tensors")
    if impl == "products":
        return _products(qkv, scale)
    try:
        return _call(qkv, scale, impl)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except (RuntimeError, NotImplementedError) as error:
        given = f"{qkv.dtype} tensors of head width {qkv.shape[-1]} on {qkv.device}"
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"attention: impl={impl!r} does not take {given}; use impl='sdpa' or None ({reason})"
        ) from None


def _call(qkv: Tensor, scale: float, impl: str) -> Tensor:
    """Call the library `impl`; not "products"."""
    q, k, v = qkv.unbind(2)  # [B, N, H, D]
    if impl == "flash_attn":
        from flash_attn import flash_attn_func

        return flash_attn_func(q, k, v, softmax_scale=scale).flatten(2)
    if impl == "xformers":
        from xformers.ops import memory_efficient_attention

        return memory_efficient_attention(q, k, v, scale=scale).flatten(2)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if impl == "sdpa":
        out = nnF.scaled_dot_product_attention(q, k, v, scale=scale)
    else:
        with sdpa_kernel(_BACKENDS[impl]):  # the backward pass is that of the back end that ran
            out = nnF.scaled_dot_product_attention(q, k, v, scale=scale)
    return out.transpose(1, 2).flatten(2)


def _products(qkv: Tensor, scale: float) -> Tensor:
    """Compute `library_attention` by batched matrix products. Logits are rounded to the dtype of qkv.

    For inference on a CPU a few attention heads are computed at a time, so that their scores stay in cache, and the
    softmax runs in place. Otherwise all are computed at once.
    """
    b, n, _, heads, width = qkv.shape
    q, k, v = qkv.permute(2, 0, 3, 1, 4).flatten(1, 2).unbind(0)  # [B * H, N, D]
    in_pieces = qkv.device.type == "cpu" and not (torch.is_grad_enabled() and qkv.requires_grad)
    if torch.compiler.is_compiling() or not in_pieces:
        out = torch.bmm((scale * torch.bmm(q, k.transpose(1, 2))).softmax(-1), v)
    else:
        out = qkv.new_empty(b * heads, n, width)
        step = heads_at_a_time(n, n)
        scores = qkv.new_empty(min(step, b * heads), n, n)
        for start in range(0, b * heads, step):
            qs, ks, vs = (x[start : start + step] for x in (q, k, v))
            p = scores[: len(qs)]
            torch.baddbmm(p, qs, ks.transpose(1, 2), beta=0, alpha=scale, out=p)
            torch.softmax(p, -1, out=p)
            torch.bmm(p, vs, out=out[start : start + step])
    return out.unflatten(0, (b, heads)).transpose(1, 2).flatten(2)
