"""SimpleBaseline (Xiao et al., ECCV 2018): ResNet, three deconvolutions, a 1x1 convolution to heatmaps."""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.rivals.resnet import resnet


class SimpleBaseline(nn.Module):
    """SimpleBaseline, images [B, 3, H, W] -> heatmaps [B, K, H/4, W/4].

    Args:
        depth: depth of the ResNet, 50, 101 or 152.
        num_keypoints: number of keypoints K.
        width: channels of the deconvolutions.
    """

    def __init__(self, depth: int = 50, num_keypoints: int = 17, width: int = 256) -> None:
        super().__init__()
        self.trunk = resnet(depth)
        layers: list[nn.Module] = []
        for channels in (2048, width, width):
            deconv = nn.ConvTranspose2d(channels, width, 4, 2, 1, bias=False)
            layers += [deconv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        self.deconvs = nn.Sequential(*layers)
        self.predictor = nn.Conv2d(width, num_keypoints, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.predictor(self.deconvs(self.trunk(images)))
