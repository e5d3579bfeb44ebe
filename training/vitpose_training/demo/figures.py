"""Random synthetic people with body, clothes and head, and their 17 COCO keypoints.

A person is a 3-D skeleton of 17 joints. Its limbs, clothes, head and hair are convex hulls of one to five balls. The
unit of length is the standing height. The person's own axes start in the middle of the hips: x points to the person's
own left, y up, and z in the direction that the hips face.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vitpose_training.demo.shapes import (
    FORE,
    HEAD,
    OBJECT,
    SHIN,
    SKIRT,
    THIGH,
    TORSO,
    UPPER,
    Color,
    Figure,
    Polygon,
    outlines,
    random_color,
    shade,
)
from vitpose_training.demo.stances import random_stance

SKIN = ((240, 202, 174), (230, 180, 142), (216, 160, 120), (178, 120, 82), (134, 86, 56), (92, 58, 40))
HAIR = ((28, 22, 20), (62, 40, 26), (112, 70, 36), (206, 164, 92), (150, 62, 30), (168, 164, 160))
FACE = np.array(  # nose, left eye, right eye, left ear, right ear, from the middle of the head, in its own axes
    [(0, -0.016, 0.068), (0.026, 0.006, 0.055), (-0.026, 0.006, 0.055), (0.064, -0.008, 0), (-0.064, -0.008, 0)]
)
UP = np.array([0, 1.0, 0])


def _rotation(axis: int, degrees: float) -> np.ndarray:
    """Return the 3x3 matrix that rotates column vectors about coordinate axis 0, 1 or 2 (right-handed)."""
    c, s, m = np.cos(np.radians(degrees)), np.sin(np.radians(degrees)), np.eye(3)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    m[i, i], m[i, j], m[j, i], m[j, j] = c, -s, s, c
    return m


def _direction(forward: float, outward: float, sign: int) -> np.ndarray:
    """Return the unit vector along half a limb, given its angles in degrees from hanging straight down.

    The vector is in the axes that the angles are relative to (see `Stance`): the trunk's for arms, the person's own for
    legs. `sign` is 1 for a left limb and -1 for a right limb.
    """
    a, b = np.radians(forward), np.radians(outward)
    return np.array([sign * np.sin(b), -np.cos(b) * np.cos(a), np.cos(b) * np.sin(a)])


class _Hull(NamedTuple):
    """The convex hull of five balls, in the person's own axes."""

    order: float  # hulls are painted in ascending order
    part: int  # see `Polygon`
    color: Color
    rim: bool  # whether it has a dark rim and a highlight
    points: list  # centers of the balls
    radii: list


