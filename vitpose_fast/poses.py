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

    It is the box score times the mean of the keypoint scores above `threshold`, or 0 if no keypoint score is above it.

    Args:
        scores: scores [P, K] of the K keypoints of P people. NaN is not above the threshold.
        box_scores: [P].
        threshold: keypoint scores up to and including this value are left out of the mean.

    Returns:
        Person scores [P].
    """
    counted = scores > threshold  # False for NaN
    mean = torch.where(counted, scores, 0.0).sum(1) / counted.sum(1).clamp(min=1)
    return mean * box_scores


@dataclass(frozen=True, eq=False)  # tensors have no single truth value
class Poses:
    """Keypoints, scores and boxes of the P people in one image.

    All tensors are float32 on the CPU; coordinates are in image pixels. A keypoint is (-1, -1) if its heatmap has no
    positive value. A keypoint and its score are NaN if its heatmap has a NaN. `keypoint_set` describes the K keypoints.
    """

    keypoints: Tensor  # [P, K, 2] (x, y)
    scores: Tensor  # [P, K], maxima of the heatmaps
    boxes: Tensor  # [P, 4] (x, y, width, height), as given to the predictor
    box_scores: Tensor  # [P], as given to the predictor
    person_scores: Tensor  # [P], see the function `person_scores`
    keypoint_set: KeypointSet

    def __len__(self) -> int:
        return len(self.keypoints)

    def numpy(self) -> dict[str, np.ndarray]:
        """Return the five tensors as NumPy arrays, which share their memory, by field name."""
        names = ("keypoints", "scores", "boxes", "box_scores", "person_scores")
        return {name: getattr(self, name).numpy() for name in names}

    def to_coco(self, image_id: int | str, category_id: int = 1) -> list[dict[str, Any]]:
        """Return COCO keypoint results, one dict per person that JSON can hold.

        Each has `image_id` and `category_id` as given, `keypoints` (x, y, score of each keypoint in one flat list),
        `score` (of the person), `box` [x, y, width, height] and `box_score`. The box is not called `bbox`, because
        pycocotools would then use its area instead of the area that the keypoints span. A keypoint with a number that
        is not finite is written as 0, 0, 0.
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
        """Build poses from the results of one image, in the form that `to_coco` returns.

        `image_id` and `category_id` are ignored. Keypoints that `to_coco` wrote as 0, 0, 0 stay (0, 0) with score 0.

        Raises:
            ValueError: the `keypoints` of a result are not 3 numbers for each keypoint of `keypoint_set`.
            KeyError: a result has no `keypoints`, `score`, `box` or `box_score`.
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
        """Return these people as `supervision.KeyPoints`, all with class id 0.

        The scores of the keypoints become `keypoint_confidence`, and the scores of the people `detection_confidence`.

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
