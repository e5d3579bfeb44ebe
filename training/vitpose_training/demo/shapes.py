"""What synthetic figures are made of: colours, numbered parts, and convex hulls of balls.

Seen from far away, a ball is a disc and a hull of balls is a convex polygon, so that one vectorised support function
draws every part.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# What a pixel of an owner map belongs to: 1 + PARTS * person + part; 0 is background, OBJECT anything else.
TORSO, HEAD, SKIRT, UPPER, FORE, THIGH, SHIN, OBJECT = 0, 1, 2, 3, 5, 7, 9, 255  # + 1 for the right limb
PARTS = 16
SHOWS = ((HEAD,),) * 5 + tuple(  # the parts on which key point k counts as visible
    tuple(p + side if p >= UPPER else p for p in parts)
    for parts in ((TORSO, UPPER), (UPPER, FORE), (FORE,), (TORSO, SKIRT, THIGH), (THIGH, SHIN, SKIRT), (SHIN,))
    for side in (0, 1)
)

_TURN = np.arange(28) * (2 * np.pi / 28)
_DIRECTIONS = np.stack([np.cos(_TURN), np.sin(_TURN)])  # [2, 28]

Colour = tuple[int, int, int]


class Polygon(NamedTuple):
    """One part of a figure; the outlines are [28, 2] in pixels."""

    part: int
    colour: Colour
    rim: np.ndarray | None  # painted first, darker and a little larger than the body
    body: np.ndarray
    light: np.ndarray | None  # painted last: a highlight


@dataclass
class Figure:
    """One person (or, without key points, one object): polygons in drawing order, and what is known of it."""

    polygons: list[Polygon]
    ground: tuple[float, float, float]  # where the shadow falls: x, y, half width in pixels
    points: np.ndarray | None = None  # [17, 2] pixels
    state: np.ndarray | None = None  # [17]: 2 look it up in the owner map, 1 hidden by the own body, 0 not labelled

    def move(self, x: float, y: float) -> None:
        """Shift everything by (x, y) pixels."""
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


def shade(colour: tuple[float, ...], gain: float) -> Colour:
    """The colour made lighter (gain above 1) or darker."""
    r, g, b = (max(0, min(255, int(c * gain))) for c in colour)
    return r, g, b


def random_colour(rng: np.random.Generator, saturation=(0.1, 0.8), value=(0.25, 0.95)) -> Colour:
    """Any hue; saturation and value from these ranges."""
    r, g, b = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(*saturation), rng.uniform(*value))
    return int(255 * r), int(255 * g), int(255 * b)


def outlines(centres: np.ndarray, radii: np.ndarray) -> list[np.ndarray]:
    """Convex hulls of discs, [n, k, 2] and [n, k] in pixels: rim, body and highlight, each [n, 28, 2]."""
    out = []
    for scale, extra, shift in ((1.0, 0.5, 0.0), (1.0, -0.2, 0.0), (0.5, 0.0, -0.25)):
        r = np.maximum(radii * scale + extra, 0.1)
        c = centres + (shift * radii)[..., None]  # light from the upper left
        best = (c @ _DIRECTIONS + r[..., None]).argmax(1)  # [n, 28]: the disc that reaches farthest
        rows = np.arange(len(c))[:, None]
        out.append(c[rows, best] + r[rows, best][..., None] * _DIRECTIONS.T)
    return out
