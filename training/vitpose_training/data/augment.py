"""Top-down augmentation of one person (SPEC 6.2): which crop, how turned, whether mirrored; pixels are cut later."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from vitpose_fast.geometry import box_to_center_scale
from vitpose_fast.keypoints import KeypointSet
from vitpose_training.data.people import DataSet, Person
from vitpose_training.randomness import JITTER, VIEW, draws

View = dict[str, Any]  # center [2], scale [2] in pixels (float32), rotation in degrees (float64), flip (bool)


def no_augmentation(person: Person, image_size: tuple[int, int]) -> View:
    """The crop that evaluation uses."""
    center, scale = crop_of(person, image_size)
    return {"center": center, "scale": scale, "rotation": np.float64(0), "flip": np.bool_(False)}


def crop_of(person: Person, image_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Centre and size [2] in pixels of a person's crop, float32."""
    return _crop(person.box, image_size, person.padding, person.fix_aspect)


def _crop(
    box: tuple[float, float, float, float], image_size: tuple[int, int], padding: float, fix_aspect: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    center, scale = box_to_center_scale(torch.tensor([box], dtype=torch.float64), image_size, padding, fix_aspect)
    return center[0].numpy(), scale[0].numpy()


@dataclass(frozen=True)
class Augmentation:
    """How samples vary, with the recipe of the released models. None stands for the value of the data set."""

    jitter_probability: float | None = None
    """How often the center moves, by up to 0.2 of the box. None: 0.3, but 0 for MPII."""
    jitter_every_epoch: bool = False
    """Move the center anew every epoch; the official code does it once per run."""
    flip_probability: float = 0.5
    """How often a sample is mirrored."""
    half_body_probability: float | None = None
    """How often the upper or the lower body alone is cut out. None: 0.3, but 0 for MPII and InterHand."""
    half_body_over: int | None = None
    """Half bodies are cut from people with more labelled keypoints than this. None: 8, but 6 for CrowdPose."""
    half_body_upper_probability: float = 0.6915
    """How often it is the upper body. The official code compares a normal draw with 0.5, hence 0.6915."""
    scale_factor: float | None = None
    """Sizes vary by up to this share. None: 0.5, but 0.3 for InterHand."""
    rotation_degrees: float | None = None
    """Standard deviation of the rotation, which is cut off at twice it. None: 40, but 90 for InterHand."""
    rotation_probability: float = 0.6
    """How often a sample is rotated."""

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
        """With the data set's own values in place of None."""
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
        """The view of a sample in an epoch; nothing may be None any more, see `of`."""
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
        turned = rng.random() <= self.rotation_probability
        rotation = np.clip(rng.standard_normal() * self.rotation_degrees, -limit, limit) if turned else 0.0
        return {
            "center": center,
            "scale": (scale * factor).astype(np.float32),
            "rotation": np.float64(rotation),
            "flip": np.bool_(flip),
        }

    def _half_body(
        self, person: Person, keypoint_set: KeypointSet, image_size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Centre and scale of the upper or the lower body; None if it has too few labelled keypoints."""
        upper = np.isin(np.arange(len(person.visible)), keypoint_set.upper_body)
        labelled = person.visible > 0
        halves = person.keypoints[labelled & upper], person.keypoints[labelled & ~upper]
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
