"""The commands that need no data set: predict, convert, info."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from tqdm import tqdm

from vitpose_fast.draw import draw_poses, save_picture
from vitpose_fast.files import make_folder, write_atomic
from vitpose_fast.images import SUFFIXES, read_image
from vitpose_fast.models.config import PRESETS
from vitpose_fast.predictor import PosePredictor


@dataclass(frozen=True)
class PredictConfig:
    """Poses of people in images: results.json (COCO keypoint results) and a picture for each image."""

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files or folders of them."""
    weights: str
    """A checkpoint of any format: file, folder or hub id."""
    out: Path = Path("poses")
    """Folder of the results."""
    boxes: Path | None = None
    """People as COCO detections: a JSON list of image_id or file_name, bbox [x, y, width, height], score.
    None: every image is one person."""
    task: str | None = None
    """Which head, where the checkpoint has several."""
    flip_test: bool = False
    """Average with the mirrored image."""
    min_box_score: float = 0.0
    """Leave out boxes with a lower score."""
    min_keypoint_score: float = 0.2
    """Draw keypoints from this score on."""
    batch_size: int = 64
    device: str | None = None
    """None: CUDA where there is one."""


def predict(args: list[str] | None = None) -> int:
    """`vitpose-fast predict`: a damaged image or box is named and left out, the rest is done, exit code 1."""
    from vitpose_fast.checkpoints import load_model

    config = tyro.cli(PredictConfig, prog="vitpose-fast predict", args=args)
    paths = list(_image_files(config.images))
    if not paths:
        raise ValueError(
            f"no images in {', '.join(map(str, config.images))}; expected files or folders of {', '.join(SUFFIXES)}"
        )
    out = make_folder(config.out)
    boxes = None if config.boxes is None else _read_boxes(config.boxes, paths, config.min_box_score)
    failed: list[str] = []
    model = load_model(config.weights, task=config.task)
    model = model.to(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    predictor = PosePredictor(model, config.flip_test, config.task, config.batch_size)

    def items() -> Iterator[tuple[Any, Any, Any]]:
        for path in paths:
            if boxes is None:
                yield path, None, None
                continue
            own = _usable_boxes(path, boxes.get(path, []), failed)
            yield path, [b for b, _ in own], [s for _, s in own]

    results: list[dict[str, Any]] = []
    names: set[str] = set()
    bar = tqdm(total=len(paths), unit="image")
    try:
        for index, poses in predictor.predict_many(items(), on_error=lambda _, error: failed.append(str(error))):
            path = paths[index]
            image_id = int(path.stem) if path.stem.isdecimal() else index
            results += [{**r, "file_name": path.name} for r in poses.to_coco(image_id)]
            picture = draw_poses(read_image(path), poses, config.min_keypoint_score, boxes=boxes is not None)
            save_picture(picture, out / _free_name(path.stem, names))
            bar.update(index + 1 - bar.n)
    finally:  # an interrupted run keeps what it has
        bar.close()
        write_atomic(out / "results.json", lambda p: p.write_text(json.dumps(results), encoding="utf-8"))
    for reason in failed:
        print(f"skipped: {reason}", file=sys.stderr)
    print(f"{len(results)} people in {len(names)} of {len(paths)} images, written to {out}")
    return 1 if failed else 0


def _image_files(given: tuple[Path, ...]) -> Iterator[Path]:
    for path in given:
        if path.is_dir():
            yield from sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        else:
            yield path


def _free_name(stem: str, taken: set[str]) -> str:
    name, number = f"{stem}.jpg", 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}.jpg"
    taken.add(name)
    return name


