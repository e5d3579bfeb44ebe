"""Linear layers for inference on a CPU, with the weight reordered once instead of at every call.

PyTorch's `linear` hands the weight to a library (oneDNN or MKL), which reorders it into its own blocked layout each
time. Here the layer keeps the reordered copy. "onednn" also applies bias, GELU and residual within the product. "mkl"
(float32 only) serves one number of rows, for which it was packed, and is faster than oneDNN on Intel processors. "int8"
is oneDNN's product of 8-bit integers: it is not as exact as the others, and never chosen without being asked for.

    y = gelu(x Wᵀ + b) + residual          x [..., C], W [F, C], b [F], residual and y [..., F]; one dtype

These operators are internal to PyTorch, so `supports` asks whether they exist. Without them, use `linear`.
"""

from __future__ import annotations

import platform
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

LIBRARIES = ("onednn", "mkl")  # that compute the same up to rounding


@lru_cache(None)
def supports(library: str, dtype: torch.dtype) -> bool:
    """Return whether this machine and this build of PyTorch have the operators of a library for a dtype."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    if library == "int8":
        exists = all(hasattr(torch.ops.onednn, name) for name in ("qlinear_prepack", "qlinear_pointwise"))
        return exists and dtype in (torch.float32, torch.bfloat16) and torch.backends.mkldnn.is_available()
    if library == "mkl":
        exists = hasattr(torch.ops.mkl, "_mkl_reorder_linear_weight") and hasattr(torch.ops.mkl, "_mkl_linear")
        return exists and dtype == torch.float32 and torch.backends.mkl.is_available()
    ops = torch.ops.mkldnn
    needed = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported")
    if not (torch.backends.mkldnn.is_available() and all(hasattr(ops, name) for name in needed)):
        return False
    if dtype == torch.bfloat16:
        return bool(ops._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(ops._is_mkldnn_fp16_supported())
    return dtype == torch.float32


@lru_cache(None)
def _is_intel() -> bool:
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return "intel" in str(known.get("cpu_name", "")).lower()


def default_library(dtype: torch.dtype, batch: int) -> str | None:
    """Return the library for a batch that nobody has measured, or None if there is no library for this dtype.

    On Intel processors that is MKL for a single sample in float32, and oneDNN for everything else.
    """
    if batch == 1 and _is_intel() and supports("mkl", dtype):
        return "mkl"
    return "onednn" if supports("onednn", dtype) else None


class PackedWeight:
    """The weight of a linear layer, packed for the products with `rows` rows of input (about that many for "onednn").

    Args:
        weight: [F, C] on the CPU.
        library: one of `LIBRARIES`, or "int8", which `supports` the dtype of the weight.
        rows: number of rows of the inputs.
    """

    def __init__(self, weight: Tensor, library: str, rows: int) -> None:
        self.library, self.rows, self.weight = library, rows, weight.detach()
        if library == "int8":
            exact = self.weight.float()
            self.scales = exact.abs().amax(1).clamp(min=1e-20) / 127  # one per output channel
            steps = torch.round(exact / self.scales[:, None]).to(torch.int8)
            self.zeros = torch.zeros(len(steps), dtype=torch.int64)
            self.packed = torch.ops.onednn.qlinear_prepack(steps, [rows, steps.shape[1]])
        elif library == "mkl":
            self.packed = torch.ops.mkl._mkl_reorder_linear_weight(self.weight, rows)
        else:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, rows)
        self._version = _version(weight)

    def is_of(self, weight: Tensor) -> bool:
        """Return whether this is the packed form of `weight` with its present values."""
        return self.weight.data_ptr() == weight.data_ptr() and self._version == _version(weight)

    def linear(self, x: Tensor, bias: Tensor, gelu: bool = False, residual: Tensor | None = None) -> Tensor:
        """Compute the layer: x [..., C] -> [..., F], with GELU and then residual [..., F] if they are given.

        With "mkl", x must have `rows` rows. With "int8", x is rounded to 255 steps of one size, from -max|x| to max|x|.
        """
        if self.library == "int8":
            return self._in_int8(x, bias, gelu, residual)
        if self.library == "mkl":
            y = torch.ops.mkl._mkl_linear(x, self.packed, self.weight, bias, self.rows)
            y = torch.ops.aten.gelu_(y) if gelu else y
            return y if residual is None else y.add_(residual)
        ops = torch.ops.mkldnn
        if residual is None or gelu:
            y = ops._linear_pointwise(x, self.packed, bias, "gelu" if gelu else "none", [], "none")
            return y if residual is None else y.add_(residual)
        return ops._linear_pointwise.binary(x, residual, self.packed, bias, "add")

    def _in_int8(self, x: Tensor, bias: Tensor, gelu: bool, residual: Tensor | None) -> Tensor:
        low, high = torch.aminmax(x)
        step = max(-float(low), float(high), 1e-20) / 127
        steps = (x * (1 / step)).round_().clamp_(-127, 127).to(torch.int8)
        y = torch.ops.onednn.qlinear_pointwise(
            steps, step, 0, self.packed, self.scales, self.zeros, bias.float(), 1.0, 0, x.dtype,
            "gelu" if gelu else "none", [], "none",
        )  # fmt: skip
        return y if residual is None else y.add_(residual)


def _version(x: Tensor) -> int | None:
    """Return how often `x` was changed in place; None for a tensor made in inference mode, which does not count."""
    return None if x.is_inference() else x._version
