"""Draw skeletons on images, contact sheets and training curves."""

from __future__ import annotations

import colorsys
import json
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw
from torch import Tensor

from vitpose_fast.files import write_atomic
from vitpose_fast.keypoints import KeypointSet
from vitpose_fast.poses import Poses

Color = tuple[int, int, int]
_LEFT, _RIGHT, _MIDDLE = (255, 128, 32), (64, 160, 255), (96, 224, 96)  # orange, blue, green


def keypoint_colours(keypoint_set: KeypointSet) -> list[Color]:
    """Return one RGB color per keypoint: orange for the person's left, blue for the right, green for the middle.

    The side is read from the start of the name ("left", "L_", "right", "R_"). If no name has a side, the colors run
    through the color wheel.
    """
    names = [n.lower() for n in keypoint_set.names]
    sides = [
        _LEFT if n.startswith(("left", "l_")) else _RIGHT if n.startswith(("right", "r_")) else None for n in names
    ]
    if any(sides):
        return [side or _MIDDLE for side in sides]
    wheel = [colorsys.hsv_to_rgb(i / max(len(names), 1), 0.75, 1.0) for i in range(len(names))]
    return [(int(255 * r), int(255 * g), int(255 * b)) for r, g, b in wheel]


def draw_poses(image: Tensor, poses: Poses, min_score: float = 0.2, boxes: bool = False) -> Image.Image:
    """Return a picture of an image uint8 [h, w, 3] RGB with the skeletons of `poses` drawn on it.

    A keypoint is drawn if its score is at least `min_score` (NaN is not), and a limb if both its keypoints are drawn.
    If `boxes` is True, the boxes are drawn too.
    """
    picture = Image.fromarray(image.cpu().numpy())
    canvas = ImageDraw.Draw(picture)
    colors = keypoint_colours(poses.keypoint_set)
    for points, scores, box in zip(poses.keypoints.tolist(), poses.scores.tolist(), poses.boxes.tolist()):
        x, y, w, h = box
        size = max(1.0, min(w, h) / 60)
        shown = [score >= min_score for score in scores]  # False for NaN
        if boxes:
            canvas.rectangle((x, y, x + w, y + h), outline=(255, 255, 255))
        for a, b in poses.keypoint_set.skeleton:
            if shown[a] and shown[b]:
                mixed = tuple((p + q) // 2 for p, q in zip(colors[a], colors[b]))
                canvas.line((*points[a], *points[b]), fill=mixed, width=round(1.4 * size) + 1)
        for (px, py), color, show in zip(points, colors, shown):
            if show:
                r = size + 1
                canvas.ellipse((px - r, py - r, px + r, py + r), fill=color, outline=(0, 0, 0))
    return picture


def sheet(pictures: Sequence[Image.Image], columns: int = 4, gap: int = 6) -> Image.Image:
    """Arrange one or more pictures row by row on a white background, all resized to the size of the first.

    Each row has `columns` pictures, `gap` pixels apart.
    """
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    out = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), (255, 255, 255))
    for i, picture in enumerate(pictures):
        out.paste(picture.resize((width, height)), ((i % columns) * (width + gap), (i // columns) * (height + gap)))
    return out


def save_picture(picture: Image.Image, path: str | os.PathLike) -> None:
    """Write a picture atomically, in the format that the suffix names, such as .png or .jpg."""
    write_atomic(path, lambda p: picture.save(p, quality=92))


def plot_training(metrics: str | os.PathLike, path: str | os.PathLike) -> None:
    """Plot the training loss and the validation AP against the optimizer step, and save the figure atomically.

    Args:
        metrics: path of the `metrics.jsonl` of a training run.
        path: the picture to write; its suffix names the format. Needs matplotlib.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in Path(metrics).read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(7, 4), layout="tight")
    FigureCanvasAgg(figure)
    left = figure.add_subplot()
    losses = [(r["step"], r["loss"]) for r in rows if "loss" in r]
    left.plot([s for s, _ in losses], [v for _, v in losses], color="tab:blue", linewidth=1)
    left.set(xlabel="step", ylabel="heatmap loss", yscale="log")
    left.yaxis.label.set_color("tab:blue")
    scores = [(r["step"], r["AP"]) for r in rows if "AP" in r]
    right = left.twinx()
    right.plot([s for s, _ in scores], [v for _, v in scores], color="tab:orange", marker="o")
    right.set(ylabel="validation AP", ylim=(0, 1))
    right.yaxis.label.set_color("tab:orange")
    write_atomic(path, lambda p: figure.savefig(p, dpi=120))
