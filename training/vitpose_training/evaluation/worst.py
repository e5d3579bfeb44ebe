"""Draw the worst poses of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from vitpose_fast.draw import save_picture, sheet
from vitpose_fast.images import read_image
from vitpose_fast.keypoints import KeypointSet
from vitpose_training.data.people import points_of
from vitpose_training.data.survey import draw_person
from vitpose_training.evaluation.mistakes import Pair


def draw_worst(pairs: Sequence[Pair], keypoint_set: KeypointSet, path: Path, most: int = 12) -> int:
    """Draw the people with the lowest OKS on one sheet, lowest first.

    Each person is drawn twice: with the labeled keypoints of the annotation on the left, and with all predicted
    keypoints on the right. People whose image cannot be read are skipped.

    Args:
        pairs: The pairs of people and poses to choose from, see `pair`.
        keypoint_set: The keypoint set of the poses, for its limbs and colors.
        path: The image file to write.
        most: The largest number of people to draw.

    Returns:
        The number of people drawn. If it is 0, no file is written.
    """
    tiles: list[Image.Image] = []
    for one in sorted(pairs, key=lambda p: p.oks):
        if len(tiles) >= most:
            break
        try:
            image = read_image(one.person.image)
        except (ValueError, OSError):
            continue
        points = points_of(one.result).astype(np.float32)
        found = replace(one.person, keypoints=points, visible=np.ones(len(points), np.float32))
        both = [draw_person(person, image, keypoint_set) for person in (one.person, found)]
        tiles.append(sheet(both, columns=2, gap=2))
    if tiles:
        save_picture(sheet(tiles, columns=min(4, len(tiles))), path)
    return len(tiles)
