"""The images of a group of people on the device that crops them."""

from __future__ import annotations

import torch
from torch import Tensor

from vitpose_fast.codec import HeatmapCodec
from vitpose_fast.geometry import box_to_center_scale


class Frames:
    """The images of a group; on a GPU only the rows that a crop looks at are uploaded, each image once.

    An uploaded image keeps its size, so that coordinates (and rounding) do not depend on what was uploaded.
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
        """Images first..last; those before them are not asked for again."""
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
    """Rows of an image that the crops (H, W) of boxes [P, 4] may look at."""
    if not len(boxes):
        return slice(0, 0)
    center, scale = box_to_center_scale(boxes, size, padding, fix_aspect)
    half = torch.maximum(scale[:, 1], scale[:, 0] * size[0] / size[1]) / 2 + 2  # "msra" goes by the width; 2: the taps
    top, bottom = int((center[:, 1] - half).min()), int((center[:, 1] + half).max()) + 1
    return slice(min(max(top, 0), height), min(max(bottom, 0), height))
