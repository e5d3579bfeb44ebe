"""Top-down augmentation (docs/numerics.md 6.2): draw the crop, rotation and flip of a person at random.

This module only decides the geometry of a sample. `vitpose_training.data.batches` cuts the pixels out of the image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from vitpose_fast.geometry import box_to_center_scale
from vitpose_fast.keypoints import KeypointSet
from vitpose_training.data.people import DataSet, Person
from vitpose_training.randomness import JITTER, VIEW, draws

View = dict[str, Any]
"""The geometry of a crop: `center` [2] (x, y) and `scale` [2] (width, height), float32 in pixels of the image;
`rotation`, float64 in degrees (a positive angle turns the content clockwise with the codec "udp", counterclockwise with
"msra"); and `flip`, bool: whether the finished crop is mirrored."""


def no_augmentation(person: Person, image_size: tuple[int, int]) -> View:
    """Return the view of a sample without augmentation: the crop of the person (`crop_of`), upright and not flipped.

    `image_size` is the size (H, W) of the network's input.
    """
    center, scale = crop_of(person, image_size)
    return {"center": center, "scale": scale, "rotation": np.float64(0), "flip": np.bool_(False)}


def crop_of(person: Person, image_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return center (x, y) and size (width, height) of a person's crop, each [2] float32 in pixels of the image.

    `image_size` is the size (H, W) of the network's input. It gives the aspect ratio if the person has `fix_aspect`.
    """
    return _crop(person.box, image_size, person.padding, person.fix_aspect)


