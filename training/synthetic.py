"""Synthetic pictures of articulated human figures with COCO key points, for demonstrations and tests.

A figure is a small 3-D skeleton (unit: standing height; x: the person's own left, y: up, z: the way the person
faces) whose limbs, clothes, head and hair are convex hulls of two to five balls.  Seen from far away, a ball is a
disc and a hull of balls is a convex polygon, so that one vectorised support function draws every part.  Each part
is painted twice: in colour at twice the resolution, and as a number in an owner map from which the visibility of
key points, the boxes and the areas are read off.
"""

from __future__ import annotations

import colorsys
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

SKIN = ((240, 202, 174), (230, 180, 142), (216, 160, 120), (178, 120, 82), (134, 86, 56), (92, 58, 40))
HAIR = ((28, 22, 20), (62, 40, 26), (112, 70, 36), (206, 164, 92), (150, 62, 30), (168, 164, 160))
TORSO, HEAD, SKIRT, UPPER, FORE, THIGH, SHIN, OBJECT = 0, 1, 2, 3, 5, 7, 9, 255  # + 1 for the right limb
PARTS = 16  # owner numbers per person: 1 + 16 * person + part; 0 is background, OBJECT anything else
SHOWS = ((HEAD,),) * 5 + tuple(  # the parts on which key point k counts as visible
    tuple(p + side if p >= UPPER else p for p in parts)
    for parts in ((TORSO, UPPER), (UPPER, FORE), (FORE,), (TORSO, SKIRT, THIGH), (THIGH, SHIN, SKIRT), (SHIN,))
    for side in (0, 1)
)
FACE = np.array(  # nose, eyes, ears, relative to the middle of the head
    [(0, -0.016, 0.068), (0.026, 0.006, 0.055), (-0.026, 0.006, 0.055), (0.064, -0.008, 0), (-0.064, -0.008, 0)]
)
_TURN = np.arange(28) * (2 * np.pi / 28)
DIRECTIONS = np.stack([np.cos(_TURN), np.sin(_TURN)])  # [2, 28]


def _rotation(axis: int, degrees: float) -> np.ndarray:
    """3 x 3 matrix of a turn about coordinate axis 0, 1 or 2."""
    c, s, m = np.cos(np.radians(degrees)), np.sin(np.radians(degrees)), np.eye(3)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    m[i, i], m[i, j], m[j, i], m[j, j] = c, -s, s, c
    return m


def _direction(forward: float, outward: float, side: int) -> np.ndarray:
    """Unit vector of a limb, in degrees from hanging straight down; side is 1 for left, -1 for right."""
    a, b = np.radians(forward), np.radians(outward)
    return np.array([side * np.sin(b), -np.cos(b) * np.cos(a), np.cos(b) * np.sin(a)])


def _shade(colour: tuple[int, ...], gain: float) -> tuple[int, int, int]:
    r, g, b = (max(0, min(255, int(c * gain))) for c in colour)
    return r, g, b


def _colour(rng: np.random.Generator, saturation=(0.1, 0.8), value=(0.25, 0.95)) -> tuple[int, int, int]:
    r, g, b = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(*saturation), rng.uniform(*value))
    return int(255 * r), int(255 * g), int(255 * b)


def _arm(rng: np.random.Generator, kind: str) -> tuple[float, float, float, float]:
    """(forward, outward) angles in degrees of the upper arm and of the forearm."""
    n, u = rng.normal, rng.uniform
    if kind == "up":
        return n(0, 12), u(115, 165), n(0, 15), u(135, 200)
    if kind == "wave":
        return n(5, 15), u(70, 115), n(10, 15), u(150, 200)
    if kind == "wide":
        return n(0, 15), u(60, 100), n(0, 15), u(50, 120)
    if kind == "ahead":
        return u(45, 90), n(10, 8), u(60, 110), n(0, 12)
    if kind == "head":
        return u(20, 50), n(50, 12), u(135, 160), n(-12, 8)
    if kind == "hip":
        return n(-12, 8), n(48, 8), n(15, 8), n(-45, 8)
    if kind == "bent":
        return n(0, 10), n(16, 6), u(50, 110), u(-40, 15)
    return n(0, 12), n(14, 6), n(12, 12), n(7, 8)


