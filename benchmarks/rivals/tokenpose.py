"""TokenPose-L (Li et al., ICCV 2021): a transformer over tokens of HRNet features and one token per keypoint."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.rivals.hrnet import three_stages
from benchmarks.rivals.layers import Attend, sine_positions


class Layer(nn.Module):
    """Pre-norm transformer layer: N tokens of C channels, [B, N, C] -> [B, N, C]."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attend = Attend()
        self.proj = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(self.attend(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class TokenPoseL(nn.Module):
    """TokenPose-L, images [B, 3, H, W] -> heatmaps [B, K, H/4, W/4].

    Three transformers run in sequence, and the heatmaps are predicted from the keypoint tokens of all three,
    concatenated. The position embedding is added to the input tokens, and again before every layer but the first of
    each transformer.

    Args:
        image_size: (H, W).
        num_keypoints: number of keypoints K.
        depth: total number of layers of the three transformers.
        trunk_width: channels of the finest HRNet branch.
        width: channels of a token.
        num_heads: number of attention heads.
        mlp_ratio: hidden channels of the MLPs over `width`.
        patch: (rows, columns) of HRNet's feature map that make up a token.
    """

    def __init__(
        self,
        image_size: tuple[int, int] = (256, 192),
        num_keypoints: int = 17,
        depth: int = 24,
        trunk_width: int = 48,
        width: int = 192,
        num_heads: int = 12,
        mlp_ratio: int = 3,
        patch: tuple[int, int] = (4, 3),
    ) -> None:
        super().__init__()
        self.heatmap_size = image_size[0] // 4, image_size[1] // 4
        self.num_keypoints = num_keypoints
        rows, columns = (size // p for size, p in zip(self.heatmap_size, patch))
        self.trunk = three_stages(trunk_width)
        self.embed = nn.Conv2d(trunk_width, width, patch, patch)  # equals a linear layer on flattened patches
        self.keypoints = nn.Parameter(torch.zeros(1, num_keypoints, width))
        nn.init.trunc_normal_(self.keypoints, std=0.02)
        positions = sine_positions(rows, columns, width)
        self.positions = nn.Parameter(positions, requires_grad=False)  # a parameter in the original, too
        self.transformers = nn.ModuleList(
            nn.ModuleList(Layer(width, num_heads, mlp_ratio) for _ in range(depth // 3)) for _ in range(3)
        )
        heatmap = self.heatmap_size[0] * self.heatmap_size[1]
        self.predictor = nn.Sequential(nn.LayerNorm(3 * width), nn.Linear(3 * width, heatmap))

    def forward(self, images: Tensor) -> Tensor:
        patches = self.embed(self.trunk(images)).flatten(2).transpose(1, 2)
        positions = F.pad(self.positions, (0, 0, self.num_keypoints, 0))  # the keypoint tokens have none
        x = torch.cat([self.keypoints.expand(patches.shape[0], -1, -1), patches], 1) + positions
        found = []
        for layers in self.transformers:
            for i, layer in enumerate(layers):
                x = layer(x if i == 0 else x + positions)
            found.append(x[:, : self.num_keypoints])
        return self.predictor(torch.cat(found, -1)).unflatten(-1, self.heatmap_size)