def _crop(
    box: tuple[float, float, float, float], image_size: tuple[int, int], padding: float, fix_aspect: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    center, scale = box_to_center_scale(torch.tensor([box], dtype=torch.float64), image_size, padding, fix_aspect)
    return center[0].numpy(), scale[0].numpy()


@dataclass(frozen=True)
class Augmentation:
    """Augmentation settings. The defaults are the recipe of the released models.

    None means the default of the data set, see `Augmentation.of`.

    Raises:
        ValueError: If a probability is not in [0, 1], `half_body_over` is negative, `scale_factor` is not in [0, 1), or
            `rotation_degrees` is not in [0, 180].
    """

    jitter_probability: float | None = None
    """Probability that the center of the crop moves, by up to 0.2 of the width of the box in x and 0.2 of the height in
    y. None means 0.3, but 0 for MPII."""
    jitter_every_epoch: bool = False
    """Draw the jitter of the center anew every epoch. The official code draws it once per run."""
    flip_probability: float = 0.5
    """Probability of a horizontal flip."""
    half_body_probability: float | None = None
    """Probability of cropping to the upper or the lower body if `half_body_over` allows it. None means 0.3, but 0 for
    MPII and InterHand."""
    half_body_over: int | None = None
    """Crop to half a body only if more keypoints than this are labeled (precisely: if their visibilities sum to more).
    None means 8, but 6 for CrowdPose, and 0 for MPII and InterHand."""
    half_body_upper_probability: float = 0.6915
    """Probability that a half-body crop shows the upper body if both halves have more than two labeled keypoints. The
    official code tests whether a standard normal draw is below 0.5, which has probability 0.6915."""
    scale_factor: float | None = None
    """Standard deviation of the relative change in crop size. The change is clipped at one standard deviation. None
    means 0.5, but 0.3 for InterHand."""
    rotation_degrees: float | None = None
    """Standard deviation of the rotation angle in degrees. The angle is clipped at two standard deviations. None means
    40, but 90 for InterHand."""
    rotation_probability: float = 0.6
    """Probability that a sample is rotated."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith("probability") and value is not None and not 0 <= value <= 1:
                raise ValueError(f"got augmentation.{name}={value}, expected 0 to 1")
        if self.half_body_over is not None and self.half_body_over < 0:
            raise ValueError(f"got augmentation.half_body_over={self.half_body_over}, expected at least 0")
        if self.scale_factor is not None and not 0 <= self.scale_factor < 1:
            raise ValueError(f"got augmentation.scale_factor={self.scale_factor}, expected at least 0 and below 1")
        if self.rotation_degrees is not None and not 0 <= self.rotation_degrees <= 180:
            raise ValueError(f"got augmentation.rotation_degrees={self.rotation_degrees}, expected 0 to 180")

    def of(self, data_set: DataSet) -> Augmentation:
        """Return a copy in which every None is replaced by the default of `data_set`."""
        own: dict[str, Any] = {
            "jitter_probability": 0.3 if data_set.jitter else 0.0,
            "half_body_probability": 0.0 if data_set.half_body_over is None else 0.3,
            "half_body_over": data_set.half_body_over or 0,
            "scale_factor": data_set.scale_factor,
            "rotation_degrees": data_set.rotation_degrees,
        }
        return replace(self, **{name: value for name, value in own.items() if getattr(self, name) is None})

    def __call__(
        self, person: Person, keypoint_set: KeypointSet, image_size: tuple[int, int], seed: int, epoch: int, sample: int
    ) -> View:
        """Draw the view of a sample in an epoch. No setting may be None: call this on the result of `of`.

        Seed, epoch and sample determine the result. Without `jitter_every_epoch` the jitter does not depend on the
        epoch.

        Args:
            person: The person to crop.
            keypoint_set: The keypoint set of the person's data set, for `KeypointSet.upper_body`.
            image_size: (H, W) of the network's input.
            seed: The seed of the run.
            epoch: The epoch, counted from 0.
            sample: The index of the person in the sample set.
        """
        assert self.jitter_probability is not None and self.half_body_probability is not None
        assert self.half_body_over is not None and self.scale_factor is not None and self.rotation_degrees is not None
        center, scale = crop_of(person, image_size)
        jitter = draws(seed, JITTER, epoch + 1 if self.jitter_every_epoch else 0, sample)
        if jitter.random() < self.jitter_probability:
            center = center + (0.4 * (jitter.random(2) - 0.5) * person.box[2:]).astype(np.float32)
        rng = draws(seed, VIEW, epoch, sample)
        flip = rng.random() <= self.flip_probability
        if person.visible.sum() > self.half_body_over and rng.random() < self.half_body_probability:
            half = self._half_body(person, keypoint_set, image_size, rng)
            center, scale = half or (center, scale)
        factor = np.clip(rng.standard_normal() * self.scale_factor + 1, 1 - self.scale_factor, 1 + self.scale_factor)
        limit = 2 * self.rotation_degrees
        rotated = rng.random() <= self.rotation_probability
        rotation = np.clip(rng.standard_normal() * self.rotation_degrees, -limit, limit) if rotated else 0.0
        return {
            "center": center,
            "scale": (scale * factor).astype(np.float32),
            "rotation": np.float64(rotation),
            "flip": np.bool_(flip),
        }

    def _half_body(
        self, person: Person, keypoint_set: KeypointSet, image_size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Return center (x, y) and size (width, height) of a crop of the upper or the lower body, in image pixels.

        The upper body is chosen with `half_body_upper_probability` if it has more than two labeled keypoints. Otherwise
        the lower body is chosen if it has more than two, else the upper body. The center is the mean of the chosen
        keypoints, the size their extent with the aspect ratio of `image_size` and padding 1.5. Return None if the
        chosen half has fewer than two labeled keypoints, or if all of them are at the same point.
        """
        upper = np.isin(np.arange(len(person.visible)), keypoint_set.upper_body)
        labeled = person.visible > 0
        halves = person.keypoints[labeled & upper], person.keypoints[labeled & ~upper]
        if rng.random() < self.half_body_upper_probability and len(halves[0]) > 2:
            chosen = halves[0]
        else:
            chosen = halves[1] if len(halves[1]) > 2 else halves[0]
        if len(chosen) < 2:
            return None
        extent = np.ptp(chosen, axis=0)
        if extent.max() <= 0:
            return None
        _, scale = _crop((0, 0, float(extent[0]), float(extent[1])), image_size, padding=1.5)
        return chosen.mean(0).astype(np.float32), scale