def _pose(rng: np.random.Generator) -> dict:
    """Angles in degrees of one random pose: arms and legs [left, right] of 4, torso pitch and roll, lift, seat."""
    n, u = rng.normal, rng.uniform
    calm = ("hang", "hang", "hang", "hip", "bent", "wide", "head", "ahead")
    kinds = [str(rng.choice(calm)), str(rng.choice(calm))]
    legs = [[n(0, 5), n(5, 3), n(-5, 4), n(4, 3)] for _ in range(2)]
    pose: dict[str, Any] = {"pitch": n(3, 4), "roll": n(0, 4), "lift": 0.0, "seat": False}
    names = ("stand", "walk", "run", "raise", "wave", "squat", "sit", "lean", "jump")
    name = rng.choice(names, p=(0.2, 0.14, 0.12, 0.12, 0.12, 0.08, 0.08, 0.08, 0.06))
    first = int(rng.integers(2))
    arms: list | None = None
    if name in ("walk", "run"):
        swing = u(15, 30) if name == "walk" else u(28, 50)
        bend = u(5, 25) if name == "walk" else u(30, 85)
        for side, sign in ((first, 1), (1 - first, -1)):
            legs[side] = [sign * swing, n(3, 2), sign * swing - (0.4 * bend if sign > 0 else bend), n(2, 2)]
        elbow = u(10, 40) if name == "walk" else u(60, 100)
        arms = [None, None]
        for side, sign in ((first, -1), (1 - first, 1)):
            arms[side] = [sign * swing * 1.1, n(10, 5), sign * swing * 1.1 + elbow, n(0, 8)]
        pose["pitch"] = u(2, 8) if name == "walk" else u(6, 18)
    elif name in ("raise", "jump"):
        kinds = ["up", "up"] if u() < 0.7 else ["wide", "up"][:: 1 - 2 * first]
    elif name == "wave":
        kinds[first] = "wave"
    elif name == "lean":
        pose["roll"], kinds[first] = u(14, 28) * (1 - 2 * first), str(rng.choice(["up", "wide", "hip"]))
    if name in ("squat", "sit"):
        fold, drop = (u(75, 105), u(-35, -15)) if name == "squat" else (u(78, 95), u(-12, 20))
        legs = [[n(fold, 4), u(6, 32), n(drop, 4), n(4, 5)] for _ in range(2)]
        pose["pitch"], pose["seat"] = (u(10, 30) if name == "squat" else n(2, 6)), name == "sit"
    elif name == "jump":
        pose["lift"] = u(0.04, 0.14)
        legs = [[u(0, 35), u(5, 32), u(-70, -5), n(8, 8)] for _ in range(2)]
    elif name in ("raise", "stand", "wave") and u() < 0.4:
        legs = [[n(0, 4), u(9, 24), n(-4, 3), u(5, 18)] for _ in range(2)]
    pose["arms"], pose["legs"] = arms or [_arm(rng, kind) for kind in kinds], legs
    return pose


@dataclass
class _Figure:
    """One person (or, without key points, one object): polygons in drawing order, and what is known of it."""

    polygons: list[tuple]  # part, colour, rim, body, highlight; outlines [28, 2] in pixels, rim and highlight or None
    ground: tuple[float, float, float]  # where the shadow falls: x, y, half width in pixels
    points: np.ndarray | None = None  # [17, 2] pixels
    state: np.ndarray | None = None  # [17]: 2 look it up in the owner map, 1 hidden by the own body, 0 not labelled


def _outlines(centres: np.ndarray, radii: np.ndarray) -> list[np.ndarray]:
    """Convex hulls of discs, [n, k, 2] and [n, k] in pixels: rim, body and highlight, each [n, 28, 2]."""
    out = []
    for scale, extra, shift in ((1.0, 0.5, 0.0), (1.0, -0.2, 0.0), (0.5, 0.0, -0.25)):
        r = np.maximum(radii * scale + extra, 0.1)
        c = centres + (shift * radii)[..., None]  # light from the upper left
        best = (c @ DIRECTIONS + r[..., None]).argmax(1)  # [n, 28]
        rows = np.arange(len(c))[:, None]
        out.append(c[rows, best] + r[rows, best][..., None] * DIRECTIONS.T)
    return out


