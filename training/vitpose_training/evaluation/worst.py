"""Pictures of the poses that are most wrong."""

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
    """Write a sheet of the people with the lowest OKS, what is annotated on the left and what was found on the right.

    Returns:
        How many there are; without any nothing is written. People whose image cannot be read any more are left out.
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
