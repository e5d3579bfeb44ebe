"""COCO-format annotations to samples: one person each, with the decoded image, box and keypoints in image pixels."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from vitpose_fast.coco import clipped_box, is_training_person, read_annotations, shortened
from vitpose_fast.codec import HeatmapCodec
from vitpose_fast.geometry import flip_keypoints, transform_points, warp_matrix
from vitpose_fast.images import read_image
from vitpose_fast.keypoints import KeypointSet
from vitpose_fast.training.augment import Augmentation, no_augmentation

log = logging.getLogger("vitpose_fast")


@dataclass(frozen=True)
class Person:
    """One annotated person."""

    image: Path
    image_id: int | str
    annotation_id: int | str
    box: tuple[float, float, float, float]  # xywh in pixels, clipped to the image as the official loader does
    keypoints: np.ndarray  # [K, 2] float32
    visible: np.ndarray  # [K] float32, 1 for labelled keypoints (COCO's 1 and 2)


def read_people(
    annotations: Path, images: Path, keypoint_set: KeypointSet, problems: list[str] | None = None
) -> list[Person]:
    """The people with labelled keypoints of a COCO file; crowds are left out, damaged rows named and left out.

    Args:
        problems: damaged rows are named here; None: in the log.

    Raises:
        ValueError: an unusable file, or one in which no person is left.
    """
    data, damaged = read_annotations(annotations, keypoint_set)
    if problems is not None:
        problems += damaged
    else:
        for line in shortened(damaged):
            log.warning("skipped %s", line)
    by_id = {image["id"]: image for image in data["images"]}
    people = [_person(a, by_id[a["image_id"]], images) for a in data["annotations"] if is_training_person(a)]
    if not people:
        first = f"; the first of {len(damaged)} problems: {damaged[0]}" if damaged else ""
        raise ValueError(f"{annotations}: no person with labelled {keypoint_set.name} keypoints{first}")
    return people


def _person(annotation: dict[str, Any], image: dict[str, Any], folder: Path) -> Person:
    triples = np.asarray(annotation["keypoints"], dtype=np.float32).reshape(-1, 3)
    visible = np.minimum(triples[:, 2], 1)
    box = clipped_box(annotation["bbox"], image["width"], image["height"])
    assert box is not None  # checked by the reader
    points = triples[:, :2] * visible[:, None]
    return Person(folder / image["file_name"], image["id"], annotation["id"], box, points, visible)


class PeopleDataset(Dataset):
    """People as training samples; sample `(epoch, index)` is the same whatever worker or order it is read in.

    Args:
        people: as `read_people` gives them.
        keypoint_set, seed: for the augmentation.
        augmentation: None: boxes as they are.
        keep_images: keep decoded images in memory.
    """

    def __init__(
        self,
        people: Sequence[Person],
        keypoint_set: KeypointSet,
        augmentation: Augmentation | None,
        seed: int,
        image_size: tuple[int, int],
        keep_images: bool,
    ) -> None:
        self.people, self.keypoint_set, self.augmentation = people, keypoint_set, augmentation
        self.seed, self.image_size = seed, image_size
        self.read = lru_cache(maxsize=None)(read_image) if keep_images else read_image

    def __len__(self) -> int:
        return len(self.people)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any] | str:
        """The sample `(epoch, index)`, or the reason why its image cannot be used."""
        epoch, index = key
        person = self.people[index]
        try:
            image = self.read(person.image)
        except (ValueError, OSError) as error:
            return str(error)
        if self.augmentation is None:
            view = no_augmentation(person, self.image_size)
        else:
            fixed = np.random.default_rng((self.seed, index))  # the centre jitter is drawn once per run
            rng = np.random.default_rng((self.seed, 1 + epoch, index))
            view = self.augmentation(person, self.keypoint_set, self.image_size, fixed, rng)
        return {"image": image, "keypoints": person.keypoints, "visible": person.visible, **view}


@dataclass
class Batch:
    """Samples ready for the network: crops [B, 3, H, W], keypoints [B, K, 2] in crop pixels, visible [B, K]."""

    crops: Tensor
    keypoints: Tensor
    visible: Tensor


def keep_usable(samples: list[dict[str, Any] | str]) -> tuple[list[dict[str, Any]], list[str]]:
    """The collate function: (samples, reasons of those left out)."""
    return [s for s in samples if isinstance(s, dict)], [s for s in samples if isinstance(s, str)]


def make_batch(samples: list[dict[str, Any]], codec: HeatmapCodec, device: torch.device | str) -> Batch:
    """Cut all people of a batch out of their images in one launch and move their keypoints along."""
    stacked = {k: torch.as_tensor(np.stack([s[k] for s in samples])) for k in samples[0] if k != "image"}
    images: list[Tensor] = []
    place: dict[int, int] = {}  # several people share one decoded image
    index = []
    for sample in samples:
        key = id(sample["image"])
        if key not in place:
            place[key] = len(images)
            images.append(sample["image"].to(device))
        index.append(place[key])
    center, scale, rotation, flip = (stacked[k] for k in ("center", "scale", "rotation", "flip"))
    boxes = torch.cat([center - scale / 2, scale], 1)
    turned = rotation if bool(rotation.any()) else None  # upright crops are cheaper
    crops = codec.crop(images, boxes, torch.tensor(index), rotation=turned, flip=flip, padding=1.0, fix_aspect=False)
    matrix = warp_matrix(center, scale, rotation, codec.image_size, codec.kind)
    points = transform_points(matrix, stacked["keypoints"].double())
    mirrored, swapped = flip_keypoints(
        points, stacked["visible"], codec.keypoints.flip_permutation, codec.image_size[1]
    )
    points = torch.where(flip[:, None, None], mirrored, points).float()
    visible = torch.where(flip[:, None], swapped, stacked["visible"])
    return Batch(crops, points.to(device), visible.to(device))


class EpochSampler(Sampler):
    """(epoch, index) in an order that depends on seed and epoch alone, from a given step on."""

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.epoch, self.first_batch = 0, 0

    def start(self, epoch: int, first_batch: int = 0) -> None:
        """Which epoch the next iteration gives, and how many of its batches to leave out."""
        self.epoch, self.first_batch = epoch, first_batch

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.size).tolist()
        for batch in range(self.first_batch, len(self)):
            yield [(self.epoch, i) for i in order[batch * self.batch_size : (batch + 1) * self.batch_size]]
