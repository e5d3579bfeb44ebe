"""Every op, once. Each takes `impl=None | "reference"`; the formulas and shapes stand at the head of each op's file."""

from vitpose_fast.kernels.attention import attention
from vitpose_fast.kernels.crop import crop
from vitpose_fast.kernels.heatmap_decode import heatmap_decode
from vitpose_fast.kernels.heatmap_loss import heatmap_loss
from vitpose_fast.kernels.heatmap_target import heatmap_target
from vitpose_fast.kernels.split_ffn import split_ffn

__all__ = ["attention", "crop", "heatmap_decode", "heatmap_loss", "heatmap_target", "split_ffn"]
