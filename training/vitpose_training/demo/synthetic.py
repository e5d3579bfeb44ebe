"""Synthetic pictures of people with COCO keypoints, for demonstrations and tests.

A scene is a backdrop with figures (people and obstacles) on the ground. Each part of a figure is painted twice: in
color at twice the resolution, and as a number in an owner map (see `shapes`), which gives the visibility of keypoints,
the boxes and the areas. Changing the order of the random draws changes every picture.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from vitpose_fast.files import write_atomic
from vitpose_fast.keypoints import KEYPOINT_SETS
from vitpose_training.demo.figures import random_person
from vitpose_training.demo.shapes import OBJECT, PARTS, SHOWS, Color, Figure, Polygon, outlines, random_color, shade


def _obstacle(rng: np.random.Generator, height: float) -> Figure:
    """Build a random post, crate or bush, with the middle of its foot at pixel (0, 0).

    `height` is the standing height in pixels that a person at this place would have.
    """
    u, kind = rng.uniform, ("post", "crate", "bush")[rng.integers(3)]
    color = random_color(rng, (0.3, 0.7), (0.25, 0.75))
    if kind == "post":
        w, h = u(0.015, 0.035), u(1.0, 1.6)
        discs = [([(-w, -0.01), (w, -0.01), (-w, -h), (w, -h)], 0.01)]  # (centers, radius) of each hull
    elif kind == "crate":
        w, h = u(0.12, 0.26), u(0.2, 0.45)
        discs = [([(-w, -0.01), (w, -0.01), (-w, -h), (w, -h)], 0.012), ([(-w, -h), (w, -h)] * 2, 0.022)]
    else:
        color = (int(u(30, 90)), int(u(95, 150)), int(u(30, 80)))
        w, h = u(0.14, 0.28), u(0.15, 0.35)
        discs = [([(u(-w, w), -u(0.05, h))] * 4, u(0.07, 0.12)) for _ in range(9)]
    centers, radii = height * np.array([c for c, _ in discs]), height * np.array([[r] * 4 for _, r in discs])
    polygons = [
        Polygon(OBJECT, shade(color, u(0.85, 1.15)), rim, body, light if kind == "bush" else None)
        for rim, body, light in zip(*outlines(centers, radii))
    ]
    return Figure(polygons, (0.0, 0.0, 0.2 * height))


def _backdrop(rng: np.random.Generator, size: tuple[int, int], horizon: float) -> Image.Image:
    """Draw a random backdrop: a room, hills, a street or blurred shapes.

    Args:
        size: (height, width) in pixels.
        horizon: row where the ground begins, in pixels from the top.

    Returns:
        An RGB image.
    """
    h, w = size
    u, kind = rng.uniform, ("room", "hills", "street", "blur")[rng.integers(4)]

    def pale() -> Color:
        """Return a random pale color."""
        return random_color(rng, (0.05, 0.35), (0.45, 0.9))

    # Wall and floor are noisy vertical gradients, computed at an eighth of the size.
    k = 8
    far, near = pale(), pale()
    rows = np.arange(h // k + 1)[:, None, None] * k
    t = np.clip(rows / max(horizon, 1), 0, 1)
    wall, floor = np.array(far) + (t - 0.5) * u(-50, 50), np.array(near) + (rows - h) / h * u(-60, 60)
    if kind in ("hills", "street"):  # the sky, above grass or pavement
        wall = np.array((110, 160, 220)) * u(0.8, 1.1) + t * (60, 45, 15)
        ground = np.array((96, 140, 70) if kind == "hills" else (140, 138, 136))
        floor = ground * u(0.7, 1.15) + (rows - h) / 8
    coarse = wall if kind == "blur" else np.where(rows < horizon, wall, floor)
    coarse = coarse + rng.normal(0, u(1, 7), (h // k + 1, w // k + 1, 1))
    small = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
    if kind == "blur":  # shapes drawn small and blurred by enlarging
        draw = ImageDraw.Draw(small)
        for _ in range(rng.integers(4, 12)):
            x, y, r, s = u(0, w / k), u(0, h / k), u(2, 9), u(2, 9)
            (draw.ellipse if u() < 0.5 else draw.rectangle)((x - r, y - s, x + r, y + s), pale())
        return small.filter(ImageFilter.BoxBlur(u(0.5, 1.5))).resize((w, h), Image.Resampling.BICUBIC)
    image = small.resize((w, h), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    if kind == "room":
        draw.rectangle((0, horizon - h * 0.015, w, horizon), shade(far, 0.75))  # skirting board
        board = tuple(int(c) for c in np.clip(floor[-1, 0] * 0.92, 0, 255))
        for x in np.arange(-w, 2 * w, w * u(0.12, 0.3)):
            draw.line((w / 2 + (x - w / 2) * 0.6, horizon, w / 2 + (x - w / 2) * 1.6, h), board)
        for _ in range(rng.integers(0, 4)):  # pictures
            x, y, a, b = u(0, w), u(0, horizon * 0.6), u(0.08, 0.2) * w, u(0.1, 0.3) * h
            draw.rectangle((x, y, x + a, min(y + b, horizon - 6)), pale(), shade(far, 0.55))
    elif kind == "hills":
        xs = np.linspace(0, w, 17)
        for level in (0.16, 0.07):
            ys = horizon - h * level * (1 + 0.6 * np.sin(xs / w * u(4, 12) + u(0, 6)))
            hill = shade((90, 130, 100), u(0.7, 1.3))
            draw.polygon([(0, horizon), *zip(xs.tolist(), ys.tolist()), (w, horizon)], hill)
        for _ in range(rng.integers(0, 5)):  # trees
            x, s = u(0, w), u(0.06, 0.16) * h
            draw.rectangle((x - s * 0.1, horizon - s, x + s * 0.1, horizon + s * 0.2), (96, 70, 50))
            crown = (x - s * 0.6, horizon - 2.2 * s, x + s * 0.6, horizon - 0.6 * s)
            draw.ellipse(crown, shade((60, 120, 60), u(0.7, 1.2)))
    else:
        x = -u(0, 40)
        while x < w:  # houses with windows
            a, top, front = u(0.12, 0.3) * w, u(0, 0.6) * horizon, pale()
            draw.rectangle((x, top, x + a, horizon), front)
            for wx in np.arange(x + 0.12 * a, x + 0.85 * a, 0.25 * a):
                for wy in np.arange(top + 8, horizon - 14, h * 0.085):
                    draw.rectangle((wx, wy, wx + 0.13 * a, wy + h * 0.04), shade(front, 0.72))
            x += a
    return image


def _cast(rng: np.random.Generator, size: tuple[int, int], horizon: float) -> list[Figure]:
    """Place one to four random people, and obstacles beside some of them, on the ground; return them from far to near.

    `size` is (height, width) of the picture and `horizon` the row where the ground begins, in pixels.
    """
    h, w = size
    others = rng.choice(4, p=(0.3, 0.33, 0.22, 0.15))
    scales = [rng.uniform(0.5, 0.95), *rng.uniform(0.35, 0.85, others)]
    figures: list[Figure] = []
    taken: list[tuple[float, float]] = []
    for scale in sorted(scales):
        figure = random_person(rng, scale * h)
        for _ in range(8):  # people mostly stand side by side, but may overlap
            x = rng.uniform(0.1, 0.9) * w if rng.uniform() < 0.88 else rng.choice((0.0, 1.0)) * w
            if all(abs(x - other) > 0.2 * (scale + s) * h * rng.uniform(0.5, 1.1) for other, s in taken):
                break
        taken.append((x, scale))
        y = horizon + (0.98 * h - horizon) * min(scale / 0.9, 1.0)
        if scale > 0.6 and rng.uniform() < 0.15:
            y += rng.uniform(0.08, 0.4) * scale * h  # the legs are cut off by the lower edge of the picture
        figure.move(x, y)
        figures.append(figure)
        if rng.uniform() < 0.2:
            thing = _obstacle(rng, scale * h)
            thing.move(x + rng.uniform(-0.3, 0.3) * scale * h, y + 0.03 * h)
            figures.append(thing)
    return figures


def _labeled(figure: Figure, size: tuple[int, int]) -> np.ndarray:
    """Return which keypoints of a person are labeled (state 1 or 2) and inside the picture, as bool [17].

    `size` is (height, width) of the picture in pixels.
    """
    assert figure.points is not None and figure.state is not None
    x, y = figure.points.T
    return (figure.state > 0) & (x >= 0) & (y >= 0) & (x <= size[1] - 1) & (y <= size[0] - 1)


def _paint(image: Image.Image, figures: list[Figure]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Paint figures, given in the pixels of an H x W picture, on an RGB image of 2H x 2W pixels, in place and in order.

    Returns:
        The owner map uint8 [H, W] (see `shapes`), and for each person (objects have none) bool [H, W]: the pixels
        painted for it, including those that figures painted later cover.
    """
    owner = Image.new("L", (image.width // 2, image.height // 2))
    draw, mark = ImageDraw.Draw(image), ImageDraw.Draw(owner)
    drawn: list[np.ndarray] = []
    for figure in figures:
        first = 1 + PARTS * len(drawn)  # number of this person's first part in the owner map
        x, y, r = figure.ground
        if 0 <= 2 * x < image.width and 0 <= 2 * y < image.height:
            spot: Any = image.getpixel((int(2 * x), int(2 * y)))
            draw.ellipse((2 * x - 2 * r, 2 * y - 0.5 * r, 2 * x + 2 * r, 2 * y + 0.3 * r), shade(spot, 0.78))
        for part, color, rim, body, light in figure.polygons:
            if rim is not None:
                draw.polygon((2 * rim + 0.5).ravel().tolist(), shade(color, 0.6))
            draw.polygon((2 * body + 0.5).ravel().tolist(), color)
            if light is not None:
                draw.polygon((2 * light + 0.5).ravel().tolist(), shade(color, 1.07))
            whole = body if rim is None else rim
            mark.polygon(whole.ravel().tolist(), OBJECT if part == OBJECT else first + part)
        if figure.points is not None:
            marks = np.asarray(owner)
            drawn.append((marks >= first) & (marks < first + PARTS))
    return np.array(owner), drawn


def _annotation(figure: Figure, number: int, owner: np.ndarray, drawn: np.ndarray, area: int) -> dict:
    """Return the COCO annotation of a person in a painted scene, without id and image_id.

    Args:
        number: index of the person among the people of the scene, from 0, in the order of painting.
        owner, drawn: owner map of the scene, and painted pixels of the person, as from `_paint`.
        area: number of pixels of the person that can be seen.
    """
    assert figure.points is not None and figure.state is not None
    keypoints: list[float] = []
    for k, labeled in enumerate(_labeled(figure, owner.shape)):
        if not labeled:
            keypoints += [0.0, 0.0, 0]
            continue
        x, y = (round(float(c), 2) for c in figure.points[k])
        seen = int(owner[round(y), round(x)]) - 1 - PARTS * number in SHOWS[k]
        keypoints += [x, y, 2 if seen and figure.state[k] == 2 else 1]
    xs, ys = np.flatnonzero(drawn.any(0)), np.flatnonzero(drawn.any(1))
    return {
        "bbox": [float(xs[0]), float(ys[0]), float(xs[-1] - xs[0] + 1), float(ys[-1] - ys[0] + 1)],
        "area": float(area),
        "iscrowd": 0,
        "category_id": 1,
        "num_keypoints": sum(v > 0 for v in keypoints[2::3]),
        "keypoints": keypoints,
    }


def _photograph(rng: np.random.Generator, image: Image.Image) -> np.ndarray:
    """Return a painted image of 2H x 2W pixels as a photo of half the size, uint8 [H, W, 3] RGB.

    Exposure, white balance, gamma and grain are random.
    """
    small = image.reduce(2)
    gain, gamma = rng.uniform(0.88, 1.02) * rng.uniform(0.96, 1.04, 3), rng.uniform(0.8, 1.1)
    ramp = 255 * gain[:, None] * (np.arange(256) / 255) ** gamma
    small = small.point(np.clip(ramp, 0, 255).astype(int).ravel().tolist())
    amplitude = int(rng.integers(2, 10))
    grain = rng.integers(128 - amplitude, 129 + amplitude, (small.height, small.width, 3), dtype=np.uint8)
    return np.array(ImageChops.add(small, Image.fromarray(grain), 1, -128))


def render_scene(seed: int, index: int, size: tuple[int, int] = (240, 320)) -> tuple[np.ndarray, list[dict]]:
    """Render one picture of at least one person, and its annotations. The result depends only on the arguments.

    People with fewer than 5 labeled keypoints inside the picture are left out. So are people of whom less than 20
    pixels, or less than 30 % of the part inside the picture, can be seen.

    Args:
        seed: seed of the data set. Random numbers come from np.random.default_rng((seed, index)).
        index: index of the picture.
        size: (height, width) in pixels.

    Returns:
        The picture, uint8 [H, W, 3] RGB, and one COCO annotation per person, from far to near, without id and image_id.
        In pixels, with pixel centers at whole numbers, an annotation has 17 keypoints (x, y, v), the bbox [x, y, w, h]
        of the part of the figure inside the picture (parts hidden by others included), and the area that is visible.
        v is 2 (visible), 1 (hidden) or 0 (not labeled or outside the picture; x and y are then 0).
    """
    rng = np.random.default_rng((seed, index))
    h, w = size
    people: list[Figure] = []
    while not people:
        horizon = rng.uniform(0.3, 0.6) * h
        backdrop = _backdrop(rng, size, horizon)
        figures = _cast(rng, size, horizon)
        figures = [f for f in figures if f.points is None or _labeled(f, size).sum() >= 5]
        while True:
            people = [f for f in figures if f.points is not None]
            image = backdrop.resize((2 * w, 2 * h), Image.Resampling.NEAREST)
            owner, drawn = _paint(image, figures)
            counts = np.bincount(owner.ravel(), minlength=256)
            areas = [int(counts[1 + PARTS * i : 1 + PARTS * (i + 1)].sum()) for i in range(len(people))]
            lost = [i for i, area in enumerate(areas) if area < max(20, 0.3 * drawn[i].sum())]
            if not lost:
                break
            # People who are mostly hidden are left out, and the scene is painted again.
            figures = [f for f in figures if not any(f is people[i] for i in lost)]
    annotations = [_annotation(f, i, owner, drawn[i], areas[i]) for i, f in enumerate(people)]
    return _photograph(rng, image), annotations


def write_dataset(folder: str | os.PathLike, images: int, seed: int, size: tuple[int, int] = (240, 320)) -> Path:
    """Render a data set into folder/images/*.jpg and folder/annotations.json (COCO keypoints).

    `images` is the number of pictures; for `seed` and `size` see `render_scene`. The annotation file is written last
    and atomically: if it exists, all pictures exist.

    Returns:
        The path of the annotation file.
    """
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
        "skeleton": [[a + 1, b + 1] for a, b in coco.skeleton],  # COCO counts keypoints from 1
    }
    info = {"description": f"synthetic people, seed {seed}", "version": "1"}
    content = {"info": info, "licenses": [], "images": pictures, "annotations": annotations, "categories": [category]}
    target = folder / "annotations.json"
    write_atomic(target, lambda p: p.write_text(json.dumps(content), encoding="utf-8"))
    return target
