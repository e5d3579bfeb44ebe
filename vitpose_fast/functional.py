"""Every op, once. `impl=None | "triton" | "reference"`; formulas and shapes stand at the head of each op's file."""

from vitpose_fast.kernels.attention import attention
from vitpose_fast.kernels.crop import crop
from vitpose_fast.kernels.deconv import deconv
from vitpose_fast.kernels.heatmap_decode import heatmap_decode
from vitpose_fast.kernels.heatmap_loss import heatmap_loss
from vitpose_fast.kernels.heatmap_target import heatmap_target
from vitpose_fast.kernels.layer_norm import layer_norm, layer_norm_statistics
from vitpose_fast.kernels.linear import linear
from vitpose_fast.kernels.patch_embed import patch_embed
from vitpose_fast.kernels.split_ffn import split_ffn

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
