"""Random stances of synthetic people, as angles of trunk, arms and legs in degrees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Stance:
    """The stance of a person, with angles in degrees.

    A limb has four angles: forward and outward of its upper half, then forward and outward of its lower half. All are 0
    if it hangs straight down. Angles of arms are relative to the trunk, angles of legs to the vertical.
    """

    arms: list  # [left, right], four angles each
    legs: list  # [left, right], four angles each
    pitch: float  # of the trunk, forward
    roll: float  # of the trunk, toward the person's own left
    lift: float = 0.0  # height above the ground, in units of the standing height
    seat: bool = False  # whether to draw something to sit on


def _arm(rng: np.random.Generator, kind: str) -> tuple[float, float, float, float]:
    """Return random angles of an arm: forward and outward of the upper arm, then of the forearm, in degrees.

    `kind` is "up", "wave", "wide", "ahead", "head" (hand at the head), "hip" (hand at the hip) or "bent"; any other
    value gives a hanging arm.
    """
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


def random_stance(rng: np.random.Generator) -> Stance:
    """Return a random stance.

    The person stands, walks, runs, raises the arms, waves, squats, sits, leans or jumps.
    """
    n, u = rng.normal, rng.uniform
    calm = ("hang", "hang", "hang", "hip", "bent", "wide", "head", "ahead")
    kinds = [str(rng.choice(calm)), str(rng.choice(calm))]  # of the left and right arm; some stances change them
    legs = [[n(0, 5), n(5, 3), n(-5, 4), n(4, 3)] for _ in range(2)]
    stance = Stance(arms=[], legs=legs, pitch=n(3, 4), roll=n(0, 4))
    names = ("stand", "walk", "run", "raise", "wave", "squat", "sit", "lean", "jump")
    name = rng.choice(names, p=(0.2, 0.14, 0.12, 0.12, 0.12, 0.08, 0.08, 0.08, 0.06))
    first = int(rng.integers(2))  # the leading side: 0 left, 1 right
    if name in ("walk", "run"):
        swing = u(15, 30) if name == "walk" else u(28, 50)
        bend = u(5, 25) if name == "walk" else u(30, 85)
        for side, sign in ((first, 1), (1 - first, -1)):
            legs[side] = [sign * swing, n(3, 2), sign * swing - (0.4 * bend if sign > 0 else bend), n(2, 2)]
        elbow = u(10, 40) if name == "walk" else u(60, 100)
        stance.arms = [[], []]
        for side, sign in ((first, -1), (1 - first, 1)):
            stance.arms[side] = [sign * swing * 1.1, n(10, 5), sign * swing * 1.1 + elbow, n(0, 8)]
        stance.pitch = u(2, 8) if name == "walk" else u(6, 18)
    elif name in ("squat", "sit"):
        fold, drop = (u(75, 105), u(-35, -15)) if name == "squat" else (u(78, 95), u(-12, 20))
        stance.legs = [[n(fold, 4), u(6, 32), n(drop, 4), n(4, 5)] for _ in range(2)]
        stance.pitch = u(10, 30) if name == "squat" else n(2, 6)
        stance.seat = name == "sit"
    elif name == "lean":
        stance.roll = u(14, 28) * (1 - 2 * first)
        kinds[first] = str(rng.choice(["up", "wide", "hip"]))
    else:
        if name == "wave":
            kinds[first] = "wave"
        elif name in ("raise", "jump"):
            kinds = ["up", "up"] if u() < 0.7 else ["wide", "up"][:: 1 - 2 * first]
        if name == "jump":
            stance.lift = u(0.04, 0.14)
            stance.legs = [[u(0, 35), u(5, 32), u(-70, -5), n(8, 8)] for _ in range(2)]
        elif u() < 0.4:  # legs apart
            stance.legs = [[n(0, 4), u(9, 24), n(-4, 3), u(5, 18)] for _ in range(2)]
    stance.arms = stance.arms or [_arm(rng, kind) for kind in kinds]
    return stance
