"""COCO-format annotations to samples: one person each, with the decoded image, box and keypoints in image pixels."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

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
    image_id: int
    annotation_id: int
    box: tuple[float, float, float, float]  # xywh in pixels, clipped to the image as the official loader does
    keypoints: np.ndarray  # [K, 2] float32
    visible: np.ndarray  # [K] float32, 1 for labelled keypoints (COCO's 1 and 2)


def read_json(path: Path) -> dict[str, Any]:
    """A COCO annotation file.

    Raises:
        ValueError: missing, not JSON, or without the lists `images` and `annotations`.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such annotation file") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not readable as JSON ({str(error).splitlines()[0]})") from None
    for name in ("images", "annotations"):
        if not isinstance(data, dict) or not isinstance(data.get(name), list):
            raise ValueError(f"{path}: no list {name!r}, expected COCO keypoint annotations")
    return data


def clipped_box(box: Sequence[float], width: int, height: int) -> tuple[float, float, float, float] | None:
    """The official loader's box: clipped to the image, one pixel smaller (SPEC 3.1); None if nothing is left."""
    x, y, w, h = map(float, box)
    x1, y1 = max(0.0, x), max(0.0, y)
    x2, y2 = min(width - 1.0, x1 + max(0.0, w - 1)), min(height - 1.0, y1 + max(0.0, h - 1))
    return (x1, y1, x2 - x1, y2 - y1) if x2 > x1 and y2 > y1 else None


def read_people(annotations: Path, images: Path, keypoint_set: KeypointSet) -> list[Person]:
    """The people with labelled keypoints of a COCO file; crowds are left out, damaged annotations named and left out.

    Raises:
        ValueError: an unusable file, or one in which no person is left.
    """
    data = read_json(annotations)
    by_id = {i["id"]: i for i in data["images"] if isinstance(i, dict) and "id" in i and "file_name" in i}
    people, problems = [], []
    for index, annotation in enumerate(data["annotations"]):
        try:
            person = _read_person(annotation, by_id, images, keypoint_set)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
            name = annotation.get("id", "?") if isinstance(annotation, dict) else "?"
            problems.append(f"annotation {index} (id {name}): {reason}")
            continue
        if person is not None:
            people.append(person)
    for problem in problems[:20]:
        log.warning("%s: skipped %s", annotations, problem)
    if len(problems) > 20:
        log.warning("%s: skipped %d more damaged annotations", annotations, len(problems) - 20)
    if not people:
        first = f"; the first of {len(problems)} problems: {problems[0]}" if problems else ""
        raise ValueError(f"{annotations}: no person with labelled {keypoint_set.name} keypoints{first}")
    return people


def _read_person(
    annotation: dict[str, Any], by_id: dict[int, dict[str, Any]], images: Path, keypoint_set: KeypointSet
) -> Person | None:
    """None for a crowd or a person without labelled keypoints; an error names what is wrong."""
    if annotation.get("iscrowd") or not any(annotation.get("keypoints", ())[2::3]):
        return None
    image = by_id.get(annotation["image_id"])
    if image is None:
        raise ValueError(f"image_id {annotation['image_id']} is not in images")
    k = keypoint_set.num_keypoints
    flat = annotation["keypoints"]
    if len(flat) != 3 * k:
        raise ValueError(f"{len(flat)} keypoint numbers, expected {3 * k} for {keypoint_set.name}")
    triples = np.asarray(flat, dtype=np.float32).reshape(k, 3)
    box = annotation["bbox"]
    if len(box) != 4 or not all(math.isfinite(float(v)) for v in box) or not np.isfinite(triples).all():
        raise ValueError(f"box {box} or keypoints are not finite numbers")
    clipped = clipped_box(box, image["width"], image["height"])
    if clipped is None or annotation.get("area", 1) <= 0:
        raise ValueError(f"box {box} is empty inside the {image['width']}x{image['height']} image")
    visible = np.minimum(triples[:, 2], 1).astype(np.float32)
    return Person(
        images / image["file_name"],
        image["id"],
        annotation.get("id", -1),
        clipped,
        triples[:, :2] * visible[:, None],
        visible,
    )


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
        except ValueError as error:
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
