"""Encode keypoints as heatmaps and decode them again, with the conventions of a task.

Source: docs/numerics.md 4, 5, 6.3.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vitpose_fast import functional as F
from vitpose_fast.keypoints import KeypointSet


@dataclass(frozen=True)
class HeatmapCodec:
    """Crops, training targets, loss and decoding of one task.

    The codec of the keypoint set decides the conventions. "udp" (COCO, MPII): unbiased data processing, with subpixel
    targets. "msra" (the other built-in sets): plain affine crops, targets centered on whole pixels, quarter-pixel
    decoding.

    Attributes:
        keypoint_set: the K keypoints.
        image_size: (H, W) of the crops in pixels.
        heatmap_size: (h, w) of the heatmaps in pixels.
        sigma: standard deviation of the target Gaussian in heatmap pixels.
        blur_kernel: size of the Gaussian blur in the "udp" decoding, in heatmap pixels.
    """

    keypoint_set: KeypointSet
    image_size: tuple[int, int] = (256, 192)
    heatmap_size: tuple[int, int] = (64, 48)
    sigma: float = 2.0
    blur_kernel: int = 11

    @property
    def kind(self) -> str:
        """The codec of the keypoint set, "udp" or "msra"."""
        return self.keypoint_set.codec

    def encode(self, keypoints: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Encode keypoints as target heatmaps.

        Args:
            keypoints: [B, K, 2], (x, y) in crop pixels.
            visible: [B, K], visibilities in [0, 1] (COCO's 2 counts as 1). A keypoint is drawn if it is above 0.5.

        Returns:
            (heatmaps [B, K, h, w], weights [B, K]).
        """
        return F.heatmap_target(
            keypoints, visible, self.heatmap_size, self.kind, self.sigma, image_size=self.image_size
        )

    def loss(self, heatmaps: Tensor, keypoints: Tensor, visible: Tensor) -> Tensor:
        """Return the weighted mean squared error of heatmaps [B, K, h, w] against the targets of `encode`, a scalar."""
        return F.heatmap_loss(heatmaps, keypoints, visible, self.kind, self.sigma, image_size=self.image_size)

    def decode(
        self, heatmaps: Tensor, centers: Tensor, scales: Tensor, flipped: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Decode heatmaps to keypoints in the image.

        Args:
            heatmaps: [B, K, h, w].
            centers, scales: centers and sizes of the crops in the image, [B, 2] each, in pixels.
            flipped: heatmaps of the mirrored crops [B, K, h, w], to average with `heatmaps`.

        Returns:
            (keypoints [B, K, 2] in image pixels, scores [B, K]). Keypoints without a positive score are (-1, -1).
        """
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
        """Cut boxes out of images and normalize them.

        Args:
            images: uint8 images [h, w, 3].
            boxes: [P, 4], (x, y, w, h) in image pixels.
            image_index: [P], the image of each box.
            options: other arguments of `functional.crop`.

        Returns:
            [P, 3, H, W].
        """
        return F.crop(images, boxes, self.image_size, codec=self.kind, image_index=image_index, **options)
