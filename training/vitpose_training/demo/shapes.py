"""Building blocks of synthetic figures: colors, numbered body parts, and convex hulls of balls.

In parallel projection a ball becomes a disc, and the hull of balls the hull of discs. One vectorized function,
`outlines`, approximates all these hulls by polygons of 28 corners. Pixel coordinates are (x, y), with y down.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# An owner map tells what each pixel shows: 1 + PARTS * person + part for a part of a person (counted from 0), 0 for
# the background, and OBJECT for anything else. Of the limbs, these are the numbers of the left ones; the right ones
# have the next number.
TORSO, HEAD, SKIRT, UPPER, FORE, THIGH, SHIN, OBJECT = 0, 1, 2, 3, 5, 7, 9, 255
PARTS = 16
SHOWS = ((HEAD,),) * 5 + tuple(  # for each of the 17 COCO keypoints, the parts on which it counts as visible
    tuple(p + side if p >= UPPER else p for p in parts)
    for parts in ((TORSO, UPPER), (UPPER, FORE), (FORE,), (TORSO, SKIRT, THIGH), (THIGH, SHIN, SKIRT), (SHIN,))
    for side in (0, 1)
)

_TURN = np.arange(28) * (2 * np.pi / 28)
_DIRECTIONS = np.stack([np.cos(_TURN), np.sin(_TURN)])  # [2, 28]

Color = tuple[int, int, int]


class Polygon(NamedTuple):
    """One part of a figure. Each outline is a polygon [28, 2] of (x, y) in pixels."""

    part: int  # number of the body part, or OBJECT
    color: Color
    rim: np.ndarray | None  # painted first, darker and a little larger than the body
    body: np.ndarray
    light: np.ndarray | None  # painted last: a highlight


@dataclass
class Figure:
    """One person with keypoints, or one object without."""

    polygons: list[Polygon]  # in drawing order
    ground: tuple[float, float, float]  # of the shadow: center x, center y, half width in pixels
    points: np.ndarray | None = None  # COCO keypoints [17, 2] in pixels; None for an object
    state: np.ndarray | None = None
    """State of each keypoint [17]: 2 visible if the owner map shows it, 1 hidden by the person's own body, 0 not
    labeled. None for an object."""

    def move(self, x: float, y: float) -> None:
        """Shift outlines, shadow and keypoints by (x, y) pixels."""
        step = np.array((x, y))
        self.polygons = [
            p._replace(
                rim=None if p.rim is None else p.rim + step,
                body=p.body + step,
                light=None if p.light is None else p.light + step,
            )
            for p in self.polygons
        ]
        if self.points is not None:
            self.points = self.points + step
        self.ground = (self.ground[0] + x, self.ground[1] + y, self.ground[2])


def shade(color: tuple[float, ...], gain: float) -> Color:
    """Return the color with its channels multiplied by `gain` and clipped to 0..255: above 1 lighter, below darker."""
    r, g, b = (max(0, min(255, int(c * gain))) for c in color)
    return r, g, b


def random_color(rng: np.random.Generator, saturation=(0.1, 0.8), value=(0.25, 0.95)) -> Color:
    """Return a random color of any hue, with saturation and value (HSV) drawn from the given ranges within 0 to 1."""
    r, g, b = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(*saturation), rng.uniform(*value))
    return int(255 * r), int(255 * g), int(255 * b)


def outlines(centers: np.ndarray, radii: np.ndarray) -> list[np.ndarray]:
    """Compute the outlines of n convex hulls of k discs each.

    Args:
        centers: [n, k, 2], (x, y) in pixels.
        radii: [n, k] in pixels.

    Returns:
        Rims, bodies and highlights, each [n, 28, 2] in pixels. The discs of a rim have radii 0.5 pixels larger, those
        of a body 0.2 pixels smaller. Those of a highlight have half the radii, and centers shifted to the upper left by
        a quarter of the radius. No radius is below 0.1.
    """
    out = []
    for scale, extra, shift in ((1.0, 0.5, 0.0), (1.0, -0.2, 0.0), (0.5, 0.0, -0.25)):
        r = np.maximum(radii * scale + extra, 0.1)
        c = centers + (shift * radii)[..., None]  # light from the upper left
        best = (c @ _DIRECTIONS + r[..., None]).argmax(1)  # [n, 28]: the disc that reaches farthest
        rows = np.arange(len(c))[:, None]
        out.append(c[rows, best] + r[rows, best][..., None] * _DIRECTIONS.T)
    return out
