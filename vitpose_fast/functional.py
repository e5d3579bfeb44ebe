"""All ops of the library as functions on tensors. The module of an op in `vitpose_kernels` documents its formula.

Every op takes `impl`: None (the default) runs the Triton kernels for CUDA tensors if Triton is installed, and the
PyTorch reference otherwise; "triton" and "reference" force one of the two. "triton" raises a ValueError where Triton
cannot run.
"""

from vitpose_kernels.attention import attention
from vitpose_kernels.crop import crop
from vitpose_kernels.deconv import deconv
from vitpose_kernels.heatmap_decode import heatmap_decode
from vitpose_kernels.heatmap_loss import heatmap_loss
from vitpose_kernels.heatmap_target import heatmap_target
from vitpose_kernels.layer_norm import layer_norm, layer_norm_statistics
from vitpose_kernels.linear import linear
from vitpose_kernels.patch_embed import patch_embed
from vitpose_kernels.split_ffn import split_ffn

__all__ = [
    "attention",
    "crop",
    "deconv",
    "heatmap_decode",
    "heatmap_loss",
    "heatmap_target",
    "layer_norm",
    "layer_norm_statistics",
    "linear",
    "patch_embed",
    "split_ffn",
]
