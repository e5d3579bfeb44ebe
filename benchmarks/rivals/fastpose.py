"""FastPose (AlphaPose; Fang et al., TPAMI 2022) with ResNet-152: three DUC stages with 4, 2 and 1 convolutions."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from benchmarks.rivals.layers import conv_bn
from benchmarks.rivals.resnet import resnet


def duc(inputs: int, outputs: int, count: int) -> nn.Module:
    """Build a dense upsampling (DUC) stage: depth to space, then `count` 3x3 convolutions with BatchNorm and ReLU.

    It maps [B, inputs, h, w] to [B, outputs, 2h, 2w].
    """
    shuffled = inputs // 4
    widths = [shuffled] * count + [outputs]
    convolutions = [conv_bn(a, b, 3) for a, b in pairwise(widths)]
    return nn.Sequential(nn.PixelShuffle(2), *convolutions)


class FastPose(nn.Module):
    """FastPose, images [B, 3, H, W] -> heatmaps [B, K, H/4, W/4].

    Args:
        depth: depth of the ResNet with squeeze-and-excitation: 50, 101 or 152.
        num_keypoints: number of keypoints K.
        convolutions: number of convolutions in each upsampling stage.
    """

    def __init__(
        self, depth: int = 152, num_keypoints: int = 17, convolutions: tuple[int, int, int] = (4, 2, 1)
    ) -> None:
        super().__init__()
        self.trunk = resnet(depth, squeeze=True)
        widths = (2048, 1024, 512, 256)
        self.up = nn.Sequential(*(duc(widths[i], widths[i + 1], n) for i, n in enumerate(convolutions)))
        self.predictor = nn.Conv2d(widths[-1], num_keypoints, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.predictor(self.up(self.trunk(images)))
