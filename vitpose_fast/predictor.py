"""PosePredictor: images and boxes to Poses, in batches across people and images."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from vitpose_fast.codec import HeatmapCodec
from vitpose_fast.device import is_out_of_memory
from vitpose_fast.frames import Frames
from vitpose_fast.geometry import box_to_center_scale, boxes_outside, check_boxes
from vitpose_fast.images import as_image
from vitpose_fast.models.vitpose import PoseModel
from vitpose_fast.poses import Poses, person_scores

_LOG = logging.getLogger(__name__)
_MAX_WAITING_IMAGES = 64  # images held while a batch of people fills up
_MAX_TRIES = 64  # with a single person out of memory: another process may be giving it back


class PosePredictor:
    """Estimate the poses of people in images.

    On a GPU everything happens there: images that are CUDA tensors stay where they are, other images have only the rows
    uploaded that are needed, and the keypoints come back in one copy that is waited for once.

    Args:
        model: a ViTPose model or a frozen one (`freeze`: faster), on any device; it is used in evaluation mode.
        flip_test: average with the mirrored crop (twice the work, a little better).
        task: which head, None: the only one.
        batch_size: people per forward pass; where memory runs out half as many, from then on.
        sampling: "float" or "exact-cv4", see `functional.crop`.
        blur_kernel: blur before decoding, see `functional.heatmap_decode`; 11 is for heatmaps of 64x48 and more.
        padding, fix_aspect: how boxes become crops, see `functional.crop`; as the model was trained.

    Raises:
        ValueError: unknown task, or None with several heads.
    """

    def __init__(
        self,
        model: PoseModel,
        flip_test: bool = False,
        task: str | None = None,
        batch_size: int = 64,
        sampling: str = "float",
        blur_kernel: int = 11,
        padding: float = 1.25,
        fix_aspect: bool = True,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"got batch_size={batch_size}, expected at least 1")
        self.model, self.flip_test, self.batch_size, self.sampling = model, flip_test, batch_size, sampling
        self.padding, self.fix_aspect = padding, fix_aspect
        self._people_at_once = batch_size
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
            MemoryError: not even one person fits into memory.
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
        waiting: list[_Item] = []
        pending: _Pending | None = None  # on a GPU one group is computed while the next one is read
        for index, item in enumerate(items):
            try:
                image, boxes, scores = self._check(*item)
            except ValueError as error:
                if on_error is None:
                    raise ValueError(str(error) if index == 0 else f"image {index}: {error}") from None
                on_error(index, error)
                continue
            waiting.append(_Item(index, image, boxes, scores))
            if sum(len(w.boxes) for w in waiting) >= self.batch_size or len(waiting) >= _MAX_WAITING_IMAGES:
                started = self._start(waiting)
                waiting = []
                yield from self._finish(pending)
                pending = started
                if self.model.device.type == "cpu":
                    yield from self._finish(pending)
                    pending = None
        started = self._start(waiting)
        yield from self._finish(pending)
        yield from self._finish(started)

    def stream(self, frames_and_boxes: Iterable[tuple[Any, ...]]) -> Iterator[Poses]:
        """Poses of frame after frame, in order: people of several frames share a batch.

        Results come in groups: when `batch_size` people (or 64 frames) are together, on a GPU one group later, while
        the next one is computed.

        Args:
            frames_and_boxes: (frame, boxes) or (frame, boxes, box_scores), as in `__call__`; read as they are needed.

        Raises:
            ValueError: one line that names the frame by its number.
        """
        for _, poses in self.predict_many((*item, None)[:3] for item in frames_and_boxes):
            yield poses

    def warm_up(self, batches: Iterable[int] | None = None) -> None:
        """Do now what the first calls would wait for: compile kernels, record CUDA graphs, take memory.

        Args:
            batches: numbers of people per call that will occur. None: all; for a frozen model on a GPU these are its
                buckets up to that of `batch_size` (12 graphs by default), otherwise a whole batch stands for them.

        Raises:
            ValueError: a number below 1.
        """
        graphs = getattr(self.model, "graphs", None)
        if batches is None:
            largest = self.batch_size if graphs is None else graphs.bucket(self.batch_size)
            batches = [b for b in graphs.buckets if b <= largest] if graphs is not None else [largest]
        for people in batches:
            if people < 1:
                raise ValueError(f"warm_up: got {people} people, expected at least 1")
            # Kernels are compiled for frames whose sides 16 divides and for others, for one frame and for several.
            images = [torch.zeros(height, width, 3, dtype=torch.uint8) for height, width in ((64, 64), (63, 61))]
            boxes = [[[0, 0, image.shape[1], image.shape[0]]] * people for image in images]
            for image, own in zip(images, boxes, strict=True):
                self(image, own)
            if people > 1:
                self(images, [own[: people // 2] for own in boxes])

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

    def _start(self, items: list[_Item]) -> _Pending | None:
        """Begin with the people of some images; on a GPU nothing waits for it here."""
        if not items:
            return None
        boxes = torch.cat([item.boxes for item in items])
        counts = torch.tensor([len(item.boxes) for item in items])
        image_index = torch.repeat_interleave(counts)
        pixels, per_image = [item.image for item in items], [item.boxes for item in items]
        images = Frames(pixels, per_image, self.codec, self.model.device, self.padding, self.fix_aspect)
        training = self.model.training
        if training:
            self.model.eval()
        try:
            with torch.inference_mode():
                parts: list[Tensor] = []
                start = tries = 0
                while start < len(boxes):
                    people = slice(start, start + self._people_at_once)
                    try:
                        parts.append(self._forward(images, boxes[people], image_index[people]))
                    except (RuntimeError, MemoryError) as error:
                        if not is_out_of_memory(error):
                            raise
                        tries += 1
                    else:
                        start, tries = start + len(parts[-1]), 0
                    if tries:  # outside `except`, where the error still holds what was allocated
                        self._spare_memory(tries, images, len(boxes[people]))
                found = torch.cat(parts) if parts else torch.zeros(0, self.codec.keypoint_set.num_keypoints, 3)
                if found.device.type != "cuda":
                    return _Pending(items, found, None)
                host = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
                host.copy_(found, non_blocking=True)
                return _Pending(items, host, torch.cuda.current_stream(found.device).record_event())
        finally:
            if training:
                self.model.train()

    def _spare_memory(self, tries: int, images: Frames, people: int) -> None:
        """After running out of memory: fewer people at once from now on, or an error if not even one fits."""
        images.uploaded.clear()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        if people > 1:
            self._people_at_once = people // 2
            _LOG.warning("out of memory with %d people at once; going on with %d", people, self._people_at_once)
        elif tries >= _MAX_TRIES:
            raise MemoryError(
                f"out of memory on {self.model.device} with a single person, {tries} times in a row; free some memory, "
                f"freeze the model to 16 bit, or take a smaller one"
            )

    def _finish(self, pending: _Pending | None) -> Iterator[tuple[int, Poses]]:
        """Wait for a group, once, and hand out its poses."""
        if pending is None:
            return
        if pending.done is not None:
            pending.done.synchronize()
        found = pending.found.split([len(item.boxes) for item in pending.items])
        for item, own in zip(pending.items, found, strict=True):
            points, scores = own[..., :2].contiguous(), own[..., 2].contiguous()
            yield (
                item.number,
                Poses(
                    keypoints=points,
                    scores=scores,
                    boxes=item.boxes.float(),
                    box_scores=item.scores,
                    person_scores=person_scores(scores, item.scores),
                    keypoint_set=self.codec.keypoint_set,
                ),
            )

    def _forward(self, images: Frames, boxes: Tensor, image_index: Tensor) -> Tensor:
        """(x, y, score) of the keypoints of one batch of people, [P, K, 3] float32 on the device of the model."""
        first, last = int(image_index[0]), int(image_index[-1])  # in order: the other images stay out of the crop
        device = self.model.device
        crops = self.codec.crop(
            images.on_device(first, last),
            boxes,
            image_index - first,
            sampling=self.sampling,
            dtype=self.model.dtype,
            twin=self.flip_test,
            padding=self.padding,
            fix_aspect=self.fix_aspect,
        )
        center_scale = box_to_center_scale(boxes, self.codec.image_size, self.padding, self.fix_aspect)
        center, scale = (x.to(device, non_blocking=True) for x in center_scale)
        name = (
            f"people: {self.task}, blur {self.codec.blur_kernel}, {'flip test' if self.flip_test else 'no flip test'}"
        )
        return self.model.run(name, self._keypoints, center, scale, *crops.split(len(boxes)))

    def _keypoints(self, center: Tensor, scale: Tensor, *crops: Tensor) -> Tensor:
        """[P, K, 3] of crops [P, 3, H, W], for the flip test followed by their mirror images."""
        heatmaps = self.model(torch.cat(crops) if len(crops) > 1 else crops[0], self.task)
        assert isinstance(heatmaps, Tensor)
        maps = heatmaps.split(len(center))
        points, scores = self.codec.decode(maps[0], center, scale, maps[1] if len(maps) > 1 else None)
        return torch.cat([points, scores.unsqueeze(-1)], -1).float()


class _Item(NamedTuple):
    """One image and its people."""

    number: int
    image: Tensor
    boxes: Tensor
    scores: Tensor


class _Pending(NamedTuple):
    """A group of images whose people [P, K, 3] are on their way to the host, there when `done` has happened."""

    items: list[_Item]
    found: Tensor
    done: Any


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
