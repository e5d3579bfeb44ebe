"""HRFormer (Yuan et al., NeurIPS 2021): the architecture of HRNet with local-window transformer blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.rivals.hrnet import HighResolutionTrunk
from benchmarks.rivals.layers import Attend, conv_bn

HEAD_WIDTHS = {32: 32, 78: 39}  # width of the finest branch (32: S, 78: B) -> channels per attention head, all branches


def depthwise_down(inputs: int, outputs: int, relu: bool) -> nn.Module:
    """Build the layer that halves a map in HRFormer: a depthwise 3x3 convolution, a 1x1 convolution, and optional ReLU.

    Both convolutions have BatchNorm. The layer maps [B, inputs, h, w] to [B, outputs, h/2, w/2].
    """
    return nn.Sequential(conv_bn(inputs, inputs, 3, 2, relu=False, groups=inputs), conv_bn(inputs, outputs, relu=relu))


class WindowAttention(nn.Module):
    """Attention in windows, with learned relative position: [B, h, w, C] -> [B, h, w, C].

    The map is padded with zeros on all sides to a multiple of the window. Padding is not masked, as in the original
    code. The original pose code has the position term commented out; the paper and its other implementations include
    it.
    """

    def __init__(self, width: int, num_heads: int, window: int = 7) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attend = Attend()
        self.table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.table, std=0.02)
        y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        dy, dx = (a.flatten()[:, None] - a.flatten()[None] + window - 1 for a in (y, x))
        self.register_buffer("index", dy * (2 * window - 1) + dx, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, h, w, _ = x.shape
        s = self.window
        pad_h, pad_w = -h % s, -w % s
        top, left = pad_h // 2, pad_w // 2
        x = F.pad(x, (0, 0, left, pad_w - left, top, pad_h - top))
        rows, columns = (h + pad_h) // s, (w + pad_w) // s
        windows = x.unflatten(2, (columns, s)).unflatten(1, (rows, s)).transpose(2, 3).reshape(-1, s * s, x.shape[-1])
        q, k, v = self.qkv(windows).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index].permute(2, 0, 1)  # [num_heads, s * s, s * s]
        out = self.proj(self.attend(q, k, v, bias).transpose(1, 2).flatten(2))
        out = out.reshape(batch, rows, columns, s, s, -1).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return out[:, top : top + h, left : left + w]


class Block(nn.Module):
    """Transformer block whose MLP contains a depthwise convolution: [B, C, h, w] -> [B, C, h, w].

    Computes x + attention(norm(x)), then x + mlp(norm(x)), without the drop path of the training recipe.
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        hidden = mlp_ratio * width
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attention = WindowAttention(width, num_heads)
        layers: list[nn.Module] = []
        for conv in (
            nn.Conv2d(width, hidden, 1),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
            nn.Conv2d(hidden, width, 1),
        ):
            layers += [conv, nn.BatchNorm2d(conv.out_channels), nn.GELU()]
        self.mlp = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = x + self.attention(self.norm1(x))
        x, normed = x.permute(0, 3, 1, 2), self.norm2(x).permute(0, 3, 1, 2)
        return x + self.mlp(normed)


class HRFormer(nn.Module):
    """HRFormer, images [B, 3, H, W] -> heatmaps [B, K, H/4, W/4].

    Args:
        width: channels of the finest branch, 32 (S) or 78 (B).
        num_keypoints: number of keypoints K.
    """

    def __init__(self, width: int = 78, num_keypoints: int = 17) -> None:
        super().__init__()
        self.trunk = HighResolutionTrunk(
            width,
            block=lambda channels, branch: Block(channels, channels // HEAD_WIDTHS[width]),
            blocks=2,
            modules=(1, 4, 2),
            bottleneck_blocks=2,
            down=depthwise_down,
            up_mode="bilinear",
        )
        self.predictor = nn.Conv2d(width, num_keypoints, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.predictor(self.trunk(images))
