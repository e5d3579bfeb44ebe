"""Attention over a whole map by the kernels of other libraries: PyTorch, flash-attn and xformers."""

from __future__ import annotations

from importlib.util import find_spec

import torch.nn.functional as nnF
from torch import Tensor

LIBRARIES = ("sdpa", "flash_attn", "xformers")


def library_attention(qkv: Tensor, scale: float, impl: str) -> Tensor:
    """Compute attention among all N tokens of each sample, qkv [B, N, 3, H, D] -> [B, N, H * D].

    Args:
        qkv: queries, keys and values, as in `attention`.
        scale: factor on q.k.
        impl: one of `LIBRARIES`: "sdpa" is PyTorch's scaled_dot_product_attention, the others are packages.

    Raises:
        ValueError: `impl` is "flash_attn" or "xformers", and the package is not installed or `qkv` is not on CUDA.
    """
    if impl != "sdpa":
        if find_spec(impl) is None:
            raise ValueError(f"attention: got impl={impl!r}, but {impl} is not installed")
        if not qkv.is_cuda:
            raise ValueError(f"attention: got impl={impl!r} for tensors on {qkv.device}; it needs CUDA tensors")
    q, k, v = qkv.unbind(2)  # [B, N, H, D]
    if impl == "flash_attn":
        from flash_attn import flash_attn_func

        return flash_attn_func(q, k, v, softmax_scale=scale).flatten(2)
    if impl == "xformers":
        from xformers.ops import memory_efficient_attention

        return memory_efficient_attention(q, k, v, scale=scale).flatten(2)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return nnF.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)
