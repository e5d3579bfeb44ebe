"""Heads, which map features [B, C, rows, columns] to heatmaps [B, K, h, w], with the official parameter names.

B is the batch, C the channels of the features, K the number of keypoints, and (h, w) a quarter of the image size. The
features have 1/16 or 1/8 of the image size (1 / patch stride). Source: docs/numerics.md 1.3.
"""

from __future__ import annotations

from torch import Tensor, nn

from vitpose_fast.models.config import ModelConfig


class ClassicHead(nn.Module):
    """Deconvolutions (kernel 4, stride 2), each with BatchNorm and ReLU, then a 1x1 convolution to heatmaps.

    Args:
        width: channels C of the features.
        num_keypoints: K.
        decoder_width: channels after each deconvolution.
        num_deconvs: 2 for features at 1/16 of the image, 1 for features at 1/8.
    """

    def __init__(self, width: int, num_keypoints: int, decoder_width: int = 256, num_deconvs: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (width, *[decoder_width] * (num_deconvs - 1)):
            deconv = nn.ConvTranspose2d(channels, decoder_width, 4, stride=2, padding=1, bias=False)
            _init_weight(deconv.weight)
            layers += [deconv, nn.BatchNorm2d(decoder_width), nn.ReLU(inplace=True)]
        self.deconv_layers = nn.Sequential(*layers)
        self.final_layer = nn.Conv2d(decoder_width, num_keypoints, 1)
        _init_predictor(self.final_layer)

    def forward(self, features: Tensor) -> Tensor:
        """Map features [B, C, rows, columns] to heatmaps [B, K, h, w]."""
        return self.final_layer(self.deconv_layers(features))


class SimpleHead(nn.Module):
    """ReLU, bilinear upsampling to 1/4 of the image, then a 3x3 convolution to heatmaps.

    The ReLU comes before the upsampling, as in the official code and the equation of the paper. `num_keypoints` is K;
    of `config` the width and the patch stride are used.
    """

    def __init__(self, config: ModelConfig, num_keypoints: int) -> None:
        super().__init__()
        self.scale = config.patch_stride / 4
        self.final_layer = nn.Conv2d(config.width, num_keypoints, 3, padding=1)
        _init_predictor(self.final_layer)

    def forward(self, features: Tensor) -> Tensor:
        x = nn.functional.interpolate(features.relu(), scale_factor=self.scale, mode="bilinear", align_corners=False)
        return self.final_layer(x)


class MinimalHead(nn.Module):
    """One 1x1 convolution to K * r * r channels, then `nn.PixelShuffle` by r = patch stride / 4 to heatmaps.

    `num_keypoints` is K; of `config` the width and the patch stride are used.
    """

    def __init__(self, config: ModelConfig, num_keypoints: int) -> None:
        super().__init__()
        self.factor = config.patch_stride // 4
        self.final_layer = nn.Conv2d(config.width, num_keypoints * self.factor**2, 1)
        _init_predictor(self.final_layer)

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(self.final_layer(features), self.factor)


def _init_weight(weight: Tensor) -> None:
    """Initialize a weight like the official code: normal with a standard deviation of 0.001."""
    if not weight.is_meta:  # without a value; for a meta tensor PyTorch would import its compiler, for a second
        nn.init.normal_(weight, std=0.001)


def _init_predictor(layer: nn.Conv2d) -> None:
    """Initialize the convolution to heatmaps like the official code: normal weights and zero bias."""
    _init_weight(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


def make_head(config: ModelConfig, num_keypoints: int) -> nn.Module:
    """Build the head that `config.decoder` names, for `num_keypoints` keypoints.

    "classic-fp" is a classic head whose last convolution keeps its random weights in training.
    """
    if config.decoder == "simple":
        return SimpleHead(config, num_keypoints)
    if config.decoder == "minimal":
        return MinimalHead(config, num_keypoints)
    num_deconvs = 2 if config.patch_stride == 16 else 1
    head = ClassicHead(config.width, num_keypoints, config.decoder_width, num_deconvs)
    if config.decoder == "classic-fp":  # ViTPose++ paper, section 4.2: a fixed random predictor
        head.final_layer.requires_grad_(False)
    return head
