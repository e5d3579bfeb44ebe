"""HeatmapCodec: keypoints to heatmaps and back, with the conventions of a task (SPEC 4, 5, 6.3)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vitpose_fast import functional as F
from vitpose_fast.keypoints import KeypointSet


@dataclass(frozen=True)
class HeatmapCodec:
    """How one task encodes keypoints: the crop's transform, the target, its decoding.

    Sizes are (height, width) in pixels. kind "udp": unbiased (COCO, MPII); "msra": integer-centred targets, plain
    affine crops, quarter-pixel decoding (the other tasks).
    """

    keypoint_set: KeypointSet
    image_size: tuple[int, int] = (256, 192)
    heatmap_size: tuple[int, int] = (64, 48)
    sigma: float = 2.0
    blur_kernel: int = 11

    @property
    def kind(self) -> str:
        return self.keypoint_set.codec

    def encode(self, keypoints: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """keypoints [B, K, 2] in crop pixels, visible [B, K] -> heatmaps [B, K, h, w], weights [B, K]."""
        return F.heatmap_target(
            keypoints, visible, self.heatmap_size, self.kind, self.sigma, image_size=self.image_size
        )

    def loss(self, heatmaps: Tensor, keypoints: Tensor, visible: Tensor) -> Tensor:
        """Weighted mean squared error of heatmaps [B, K, h, w] against keypoints [B, K, 2]: a scalar."""
        return F.heatmap_loss(heatmaps, keypoints, visible, self.kind, self.sigma, image_size=self.image_size)

    def decode(
        self, heatmaps: Tensor, centers: Tensor, scales: Tensor, flipped: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Heatmaps [B, K, h, w] of crops (centre and size [B, 2] px) -> image keypoints [B, K, 2], scores [B, K]."""
        points, scores = F.heatmap_decode(
            heatmaps,
            self.kind,
            self.blur_kernel,
            flipped=flipped,
            flip_pairs=self.keypoint_set.flip_pairs,
            centers=centers,
            scales=scales,
        )
        return points, scores

    def crop(self, images: list[Tensor], boxes: Tensor, image_index: Tensor, **options) -> Tensor:
        """Boxes [P, 4] (xywh px) out of uint8 [h, w, 3] images -> [P, 3, H, W]; options as in `functional.crop`."""
        return F.crop(images, boxes, self.image_size, codec=self.kind, image_index=image_index, **options)
