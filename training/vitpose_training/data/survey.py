"""Check a data set before training on it: `vitpose-fast info DATASET`."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor

from vitpose_fast.commands import info as checkpoint_info
from vitpose_fast.draw import draw_poses, save_picture, sheet
from vitpose_fast.images import open_images
from vitpose_fast.keypoints import KeypointSet
from vitpose_fast.poses import Poses
from vitpose_fast.problems import print_problems
from vitpose_training.data.catalog import DATA_SETS, DataSet, data_set
from vitpose_training.data.people import Labels, Person
from vitpose_training.data.read import read_labels

TILE = (192, 256)  # (width, height) in pixels of the crop of one person in the picture
_DIGITS = "0123456789"
_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class SurveyConfig:
    """Check the annotations, images and keypoints of a data set, and draw some of its people."""

    source: tyro.conf.Positional[str]
    """Name of a data set, or path of your own keypoint set (.json)."""
    data: Path = Path("data")
    """Root folder of all data sets. Each has its own folder below it."""
    split: str | None = None
    """Split to check: train, val, ... None means the first split of the data set. Not used with --annotations."""
    annotations: Path | None = None
    """Annotation file to check instead of a split. Needs --images."""
    images: Path | None = None
    """Folder of the images of --annotations."""
    out: Path = Path("data-set.png")
    """File to save the picture to, ending in .png, .jpg or .jpeg."""
    count: int = 12
    """Largest number of people in the picture. 0 means no picture."""
    seed: int = 0
    """Seed of the random choice of people."""


def info(args: list[str] | None = None) -> int:
    """Run `vitpose-fast info [DATASET | CHECKPOINT]`: check a data set, or describe a checkpoint or the installation.

    The argument is a data set if it is a name in `DATA_SETS` or ends in .json.

    Args:
        args: The arguments after `info`. None means `sys.argv[1:]`.

    Returns:
        The exit code. For a data set it is 1 if an annotation is damaged, an image is missing, or an image to draw is
        damaged or has another size than annotated; each problem is printed to stderr. Otherwise it is 0.

    Raises:
        FileNotFoundError: If the .json file of a keypoint set does not exist.
        ValueError: If an option is invalid or the annotation file is unusable (see `read_labels`).
    """
    args = sys.argv[1:] if args is None else args
    source = _source(args)
    if source is None or not (source in DATA_SETS or source.lower().endswith(".json")):
        if source is None and {"-h", "--help"} & set(args):
            print(f"For a data set: vitpose-fast info DATASET --help, where DATASET is one of {', '.join(DATA_SETS)},")
            print("or the path of your own keypoint set (.json). For a checkpoint, or for versions and devices:")
        return checkpoint_info(args)
    config = tyro.cli(SurveyConfig, prog="vitpose-fast info", args=args)
    if config.count < 0 or config.out.suffix.lower() not in _SUFFIXES:
        given = f"--count {config.count} --out {config.out}"
        raise ValueError(f"got {given}, expected a count of at least 0 and a file ending in {', '.join(_SUFFIXES)}")
    chosen = data_set(config.source)
    labels = read_labels(chosen, *_files(config, chosen))
    print(labels.summary())
    code = print_problems(labels.problems)
    problems: list[str] = []
    existing = _report_images(labels, problems)
    print(_keypoint_table(labels))
    sizes = np.array([person.box[2:] for person in labels.people])
    print("mean box size: {:.0f} x {:.0f} pixels".format(*sizes.mean(0)))
    if config.count:
        _draw(labels, existing, config, problems)
    return print_problems(problems) or code


def _source(args: Sequence[str]) -> str | None:
    """Return the first positional argument, or None.

    Every option takes one value, as "--option VALUE" or "--option=VALUE", except -h and --help, which take none.
    """
    previous = ""
    for arg in args:
        if not arg.startswith("-") and (not previous.startswith("--") or "=" in previous or previous == "--help"):
            return arg
        previous = arg
    return None


def _files(config: SurveyConfig, chosen: DataSet) -> tuple[Path, Path]:
    """Return the annotation file and the image folder to check: those of the options, else those of the split.

    Raise ValueError if only one of --annotations and --images is given, or if the data set has no such split.
    """
    if config.annotations is not None and config.images is not None:
        return config.annotations, config.images
    if config.annotations is not None or config.images is not None:
        raise ValueError("got one of --annotations and --images, expected both: a file and the folder of its images")
    if not chosen.splits:
        raise ValueError(f"{config.source} has no default files, pass them with --annotations and --images")
    return chosen.split(config.data, config.split or next(iter(chosen.splits)))


def _report_images(labels: Labels, problems: list[str]) -> set[Path]:
    """Print how many image files exist, append one line per missing file to `problems`, and return the existing paths.

    The images are all images of the annotation file, or for MPII and InterHand the images of the people that are used.
    """
    listed = [image["path"] for image in labels.truth["images"]] if labels.truth else [p.image for p in labels.people]
    paths = list(dict.fromkeys(listed))
    existing = {path for path in paths if os.path.isfile(path)}
    problems += [f"{path}: no such image file" for path in paths if path not in existing]
    print(f"images: {len(existing)} of {len(paths)} exist")
    return existing


def _keypoint_table(labels: Labels, width: int = 100) -> str:
    """Return a table with the number of people for whom each keypoint is labeled.

    It has as many columns as fit into `width` characters. Consecutive keypoints with equal counts whose names differ
    only in the number at the end share a cell ("face_0 .. 67").
    """
    counts = np.stack([person.visible > 0 for person in labels.people]).sum(0).tolist()
    entries = []
    groups = groupby(
        zip(labels.data_set.keypoint_set.names, counts, strict=True), lambda e: (e[0].rstrip(_DIGITS), e[1])
    )
    for (stem, count), group in groups:
        first, *more = [name for name, _ in group]
        entries.append((f"{first} .. {more[-1][len(stem) :]}" if more else first, count))
    digits, letters = len(str(max(counts))), max(len(name) for name, _ in entries)
    cells = [f"{name:{letters}} {count:>{digits}}" for name, count in entries]
    columns = max(1, (width - 2) // (len(cells[0]) + 3))
    rows = math.ceil(len(cells) / columns)  # the cells fill one column after the other
    lines = ["  " + "   ".join(cells[row::rows]) for row in range(rows)]
    return "\n".join([f"labeled keypoints of {len(labels.people)} people:", *lines])


def _draw(labels: Labels, existing: set[Path], config: SurveyConfig, problems: list[str]) -> None:
    """Draw up to `config.count` random people whose image exists, and save the picture to `config.out`.

    An image that is damaged or has another size than annotated is reported in `problems`. People in damaged images are
    not drawn; if no person remains, no file is written.
    """
    available = [person for person in labels.people if person.image in existing]
    if not available:
        print("no picture: no person has an image that exists")
        return
    chosen = np.random.default_rng(config.seed).choice(len(available), min(config.count, len(available)), replace=False)
    people = [available[i] for i in sorted(chosen.tolist())]
    tiles = []
    wrong: list[str] = []
    for index, pixels, _ in open_images(((person.image, None) for person in people), wrong):
        height, width = pixels.shape[:2]
        stated = people[index].image_size
        if stated not in (None, (height, width)):
            wrong.append(f"{people[index].image}: is {width}x{height}, expected {stated[1]}x{stated[0]} as annotated")
        tiles.append(draw_person(people[index], pixels, labels.data_set.keypoint_set))
    problems += dict.fromkeys(wrong)
    print(f"sample: the images of {len(tiles)} of {len(people)} people can be decoded")
    if tiles:
        save_picture(sheet(tiles, columns=min(6, len(tiles))), config.out)
        print(f"picture: {config.out}")


def draw_person(person: Person, image: Tensor, keypoint_set: KeypointSet, size: tuple[int, int] = TILE) -> Image.Image:
    """Crop a person out of an image and draw the labeled keypoints and limbs.

    The crop shows what a network sees, except that it is never stretched: the box is enlarged by `Person.padding` and
    to the aspect ratio of `size`. Pixels outside the image are black.

    Args:
        person: The person: box, keypoints and visibilities. Keypoints with visibility 0 are not drawn.
        image: The pixels of the person's image, uint8 [h, w, 3] on the CPU.
        keypoint_set: The keypoint set of the person, for its limbs and colors.
        size: (width, height) of the result in pixels.
    """
    width, height = size
    x, y, w, h = person.box
    scale = min(width / w, height / h) / person.padding  # tile pixels per image pixel
    left, top = x + w / 2 - width / scale / 2, y + h / 2 - height / scale / 2
    inside = (
        max(0.0, left),
        max(0.0, top),
        min(float(image.shape[1]), left + width / scale),
        min(float(image.shape[0]), top + height / scale),
    )
    tile = Image.new("RGB", size)
    shown = (max(1, round((inside[2] - inside[0]) * scale)), max(1, round((inside[3] - inside[1]) * scale)))
    if inside[2] > inside[0] and inside[3] > inside[1]:
        part = Image.fromarray(image.numpy()).resize(shown, Image.Resampling.BILINEAR, box=inside)
        tile.paste(part, (round((inside[0] - left) * scale), round((inside[1] - top) * scale)))
    points = (torch.from_numpy(person.keypoints) - torch.tensor([left, top])) * scale
    whole, sure = torch.tensor([[0.0, 0.0, width, height]]), torch.ones(1)
    poses = Poses(points[None].float(), torch.from_numpy(person.visible)[None], whole, sure, sure, keypoint_set)
    return draw_poses(torch.from_numpy(np.array(tile)), poses, min_score=1e-6)