def _person(rng: np.random.Generator, height: float) -> _Figure:
    """A random person, in pixels, standing with the lowest point of the figure at y = 0 and the hips at x = 0."""
    n, u, pose = rng.normal, rng.uniform, _pose(rng)
    kind = u()  # from the front, from behind, from the side
    yaw = np.clip(n(0, 22), -45, 45) if kind < 0.64 else n(180, 17) if kind < 0.84 else u(50, 80) * rng.choice((-1, 1))
    turn = _rotation(1, yaw)
    trunk = _rotation(0, pose["pitch"]) @ _rotation(2, -pose["roll"])
    bulk = u(0.85, 1.3)
    up = np.array([0, 1.0, 0])
    skin, hair = SKIN[rng.integers(len(SKIN))], HAIR[rng.integers(len(HAIR))]
    shirt, bottom, shoe = _colour(rng), _colour(rng, (0.1, 0.6), (0.18, 0.8)), _colour(rng, (0, 0.7), (0.1, 0.95))
    sleeve, wear = rng.choice(("short", "short", "long", "none")), rng.choice(("long", "long", "short", "skirt"))
    style = rng.choice(("short", "short", "long", "bob", "bun", "afro", "cap", "bald"), p=(0.2,) * 2 + (0.1,) * 6)
    parts: list[tuple] = []

    def add(part, bias, points, radii, colour, rim=True, near=None):
        """Note one hull of up to five balls; it is drawn in the order of its mean depth plus bias."""
        depth = float(np.mean(points, axis=0) @ turn[2]) if near is None else near
        spare = 5 - len(points)  # repeating a ball does not change the hull
        gain = 1 + min(max(depth, -0.3), 0.3) * 0.6  # what is far is a little darker
        parts.append(
            (
                bias + depth,
                part,
                _shade(colour, gain),
                rim,
                [*points, *[points[-1]] * spare],
                [*radii, *[radii[-1]] * spare],
            )
        )

    # Trunk and limbs.
    neck = trunk @ (up * u(0.27, 0.31))
    wide, hip_wide, girth = u(0.085, 0.12), u(0.05, 0.072), 0.05 * bulk
    joints = np.zeros((17, 3))
    arm_long, leg_long = u(0.155, 0.18), u(0.225, 0.265)
    for side, sign in ((0, 1), (1, -1)):
        shoulder = neck + trunk @ np.array([sign * wide, -0.015, 0])
        hip = np.array([sign * hip_wide, 0, 0])
        a, g = pose["arms"][side], pose["legs"][side]
        upper, fore = trunk @ _direction(a[0], a[1], sign), trunk @ _direction(a[2], a[3], sign)
        elbow = shoulder + arm_long * upper
        wrist = elbow + 0.88 * arm_long * fore
        knee = hip + leg_long * _direction(g[0], g[1], sign)
        shin = _direction(g[2], g[3], sign)
        ankle = knee + 0.97 * leg_long * shin
        joints[5 + side :: 2] = shoulder, elbow, wrist, hip, knee, ankle
        middles = ((shoulder + elbow) / 2, (elbow + wrist) / 2, (hip + knee) / 2, (knee + ankle) / 2)
        upper_near, fore_near, thigh_near, shin_near = (float(m @ turn[2]) for m in middles)
        r = 0.028 * bulk
        arm = shirt if sleeve == "long" else skin
        add(UPPER + side, 0.06, (shoulder, elbow), (1.15 * r, 0.85 * r), arm)
        if sleeve == "short":
            add(
                UPPER + side,
                0.061,
                (shoulder, shoulder + 0.5 * (elbow - shoulder)),
                (1.35 * r, 1.2 * r),
                shirt,
                near=upper_near,
            )
        add(FORE + side, 0.065, (elbow, wrist), (0.85 * r, 0.62 * r), arm)
        bare = shirt if sleeve != "none" else skin
        # Discs without a rim hide the outlines that would cut a limb from the next one.
        add(
            UPPER + side,
            0.062,
            (shoulder - 0.006 * up,),
            ((1.3 if sleeve == "short" else 1.12) * r,),
            bare,
            rim=False,
            near=upper_near,
        )
        add(FORE + side, 0.0655, (elbow - 0.006 * upper,), (0.85 * r,), arm, rim=False, near=fore_near)
        add(FORE + side, 0.066, (wrist + 0.012 * fore, wrist + 0.042 * fore), (0.019, 0.016), skin, near=fore_near)
        r = 0.045 * bulk
        leg = bottom if wear == "long" else skin
        add(THIGH + side, -0.09, (hip, knee), (1.1 * r, 0.78 * r), leg)
        add(SHIN + side, -0.1, (knee, ankle), (0.76 * r, 0.5 * r), leg)
        add(THIGH + side, -0.0895, (knee + 0.006 * shin,), (0.8 * r,), leg, rim=False, near=thigh_near)
        if wear == "short":
            add(THIGH + side, -0.089, (hip, hip + 0.65 * (knee - hip)), (1.15 * r, 1.05 * r), bottom, near=thigh_near)
        toe = np.array([0.018 * sign, -0.026, 0.085]) if pose["lift"] == 0 else np.array([0, -0.06, 0.05])
        add(SHIN + side, -0.099, (ankle + shin * 0.012, ankle + toe), (0.026, 0.02), shoe, near=shin_near)
    shoulders, hips, knees = joints[5:7], joints[11:13], joints[13:15]
    add(TORSO, -0.012, hips - 0.012 * up, (girth * 0.95,) * 2, bottom)
    if wear == "skirt":
        hem = hips + u(0.55, 0.85) * (knees - hips)
        add(
            SKIRT,
            -0.008,
            (*hips, *hem),
            (girth, girth, 0.06, 0.06),
            bottom,
            near=max(0.0, ((hips + hem) / 2 @ turn[2]).max() * 1.05),
        )
    add(
        TORSO,
        0.0,
        (*(shoulders - 0.022 * (trunk @ up)), *hips, neck - 0.02 * (trunk @ up)),
        (0.036 * bulk,) * 2 + (girth,) * 2 + (0.036,),
        shirt,
        near=0.0,
    )
    if u() < 0.35:  # hoops
        trim = _colour(rng)
        for t in np.arange(0.2, 1.0, 0.22):
            ends = shoulders + t * (hips - shoulders)
            add(TORSO, 0.001, ends, (0.013,) * 2, trim, rim=False, near=0.0)
    if pose["seat"]:
        add(OBJECT, -0.05, [(x, y, 0) for x in (-0.1, 0.1) for y in (-0.09, -0.25)], (0.02,) * 4, _colour(rng))

    # Head: turned a little more than the trunk; balls and features in its own axes.
    look = trunk @ _rotation(1, n(0, 14)) @ _rotation(0, n(3, 6)) @ _rotation(2, n(0, 5))
    big = u(1.0, 1.2)
    middle = neck + trunk @ up * (0.058 + 0.05 * big)

    def at(*rows):
        return middle + big * (np.array(rows, dtype=float) @ look.T)

    toward = (turn @ look)[2, 2]  # 1: looks at the viewer, -1: away
    front = toward > -0.12
    base = 0.12 + max(0.0, ((middle - neck) @ turn.T)[2])
    add(TORSO, -0.005 if front else 0.002, (neck - 0.01 * up, middle), (0.03, 0.028), _shade(skin, 0.88), near=0.0)
    if front and sleeve != "long":
        add(TORSO, 0.003, ((neck + turn.T @ (0, -0.012, 0)),), (0.03,), skin, rim=False, near=0.0)
    top = skin if style == "bald" else hair
    if style in ("long", "bob"):  # in front of the trunk only when seen from behind
        fall = 0.15 if style == "long" else 0.075
        add(
            HEAD,
            0,
            at((0.03, 0.0, -0.02), (-0.03, 0.0, -0.02), (0.038, -fall, -0.03), (-0.038, -fall, -0.03)),
            (0.045 * big,) * 4,
            _shade(top, 0.85),
            near=-0.02 if front else base + 0.01,
        )
    if style == "afro":
        add(HEAD, 0, at((0, 0.015, -0.015)), (0.095 * big,), top, near=base + (-0.01 if front else 0.02))
    if style == "bun":
        add(HEAD, 0, at((0, 0.07, -0.035)), (0.033 * big,), top, near=base + (-0.01 if front else 0.02))
    ears = (at(*FACE[3:]) @ turn.T)[:, 2] - (middle @ turn.T)[2]
    covered = style in ("long", "bob", "afro")
    for k in (0, 1):
        if not covered and ears[k] > -0.035:
            add(
                HEAD,
                0,
                at(FACE[3 + k], FACE[3 + k] + (0, -0.012, 0)),
                (0.0145 * big,) * 2,
                _shade(skin, 0.9),
                near=base + (0.008 if ears[k] > 0.02 else -0.005),
            )
    add(HEAD, 0, at((0, 0.008, -0.004), (0, -0.012, -0.004)), (0.066 * big, 0.058 * big), top, near=base)
    add(
        HEAD,
        0,
        at((0.026, 0.0, 0.022), (-0.026, 0.0, 0.022), (0.012, -0.045, 0.028), (-0.012, -0.045, 0.028)),
        np.array((0.036, 0.036, 0.028, 0.028)) * big,
        skin,
        near=base + (0.003 if front else -0.004),
    )
    if style == "cap":
        cap = _colour(rng, (0.4, 0.9), (0.3, 0.9))
        add(HEAD, 0, at((0.02, 0.04, -0.005), (-0.02, 0.04, -0.005)), (0.046 * big,) * 2, cap, near=base + 0.005)
        add(
            HEAD,
            0,
            at((0.03, 0.03, 0.075), (-0.03, 0.03, 0.075), (0.03, 0.032, 0.04), (-0.03, 0.032, 0.04)),
            (0.01 * big,) * 4,
            _shade(cap, 0.8),
            near=base + (0.006 if front else -0.006),
        )
    look_depth = (at(*FACE) @ turn.T)[:, 2] - (middle @ turn.T)[2]
    for k in (1, 2):
        if look_depth[k] > 0.008:
            eye, s = FACE[k], 1 if k == 1 else -1
            for d, r, c in ((0, 0.0125, (250, 250, 250)), (0.003, 0.0085, (30, 24, 28))):
                add(HEAD, 0, at(eye + (0, 0, d)), (r * big,), c, rim=False, near=base + 0.02 + d)
            add(
                HEAD,
                0,
                at(eye + (0.013 * s, 0.02, 0), eye + (-0.011 * s, 0.021, 0)),
                (0.0035 * big,) * 2,
                _shade(hair, 0.8),
                rim=False,
                near=base + 0.02,
            )
    if look_depth[0] > -0.005 and front:
        add(
            HEAD,
            0,
            at((0, 0.0, 0.062), FACE[0]),
            (0.005 * big, 0.0105 * big),
            _shade(skin, 0.78),
            rim=False,
            near=base + 0.025,
        )
        add(
            HEAD,
            0,
            at((0.018, -0.04, 0.052), (-0.018, -0.04, 0.052), (0, -0.049, 0.055)),
            (0.004 * big,) * 3,
            (164, 66, 64),
            rim=False,
            near=base + 0.02,
        )
    joints[:5] = at(*FACE)

    # What is labelled: the features that face the viewer; far shoulders and hips lie behind the own body.
    depth = (joints @ turn.T)[:, 2]
    state = np.full(17, 2)
    state[:3] = np.where((look_depth[:3] > np.array((-0.005, 0.008, 0.008))) & front, 2, 0)
    state[3:5] = np.where(look_depth[3:] > -0.035, (1 if front else 0) if covered else 2, 0)
    state[[5, 6, 11, 12]] = np.where(depth[[5, 6, 11, 12]] < -0.045, 1, 2)

    # To pixels: parallel projection from slightly above, y down, feet on the ground.
    tilt = np.radians(u(2, 12))
    view = height * turn.T @ np.array([[1.0, 0, 0], [0, -np.cos(tilt), np.sin(tilt)]]).T
    parts.sort(key=lambda row: row[0])
    centres, radii = np.array([p[4] for p in parts]) @ view, height * np.array([p[5] for p in parts])
    floor = (centres[..., 1] + radii).max() + pose["lift"] * height
    polygons = [
        (p[1], p[2], rim if p[3] else None, body, light if p[3] else None)
        for p, rim, body, light in zip(parts, *_outlines(centres - (0, floor), radii))
    ]
    return _Figure(polygons, (0.0, 0.0, 0.17 * height), joints @ view - (0, floor), state)


