"""`PosePredictor`: estimate poses from images and boxes, batched across people and images."""

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
_MAX_TRIES = 64  # failures in a row on out-of-memory: meanwhile another process may release memory


class PosePredictor:
    """Estimate the poses of people in images.

    On a GPU the whole pipeline runs on the device. Images that are CUDA tensors are used in place; of other images only
    the pixel rows that the crops read are uploaded. Images are processed in groups with at least `batch_size` people
    (or 64 images), except for the last; the keypoints of a group are copied to the CPU at once, with one
    synchronization.

    Letters: P people in an image or batch, K keypoints, (h, w) image and (H, W) crop in pixels.

    Args:
        model: a ViTPose model, or a frozen one (see `freeze`), which is faster. It may be on any device. It is put in
            evaluation mode while it runs.
        flip_test: run the mirrored crop too and average the heatmaps (twice the work, slightly better accuracy).
        task: the task whose head to use. None selects the only head of the model.
        batch_size: people per forward pass. On out-of-memory the batch is halved and retried, and the predictor keeps
            the smaller size.
        sampling: "float" or "exact-cv4", see `functional.crop`.
        blur_kernel: size of the blur before decoding, see `functional.heatmap_decode`; 11 suits heatmaps of 64x48 and
            larger.
        padding, fix_aspect: how boxes become crops, see `functional.crop`. Use the values that the model was trained
            with.

    Raises:
        ValueError: `batch_size` is below 1, the task has no head, or it is None and the model has several heads.
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
        keypoints = config.task(self.task)
        self.codec = HeatmapCodec(keypoints, config.image_size, config.heatmap_size, blur_kernel=blur_kernel)
        if flip_test and keypoints.num_keypoints > 1 and not keypoints.flip_pairs:
            _LOG.warning(
                "flip test with the keypoint set %s, which has no flip pairs: left and right keypoints would be "
                "averaged with each other; add flip_pairs, or leave the flip test off",
                keypoints.name,
            )

    @overload
    def __call__(self, image: list[Any], boxes: Any = None, box_scores: Any = None) -> list[Poses]: ...

    @overload
    def __call__(self, image: Any, boxes: Any = None, box_scores: Any = None) -> Poses: ...

    def __call__(self, image: Any, boxes: Any = None, box_scores: Any = None) -> Poses | list[Poses]:
        """Estimate the poses in one image, or in each image of a list.

        Args:
            image: path, PIL image, uint8 [h, w, 3] RGB array or tensor, or a list of these.
            boxes: [P, 4] (x, y, width, height) in image pixels; for a list of images a list with one such array or None
                per image. None means one person whose box is the whole image.
            box_scores: [P]; for a list of images a list with one such array or None per image. None means 1 for every
                box.

        Returns:
            The poses in the image, in the order of the boxes; for a list of images a list of them.

        Raises:
            ValueError: an image, a box or a score is invalid, or a list does not have one entry per image. The message
                is one line; it names the box and, except for the first image, the index of the image.
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

        The index is the position of the image in `items`, from 0.

        Args:
            items: (image, boxes, box_scores) as in `__call__` for one image; read lazily.
            on_error: called with the index and the error of an invalid item, which is then skipped and gives no poses.
                None means that the error is raised.

        Raises:
            ValueError, MemoryError: as in `__call__`.
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

        Results come in groups, each as soon as `batch_size` people or 64 frames have been read. On a GPU the poses of a
        group are yielded only when the next group has been read and started, so that both overlap.

        Args:
            frames_and_boxes: (frame, boxes) or (frame, boxes, box_scores), as in `__call__` for one image; read lazily.

        Raises:
            ValueError: a frame, box or score is invalid. The message is one line; except for the first frame, it has
                the index of the frame, counted from 0.
            MemoryError: a single person does not fit into memory.
        """
        for _, poses in self.predict_many((*item, None)[:3] for item in frames_and_boxes):
            yield poses

    def warm_up(self, batches: Iterable[int] | None = None) -> None:
        """Compile kernels, capture CUDA graphs and allocate memory now, so that the first calls do not wait for it.

        Args:
            batches: numbers of people per call to prepare for. Default: for a frozen model with CUDA graphs every
                bucket up to the one that holds `batch_size` (12 graphs with the default buckets and batch size),
                otherwise `batch_size`.

        Raises:
            ValueError: an entry of `batches` is below 1.
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
        """Validate an item and return (pixels uint8 [h, w, 3], boxes float64 [P, 4], scores float32 [P]).

        The arguments and their defaults are as in `__call__` for one image. Boxes and scores are on the CPU.

        Raises:
            ValueError: the image cannot be read, a box is not finite, has no area or lies completely outside the image,
                or the scores are not one finite number per box. If the image is a path, the message names it.
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
        """Start to compute the keypoints in a group of images; on a GPU this does not wait for the results.

        Out-of-memory errors are handled by `_reduce_batch`. Returns None if there are no images.
        """
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
                    if tries:  # outside of `except`, because the error keeps tensors alive there
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

        Args:
            tries: number of failures in a row, with any batch size.
            images: the images of the group, which are released and uploaded again when they are needed.
            people: number of people in the batch that failed.

        Raises:
            MemoryError: a single person has failed, after at least `_MAX_TRIES` failures in a row.
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
        """Wait for a started group, with one synchronization, and yield (index, Poses) of each image; None has none."""
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
        """Return the keypoints (x, y, score) of one batch of people: [P, K, 3] float32 on the device of the model.

        Args:
            images: the images of the group.
            boxes: [P, 4] on the CPU, in image pixels.
            image_index: int64 [P], the index in `images` of the image of each box, ascending.
        """
        first, last = int(image_index[0]), int(image_index[-1])
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
        """Return the keypoints (x, y, score) [P, K, 3] float32 in image pixels.

        Args:
            center, scale: centers (x, y) and sizes (width, height) of the crops in image pixels, [P, 2] each.
            crops: normalized crops [P, 3, H, W]; for the flip test also their mirror images, as a second tensor.
        """
        heatmaps = self.model(torch.cat(crops) if len(crops) > 1 else crops[0], self.task)
        assert isinstance(heatmaps, Tensor)
        maps = heatmaps.split(len(center))
        points, scores = self.codec.decode(maps[0], center, scale, maps[1] if len(maps) > 1 else None)
        return torch.cat([points, scores.unsqueeze(-1)], -1).float()


class _Item(NamedTuple):
    """One valid image: its index among all items (`number`), pixels uint8 [h, w, 3], boxes [P, 4] and scores [P]."""

    number: int
    image: Tensor
    boxes: Tensor
    scores: Tensor


class _Pending(NamedTuple):
    """A started group of images.

    The keypoints `found` [P, K, 3] on the CPU hold the people of all `items` in order. On a GPU they are valid once the
    CUDA event `done` has occurred; otherwise `done` is None, and they are valid at once.
    """

    items: list[_Item]
    found: Tensor
    done: Any


def _numbers(values: Any, name: str) -> Tensor:
    """Convert a tensor, array or nested list of numbers to a float64 tensor on the CPU.

    Raises:
        ValueError: the values are not numbers, or nested lists have unequal lengths. The message starts with `name`.
    """
    try:
        return values.detach().double().cpu() if isinstance(values, Tensor) else torch.tensor(np.asarray(values, float))
    except (TypeError, ValueError):
        raise ValueError(
            f"{name} are not an array of numbers with rows of equal length, got {type(values).__name__}"
        ) from None


def _one_each(values: Any, count: int, name: str) -> list[Any]:
    """Return `values` as a list of `count` entries, one per image; None gives a list of None.

    Raises:
        ValueError: there are more or fewer values; `name` says what they are.
    """
    values = [None] * count if values is None else list(values)
    if len(values) != count:
        raise ValueError(f"got {len(values)} {name} for {count} images, expected one entry each")
    return values
