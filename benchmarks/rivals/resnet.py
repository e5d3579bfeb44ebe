"""ResNet trunks, plain or with the squeeze-and-excitation of AlphaPose."""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.rivals.layers import conv_bn

DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class SqueezeExcite(nn.Module):
    """Multiply each channel by a gate computed from the means of all channels over the map: [B, C, h, w] -> the same.

    The hidden layer of the gate is as wide as its input, as in AlphaPose.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Linear(channels, channels), nn.ReLU(inplace=True), nn.Linear(channels, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3)))[:, :, None, None]


class Bottleneck(nn.Module):
    """Residual block of 1x1, 3x3 (with stride s) and 1x1 convolutions: [B, inputs, h, w] -> [B, 4 * mid, h/s, w/s]."""

    def __init__(self, inputs: int, mid: int, stride: int = 1, squeeze: bool = False) -> None:
        super().__init__()
        outputs = 4 * mid
        self.body = nn.Sequential(conv_bn(inputs, mid), conv_bn(mid, mid, 3, stride), conv_bn(mid, outputs, relu=False))
        if squeeze:
            self.body.append(SqueezeExcite(outputs))
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride, relu=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions: [B, C, h, w] -> [B, C, h, w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(channels, channels, 3), conv_bn(channels, channels, 3, relu=False))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + x)


def bottlenecks(inputs: int, mid: int, count: int, stride: int = 1, squeeze: bool = False) -> nn.Module:
    """Build a stage of `count` bottleneck blocks: [B, inputs, h, w] -> [B, 4 * mid, h/stride, w/stride].

    Only the first block has the stride, the change of width, and squeeze-and-excitation if `squeeze`.
    """
    rest = [Bottleneck(4 * mid, mid) for _ in range(count - 1)]
    return nn.Sequential(Bottleneck(inputs, mid, stride, squeeze), *rest)


def resnet(depth: int, squeeze: bool = False) -> nn.Sequential:
    """Build a ResNet of depth 50, 101 or 152 without its classifier: [B, 3, H, W] -> [B, 2048, H/32, W/32].

    With `squeeze`, the first block of each stage has squeeze-and-excitation.
    """
    layers: list[nn.Module] = [conv_bn(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for i, count in enumerate(DEPTHS[depth]):
        mid = 64 * 2**i
        layers.append(bottlenecks(inputs, mid, count, 1 if i == 0 else 2, squeeze))
        inputs = 4 * mid
    return nn.Sequential(*layers)