def _obstacle(rng: np.random.Generator, height: float) -> _Figure:
    """A post, a crate or a bush with its foot at (0, 0); height is that of a person standing next to it."""
    kind, u, discs = rng.integers(3), rng.uniform, []
    colour = _colour(rng, (0.3, 0.7), (0.25, 0.75))
    if kind == 0:
        w, h = u(0.015, 0.035), u(1.0, 1.6)
        discs = [([(-w, -0.01), (w, -0.01), (-w, -h), (w, -h)], 0.01)]
    elif kind == 1:
        w, h = u(0.12, 0.26), u(0.2, 0.45)
        discs = [([(-w, -0.01), (w, -0.01), (-w, -h), (w, -h)], 0.012), ([(-w, -h), (w, -h)], 0.022)]
    else:
        colour = (int(u(30, 90)), int(u(95, 150)), int(u(30, 80)))
        w, h = u(0.14, 0.28), u(0.15, 0.35)
        discs = [([(u(-w, w), -u(0.05, h))] * 4, u(0.07, 0.12)) for _ in range(9)]
    centres = height * np.array([p + p[-1:] * (4 - len(p)) for p, _ in discs])
    radii = height * np.array([[r] * 4 for _, r in discs])
    shapes = zip(*_outlines(centres, radii))
    polygons = [(OBJECT, _shade(colour, u(0.85, 1.15)), *s[:2], s[2] if kind == 2 else None) for s in shapes]
    return _Figure(polygons, (0.0, 0.0, 0.2 * height))


