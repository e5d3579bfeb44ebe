"""Top-down augmentation of one person (SPEC 6.2): which crop, how turned, whether mirrored; pixels are cut later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vitpose_fast.geometry import box_to_center_scale
from vitpose_fast.keypoints import KeypointSet

if TYPE_CHECKING:
    from vitpose_fast.training.data import Person

View = dict[str, Any]  # center [2], scale [2] in pixels (float32), rotation in degrees (float64), flip (bool)


def no_augmentation(person: Person, image_size: tuple[int, int]) -> View:
    """The crop that evaluation uses."""
    center, scale = _crop_of(person.box, image_size)
    return {"center": center, "scale": scale, "rotation": np.float64(0), "flip": np.bool_(False)}


def _crop_of(box: tuple[float, float, float, float], image_size: tuple[int, int], padding: float = 1.25):
    center, scale = box_to_center_scale(torch.tensor([box], dtype=torch.float64), image_size, padding)
    return center[0].numpy(), scale[0].numpy()


@dataclass(frozen=True)
class Augmentation:
    """The recipe of the released models; probabilities and factors as in SPEC 6.2."""

    jitter_probability: float = 0.3  # centre moved by up to 0.2 of the box, once per run
    flip_probability: float = 0.5
    half_body_probability: float = 0.3
    half_body_over: int = 8  # labelled keypoints needed
    scale_factor: float = 0.5
    rotation_degrees: float = 40.0
    rotation_probability: float = 0.6

    def __call__(
        self,
        person: Person,
        keypoint_set: KeypointSet,
        image_size: tuple[int, int],
        fixed: np.random.Generator,
        rng: np.random.Generator,
    ) -> View:
        """Draw one view; `fixed` repeats every epoch, `rng` does not."""
        center, scale = _crop_of(person.box, image_size)
        if fixed.random() < self.jitter_probability:
            center = center + (0.4 * (fixed.random(2) - 0.5) * person.box[2:]).astype(np.float32)
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

    @staticmethod
    def _half_body(person: Person, keypoint_set: KeypointSet, image_size: tuple[int, int], rng: np.random.Generator):
        """Centre and scale of the upper or the lower body; None if it has too few labelled keypoints."""
        upper = np.isin(np.arange(len(person.visible)), keypoint_set.upper_body)
        labelled = person.visible > 0
        halves = person.keypoints[labelled & upper], person.keypoints[labelled & ~upper]
        prefer_upper = rng.standard_normal() < 0.5  # a normal draw, so 69 %: as in the official code
        if prefer_upper and len(halves[0]) > 2:
            chosen = halves[0]
        else:
            chosen = halves[1] if len(halves[1]) > 2 else halves[0]
        if len(chosen) < 2:
            return None
        extent = np.ptp(chosen, axis=0)
        if extent.max() <= 0:
            return None
        _, scale = _crop_of((0, 0, float(extent[0]), float(extent[1])), image_size, padding=1.5)
        return chosen.mean(0).astype(np.float32), scale
