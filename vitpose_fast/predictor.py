"""PosePredictor: estimate poses from images and boxes, batched across people and images."""

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
_MAX_TRIES = 64  # tries with a single person on out-of-memory: another process may release memory meanwhile


class PosePredictor:
    """Estimate the poses of people in images.

    On a GPU the whole pipeline runs on the device. Images that are CUDA tensors are used in place; of other images only
    the rows that the crops read are uploaded. The keypoints of a group of images come back in one copy, with one
    synchronization.

    Args:
        model: a ViTPose model, or a frozen one (see `freeze`), which is faster. It may be on any device and is run in
            evaluation mode.
        flip_test: run the mirrored crop too and average the heatmaps (twice the work, slightly better accuracy).
        task: the task whose head to use. None selects the only head of the model.
        batch_size: people per forward pass. On out-of-memory the batch is halved, from then on, and retried.
        sampling: "float" or "exact-cv4", see `functional.crop`.
        blur_kernel: blur before decoding, see `functional.heatmap_decode`; 11 suits heatmaps of 64x48 and larger.
        padding, fix_aspect: how boxes become crops, see `functional.crop`. Use the values of the training.

    Raises:
        ValueError: `batch_size` is below 1, the task is unknown, or it is None and the model has several heads.
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
        """Estimate the poses in one image, or in each image of a list.

        Args:
            image: path, PIL image, uint8 [h, w, 3] RGB array or tensor, or a list of these.
            boxes: [P, 4] (x, y, width, height) in pixels; for a list of images a list of these (or None). None means
                that the whole image is one person.
            box_scores: [P]; for a list of images a list of these (or None). None means 1 for every box.

        Returns:
            The poses of the image, or a list of them for a list of images.

        Raises:
            ValueError: an image or box is invalid; the message is one line that names it.
            MemoryError: a single person does not fit into memory.
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
        """Estimate the poses in many images and yield (index, Poses) in order; people of several images share a batch.

        Args:
            items: (image, boxes, box_scores) as in `__call__`; read lazily.
            on_error: called with the index and the error of an invalid item, which is then skipped. None means that the
                error is raised.
        """
        waiting: list[_Item] = []
        pending: _Pending | None = None  # on a GPU one group is computed while the next is read
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
        """Estimate the poses in a stream of frames, in order; people of several frames share a batch.

        Results come in groups, each as soon as `batch_size` people or 64 frames have been read. On a GPU a group is
        yielded one group later, so that the next one is computed meanwhile.

        Args:
            frames_and_boxes: (frame, boxes) or (frame, boxes, box_scores), as in `__call__`; read lazily.

        Raises:
            ValueError: a frame or box is invalid; the message is one line, with the number of the frame (from 1 on).
        """
        for _, poses in self.predict_many((*item, None)[:3] for item in frames_and_boxes):
            yield poses

    def warm_up(self, batches: Iterable[int] | None = None) -> None:
        """Compile kernels, capture CUDA graphs and allocate memory now, so that the first calls do not wait for it.

        Args:
            batches: numbers of people per call to prepare. Default: for a frozen model on a GPU every bucket up to the
                one that holds `batch_size` (12 graphs with the default buckets), otherwise one full batch.

        Raises:
            ValueError: a number is below 1.
        """
        graphs = getattr(self.model, "graphs", None)
        if batches is None:
            largest = self.batch_size if graphs is None else graphs.bucket(self.batch_size)
            batches = [b for b in graphs.buckets if b <= largest] if graphs is not None else [largest]
        for people in batches:
            if people < 1:
                raise ValueError(f"warm_up: got {people} people, expected at least 1")
            # Triton specializes kernels on sides that are divisible by 16, and on one frame or several.
            images = [torch.zeros(height, width, 3, dtype=torch.uint8) for height, width in ((64, 64), (63, 61))]
            boxes = [[[0, 0, image.shape[1], image.shape[0]]] * people for image in images]
            for image, own in zip(images, boxes, strict=True):
                self(image, own)
            if people > 1:
                self(images, [own[: people // 2] for own in boxes])

    def _check(self, image: Any, boxes: Any, box_scores: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Validate an item and return (image, boxes [P, 4] float64, scores [P]).

        Raises:
            ValueError: the item is invalid; the message names the image if it is a path.
        """
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
        """Start to compute the people of some images; on a GPU this does not wait for the results."""
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
                    if tries:  # after `except`, where the error still references tensors
                        self._reduce_batch(tries, images, len(boxes[people]))
                found = torch.cat(parts) if parts else torch.zeros(0, self.codec.keypoint_set.num_keypoints, 3)
                if found.device.type != "cuda":
                    return _Pending(items, found, None)
                host = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
                host.copy_(found, non_blocking=True)
                return _Pending(items, host, torch.cuda.current_stream(found.device).record_event())
        finally:
            if training:
                self.model.train()

    def _reduce_batch(self, tries: int, images: Frames, people: int) -> None:
        """Handle an out-of-memory error: release cached memory and halve the batch from now on.

        Raises:
            MemoryError: a single person has failed `_MAX_TRIES` times in a row.
        """
        images.uploaded.clear()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        if people > 1:
            self._people_at_once = people // 2
            _LOG.warning("out of memory with a batch of %d people; retrying with %d", people, self._people_at_once)
        elif tries >= _MAX_TRIES:
            raise MemoryError(
                f"out of memory on {self.model.device} with a single person, {tries} times in a row; free some memory, "
                f"freeze the model to 16 bit, or use a smaller one"
            )

    def _finish(self, pending: _Pending | None) -> Iterator[tuple[int, Poses]]:
        """Wait for a started group, with one synchronization, and yield its poses."""
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
        """Return the keypoints (x, y, score) of one batch of people: [P, K, 3] float32 on the device of the model."""
        first, last = int(image_index[0]), int(image_index[-1])  # ascending, so only these images are needed
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
        """Return [P, K, 3] (see `_forward`) of crops [P, 3, H, W]; the flip test adds a tensor of mirrored crops."""
        heatmaps = self.model(torch.cat(crops) if len(crops) > 1 else crops[0], self.task)
        assert isinstance(heatmaps, Tensor)
        maps = heatmaps.split(len(center))
        points, scores = self.codec.decode(maps[0], center, scale, maps[1] if len(maps) > 1 else None)
        return torch.cat([points, scores.unsqueeze(-1)], -1).float()


class _Item(NamedTuple):
    """One image and the boxes of its people; `number` is its index among all images."""

    number: int
    image: Tensor
    boxes: Tensor
    scores: Tensor


class _Pending(NamedTuple):
    """A started group of images. The keypoints `found` [P, K, 3] are valid once the CUDA event `done` has occurred."""

    items: list[_Item]
    found: Tensor
    done: Any


def _numbers(values: Any, name: str) -> Tensor:
    """Convert a tensor, array or nested list of numbers to a float64 tensor on the CPU."""
    try:
        return values.detach().double().cpu() if isinstance(values, Tensor) else torch.tensor(np.asarray(values, float))
    except (TypeError, ValueError):
        raise ValueError(
            f"{name} are not an array of numbers with rows of equal length, got {type(values).__name__}"
        ) from None


def _one_each(values: Any, count: int, name: str) -> list[Any]:
    """Return a list with one entry per image; None gives a list of None."""
    values = [None] * count if values is None else list(values)
    if len(values) != count:
        raise ValueError(f"got {len(values)} {name} for {count} images, expected one entry each")
    return values