def _background(rng: np.random.Generator, size: tuple[int, int], horizon: float) -> Image.Image:
    """A quiet random backdrop, RGB of size (height, width); horizon is the row where the ground begins."""
    h, w = size
    u, kind, k = rng.uniform, rng.integers(4), 8

    def pale() -> np.ndarray:
        return np.array(_colour(rng, (0.05, 0.35), (0.45, 0.9)), float)

    far, near = pale(), pale()
    rows = np.arange(h // k + 1)[:, None, None] * k
    t = np.clip(rows / max(horizon, 1), 0, 1)
    wall, floor = far + (t - 0.5) * u(-50, 50), near + (rows - h) / h * u(-60, 60)
    if kind in (1, 2):  # outside: sky, then grass or pavement
        wall = np.array((110, 160, 220)) * u(0.8, 1.1) + t * (60, 45, 15)
        floor = (np.array((96, 140, 70)) if kind == 1 else np.array((140, 138, 136))) * u(0.7, 1.15) + (rows - h) / 8
    coarse = wall if kind == 3 else np.where(rows < horizon, wall, floor)
    coarse = coarse + rng.normal(0, u(1, 7), (h // k + 1, w // k + 1, 1))
    soft = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
    if kind == 3:  # shapes drawn small and blurred by enlarging
        draw = ImageDraw.Draw(soft)
        for _ in range(rng.integers(4, 12)):
            x, y, r, s = u(0, w / k), u(0, h / k), u(2, 9), u(2, 9)
            (draw.ellipse if u() < 0.5 else draw.rectangle)((x - r, y - s, x + r, y + s), tuple(map(int, pale())))
        return soft.filter(ImageFilter.BoxBlur(u(0.5, 1.5))).resize((w, h), Image.Resampling.BICUBIC)
    image = soft.resize((w, h), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    base = tuple(int(c) for c in np.clip(floor[-1, 0] * 0.92, 0, 255))
    if kind == 0:  # a room
        draw.rectangle((0, horizon - h * 0.015, w, horizon), _shade(tuple(far), 0.75))
        for x in np.arange(-w, 2 * w, w * u(0.12, 0.3)):
            draw.line((w / 2 + (x - w / 2) * 0.6, horizon, w / 2 + (x - w / 2) * 1.6, h), base)
        for _ in range(rng.integers(0, 4)):
            x, y, a, b = u(0, w), u(0, horizon * 0.6), u(0.08, 0.2) * w, u(0.1, 0.3) * h
            draw.rectangle((x, y, x + a, min(y + b, horizon - 6)), tuple(map(int, pale())), _shade(tuple(far), 0.55))
    elif kind == 1:  # hills and trees
        xs = np.linspace(0, w, 17)
        for level in (0.16, 0.07):
            ys = horizon - h * level * (1 + 0.6 * np.sin(xs / w * u(4, 12) + u(0, 6)))
            hill = _shade((90, 130, 100), u(0.7, 1.3))
            draw.polygon([(0, horizon), *zip(xs.tolist(), ys.tolist()), (w, horizon)], hill)
        for _ in range(rng.integers(0, 5)):
            x, s = u(0, w), u(0.06, 0.16) * h
            draw.rectangle((x - s * 0.1, horizon - s, x + s * 0.1, horizon + s * 0.2), (96, 70, 50))
            crown = (x - s * 0.6, horizon - 2.2 * s, x + s * 0.6, horizon - 0.6 * s)
            draw.ellipse(crown, _shade((60, 120, 60), u(0.7, 1.2)))
    else:  # a street
        x = -u(0, 40)
        while x < w:
            a, top, c = u(0.12, 0.3) * w, u(0, 0.6) * horizon, tuple(map(int, pale()))
            draw.rectangle((x, top, x + a, horizon), c)
            for wx in np.arange(x + 0.12 * a, x + 0.85 * a, 0.25 * a):
                for wy in np.arange(top + 8, horizon - 14, h * 0.085):
                    draw.rectangle((wx, wy, wx + 0.13 * a, wy + h * 0.04), _shade(c, 0.72))
            x += a
    return image


def _place(figure: _Figure, x: float, y: float) -> None:
    """Move a figure by (x, y) pixels."""
    move = np.array((x, y))
    figure.polygons = [(p, c, *(None if s is None else s + move for s in shapes)) for p, c, *shapes in figure.polygons]
    if figure.points is not None:
        figure.points = figure.points + move
    figure.ground = (figure.ground[0] + x, figure.ground[1] + y, figure.ground[2])


def _plan(rng: np.random.Generator, size: tuple[int, int], horizon: float) -> list[_Figure]:
    """People and obstacles on the ground, far ones first."""
    h, w = size
    others = rng.choice(4, p=(0.3, 0.33, 0.22, 0.15))
    scales = [rng.uniform(0.5, 0.95), *rng.uniform(0.35, 0.85, others)]
    figures: list[_Figure] = []
    taken: list[tuple[float, float]] = []
    for scale in sorted(scales):
        figure = _person(rng, scale * h)
        for _ in range(8):  # mostly beside one another, at times overlapping
            x = rng.uniform(0.1, 0.9) * w if rng.uniform() < 0.88 else rng.choice((0.0, 1.0)) * w
            if all(abs(x - other) > 0.2 * (scale + s) * h * rng.uniform(0.5, 1.1) for other, s in taken):
                break
        taken.append((x, scale))
        y = horizon + (0.98 * h - horizon) * min(scale / 0.9, 1.0)
        if scale > 0.6 and rng.uniform() < 0.15:
            y += rng.uniform(0.08, 0.4) * scale * h  # legs below the picture
        _place(figure, x, y)
        figures.append(figure)
        if rng.uniform() < 0.2:
            thing = _obstacle(rng, scale * h)
            _place(thing, x + rng.uniform(-0.3, 0.3) * scale * h, y + 0.03 * h)
            figures.append(thing)
    return figures


def _inside(figure: _Figure, size: tuple[int, int]) -> np.ndarray:
    """Which of the 17 key points are labelled and inside the picture, bool [17]."""
    assert figure.points is not None and figure.state is not None
    x, y = figure.points.T
    return (figure.state > 0) & (x >= 0) & (y >= 0) & (x <= size[1] - 1) & (y <= size[0] - 1)


def _paint(image: Image.Image, figures: list[_Figure]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Draw on an RGB image of twice the size; owner map uint8 [H, W], and of each figure the pixels it was given."""
    owner = Image.new("L", (image.width // 2, image.height // 2))
    draw, mark, drawn, person = ImageDraw.Draw(image), ImageDraw.Draw(owner), [], 0
    for figure in figures:
        x, y, r = figure.ground
        if 0 <= 2 * x < image.width and 0 <= 2 * y < image.height:
            spot: Any = image.getpixel((int(2 * x), int(2 * y)))
            draw.ellipse((2 * x - 2 * r, 2 * y - 0.5 * r, 2 * x + 2 * r, 2 * y + 0.3 * r), _shade(spot, 0.78))
        for part, colour, rim, body, light in figure.polygons:
            if rim is not None:
                draw.polygon((2 * rim + 0.5).ravel().tolist(), _shade(colour, 0.6))
            draw.polygon((2 * body + 0.5).ravel().tolist(), colour)
            if light is not None:
                draw.polygon((2 * light + 0.5).ravel().tolist(), _shade(colour, 1.07))
            number = OBJECT if part == OBJECT else 1 + PARTS * person + part
            mark.polygon((body if rim is None else rim).ravel().tolist(), number)
        if figure.points is not None:
            marks = np.asarray(owner)
            drawn.append((marks >= 1 + PARTS * person) & (marks <= PARTS * (person + 1)))
            person += 1
    return np.array(owner), drawn


def render_scene(seed: int, index: int, size: tuple[int, int] = (240, 320)) -> tuple[np.ndarray, list[dict]]:
    """One picture and its annotations, the same for the same arguments.

    Args:
        seed, index: every random draw comes from np.random.default_rng((seed, index)).
        size: (height, width) in pixels.

    Returns:
        uint8 [H, W, 3] RGB, and one COCO annotation per person, far ones first, without id and image_id: bbox
        [x, y, w, h] around the whole figure inside the picture (parts hidden by others included), area in visible
        pixels, and 17 key points (x, y, v) in pixels, with pixel centres at whole numbers.
    """
    rng = np.random.default_rng((seed, index))
    h, w = size
    people: list[_Figure] = []
    while not people:
        horizon = rng.uniform(0.3, 0.6) * h
        backdrop = _background(rng, size, horizon)
        figures = _plan(rng, size, horizon)
        while True:
            figures = [f for f in figures if f.points is None or _inside(f, size).sum() >= 5]
            people = [f for f in figures if f.points is not None]
            image = backdrop.resize((2 * w, 2 * h), Image.Resampling.NEAREST)
            owner, drawn = _paint(image, figures)
            counts = np.bincount(owner.ravel(), minlength=256)
            areas = [int(counts[1 + PARTS * i : 1 + PARTS * (i + 1)].sum()) for i in range(len(people))]
            lost = [i for i, a in enumerate(areas) if a < max(20, 0.3 * drawn[i].sum())]
            if not lost:
                break
            figures = [f for f in figures if not any(f is people[i] for i in lost)]  # too hidden: paint without them
    annotations = []
    for i, figure in enumerate(people):
        xs, ys = np.flatnonzero(drawn[i].any(0)), np.flatnonzero(drawn[i].any(1))
        keypoints: list[float] = []
        assert figure.points is not None and figure.state is not None
        for k, labelled in enumerate(_inside(figure, size)):
            x, y = (round(float(c), 2) for c in figure.points[k])
            seen = int(owner[round(y), round(x)]) - 1 - PARTS * i in SHOWS[k] if labelled else False
            keypoints += [x, y, 2 if seen and figure.state[k] == 2 else 1] if labelled else [0.0, 0.0, 0]
        box = [float(xs[0]), float(ys[0]), float(xs[-1] - xs[0] + 1), float(ys[-1] - ys[0] + 1)]
        annotations.append(
            {
                "bbox": box,
                "area": float(areas[i]),
                "iscrowd": 0,
                "category_id": 1,
                "num_keypoints": sum(v > 0 for v in keypoints[2::3]),
                "keypoints": keypoints,
            }
        )
    small = image.reduce(2)
    gain, gamma = rng.uniform(0.88, 1.02) * rng.uniform(0.96, 1.04, 3), rng.uniform(0.8, 1.1)
    ramp = 255 * gain[:, None] * (np.arange(256) / 255) ** gamma
    small = small.point(np.clip(ramp, 0, 255).astype(int).ravel().tolist())
    amplitude = int(rng.integers(2, 10))
    grain = rng.integers(128 - amplitude, 129 + amplitude, (h, w, 3), dtype=np.uint8)
    return np.array(ImageChops.add(small, Image.fromarray(grain), 1, -128)), annotations


def write_dataset(folder: str | os.PathLike, images: int, seed: int, size: tuple[int, int] = (240, 320)) -> Path:
    """Write folder/images/*.jpg and folder/annotations.json (COCO key points); returns the annotation file.

    The annotations come last and at once, so that a file that exists belongs to a complete set of pictures.
    """
    from vitpose_fast.keypoints import KEYPOINT_SETS

    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    pictures: list[dict] = []
    annotations: list[dict] = []
    for index in range(images):
        pixels, people = render_scene(seed, index, size)
        name = f"{index:06d}.jpg"
        Image.fromarray(pixels).save(folder / "images" / name, quality=92)
        pictures.append({"id": index + 1, "file_name": name, "height": size[0], "width": size[1]})
        annotations += [{"id": len(annotations) + k + 1, "image_id": index + 1, **p} for k, p in enumerate(people)]
    coco = KEYPOINT_SETS["coco"]
    category = {
        "id": 1,
        "name": "person",
        "supercategory": "person",
        "keypoints": list(coco.names),
        "skeleton": [[a + 1, b + 1] for a, b in coco.skeleton],
    }  # COCO counts from one
    info = {"description": f"synthetic people, seed {seed}", "version": "1"}
    content = {"info": info, "licenses": [], "images": pictures, "annotations": annotations, "categories": [category]}
    target = folder / "annotations.json"
    temporary = folder / f".annotations-{os.getpid()}.tmp"
    try:
        temporary.write_text(json.dumps(content), encoding="utf-8")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target
