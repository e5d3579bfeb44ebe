"""TransPose-H (Yang et al., ICCV 2021): a small transformer whose tokens are the pixels of HRNet features at 1/4."""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.rivals.hrnet import three_stages
from benchmarks.rivals.layers import Attend, sine_positions


class Layer(nn.Module):
    """Post-norm transformer layer of DETR: N tokens of C channels, [B, N, C] -> [B, N, C].

    `positions` [N, C] are added to the input of queries and keys, but not of values.
    """

    def __init__(self, width: int, num_heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qk = nn.Linear(width, 2 * width)
        self.v = nn.Linear(width, width)
        self.attend = Attend()
        self.proj = nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(hidden, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        q, k = self.qk(x + positions).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        v = self.v(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        branch = self.proj(self.attend(q, k, v).transpose(1, 2).flatten(2))
        x = self.norm1(x + self.dropout(branch))
        return self.norm2(x + self.dropout(self.mlp(x)))


class TransPoseH(nn.Module):
    """TransPose-H, images [B, 3, H, W] -> heatmaps [B, K, H/4, W/4].

    The dropout of the attention weights is left out, because it would prevent fused attention in training.

    Args:
        image_size: (H, W).
        num_keypoints: number of keypoints K.
        depth: number of layers, 6 in A6.
        trunk_width: channels of the finest HRNet branch.
        width: channels of a token.
        num_heads: number of attention heads.
        hidden: hidden channels of a layer's MLP.
        dropout: dropout probability in the MLPs and on the branches.
    """

    def __init__(
        self,
        image_size: tuple[int, int] = (256, 192),
        num_keypoints: int = 17,
        depth: int = 6,
        trunk_width: int = 48,
        width: int = 96,
        num_heads: int = 1,
        hidden: int = 192,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.trunk = three_stages(trunk_width)
        self.reduce = nn.Conv2d(trunk_width, width, 1, bias=False)
        positions = sine_positions(image_size[0] // 4, image_size[1] // 4, width)
        self.positions = nn.Parameter(positions, requires_grad=False)  # a parameter in the original, too
        self.layers = nn.ModuleList(Layer(width, num_heads, hidden, dropout) for _ in range(depth))
        self.predictor = nn.Conv2d(width, num_keypoints, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.reduce(self.trunk(images))
        x = features.flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x, self.positions)
        return self.predictor(x.transpose(1, 2).unflatten(2, features.shape[2:]))
