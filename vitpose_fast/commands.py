"""Commands that need no data set: `predict`, `convert` and `info`."""

from __future__ import annotations

import json
import platform
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from vitpose_fast.coco import read_detections
from vitpose_fast.device import pick_device
from vitpose_fast.draw import draw_poses, save_picture
from vitpose_fast.files import make_folder, write_atomic
from vitpose_fast.images import SUFFIXES, open_images
from vitpose_fast.models.config import PRESETS
from vitpose_fast.models.vitpose import PoseModel
from vitpose_fast.predictor import PosePredictor
from vitpose_fast.problems import print_problems
from vitpose_fast.rows import Row
from vitpose_fast.runtime import freeze


@dataclass(frozen=True)
class PredictConfig:
    """Estimate the poses of people in images and write results.json (COCO keypoint results) and a picture per image."""

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files, or folders of image files."""
    weights: str
    """Checkpoint of any supported format: a file, a folder or a Hugging Face hub id."""
    out: Path = Path("poses")
    """Folder for the results."""
    boxes: Path | None = None
    """JSON file of COCO detections: image_id or file_name, bbox [x, y, width, height] and optionally score.
    A COCO annotation file works too. Without this option the box of one person is the whole image."""
    task: str | None = None
    """Task whose head to use. Required if the checkpoint has several heads."""
    flip_test: bool = False
    """Average the predictions for each person and their mirror image."""
    min_box_score: float = 0.0
    """Skip boxes with a lower score."""
    min_keypoint_score: float = 0.2
    """Draw only keypoints with at least this score."""
    batch_size: int = 64
    """People per forward pass."""
    freeze: Literal["fp32", "bf16", "fp16"] | None = None
    """Freeze the model in this precision first. This takes seconds and pays off for many images."""
    tune: float | None = None
    """Freeze the model, and spend this many seconds on finding what is fastest on this machine. What was found is
    kept for the next time."""
    device: str | None = None
    """Device to run on, such as cuda:0. If not given: CUDA if available, else the CPU."""


def predict(args: list[str] | None = None) -> int:
    """Run `vitpose-fast predict` and return its exit code: 1 if anything was skipped, else 0.

    Images that cannot be read, damaged detections, boxes outside their image and folders without images are skipped and
    reported on stderr. If the run is interrupted or fails, results.json holds the people found so far.

    Args:
        args: the arguments after `predict`. None means `sys.argv[1:]`.
    """
    from vitpose_fast.checkpoints import load_model

    config = tyro.cli(PredictConfig, prog="vitpose-fast predict", args=args)
    paths, problems = _image_files(config.images)
    boxes = None if config.boxes is None else _read_boxes(config.boxes, paths, config.min_box_score, problems)
    ids = _image_ids(paths, boxes or {})
    device = pick_device(config.device)
    out = make_folder(config.out)
    model = load_model(config.weights, task=config.task).to(device)
    used: PoseModel = model
    if config.freeze is not None or config.tune is not None:
        dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, None: None}
        used = frozen = freeze(model, model.resolve_task(config.task), dtypes[config.freeze], tune=config.tune)
        frozen.report()
    predictor = PosePredictor(used, config.flip_test, config.task, config.batch_size)
    given: list[Path] = []
    decoded: dict[Path, Tensor] = {}  # pixels of the images that the predictor has read and that are not drawn yet

    def items() -> Iterator[tuple[Any, Any, Any]]:
        wanted = [(path, None if boxes is None else boxes.get(path, [])) for path in paths]
        for index, pixels, rows in open_images(wanted, problems):
            given.append(paths[index])
            decoded[paths[index]] = pixels
            bar.update(index + 1 - bar.n)
            yield pixels, rows and [r["bbox"] for r in rows], rows and [r["score"] for r in rows]

    results: list[dict[str, Any]] = []
    names: set[str] = set()
    with tqdm(total=len(paths), unit="image") as bar:
        try:
            for index, poses in predictor.predict_many(items()):
                path = given[index]
                results += [{**r, "file_name": str(path)} for r in poses.to_coco(ids[path])]
                picture = draw_poses(decoded.pop(path), poses, config.min_keypoint_score, boxes=boxes is not None)
                save_picture(picture, out / _free_name(path.stem, names))
        finally:  # also if the run is interrupted
            write_atomic(out / "results.json", lambda p: p.write_text(json.dumps(results), encoding="utf-8"))
        bar.update(len(paths) - bar.n)
    code = print_problems(problems)
    print(f"{len(results)} people in {len(names)} of {len(paths)} images, written to {out}")
    return code


def _image_files(given: tuple[Path, ...]) -> tuple[list[Path], list[str]]:
    """Return (image paths, problems) for files and folders that the user names.

    A folder is replaced by the files directly inside it that have the suffix of an image, in the order of their names.
    A file is taken as it is given, whatever its suffix. Duplicates are dropped. The problems are one line for each
    folder without images.

    Raises:
        ValueError: there is no image at all.
    """
    paths, problems = [], []
    for path in given:
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not inside:
            problems.append(f"{path}: no images in this folder, expected {', '.join(SUFFIXES)}")
        paths += inside
    if not paths:
        raise ValueError(
            f"no images in {', '.join(map(str, given))}; expected files or folders of {', '.join(SUFFIXES)}"
        )
    once: dict[Path, Path] = {}
    for path in paths:
        once.setdefault(path.absolute(), path)
    return list(once.values()), problems


def _free_name(stem: str, taken: set[str]) -> str:
    """Return `stem`.jpg, or `stem`-2.jpg, `stem`-3.jpg, ... if that name is in `taken`, and add the name to `taken`."""
    name, number = f"{stem}.jpg", 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}.jpg"
    taken.add(name)
    return name


def _read_boxes(file: Path, paths: list[Path], min_score: float, problems: list[str]) -> dict[Path, list[Row]]:
    """Read the detections in `file` and group them by the image that they belong to (see `_image_of`).

    Each image has at most one image id, and each id belongs to one image: a detection that contradicts an earlier one
    in this is skipped and reported in `problems`. So is a damaged detection. Boxes that score below `min_score` are
    skipped silently. How many detections belong to none of the images is printed on stderr.

    Returns:
        Rows as returned by `read_detections`, by the path in `paths`. Images without detections are left out.

    Raises:
        ValueError: the file cannot be read or holds only damaged detections, a detection matches two images, or there
            are detections but none matches any image.
    """
    detections, damaged = read_detections(file)
    problems += damaged
    by_name: dict[int | str, list[Path]] = {}
    for path in paths:
        number = {int(path.stem)} if path.stem.isdecimal() else set()
        for key in {path.name, path.stem} | number:
            by_name.setdefault(key, []).append(path)
    out: dict[Path, list[Row]] = {}
    image_of: dict[Any, Path] = {str(path): path for path in paths}  # image id -> image; a path is the id of its image
    unmatched = 0
    for detection in detections:
        image = _image_of(detection, by_name, file)
        unmatched += image is None
        if image is None or detection["score"] < min_score:
            continue
        own, image_id = out.setdefault(image, []), detection.get("image_id")
        first = own[0].get("image_id") if own else image_id
        if image_id != first or (image_id is not None and image_of.setdefault(image_id, image) != image):
            fact = f"{image} has {first!r}" if image_id != first else f"that is {image_of[image_id]}, not {image}"
            problems.append(f"{file}: detection {detection['index']}: image_id is {image_id!r}, but {fact}")
            continue
        own.append(detection)
    if detections and unmatched == len(detections):
        raise ValueError(f"{file}: none of its {len(detections)} boxes belongs to any of the {len(paths)} images")
    if unmatched:
        print(f"{file}: {unmatched} of {len(detections)} boxes belong to other images", file=sys.stderr)
    return out


def _image_of(detection: Row, by_name: dict[int | str, list[Path]], file: Path) -> Path | None:
    """Return the path of the image that a detection belongs to, or None if it belongs to no image.

    An image matches if its path and the detection's `file_name` have the same end: one of the two may start with
    folders that the other lacks. An image whose path is equal takes precedence. In a detection without `file_name` the
    `image_id`, if it is a string, is compared in the same way. If nothing matches, the `image_id` is compared with the
    name of the image without its suffix, as text or as a number.

    Args:
        detection: a row of `read_detections`.
        by_name: file name, name without suffix, and the number that this name is, each -> the paths of such images.
        file: the file of detections, for the error message.

    Raises:
        ValueError: two images match.
    """
    wanted = detection["file_name"] if "file_name" in detection else detection["image_id"]
    found: list[Path] = []
    if isinstance(wanted, str):
        name = PurePath(wanted.replace("\\", "/"))
        found = [path for path in by_name.get(name.name, []) if _same_end(path, name)]
        found = [path for path in found if path == name] or found
    if not found and "file_name" not in detection:
        found = by_name.get(wanted, [])
    if len(found) > 1:
        both = " and ".join(map(str, found[:2]))
        raise ValueError(
            f"{file}: detection {detection['index']} ({wanted}) matches {both}; give it a longer file_name"
        )
    return found[0] if found else None


def _same_end(a: PurePath, b: PurePath) -> bool:
    """Return whether the shorter of two paths equals the last parts (folders and file name) of the longer one."""
    return all(p == q for p, q in zip(reversed(a.parts), reversed(b.parts)))


def _image_ids(paths: list[Path], boxes: dict[Path, list[Row]]) -> dict[Path, int | str]:
    """Return a unique id for every image in `paths`.

    It is the `image_id` of its detections in `boxes`. Without one, it is the number that its name without suffix is, if
    no other image has that number as id or name, and otherwise its path as text.
    """
    ids = {path: rows[0]["image_id"] for path, rows in boxes.items() if rows and "image_id" in rows[0]}
    taken = Counter(ids.values())
    numbers = {path: int(path.stem) for path in paths if path.stem.isdecimal() and path not in ids}
    taken.update(numbers.values())
    for path in paths:
        unique = path in numbers and taken[numbers[path]] == 1
        ids.setdefault(path, numbers[path] if unique else str(path))
    return ids


@dataclass(frozen=True)
class ConvertConfig:
    """Read a checkpoint of any supported format and write it in another format."""

    source: tyro.conf.Positional[str]
    """Checkpoint to read: a file, a folder or a Hugging Face hub id."""
    out: tyro.conf.Positional[Path]
    """Path to write to: a folder for the formats ours and hf, a .pth file for official."""
    format: Literal["ours", "official", "hf"] = "ours"
    """Format to write."""
    task: str | None = None
    """Keep only this task and merge its experts into a plain ViTPose. For a checkpoint with a single head: the
    keypoint set of that head."""
    num_heads: int | None = None
    """Number of attention heads. Needed if neither config.json nor the width determines it."""
    image_size: tuple[int, int] | None = None
    """Input size (height, width) to resize the position embedding to."""
    overwrite: bool = False
    """Replace an existing output."""


def convert(args: list[str] | None = None) -> int:
    """Run `vitpose-fast convert` and return 0.

    Args:
        args: the arguments after `convert`. None means `sys.argv[1:]`.

    Raises:
        FileExistsError: the output exists, and --overwrite is not given or would delete other files.
        OSError, ValueError: the checkpoint cannot be loaded, or the model cannot be written in the format.
    """
    from vitpose_fast.checkpoints import load_model, save_hf, save_model, save_official

    config = tyro.cli(ConvertConfig, prog="vitpose-fast convert", args=args)
    model = load_model(config.source, config.task, config.num_heads, config.image_size)
    if config.task is not None:
        model = model.for_task(model.resolve_task(None if len(model.heads) == 1 else config.task))
    if config.out.exists() and not config.overwrite:
        raise FileExistsError(f"{config.out} exists already; choose another name or add --overwrite")
    make_folder(config.out.parent)
    if config.format == "official":
        save_official(model, config.out)
    else:
        save = save_hf if config.format == "hf" else save_model
        save(model, config.out, overwrite=config.overwrite)
    print(f"written: {config.out}, heads {', '.join(model.heads)}")
    return 0


def info(args: list[str] | None = None) -> int:
    """Run `vitpose-fast info [CHECKPOINT]`: print versions and presets, or describe a checkpoint. Returns 0.

    Args:
        args: the arguments after `info`. None means `sys.argv[1:]`.

    Raises:
        OSError, ValueError: as in `load_model`.
    """

    def show(source: Annotated[str | None, tyro.conf.Positional] = None) -> int:
        """Print versions, devices and presets, or describe a checkpoint.

        Args:
            source: checkpoint of any supported format.
        """
        import vitpose_fast

        if source is None:
            gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
            versions = f"Python {platform.python_version()}, torch {torch.__version__}"
            print(f"vitpose-fast {vitpose_fast.__version__}, {versions}")
            print(f"devices: cpu ({torch.get_num_threads()} threads){', ' if gpus else ''}{', '.join(gpus)}")
            print(f"presets: {', '.join(PRESETS)}")
            print(f"keypoint sets: {', '.join(vitpose_fast.KEYPOINT_SETS)}")
            return 0
        from vitpose_fast.checkpoints import load_model

        model = load_model(source)
        c = model.config
        print(f"{model.load_report.source}: {model.load_report.family} checkpoint")  # load_model logs the details
        height, width = c.image_size
        print(f"width {c.width}, depth {c.depth}, attention heads {c.num_heads}, image {height}x{width}")
        print(f"decoder {c.decoder}, experts {len(c.tasks) if c.part_features else 0} of {c.part_features} channels")
        for name in model.heads:
            print(f"head {name}: {c.task(name).num_keypoints} keypoints")
        print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
        return 0

    return tyro.cli(show, prog="vitpose-fast info", args=args)
