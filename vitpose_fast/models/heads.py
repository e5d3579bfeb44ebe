"""Decoders: features [B, C, rows, columns] to heatmaps [B, K, h, w], with the official parameter names (SPEC 1.3)."""

from __future__ import annotations

from torch import Tensor, nn

from vitpose_fast.models.config import ModelConfig
from vitpose_fast.modules import ClassicDecoder, init_predictor


class SimpleHead(nn.Module):
    """ReLU, bilinear up-sampling to 1/4, then a 3x3 convolution (ReLU first, as in code and equation)."""

    def __init__(self, config: ModelConfig, num_keypoints: int) -> None:
        super().__init__()
        self.scale = config.patch_stride / 4
        self.final_layer = nn.Conv2d(config.width, num_keypoints, 3, padding=1)
        init_predictor(self.final_layer)

    def forward(self, features: Tensor) -> Tensor:
        x = nn.functional.interpolate(features.relu(), scale_factor=self.scale, mode="bilinear", align_corners=False)
        return self.final_layer(x)


class MinimalHead(nn.Module):
    """One 1x1 convolution to K * r * r channels, then depth to space (torch's PixelShuffle order)."""

    def __init__(self, config: ModelConfig, num_keypoints: int) -> None:
        super().__init__()
        self.factor = config.patch_stride // 4
        self.final_layer = nn.Conv2d(config.width, num_keypoints * self.factor**2, 1)
        init_predictor(self.final_layer)

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(self.final_layer(features), self.factor)


def make_head(config: ModelConfig, num_keypoints: int) -> nn.Module:
    """The head that `config.decoder` names, for K keypoints."""
    if config.decoder == "simple":
        return SimpleHead(config, num_keypoints)
    if config.decoder == "minimal":
        return MinimalHead(config, num_keypoints)
    num_deconvs = 2 if config.patch_stride == 16 else 1
    head = ClassicDecoder(config.width, num_keypoints, config.decoder_width, num_deconvs)
    if config.decoder == "classic-fp":  # paper 4.2: a fixed random predictor
        head.final_layer.requires_grad_(False)
    return head
