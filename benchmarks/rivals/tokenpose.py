"""TokenPose-L (Li et al., ICCV 2021): HRNet features as tokens beside one token per keypoint."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.rivals.hrnet import three_stages
from benchmarks.rivals.layers import Attend, sine_positions


class Layer(nn.Module):
    """Pre-norm transformer layer: [B, N, C] -> the same."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attend = Attend()
        self.proj = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(self.attend(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class TokenPoseL(nn.Module):
    """[B, 3, H, W] -> heatmaps [B, K, H/4, W/4].

    Three transformers in a row; the keypoint tokens of all three are joined to predict the heatmaps. The positions of
    the patches are added again before every layer but the first of each transformer.

    Args:
        image_size: (H, W). depth: layers of the three transformers together. patch: of HRNet pixels, (rows, columns).
    """

    def __init__(
        self,
        image_size: tuple[int, int] = (256, 192),
        num_keypoints: int = 17,
        depth: int = 24,
        trunk_width: int = 48,
        width: int = 192,
        heads: int = 12,
        mlp_ratio: int = 3,
        patch: tuple[int, int] = (4, 3),
    ) -> None:
        super().__init__()
        self.heatmap_size = image_size[0] // 4, image_size[1] // 4
        self.num_keypoints = num_keypoints
        rows, columns = (size // p for size, p in zip(self.heatmap_size, patch))
        self.trunk = three_stages(trunk_width)
        self.embed = nn.Conv2d(trunk_width, width, patch, patch)  # the same as a linear layer on flattened patches
        self.keypoints = nn.Parameter(torch.zeros(1, num_keypoints, width))
        nn.init.trunc_normal_(self.keypoints, std=0.02)
        positions = sine_positions(rows, columns, width)
        self.positions = nn.Parameter(positions, requires_grad=False)  # a parameter there, too
        self.transformers = nn.ModuleList(
            nn.ModuleList(Layer(width, heads, mlp_ratio) for _ in range(depth // 3)) for _ in range(3)
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
