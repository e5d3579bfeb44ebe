"""Upload of images to the device that crops people out of them."""

from __future__ import annotations

import torch
from torch import Tensor

from vitpose_fast.codec import HeatmapCodec
from vitpose_fast.geometry import box_to_center_scale


class Frames:
    """The images of a group of people, uploaded to the device when they are first needed.

    Of an image on the CPU only the pixel rows that its crops read are uploaded to a GPU. The tensor on the GPU has the
    size of the whole image (its other rows are uninitialized), so that coordinates and their rounding do not depend on
    which rows were uploaded.

    Args:
        images: uint8 [h, w, 3], on any device.
        boxes: for each image the boxes [P, 4] (x, y, width, height) to be cropped from it, in image pixels.
        codec, padding, fix_aspect: how boxes become crops, see `functional.crop`.
        device: where the crops are made.

    Attributes:
        uploaded: index of an image -> its tensor on the device, for the images that `on_device` keeps.
    """

    def __init__(
        self,
        images: list[Tensor],
        boxes: list[Tensor],
        codec: HeatmapCodec,
        device: torch.device,
        padding: float = 1.25,
        fix_aspect: bool = True,
    ) -> None:
        self.images, self.boxes, self.codec, self.device = images, boxes, codec, device
        self.padding, self.fix_aspect = padding, fix_aspect
        self.uploaded: dict[int, Tensor] = {}

    def on_device(self, first: int, last: int) -> list[Tensor]:
        """Return images `first` to `last` (inclusive) on the device, and release all uploaded images before `first`."""
        self.uploaded = {i: image for i, image in self.uploaded.items() if i >= first}
        for i in range(first, last + 1):
            if i not in self.uploaded:
                self.uploaded[i] = self._upload(i)
        return [self.uploaded[i] for i in range(first, last + 1)]

    def _upload(self, i: int) -> Tensor:
        image = self.images[i]
        if image.device.type != "cpu" or self.device.type != "cuda":
            return image.to(self.device)
        rows = needed_rows(self.boxes[i], self.codec.image_size, image.shape[0], self.padding, self.fix_aspect)
        out = torch.empty(image.shape, dtype=image.dtype, device=self.device)
        out[rows].copy_(image[rows].contiguous().pin_memory(), non_blocking=True)
        return out


def needed_rows(
    boxes: Tensor, size: tuple[int, int], height: int, padding: float = 1.25, fix_aspect: bool = True
) -> slice:
    """Return the range of pixel rows that the crops of boxes may read from an image, empty if there are no boxes.

    Args:
        boxes: [P, 4] (x, y, width, height) in image pixels; no crop is rotated.
        size: (H, W) of the crops.
        height: number of rows of the image.
        padding, fix_aspect: see `functional.crop`.
    """
    if not len(boxes):
        return slice(0, 0)
    center, scale = box_to_center_scale(boxes, size, padding, fix_aspect)
    # The "msra" codec derives the scale of both axes from the width, so its crop may be higher than scale[:, 1]. Two
    # more rows on each side are for the interpolation.
    half = torch.maximum(scale[:, 1], scale[:, 0] * size[0] / size[1]) / 2 + 2
    top, bottom = int((center[:, 1] - half).min()), int((center[:, 1] + half).max()) + 1
    return slice(min(max(top, 0), height), min(max(bottom, 0), height))
