"""Training samples and batches: decode the image of each person, cut crops on the device, transform keypoints.

`vitpose_training.data.order` decides which samples are in each batch. In this module [h, w] is the size of an image,
[H, W] the size of the network's input, and K the number of keypoints of a task. The task of a person is the name of the
data set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vitpose_fast.codec import HeatmapCodec
from vitpose_fast.geometry import flip_keypoints, transform_points, warp_matrix
from vitpose_fast.images import read_image
from vitpose_training.data.augment import Augmentation, View, no_augmentation
from vitpose_training.data.order import Key
from vitpose_training.data.people import Labels, Person, all_people
from vitpose_training.randomness import REPLACEMENT, draws

_TRIES = 20  # give up on a sample after this many unusable images


@dataclass
class Sample:
    """One person with the decoded image and the geometry of the crop."""

    person: Person
    task: str
    position: int  # in the global batch of the optimizer step, counted from 0
    image: Tensor  # uint8 RGB [h, w, 3]
    view: View
    bad: list[tuple[str, str]] = field(default_factory=list)  # (path, reason) of each unusable image tried before this


@dataclass
class Packed:
    """Samples whose images are stored in one flat tensor, to need only one shared-memory block and one upload."""

    samples: list[Sample]  # with an empty tensor as `image`
    pixels: Tensor  # uint8, the pixels of all images one after the other
    sizes: list[tuple[int, int]]  # (h, w) of each image
    image_of: list[int]  # for each sample, the index of its image in `sizes`

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Packed:
        """Pack at least one sample. An image is stored once if several samples refer to the same tensor object."""
        images = {id(s.image): s.image for s in samples}
        number = {key: i for i, key in enumerate(images)}
        nothing = torch.empty(0, dtype=torch.uint8)
        return cls(
            [replace(s, image=nothing) for s in samples],
            torch.cat([image.flatten() for image in images.values()]),
            [(image.shape[0], image.shape[1]) for image in images.values()],
            [number[id(s.image)] for s in samples],
        )

    def pin_memory(self) -> Packed:
        """Return a copy with `pixels` in pinned memory. `DataLoader` calls this if its `pin_memory` is set."""
        return replace(self, pixels=self.pixels.pin_memory())

    def on_device(self, device: torch.device | str) -> list[Tensor]:
        """Upload the pixels in one copy and return the images, in the order of `sizes`, as views: uint8 [h, w, 3]."""
        parts = self.pixels.to(device, non_blocking=True).split([3 * h * w for h, w in self.sizes])
        return [part.view(h, w, 3) for part, (h, w) in zip(parts, self.sizes)]


class SampleSet(Dataset):
    """The people of all annotation files as training samples.

    A sample depends only on seed, epoch and index, not on the process, the order of reading or earlier samples. An
    image cannot be used if it cannot be decoded or its size differs from the annotated size. Then a random sample of
    the same task is used instead, which also depends only on seed, epoch and index, and `Sample.bad` lists the path and
    the reason.

    Args:
        labels: Annotation files, as returned by `read_labels`.
        image_size: (H, W) of the network's input.
        augmentation: The augmentation settings. None means no augmentation.
        seed: The seed of the run.
        keep_images: Whether to keep every decoded image in memory (in each worker process separately).
    """

    def __init__(
        self,
        labels: Sequence[Labels],
        image_size: tuple[int, int],
        augmentation: Augmentation | None = None,
        seed: int = 0,
        keep_images: bool = False,
    ) -> None:
        self.sets = {one.data_set.name: one.data_set for one in labels}
        self.people = all_people(labels)
        self.task_of = [one.data_set.name for one in labels for _ in one.people]
        self.augmentations = {n: None if augmentation is None else augmentation.of(s) for n, s in self.sets.items()}
        self.image_size, self.seed = image_size, seed
        self.read = lru_cache(maxsize=None)(read_image) if keep_images else read_image
        self.same_task = {n: np.flatnonzero(np.array(self.task_of) == n) for n in self.sets}

    def __len__(self) -> int:
        return len(self.people)

    def __getitem__(self, key: Key) -> Sample:
        """Return the sample of a `Key` (epoch, sample, position).

        Raises:
            ValueError: If neither the image of the sample nor any of 19 random replacements can be used.
        """
        key = Key(*key)
        epoch, index, position = key
        task, bad = self.task_of[index], []
        for attempt in range(_TRIES):
            if attempt:
                index = int(
                    draws(self.seed, REPLACEMENT, epoch, key.sample * _TRIES + attempt).choice(self.same_task[task])
                )
            person = self.people[index]
            try:
                image = self._image(person)
            except (ValueError, OSError) as error:
                bad.append((str(person.image), str(error)))
                continue
            augmentation = self.augmentations[task]
            if augmentation is None:
                view = no_augmentation(person, self.image_size)
            else:
                keypoint_set = self.sets[task].keypoint_set
                view = augmentation(person, keypoint_set, self.image_size, self.seed, epoch, index)
            return Sample(person, task, position, image, view, bad)
        raise ValueError(f"{_TRIES} images of {task} in a row cannot be used; the first: {bad[0][1]}")

    def _image(self, person: Person) -> Tensor:
        """Decode the image of a person to uint8 [h, w, 3].

        Raise ValueError or OSError if it cannot be decoded, or ValueError if its size differs from an annotated size.
        """
        image = self.read(person.image)
        found = (image.shape[0], image.shape[1])
        if person.image_size is not None and found != person.image_size:
            (h, w), (height, width) = found, person.image_size
            raise ValueError(f"{person.image}: is {w}x{h} pixels, {person.source} says {width}x{height}")
        return image


@dataclass
class Part:
    """The samples of one task in a batch."""

    rows: slice  # the rows of `Batch.crops` that belong to this task, n in number
    keypoints: Tensor  # [n, K, 2] float32 (x, y) in crop pixels; meaningless where `visible` is 0
    visible: Tensor  # [n, K] float32, see `Person.visible`


@dataclass
class Batch:
    """Crops and keypoints of B samples. The samples of each task are contiguous."""

    crops: Tensor  # [B, 3, H, W], normalized
    parts: dict[str, Part]  # by task; only tasks that have samples in the batch
    people: list[Person]  # the person of each row of `crops`
    positions: list[int]  # the `Sample.position` of each row of `crops`


def make_batch(
    given: Packed | Sequence[Sample], codecs: Mapping[str, HeatmapCodec], device: torch.device | str
) -> Batch:
    """Build a batch on the device: cut the crops of each task in one launch and transform the keypoints to crop pixels.

    Args:
        given: The samples, at least one, packed or not.
        codecs: The codec of each task. In the batch tasks are in this order, and the samples of a task are sorted by
            position. Samples of any other task are left out.
        device: The device of the crops, keypoints and visibilities in the batch.
    """
    packed = given if isinstance(given, Packed) else Packed.of(given)
    images = packed.on_device(device)
    numbered = sorted(zip(packed.samples, packed.image_of), key=lambda pair: pair[0].position)
    samples: list[Sample] = []
    crops, parts, start = [], {}, 0
    for name, codec in codecs.items():
        own = [s for s, _ in numbered if s.task == name]
        samples += own
        if own:
            index = torch.tensor([number for s, number in numbered if s.task == name])
            cut, points, visible = _cut(own, images, index, codec)
            crops.append(cut)
            rows = slice(start, start + len(own))
            parts[name] = Part(rows, points.to(device, non_blocking=True), visible.to(device, non_blocking=True))
            start = rows.stop
    return Batch(torch.cat(crops), parts, [s.person for s in samples], [s.position for s in samples])


def _cut(
    samples: list[Sample], images: list[Tensor], index: Tensor, codec: HeatmapCodec
) -> tuple[Tensor, Tensor, Tensor]:
    """Cut the crops of n samples of one task; `index` [n] is the index in `images` of the image of each sample.

    Return crops [n, 3, H, W] on the device of the images and, on the CPU, keypoints [n, K, 2] in crop pixels and
    visibilities [n, K]. Crops, keypoints and visibilities of samples with `flip` are mirrored.
    """
    view = {k: torch.as_tensor(np.stack([s.view[k] for s in samples])) for k in samples[0].view}
    center, scale, rotation, flip = (view[k] for k in ("center", "scale", "rotation", "flip"))
    boxes = torch.cat([center - scale / 2, scale], 1)
    angles = rotation if bool(rotation.any()) else None  # upright crops are cheaper
    crops = codec.crop(images, boxes, index, rotation=angles, flip=flip, padding=1.0, fix_aspect=False)
    matrix = warp_matrix(center, scale, rotation, codec.image_size, codec.kind)
    annotated = torch.from_numpy(np.stack([s.person.keypoints for s in samples]))
    seen = torch.from_numpy(np.stack([s.person.visible for s in samples]))
    points = transform_points(matrix, annotated.double())
    mirrored, swapped = flip_keypoints(points, seen, codec.keypoint_set.flip_permutation, codec.image_size[1])
    points = torch.where(flip[:, None, None], mirrored, points).float()
    return crops, points, torch.where(flip[:, None], swapped, seen)
