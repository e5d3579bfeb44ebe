"""Demo: render people, train the tiny model on them, evaluate it on held-out pictures, and draw its poses.

All parts share one time budget: training stops early enough for the evaluation and the drawing.
"""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from vitpose_fast.device import pick_device
from vitpose_fast.draw import draw_poses, plot_training, save_picture, sheet
from vitpose_fast.files import make_folder, write_atomic
from vitpose_fast.images import read_image
from vitpose_fast.keypoints import KEYPOINT_SETS
from vitpose_fast.models.vitpose import ViTPose
from vitpose_fast.poses import Poses
from vitpose_fast.predictor import PosePredictor
from vitpose_fast.rows import read_json
from vitpose_training.data.augment import Augmentation
from vitpose_training.demo.synthetic import write_dataset
from vitpose_training.evaluation.validate import evaluate
from vitpose_training.run.config import TrainConfig
from vitpose_training.run.presets import PRESETS
from vitpose_training.run.train import train


@dataclass(frozen=True)
class DemoConfig:
    """Options of the demo. With `image` and `weights`, a checkpoint is run on a photo, and nothing is trained."""

    out: Path = Path("demo")
    """Output folder: poses.png, training.png, results.json, the rendered pictures and the model.
    With --image and --weights, only poses.png and results.json."""
    seconds: float = 170.0
    """Time budget of the whole demo in seconds.
    Training gets what rendering leaves of it minus 8 s for the evaluation and the drawing, and at least 1 s."""
    images: int = 1600
    """Number of rendered training pictures, at least 8."""
    held_out: int = 100
    """Number of rendered pictures for the evaluation, at least 8. They are not trained on."""
    seed: int = 0
    """Seed of the pictures and of the training."""
    image: Path | None = None
    """Photo to run --weights on, instead of training. The whole photo is taken as one person."""
    weights: str | None = None
    """Checkpoint to run on --image, in any supported format. Its first head is used."""
    device: str | None = None
    """Device: cpu, cuda or a particular GPU such as cuda:1. If unset, CUDA if available, else CPU."""


