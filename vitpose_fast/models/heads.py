"""Decoders: features [B, C, rows, columns] to heatmaps [B, K, h, w], with the official parameter names (SPEC 1.3)."""

from __future__ import annotations

from torch import Tensor, nn

from vitpose_fast.models.config import ModelConfig


def _init_predictor(layer: nn.Conv2d) -> None:
    nn.init.normal_(layer.weight, std=0.001)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


class ClassicHead(nn.Module):
    """Deconvolution k4 s2 + BatchNorm + ReLU (twice; once on 1/8 features), then a 1x1 convolution."""

    def __init__(self, config: ModelConfig, num_keypoints: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = config.width
        for _ in range(2 if config.patch_stride == 16 else 1):
            deconv = nn.ConvTranspose2d(channels, config.decoder_width, 4, stride=2, padding=1, bias=False)
            nn.init.normal_(deconv.weight, std=0.001)
            layers += [deconv, nn.BatchNorm2d(config.decoder_width), nn.ReLU(inplace=True)]
            channels = config.decoder_width
        self.deconv_layers = nn.Sequential(*layers)
        self.final_layer = nn.Conv2d(channels, num_keypoints, 1)
        _init_predictor(self.final_layer)
        if config.decoder == "classic-fp":  # paper 4.2: a fixed random predictor
            self.final_layer.requires_grad_(False)

    def forward(self, features: Tensor) -> Tensor:
        return self.final_layer(self.deconv_layers(features))


class SimpleHead(nn.Module):
    """ReLU, bilinear up-sampling to 1/4, then a 3x3 convolution (ReLU first, as in code and equation)."""

    def __init__(self, config: ModelConfig, num_keypoints: int) -> None:
        super().__init__()
        self.scale = config.patch_stride / 4
        self.final_layer = nn.Conv2d(config.width, num_keypoints, 3, padding=1)
        _init_predictor(self.final_layer)

    def forward(self, features: Tensor) -> Tensor:
        x = nn.functional.interpolate(features.relu(), scale_factor=self.scale, mode="bilinear", align_corners=False)
        return self.final_layer(x)


class MinimalHead(nn.Module):
    """One 1x1 convolution to K * r * r channels, then depth to space (torch's PixelShuffle order)."""

    def __init__(self, config: ModelConfig, num_keypoints: int) -> None:
        super().__init__()
        self.factor = config.patch_stride // 4
        self.final_layer = nn.Conv2d(config.width, num_keypoints * self.factor**2, 1)
        _init_predictor(self.final_layer)

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(self.final_layer(features), self.factor)


def make_head(config: ModelConfig, num_keypoints: int) -> nn.Module:
    """The head that `config.decoder` names, for K keypoints."""
    kinds = {"classic": ClassicHead, "classic-fp": ClassicHead, "simple": SimpleHead, "minimal": MinimalHead}
    return kinds[config.decoder](config, num_keypoints)
