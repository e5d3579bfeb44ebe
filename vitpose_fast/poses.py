"""Poses: the immutable result of pose estimation in one image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitpose_fast.keypoints import KeypointSet


def person_scores(scores: Tensor, box_scores: Tensor, threshold: float = 0.2) -> Tensor:
    """Return the score of each person, as in the COCO protocol of the official code (docs/numerics.md 7.1).

    It is the box score times the mean of the keypoint scores above `threshold`, or 0 if there are none.

    Args:
        scores: keypoint scores [P, K]; NaN is not counted.
        box_scores: [P].
        threshold: keypoint scores up to this value are not counted.

    Returns:
        Person scores [P].
    """
    counted = scores > threshold  # NaN is not
    mean = torch.where(counted, scores, 0.0).sum(1) / counted.sum(1).clamp(min=1)
    return mean * box_scores


@dataclass(frozen=True, eq=False)  # tensors have no single truth value
class Poses:
    """Keypoints, scores and boxes of the people in one image.

    All tensors are float32 on the CPU; coordinates are in image pixels. A keypoint is (-1, -1) if its heatmap has no
    positive value. A keypoint and its score are NaN if its heatmap has a NaN.
    """

    keypoints: Tensor  # [P, K, 2] (x, y)
    scores: Tensor  # [P, K], maxima of the heatmaps
    boxes: Tensor  # [P, 4] (x, y, width, height)
    box_scores: Tensor  # [P]
    person_scores: Tensor  # [P]
    keypoint_set: KeypointSet

    def __len__(self) -> int:
        return len(self.keypoints)

    def numpy(self) -> dict[str, np.ndarray]:
        """Return the five tensors as NumPy arrays by name."""
        names = ("keypoints", "scores", "boxes", "box_scores", "person_scores")
        return {name: getattr(self, name).numpy() for name in names}

    def to_coco(self, image_id: int | str, category_id: int = 1) -> list[dict[str, Any]]:
        """Return COCO keypoint results: one dict per person, with `keypoints` [x, y, score] * K and the person `score`.

        The box is stored as `box`. If there were a `bbox`, pycocotools would use its area instead of the area of the
        keypoints. A NaN keypoint is written as 0, 0, 0.
        """
        triples = torch.cat([self.keypoints, self.scores[..., None]], -1).double()
        triples = torch.where(triples.isfinite().all(-1, keepdim=True), triples, 0.0).flatten(1)
        rows = zip(triples.tolist(), self.boxes.tolist(), self.box_scores.tolist(), self.person_scores.tolist())
        return [
            {
                "image_id": image_id,
                "category_id": category_id,
                "keypoints": keypoints,
                "score": score,
                "box": box,
                "box_score": box_score,
            }
            for keypoints, box, box_score, score in rows
        ]

    @classmethod
    def from_coco(cls, results: Iterable[Mapping[str, Any]], keypoint_set: KeypointSet) -> Poses:
        """Build poses from the COCO results of one image, the inverse of `to_coco`.

        Raises:
            ValueError: a result does not have the number of keypoints of `keypoint_set`.
        """
        results = list(results)
        k = keypoint_set.num_keypoints
        for i, result in enumerate(results):
            if len(result["keypoints"]) != 3 * k:
                count = len(result["keypoints"])
                raise ValueError(f"result {i} has {count} keypoint numbers, expected {3 * k} for {keypoint_set.name}")
        triples = torch.tensor([r["keypoints"] for r in results], dtype=torch.float32).reshape(-1, k, 3)
        return cls(
            keypoints=triples[..., :2],
            scores=triples[..., 2],
            boxes=torch.tensor([r["box"] for r in results], dtype=torch.float32).reshape(-1, 4),
            box_scores=torch.tensor([r["box_score"] for r in results], dtype=torch.float32),
            person_scores=torch.tensor([r["score"] for r in results], dtype=torch.float32),
            keypoint_set=keypoint_set,
        )

    def to_supervision(self) -> Any:
        """Return these people as `supervision.KeyPoints`.

        Raises:
            ImportError: supervision is not installed.
        """
        try:
            from supervision import KeyPoints
        except ImportError:
            raise ImportError("Poses.to_supervision needs the package supervision: pip install supervision") from None
        return KeyPoints(
            xy=self.keypoints.numpy(),
            keypoint_confidence=self.scores.numpy(),
            detection_confidence=self.person_scores.numpy(),
            class_id=np.zeros(len(self), dtype=int),
        )