def main(args: list[str] | None = None) -> int:
    """Run `vitpose-fast demo` and return the exit code 0.

    Raises:
        ValueError: only one of image and weights is given, or fewer than 8 pictures are asked for; or as in `train`.
    """
    import tyro

    config = tyro.cli(DemoConfig, prog="vitpose-fast demo", args=args, description=__doc__)
    if (config.image is None) != (config.weights is None):
        raise ValueError("got only one of --image and --weights, expected a photo and the checkpoint to run on it")
    out = make_folder(config.out)
    if min(config.images, config.held_out) < 8:
        raise ValueError(f"got images={config.images}, held_out={config.held_out}, expected at least 8 of each")
    if config.weights is not None:
        return _run_checkpoint(config, out)
    started = time.monotonic()
    train_parts, held_out = render(config, out)
    print(f"rendered {config.images + config.held_out} pictures in {time.monotonic() - started:.0f} s")

    left = config.seconds - (time.monotonic() - started) - 8  # reserve for the evaluation and the drawing
    run = demo_training(config, out, train_parts, held_out, seconds=max(left, 1.0))
    train(run)
    model = trained_model(run)
    sources = [(held_out, held_out.parent / "images")]
    metrics, results, _ = evaluate(model, sources, flip_test=True, blur_kernel=run.blur_kernel)
    draw_held_out(results, held_out, out / "poses.png")
    plot_training(run.out / "metrics.jsonl", out / "training.png")
    seconds = time.monotonic() - started
    summary = {
        "metrics": metrics,
        "seconds": round(seconds, 1),
        "config": run.to_dict(),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "results": results,
    }
    write_atomic(out / "results.json", lambda p: p.write_text(json.dumps(summary), encoding="utf-8"))
    print("held-out  " + "  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
    print(f"{seconds:.0f} s; see {out / 'poses.png'}, {out / 'training.png'}, {out / 'results.json'}")
    return 0


def render(config: DemoConfig, out: Path) -> tuple[list[Path], Path]:
    """Render the pictures into `out`/rendered, in as many processes as there are cores, at most 8.

    Returns:
        The annotation files to train on, at most 8, and the annotation file of the held-out pictures. The images of
        each file are in the folder `images` beside it.
    """
    data = out / "rendered"
    parts = 8  # fixed and not the number of cores, so that every machine renders the same pictures
    counts = [config.images // parts + (i < config.images % parts) for i in range(parts)]
    jobs = [(data / f"train{i}", count, 1000 * config.seed + 1 + i) for i, count in enumerate(counts) if count]
    jobs.append((data / "held-out", config.held_out, 1000 * config.seed))
    with ProcessPoolExecutor(min(os.cpu_count() or 1, parts)) as pool:
        files = list(pool.map(write_dataset, *zip(*jobs)))
    return files[:-1], files[-1]


def faster_precision(device: torch.device) -> Literal["fp32", "bf16"]:
    """Return the precision, "fp32" or "bf16", in which the device multiplies matrices faster.

    On CUDA it is always "bf16"; on a CPU both are timed.
    """
    if device.type == "cuda":
        return "bf16"
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(1536, 192, dtype=dtype), torch.ones(192, 768, dtype=dtype)
        a @ b
        started = time.perf_counter()
        for _ in range(10):
            a @ b
        seconds[dtype] = time.perf_counter() - started
    return "bf16" if seconds[torch.bfloat16] < seconds[torch.float32] else "fp32"


def demo_training(config: DemoConfig, out: Path, parts: list[Path], held_out: Path, seconds: float) -> TrainConfig:
    """Return the training configuration of the demo: the tiny model on 128x96 crops, for at most `seconds`.

    `parts` and `held_out` are the annotation files that `render` returns.
    """
    return replace(
        PRESETS["tiny"][1],
        out=out / "run",
        overwrite=True,
        train=tuple(parts),
        train_images=tuple(p.parent / "images" for p in parts),
        val=(held_out,),
        val_images=(held_out.parent / "images",),
        image_size=(128, 96),
        sigma=0.75,  # heatmaps have half the usual resolution
        blur_kernel=5,
        batch_size=16,
        augmentation=Augmentation(0, half_body_probability=0, scale_factor=0, rotation_probability=0),  # flips only
        epochs=1000,
        max_seconds=seconds,
        eval_every=5,
        flip_test=False,
        precision=faster_precision(pick_device(config.device)),
        seed=config.seed,
        device=config.device,
    )


def trained_model(run: TrainConfig) -> ViTPose:
    """Load the final model of a run, on the device of the run."""
    from vitpose_fast.checkpoints import load_model

    return load_model(run.out / "model").to(pick_device(run.device))


def draw_held_out(results: list[dict], annotations: Path, path: Path, count: int = 8) -> None:
    """Draw the predicted skeletons and their boxes on `count` held-out pictures, and save these as one grid at `path`.

    Pictures with several predicted people come first, otherwise the order is that of the annotation file.

    Args:
        results: the results of `evaluate` on the held-out pictures.
        annotations: annotation file of the held-out pictures, with their folder `images` beside it.
    """
    images = read_json(annotations)["images"]
    people = {image["id"]: [r for r in results if r["image_id"] == image["id"]] for image in images}
    chosen = sorted(images, key=lambda image: len(people[image["id"]]) < 2)[:count]
    pictures = [
        draw_poses(
            read_image(annotations.parent / "images" / image["file_name"]),
            Poses.from_coco(people[image["id"]], KEYPOINT_SETS["coco"]),
            boxes=True,
        )
        for image in chosen
    ]
    save_picture(sheet(pictures, columns=4), path)


def _run_checkpoint(config: DemoConfig, out: Path) -> int:
    """Predict the pose in a photo with the first head of a checkpoint, and write poses.png and results.json to `out`.

    The whole photo is taken as one person. Return the exit code 0.
    """
    from vitpose_fast.checkpoints import load_model

    assert config.image is not None and config.weights is not None
    pixels = read_image(config.image)
    model = load_model(config.weights).to(pick_device(config.device))
    task = next(iter(model.heads))
    predictor = PosePredictor(model, flip_test=True, task=task)
    poses = predictor(pixels)
    save_picture(draw_poses(pixels, poses), out / "poses.png")
    results = poses.to_coco(config.image.name)
    write_atomic(out / "results.json", lambda p: p.write_text(json.dumps(results), encoding="utf-8"))
    print(f"task {task}, person score {poses.person_scores[0]:.3f}; see {out / 'poses.png'}, {out / 'results.json'}")
    return 0
