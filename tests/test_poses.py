"""Poses: person scores, and conversion to and from other formats."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import vitpose_fast as vp
from vitpose_fast.poses import person_scores


def random_poses(people=3, k=17):
    g = torch.Generator().manual_seed(0)
    scores, box_scores = torch.rand(people, k, generator=g), torch.rand(people, generator=g)
    return vp.Poses(
        keypoints=torch.rand(people, k, 2, generator=g) * 100,
        scores=scores,
        boxes=torch.rand(people, 4, generator=g) * 100,
        box_scores=box_scores,
        person_scores=person_scores(scores, box_scores),
        keypoint_set=vp.KEYPOINT_SETS["coco"],
    )


def test_person_score_is_box_score_times_the_mean_of_the_counted_keypoints():
    scores = torch.tensor([[0.9, 0.5, 0.2, 0.1], [0.1, 0.2, 0.0, float("nan")], [1.0, float("nan"), 0.0, 0.0]])
    got = person_scores(scores, torch.tensor([0.5, 1.0, 0.8]))
    assert got.tolist() == pytest.approx([0.35, 0.0, 0.8])  # a score of 0.2 is not counted


def test_coco_round_trip():
    poses = random_poses()
    results = json.loads(json.dumps(poses.to_coco(7)))
    assert [r["image_id"] for r in results] == [7, 7, 7] and "bbox" not in results[0]
    back = vp.Poses.from_coco(results, poses.keypoint_set)
    for name, value in poses.numpy().items():
        np.testing.assert_array_equal(back.numpy()[name], value)
    assert len(vp.Poses.from_coco(random_poses(0).to_coco(1), poses.keypoint_set)) == 0


def test_from_coco_reports_the_wrong_result():
    with pytest.raises(ValueError, match="result 0 has 51 keypoint numbers, expected 42 for aic"):
        vp.Poses.from_coco(random_poses(1).to_coco(1), vp.KEYPOINT_SETS["aic"])


def test_supervision():
    sv = pytest.importorskip("supervision")
    poses = random_poses()
    keypoints = poses.to_supervision()
    assert isinstance(keypoints, sv.KeyPoints) and len(keypoints) == 3
    np.testing.assert_array_equal(keypoints.xy, poses.keypoints.numpy())
    np.testing.assert_array_equal(keypoints.keypoint_confidence, poses.scores.numpy())


def test_keypoints_count_in_a_person_score_above_a_fifth():
    """0.25 and 0.9 count, 0.15 does not."""
    got = person_scores(torch.tensor([[0.25, 0.9, 0.15]]), torch.tensor([1.0]))
    assert got.tolist() == pytest.approx([(0.25 + 0.9) / 2])
