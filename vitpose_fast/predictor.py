"""PosePredictor: images and boxes to Poses, in batches across people and images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from vitpose_fast.codec import HeatmapCodec
from vitpose_fast.geometry import box_to_center_scale, boxes_outside, check_boxes
from vitpose_fast.images import as_image
from vitpose_fast.models.vitpose import ViTPose
from vitpose_fast.poses import Poses, person_scores

_MAX_WAITING_IMAGES = 64  # images held while a batch of people fills up


class PosePredictor:
    """Estimate the poses of people in images.

    Args:
        model: a ViTPose model, on any device; it is used in evaluation mode.
        flip_test: average with the mirrored crop (twice the work, a little better).
        task: which head, None: the only one.
        batch_size: people per forward pass.
        sampling: "float" or "exact-cv4", see `functional.crop`.
        blur_kernel: blur before decoding, see `functional.heatmap_decode`; 11 is for heatmaps of 64x48 and more.

    Raises:
        ValueError: unknown task, or None with several heads.
    """

    def __init__(
        self,
        model: ViTPose,
        flip_test: bool = False,
        task: str | None = None,
        batch_size: int = 64,
        sampling: str = "float",
        blur_kernel: int = 11,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"got batch_size={batch_size}, expected at least 1")
        self.model, self.flip_test, self.batch_size, self.sampling = model, flip_test, batch_size, sampling
        self.task = model.resolve_task(task)
        config = model.config
        self.codec = HeatmapCodec(
            config.task(self.task), config.image_size, config.heatmap_size, blur_kernel=blur_kernel
        )

    @overload
    def __call__(self, image: list[Any], boxes: Any = None, box_scores: Any = None) -> list[Poses]: ...

    @overload
    def __call__(self, image: Any, boxes: Any = None, box_scores: Any = None) -> Poses: ...

    def __call__(self, image: Any, boxes: Any = None, box_scores: Any = None) -> Poses | list[Poses]:
        """Poses of one image, or a list of them for a list of images.

        Args:
            image: path, PIL image, uint8 [h, w, 3] RGB array or tensor, or a list of these.
            boxes: [P, 4] (x, y, width, height) in pixels; a list of these (or None) for a list of images. None: the
                whole image is one person.
            box_scores: [P] or a list of these; None: 1.

        Raises:
            ValueError: one line that names the image or box at fault.
        """
        single = not isinstance(image, (list, tuple))
        images = [image] if single else list(image)
        all_boxes = [boxes] if single else _one_each(boxes, len(images), "boxes")
        all_scores = [box_scores] if single else _one_each(box_scores, len(images), "box_scores")
        poses = [p for _, p in self.predict_many(zip(images, all_boxes, all_scores))]
        return poses[0] if single else poses

    def predict_many(
        self, items: Iterable[tuple[Any, Any, Any]], on_error: Callable[[int, ValueError], None] | None = None
    ) -> Iterator[tuple[int, Poses]]:
        """Poses of many images as they come, (index, Poses) in order; people of several images share a batch.

        Args:
            items: (image, boxes, box_scores) as in `__call__`.
            on_error: called with index and error of an image that cannot be used, which is then left out; None: raise.
        """
        waiting: list[tuple[int, Tensor, Tensor, Tensor]] = []
        for index, item in enumerate(items):
            try:
                image, boxes, scores = self._check(*item)
            except ValueError as error:
                if on_error is None:
                    raise ValueError(str(error) if index == 0 else f"image {index}: {error}") from None
                on_error(index, error)
                continue
            waiting.append((index, image, boxes, scores))
            if sum(len(w[2]) for w in waiting) >= self.batch_size or len(waiting) >= _MAX_WAITING_IMAGES:
                yield from self._run(waiting)
                waiting = []
        yield from self._run(waiting)

    def _check(self, image: Any, boxes: Any, box_scores: Any) -> tuple[Tensor, Tensor, Tensor]:
        """(image, boxes [P, 4] float64, scores [P]) or a ValueError that names the image where it has a name."""
        pixels = as_image(image)
        name = f"{os.fspath(image)}: " if isinstance(image, (str, os.PathLike)) else ""
        height, width = pixels.shape[:2]
        boxes = _numbers([[0, 0, width, height]] if boxes is None else boxes, f"{name}boxes")
        boxes = boxes.reshape(0, 4) if boxes.numel() == 0 else boxes
        if boxes.dim() != 2 or boxes.shape[1] != 4:
            raise ValueError(f"{name}boxes have shape {list(boxes.shape)}, expected [P, 4] (x, y, width, height)")
        check_boxes(boxes, f"{name}boxes")
        outside = boxes_outside(boxes, (height, width))
        if bool(outside.any()):
            index = int(outside.nonzero()[0])
            raise ValueError(
                f"{name}boxes: box {index} {boxes[index].tolist()} lies outside the {width}x{height} image"
            )
        scores = _numbers([1.0] * len(boxes) if box_scores is None else box_scores, f"{name}box_scores").float()
        if tuple(scores.shape) != (len(boxes),) or not bool(scores.isfinite().all()):
            raise ValueError(
                f"{name}box_scores {scores.tolist()}, expected one finite number for each of {len(boxes)} boxes"
            )
        return pixels, boxes, scores

    def _run(self, waiting: Sequence[tuple[int, Tensor, Tensor, Tensor]]) -> Iterator[tuple[int, Poses]]:
        if not waiting:
            return
        boxes = torch.cat([w[2] for w in waiting])
        counts = [len(w[2]) for w in waiting]
        image_index = torch.repeat_interleave(torch.tensor(counts))
        device = self.model.backbone.pos_embed.device
        images = [w[1].to(device) for w in waiting]
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                parts = [
                    self._forward(images, boxes[i : i + self.batch_size], image_index[i : i + self.batch_size])
                    for i in range(0, len(boxes), self.batch_size)
                ]
        finally:
            self.model.train(training)
        k = self.codec.keypoints.num_keypoints
        points = torch.cat([p[0] for p in parts]) if parts else torch.zeros(0, k, 2)
        scores = torch.cat([p[1] for p in parts]) if parts else torch.zeros(0, k)
        for (index, _, own, box_scores), own_points, own_scores in zip(
            waiting, points.split(counts), scores.split(counts)
        ):
            yield (
                index,
                Poses(
                    keypoints=own_points,
                    scores=own_scores,
                    boxes=own.float(),
                    box_scores=box_scores,
                    person_scores=person_scores(own_scores, box_scores),
                    keypoint_set=self.codec.keypoints,
                ),
            )

    def _forward(self, images: list[Tensor], boxes: Tensor, image_index: Tensor) -> tuple[Tensor, Tensor]:
        """Keypoints [P, K, 2] in image pixels and scores [P, K] of one batch of people, float32 on the CPU."""
        first, last = int(image_index[0]), int(image_index[-1])  # in order: the other images stay out of the crop
        images, image_index = images[first : last + 1], image_index - first
        dtype = self.model.backbone.pos_embed.dtype
        crops = self.codec.crop(images, boxes, image_index, sampling=self.sampling, dtype=dtype)
        if self.flip_test:
            crops = torch.cat([crops, crops.flip(-1)])
        heatmaps = self.model(crops, self.task)
        assert isinstance(heatmaps, Tensor)
        heatmaps, flipped = heatmaps.split(len(boxes)) if self.flip_test else (heatmaps, None)
        center, scale = box_to_center_scale(boxes, self.codec.image_size)
        points, scores = self.codec.decode(heatmaps, center, scale, flipped)
        return points.float().cpu(), scores.float().cpu()


def pick_device(name: str | None) -> torch.device:
    """The device of that name; None: CUDA where there is one.

    Raises:
        ValueError: no such device, or not on this machine.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used ({reason}); expected cpu, cuda or cuda:N") from None
    return device


def _numbers(values: Any, name: str) -> Tensor:
    """float64 tensor on the CPU of a tensor, array or nested list of numbers."""
    try:
        return values.detach().double().cpu() if isinstance(values, Tensor) else torch.tensor(np.asarray(values, float))
    except (TypeError, ValueError):
        raise ValueError(f"{name} are not numbers in rows of one length, got {type(values).__name__}") from None


def _one_each(values: Any, count: int, name: str) -> list[Any]:
    values = [None] * count if values is None else list(values)
    if len(values) != count:
        raise ValueError(f"got {len(values)} {name} for {count} images, expected one entry each")
    return values
