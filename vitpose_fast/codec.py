"""`HeatmapCodec`: crop people out of images, encode keypoints as heatmaps, and decode heatmaps to keypoints.

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

    `keypoint_set.codec` selects the conventions. "udp" (COCO, MPII): unbiased data processing, with subpixel targets.
    "msra" (the other built-in sets): plain affine crops, targets centered on whole pixels, quarter-pixel decoding.

    Letters: B crops in a batch, P people, K keypoints, (H, W) crop and (h, w) heatmap in pixels.

    Attributes:
        keypoint_set: the K keypoints, one per heatmap channel.
        image_size: (H, W).
        heatmap_size: (h, w).
        sigma: standard deviation of the target Gaussian in heatmap pixels.
        blur_kernel: size (odd) of the Gaussian blur in the "udp" decoding, in heatmap pixels.
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
            visible: [B, K], visibility of each keypoint in [0, 1]. Larger values, such as COCO's 2, count as 1.

        Returns:
            (heatmaps [B, K, h, w], weights [B, K]). The weight of a keypoint is its visibility, limited to [0, 1]. It
            is 0 if the coordinates are not finite, or if the window of the Gaussian (int(3 * sigma) pixels around the
            keypoint) does not overlap the heatmap. A keypoint with a weight of at most 0.5 has a heatmap of zeros.
        """
        return F.heatmap_target(
            keypoints, visible, self.heatmap_size, self.kind, self.sigma, image_size=self.image_size
        )

    def loss(self, heatmaps: Tensor, keypoints: Tensor, visible: Tensor) -> Tensor:
        """Return the weighted mean squared error of heatmaps [B, K, h, w] against the targets of `encode`, a scalar.

        It is the mean of (weight * (heatmap - target))² over all B * K * h * w values, including keypoints of weight 0.
        """
        return F.heatmap_loss(heatmaps, keypoints, visible, self.kind, self.sigma, image_size=self.image_size)

    def decode(
        self, heatmaps: Tensor, centers: Tensor, scales: Tensor, flipped: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Decode the heatmaps of unrotated crops to keypoints in the image.

        Args:
            heatmaps: [B, K, h, w].
            centers, scales: centers (x, y) and sizes (width, height) of the crops in image pixels, [B, 2] each, as
                returned by `geometry.box_to_center_scale`.
            flipped: [B, K, h, w], heatmaps of the mirrored crops as the network returned them. They are mirrored back
                (including the swap of left and right channels) and averaged with `heatmaps`.

        Returns:
            (keypoints [B, K, 2] as (x, y) in image pixels, scores [B, K]). The score is the maximum of the (averaged)
            heatmap. A keypoint whose score is not positive is (-1, -1); a NaN in a heatmap makes the keypoint and its
            score NaN.
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
        """Crop boxes out of images and normalize the crops for the network.

        Args:
            images: uint8 RGB images [height, width, 3] of any sizes.
            boxes: [P, 4], (x, y, width, height) in image pixels. By default they are grown to the aspect ratio of the
                crop and padded.
            image_index: int64 [P], the index in `images` of the image that each box belongs to.
            options: other arguments of `functional.crop`.

        Returns:
            [P, 3, H, W]. With `twin=True` [2 P, 3, H, W]: all crops, then their mirror images.
        """
        return F.crop(images, boxes, self.image_size, codec=self.kind, image_index=image_index, **options)
