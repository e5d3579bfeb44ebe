"""Patch embedding: a linear layer on 16x16 patches of the images, fused with the addition of the position embedding.

    out[b, (i, j)] = bias + position[(i, j)] + sum weight[:, c, y, x] images[b, c, s i - p + y, s j - p + x]

The sum runs over the 3 x 16 x 16 values (c, y, x) of a patch: color, row and column. (i, j) is row and column of the
token in the grid. Pixels outside the image are zero.

Letters: B batch, (H, W) image in pixels, N tokens in row-major order, C channels, s stride, p padding in pixels.

    images [B, 3, H, W]  weight [C, 3, 16, 16]  bias [C]  position [N, C]  out [B, N, C]
    N = rows * columns, rows = floor((H + 2p - 16) / s) + 1, columns = floor((W + 2p - 16) / s) + 1

FLOPs: 1536 B N C. Memory traffic: the images are read and out is written, once each. Compute-bound. Without fusion, the
convolution writes its result [B, C, rows, columns], the addition of the position embedding reads and writes it, and the
conversion to tokens reads and writes it again. The op saves these last four passes over B N C elements (75 of 113 MB
for ViTPose-B at batch 64 in 16 bit). Inference only.
Source: docs/numerics.md 1.2 (stride 16 with padding 2, stride 8 with padding 4).
"""

from __future__ import annotations

import torch.nn.functional as nnF
from torch import Tensor

from vitpose_kernels.autocast import autocast_inputs, without_autocast
from vitpose_kernels.checks import check_device, choose_impl, refuse_grad
from vitpose_kernels.eager import triton_op
from vitpose_kernels.launch import architecture, run


def patch_embed_reference(
    images: Tensor, weight: Tensor, bias: Tensor, position: Tensor, stride: int, padding: int
) -> Tensor:
    """Reference implementation in plain PyTorch, which specifies the op. Returns [B, N, C] in the dtype of `weight`."""
    maps = nnF.conv2d(images.to(weight.dtype), weight, bias, stride, padding)
    return (maps.flatten(2).transpose(1, 2) + position).contiguous()


def _grid(images: Tensor, stride: int, padding: int) -> tuple[int, int]:
    rows, columns = ((side + 2 * padding - 16) // stride + 1 for side in images.shape[2:])
    return rows, columns


@triton_op("vitpose_fast::patch_embed")
def _patch_embed(
    images: Tensor, weight: Tensor, bias: Tensor, position: Tensor, stride: int, padding: int, triton: bool
) -> Tensor:
    if not triton:
        return patch_embed_reference(images, weight, bias, position, stride, padding)
    from vitpose_kernels.gpu import patch_embed as gpu

    grid = _grid(images, stride, padding)
    return run(*gpu.forward(images, weight, bias, position, grid, stride, padding, architecture(images)))


def patch_embed(
    images: Tensor,
    weight: Tensor,
    bias: Tensor,
    position: Tensor,
    stride: int = 16,
    padding: int = 2,
    impl: str | None = None,
) -> Tensor:
    """Compute the tokens of images, with the position embedding added. The module docstring has the formula.

    Args:
        images: [B, 3, H, W], normalized (see `crop`); any strides (contiguous rows are fastest) and any floating dtype.
            The op converts them to the dtype of `weight`.
        weight, bias: [C, 3, 16, 16] and [C] of the convolution.
        position: [N, C], added to the tokens. For the official `pos_embed` [1, N + 1, C], whose slot 0 belongs to the
            class token, this is pos_embed[0, 1:] + pos_embed[0, :1].
        stride, padding: stride and zero padding of the convolution, in pixels; 16 and 2, or 8 and 4, in the official
            models.
        impl: None (chosen by device), "triton" or "reference".

    Returns:
        [B, N, C], contiguous, in the dtype of `weight`. Autocast casts `weight`, `bias` and `position`.

    Raises:
        ValueError: shapes, dtypes or devices do not fit each other, an input requires grad while grad mode is on (this
            op has no backward pass), or `impl` does not support the call.
    """
    op = "patch_embed"
    if not (images.dim() == 4 and images.shape[1] == 3 and images.is_floating_point()):
        raise ValueError(f"{op}: images are {images.dtype} {list(images.shape)}, expected floating [B, 3, H, W]")
    if not (weight.dim() == 4 and tuple(weight.shape[1:]) == (3, 16, 16)):
        raise ValueError(f"{op}: weight has shape {list(weight.shape)}, expected [C, 3, 16, 16]")
    if not (stride >= 1 and padding >= 0):
        raise ValueError(f"{op}: got stride={stride}, padding={padding}, expected stride >= 1 and padding >= 0")
    rows, columns = _grid(images, stride, padding)
    if not min(rows, columns) >= 1:
        raise ValueError(
            f"{op}: images of {images.shape[2]}x{images.shape[3]} do not hold a 16x16 patch with padding {padding}"
        )
    channels = weight.shape[0]
    if tuple(bias.shape) != (channels,):
        raise ValueError(f"{op}: bias has shape {list(bias.shape)}, expected [{channels}]")
    if tuple(position.shape) != (rows * columns, channels):
        raise ValueError(
            f"{op}: position has shape {list(position.shape)}, expected [{rows * columns}, {channels}] for a grid of "
            f"{rows}x{columns}"
        )
    check_device(op, images, weight=weight, bias=bias, position=position)
    refuse_grad(op, images=images, weight=weight, bias=bias, position=position)
    weight, bias, position = autocast_inputs(weight, bias, position)  # type: ignore[assignment]
    for name, tensor in (("bias", bias), ("position", position)):
        if tensor.dtype != weight.dtype:
            raise ValueError(f"{op}: {name} is {tensor.dtype}, weight is {weight.dtype}; cast one of them")
    triton = all(choose_impl(op, impl, x) == "triton" for x in (images, weight))
    with without_autocast(images):
        return _patch_embed(images, weight, bias, position, stride, padding, triton)