class _Body:
    """A person under construction: random looks, and joints and hulls in the person's own axes.

    Call `add_limbs`, `add_trunk` and `add_head` in this order.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        n, u = rng.normal, rng.uniform
        self.rng = rng
        self.stance = random_stance(rng)
        kind = u()  # seen from the front (64 %), from behind (20 %) or from the side (16 %)
        if kind < 0.64:
            yaw = np.clip(n(0, 22), -45, 45)
        else:
            yaw = n(180, 17) if kind < 0.84 else u(50, 80) * rng.choice((-1, 1))
        self.turn = _rotation(1, yaw)  # to the viewer's axes, whose z points to the viewer
        self.lean = _rotation(0, self.stance.pitch) @ _rotation(2, -self.stance.roll)  # rotation of the trunk
        self.bulk = u(0.85, 1.3)
        self.girth = 0.05 * self.bulk
        self.skin, self.hair = SKIN[rng.integers(len(SKIN))], HAIR[rng.integers(len(HAIR))]
        self.shirt = random_color(rng)
        self.bottom, self.shoe = random_color(rng, (0.1, 0.6), (0.18, 0.8)), random_color(rng, (0, 0.7), (0.1, 0.95))
        self.sleeve = rng.choice(("short", "short", "long", "none"))
        self.wear = rng.choice(("long", "long", "short", "skirt"))
        styles = ("short", "short", "long", "bob", "bun", "afro", "cap", "bald")
        self.style = rng.choice(styles, p=(0.2,) * 2 + (0.1,) * 6)
        self.neck = self.lean @ (UP * u(0.27, 0.31))
        self.joints = np.zeros((17, 3))
        self.state = np.full(17, 2)  # see `Figure.state`
        self.hulls: list[_Hull] = []

    def add(self, part, bias, points, radii, color, rim=True, near=None) -> None:
        """Add the hull of one to five balls.

        Hulls are painted in ascending order of their nearness (the coordinate toward the viewer) plus `bias`.

        Args:
            part: number of the body part, or `OBJECT`.
            bias: added to the nearness.
            points: centers of the balls in the person's own axes.
            radii: one radius per ball, or a single radius for all of them.
            color: color before shading by nearness.
            rim: whether the hull has a dark rim and a highlight. Hulls without them are details such as eyes, or cover
                joints, where the rims of two body parts would otherwise show a line between them.
            near: nearness. None means the nearness of the mean center.
        """
        depth = float(np.mean(points, axis=0) @ self.turn[2]) if near is None else near
        gain = 1 + min(max(depth, -0.3), 0.3) * 0.6  # distant parts are a little darker
        spare = 5 - len(points)  # repeating a ball does not change the hull
        sizes = np.broadcast_to(radii, len(points))
        balls = [*points, *[points[-1]] * spare], [*sizes, *[sizes[-1]] * spare]
        self.hulls.append(_Hull(bias + depth, part, shade(color, gain), rim, *balls))

    def add_limbs(self) -> None:
        """Add arms, legs, sleeves, trousers, hands and shoes, and set joints 5 to 16 (shoulders to ankles)."""
        u, stance = self.rng.uniform, self.stance
        wide, hip_wide = u(0.085, 0.12), u(0.05, 0.072)
        arm_long, leg_long = u(0.155, 0.18), u(0.225, 0.265)
        for side, sign in ((0, 1), (1, -1)):
            a, g = stance.arms[side], stance.legs[side]
            upper, fore = self.lean @ _direction(a[0], a[1], sign), self.lean @ _direction(a[2], a[3], sign)
            thigh, shin = _direction(g[0], g[1], sign), _direction(g[2], g[3], sign)
            shoulder = self.neck + self.lean @ np.array([sign * wide, -0.015, 0])
            elbow = shoulder + arm_long * upper
            wrist = elbow + 0.88 * arm_long * fore
            hip = np.array([sign * hip_wide, 0, 0])
            knee = hip + leg_long * thigh
            ankle = knee + 0.97 * leg_long * shin
            self.joints[5 + side :: 2] = shoulder, elbow, wrist, hip, knee, ankle
            middles = ((shoulder + elbow) / 2, (elbow + wrist) / 2, (hip + knee) / 2, (knee + ankle) / 2)
            upper_near, fore_near, thigh_near, shin_near = (float(m @ self.turn[2]) for m in middles)

            r, part = 0.028 * self.bulk, UPPER + side
            arm = self.shirt if self.sleeve == "long" else self.skin
            self.add(part, 0.06, (shoulder, elbow), (1.15 * r, 0.85 * r), arm)
            if self.sleeve == "short":
                ends = shoulder, shoulder + 0.5 * (elbow - shoulder)
                self.add(part, 0.061, ends, (1.35 * r, 1.2 * r), self.shirt, near=upper_near)
            cap = (1.3 if self.sleeve == "short" else 1.12) * r
            bare = self.shirt if self.sleeve != "none" else self.skin
            self.add(part, 0.062, (shoulder - 0.006 * UP,), cap, bare, rim=False, near=upper_near)
            part = FORE + side
            self.add(part, 0.065, (elbow, wrist), (0.85 * r, 0.62 * r), arm)
            self.add(part, 0.0655, (elbow - 0.006 * upper,), 0.85 * r, arm, rim=False, near=fore_near)
            hand = wrist + 0.012 * fore, wrist + 0.042 * fore
            self.add(part, 0.066, hand, (0.019, 0.016), self.skin, near=fore_near)

            r, part = 0.045 * self.bulk, THIGH + side
            leg = self.bottom if self.wear == "long" else self.skin
            self.add(part, -0.09, (hip, knee), (1.1 * r, 0.78 * r), leg)
            self.add(part, -0.0895, (knee + 0.006 * shin,), 0.8 * r, leg, rim=False, near=thigh_near)
            if self.wear == "short":
                ends = hip, hip + 0.65 * (knee - hip)
                self.add(part, -0.089, ends, (1.15 * r, 1.05 * r), self.bottom, near=thigh_near)
            part = SHIN + side
            self.add(part, -0.1, (knee, ankle), (0.76 * r, 0.5 * r), leg)
            toe = np.array([0.018 * sign, -0.026, 0.085]) if stance.lift == 0 else np.array([0, -0.06, 0.05])
            self.add(part, -0.099, (ankle + shin * 0.012, ankle + toe), (0.026, 0.02), self.shoe, near=shin_near)

    def add_trunk(self) -> None:
        """Add hips and shirt and, if the person has them, skirt, stripes and seat. Call it after `add_limbs`."""
        u, girth = self.rng.uniform, self.girth
        shoulders, hips, knees = self.joints[5:7], self.joints[11:13], self.joints[13:15]
        self.add(TORSO, -0.012, hips - 0.012 * UP, girth * 0.95, self.bottom)
        if self.wear == "skirt":
            hem = hips + u(0.55, 0.85) * (knees - hips)
            near = max(0.0, ((hips + hem) / 2 @ self.turn[2]).max() * 1.05)
            self.add(SKIRT, -0.008, (*hips, *hem), (girth, girth, 0.06, 0.06), self.bottom, near=near)
        up = self.lean @ UP
        corners = (*(shoulders - 0.022 * up), *hips, self.neck - 0.02 * up)
        sizes = (0.036 * self.bulk,) * 2 + (girth,) * 2 + (0.036,)
        self.add(TORSO, 0.0, corners, sizes, self.shirt, near=0.0)
        if u() < 0.35:  # horizontal stripes
            trim = random_color(self.rng)
            for t in np.arange(0.2, 1.0, 0.22):
                self.add(TORSO, 0.001, shoulders + t * (hips - shoulders), 0.013, trim, rim=False, near=0.0)
        if self.stance.seat:
            corners = tuple((x, y, 0) for x in (-0.1, 0.1) for y in (-0.09, -0.25))
            self.add(OBJECT, -0.05, corners, 0.02, random_color(self.rng))

    def add_head(self) -> None:
        """Add neck, head, hair and face, and set joints 0 to 4 (nose, eyes and ears) and their states."""
        n, skin, style = self.rng.normal, self.skin, self.style
        # The head turns a little relative to the trunk; its balls are given in its own axes.
        look = self.lean @ _rotation(1, n(0, 14)) @ _rotation(0, n(3, 6)) @ _rotation(2, n(0, 5))
        big = self.rng.uniform(1.0, 1.2)
        middle = self.neck + self.lean @ UP * (0.058 + 0.05 * big)

        def at(points):
            return middle + big * (np.array(points, dtype=float) @ look.T)

        def add(color, near, points, radii, rim=True):
            self.add(HEAD, 0, at(points), big * np.array(radii), color, rim, near)

        front = (self.turn @ look)[2, 2] > -0.12  # the cosine is 1 facing the viewer, -1 facing away
        face = self.joints[:5] = at(FACE)
        depth = (face @ self.turn.T)[:, 2] - (middle @ self.turn.T)[2]  # of nose, eyes and ears
        base = 0.12 + max(0.0, ((middle - self.neck) @ self.turn.T)[2])
        throat = (self.neck - 0.01 * UP, middle)
        self.add(TORSO, -0.005 if front else 0.002, throat, (0.03, 0.028), shade(skin, 0.88), near=0.0)
        if front and self.sleeve != "long":
            neckline = (self.neck + self.turn.T @ (0, -0.012, 0),)
            self.add(TORSO, 0.003, neckline, 0.03, skin, rim=False, near=0.0)

        top = skin if style == "bald" else self.hair
        if style in ("long", "bob"):  # covers the trunk only if seen from behind
            fall = 0.15 if style == "long" else 0.075
            lock = ((0.03, 0.0, -0.02), (-0.03, 0.0, -0.02), (0.038, -fall, -0.03), (-0.038, -fall, -0.03))
            add(shade(top, 0.85), -0.02 if front else base + 0.01, lock, 0.045)
        if style == "afro":
            add(top, base + (-0.01 if front else 0.02), [(0, 0.015, -0.015)], 0.095)
        if style == "bun":
            add(top, base + (-0.01 if front else 0.02), [(0, 0.07, -0.035)], 0.033)
        covered = style in ("long", "bob", "afro")
        for k in (3, 4):
            if not covered and depth[k] > -0.035:
                ear = FACE[k], FACE[k] + (0, -0.012, 0)
                add(shade(skin, 0.9), base + (0.008 if depth[k] > 0.02 else -0.005), ear, 0.0145)
        add(top, base, [(0, 0.008, -0.004), (0, -0.012, -0.004)], (0.066, 0.058))
        cheeks = ((0.026, 0.0, 0.022), (-0.026, 0.0, 0.022), (0.012, -0.045, 0.028), (-0.012, -0.045, 0.028))
        add(skin, base + (0.003 if front else -0.004), cheeks, (0.036, 0.036, 0.028, 0.028))
        if style == "cap":
            cap = random_color(self.rng, (0.4, 0.9), (0.3, 0.9))
            add(cap, base + 0.005, [(0.02, 0.04, -0.005), (-0.02, 0.04, -0.005)], 0.046)
            peak = ((0.03, 0.03, 0.075), (-0.03, 0.03, 0.075), (0.03, 0.032, 0.04), (-0.03, 0.032, 0.04))
            add(shade(cap, 0.8), base + (0.006 if front else -0.006), peak, 0.01)
        for k, sign in ((1, 1), (2, -1)):
            if depth[k] > 0.008:
                eye = FACE[k]
                add((250, 250, 250), base + 0.02, [eye], 0.0125, rim=False)
                add((30, 24, 28), base + 0.02 + 0.003, [eye + (0, 0, 0.003)], 0.0085, rim=False)
                brow = eye + (0.013 * sign, 0.02, 0), eye + (-0.011 * sign, 0.021, 0)
                add(shade(self.hair, 0.8), base + 0.02, brow, 0.0035, rim=False)
        if depth[0] > -0.005 and front:
            add(shade(skin, 0.78), base + 0.025, [(0, 0.0, 0.062), FACE[0]], (0.005, 0.0105), rim=False)
            mouth = ((0.018, -0.04, 0.052), (-0.018, -0.04, 0.052), (0, -0.049, 0.055))
            add((164, 66, 64), base + 0.02, mouth, 0.004, rim=False)
        self.state[:3] = np.where((depth[:3] > np.array((-0.005, 0.008, 0.008))) & front, 2, 0)
        self.state[3:5] = np.where(depth[3:] > -0.035, (1 if front else 0) if covered else 2, 0)


def random_person(rng: np.random.Generator, height: float) -> Figure:
    """Build a random person, seen in parallel projection from slightly above.

    Args:
        height: standing height in pixels.

    Returns:
        The figure in pixels, with y down. The middle of the hips is at x = 0. The lowest point is at y = 0 or, if the
        person jumps, above it (y < 0).
    """
    body = _Body(rng)
    body.add_limbs()
    body.add_trunk()
    body.add_head()
    ends = [5, 6, 11, 12]  # shoulders and hips on the far side are hidden by the person's own body
    body.state[ends] = np.where((body.joints @ body.turn.T)[ends, 2] < -0.045, 1, 2)

    # To pixels: parallel projection from slightly above, y down, feet on the ground.
    tilt = np.radians(rng.uniform(2, 12))
    view = height * body.turn.T @ np.array([[1.0, 0, 0], [0, -np.cos(tilt), np.sin(tilt)]]).T
    parts = sorted(body.hulls, key=lambda hull: hull.order)
    centers, radii = np.array([p.points for p in parts]) @ view, height * np.array([p.radii for p in parts])
    floor = (centers[..., 1] + radii).max() + body.stance.lift * height
    polygons = [
        Polygon(p.part, p.color, rim if p.rim else None, outline, light if p.rim else None)
        for p, rim, outline, light in zip(parts, *outlines(centers - (0, floor), radii))
    ]
    return Figure(polygons, (0.0, 0.0, 0.17 * height), body.joints @ view - (0, floor), body.state)