def _read_boxes(file: Path, paths: list[Path], min_score: float) -> dict[Path, list[tuple[list[float], float]]]:
    """Boxes and scores of each image, matched by file name or by the number that is the file's name."""
    try:
        detections = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: boxes are not readable as JSON ({str(error).splitlines()[0]})") from None
    if isinstance(detections, dict):
        detections = detections.get("annotations")
    if not isinstance(detections, list):
        raise ValueError(f"{file}: expected a JSON list of detections")
    by_key: dict[Any, Path] = {}
    for path in paths:
        by_key.update({path.name: path, str(path): path})
        if path.stem.isdecimal():
            by_key[int(path.stem)] = path
    out: dict[Path, list[tuple[list[float], float]]] = {}
    unmatched = 0
    for index, detection in enumerate(detections):
        if not isinstance(detection, dict) or "bbox" not in detection or not {"image_id", "file_name"} & set(detection):
            raise ValueError(f"{file}: detection {index} has no bbox, or neither image_id nor file_name")
        image = by_key.get(detection.get("file_name", detection.get("image_id")))
        unmatched += image is None
        if image is not None and detection.get("score", 1.0) >= min_score:
            out.setdefault(image, []).append((detection["bbox"], detection.get("score", 1.0)))
    if detections and unmatched == len(detections):
        raise ValueError(f"{file}: none of its {len(detections)} boxes is for one of the {len(paths)} images")
    if unmatched:
        print(f"{file}: {unmatched} of {len(detections)} boxes are for other images", file=sys.stderr)
    return out


def _usable_boxes(path: Path, boxes: list[tuple[Any, float]], failed: list[str]) -> list[tuple[Any, float]]:
    """The boxes that the predictor takes; the others are named in `failed`. An unreadable image is left to it."""
    try:
        size = tuple(read_image(path).shape[:2])
    except ValueError:
        return boxes
    usable = []
    for box, score in boxes:
        reason = _box_problem(box, size)
        if reason is None:
            usable.append((box, score))
        else:
            failed.append(f"{path}: box {box} {reason}")
    return usable


def _box_problem(box: Any, size: tuple[int, ...]) -> str | None:
    from vitpose_fast.geometry import boxes_outside, check_boxes

    try:
        tensor = torch.tensor([box], dtype=torch.float64).reshape(1, 4)
        check_boxes(tensor)
    except (TypeError, ValueError, RuntimeError):
        return "is not four finite numbers (x, y, width, height) with width and height > 0"
    outside = bool(boxes_outside(tensor, (size[0], size[1])).any())
    return f"lies outside the {size[1]}x{size[0]} image" if outside else None


@dataclass(frozen=True)
class ConvertConfig:
    """Read a checkpoint of any format and write another."""

    source: tyro.conf.Positional[str]
    """File, folder or hub id."""
    out: tyro.conf.Positional[Path]
    """Folder (ours, hf) or .pth file (official) to write."""
    format: Literal["ours", "official", "hf"] = "ours"
    task: str | None = None
    """Keep one task only, its experts merged: a plain ViTPose. For a single head: its keypoint set."""
    num_heads: int | None = None
    """Attention heads, where neither config.json nor the width tells."""
    image_size: tuple[int, int] | None = None
    """(height, width) to resize the position embedding for."""
    overwrite: bool = False


def convert(args: list[str] | None = None) -> int:
    """`vitpose-fast convert`."""
    from vitpose_fast.checkpoints import load_model, save_hf, save_model, save_official

    config = tyro.cli(ConvertConfig, prog="vitpose-fast convert", args=args)
    model = load_model(config.source, config.task, config.num_heads, config.image_size)
    print(model.load_report)
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
    """`vitpose-fast info [CHECKPOINT]`: versions and presets, or what a checkpoint holds."""

    def show(source: Annotated[str | None, tyro.conf.Positional] = None) -> int:
        """Versions, devices and presets; or what is in a checkpoint.

        Args:
            source: a checkpoint of any format.
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
        print(model.load_report)
        print(f"width {c.width}, depth {c.depth}, heads {c.heads}, image {c.image_size[0]}x{c.image_size[1]}")
        print(f"decoder {c.decoder}, experts {len(c.tasks) if c.part_features else 0} of {c.part_features} channels")
        for name in model.heads:
            print(f"head {name}: {c.task(name).num_keypoints} keypoints")
        print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
        return 0

    return tyro.cli(show, prog="vitpose-fast info", args=args)
