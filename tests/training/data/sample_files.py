"""Helpers of the reader tests: a sample file of each layout, and copies of data with one place changed."""

from __future__ import annotations

import copy

MISSING = "<missing>"  # marks a value to remove
FILES = {  # layout -> (data set, sample file in the folder of samples)
    "coco": ("coco", "coco/test_coco.json"),
    "apt36k": ("apt36k", "apt-36k/apt36k_wolf_reconstructed.json"),
    "wholebody": ("wholebody", "coco-wholebody/test_coco_wholebody.json"),
    "aic": ("aic", "aic/test_aic.json"),
    "aic original": ("aic", "aic/aic_keypoint_annotations_example.json"),
    "mpii": ("mpii", "mpii/test_mpii.json"),
    "crowdpose": ("crowdpose", "crowdpose/test_crowdpose.json"),
    "interhand": ("interhand", "interhand2.6m/test_interhand2.6m_data.json"),
}
COMPANIONS = ("camera", "joint_3d")  # files beside InterHand's annotation file


def changed(data, path, value):
    """Return a copy of `data` with the value at `path` (keys, indices) replaced, or removed if `value` is MISSING."""
    data = copy.deepcopy(data)
    *way, last = path
    place = data
    for key in way:
        place = place[key]
    if value is MISSING:
        del place[last]
    else:
        place[last] = copy.deepcopy(value)
    return data
