"""TrainConfig: one training run as a value. Presets by name, every field a flag (SPEC 6)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vitpose_fast.training.augment import Augmentation


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Sizes are (height, width) in pixels.

    Raises:
        ValueError: values that contradict each other, in one line.
    """

    out: Path = Path("runs/train")
    """Folder of the results: config.json, metrics.jsonl, last.pt (to resume), model/ (last), best/ (by AP)."""
    train: tuple[Path, ...] = ()
    """COCO keypoint annotation files to train on."""
    train_images: tuple[Path, ...] = ()
    """Image folder of each file in `train`, or one for all."""
    val: tuple[Path, ...] = ()
    """COCO annotation files to evaluate on (ground-truth boxes)."""
    val_images: tuple[Path, ...] = ()
    """Image folder of each file in `val`, or one for all."""
    task: str = "coco"
    """Keypoint set: a name of the registry, or a .json file with a user's own."""

    model: str = "vitpose-tiny"
    """Model preset, vitpose-{tiny,s,b,l,h}."""
    decoder: str = "classic"
    image_size: tuple[int, int] = (256, 192)
    drop_path: float | None = None
    """Rate of the last block; None: the preset's."""
    init: str | None = None
    """Checkpoint of any format to start from. MAE pretraining: the backbone. A ViTPose: its head too, the keypoints of
    equal names (fine-tuning)."""
    sigma: float = 2.0
    """Standard deviation of the target Gaussian in heatmap pixels."""

    epochs: int = 210
    batch_size: int = 64
    lr: float = 5e-4
    schedule: Literal["step", "cosine"] = "step"
    """"step": times 0.1 at each milestone; "cosine": down to 0 at the end."""
    milestones: tuple[float, ...] = (170 / 210, 200 / 210)
    """Of the step schedule, as fractions of the run."""
    warmup: int = 500
    """Steps of linear warm-up from 0.001."""
    weight_decay: float = 0.1
    layer_decay: float = 0.75
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: automatic mixed precision; the loss is always in float32."""
    clip: float = 1.0
    """Largest global gradient norm."""
    augment: bool = True
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Flip, half body, scale, rotation, centre jitter; the paper's recipe (SPEC 6.2)."""
    flip_test: bool = True
    blur_kernel: int = 11
    """Of the decoding in evaluations."""
    eval_every: int = 10
    """Epochs between evaluations; 0: at the end only."""
    max_seconds: float | None = None
    """Stop training by the clock; schedules then follow the clock where it is faster than the epochs."""

    workers: int = 2
    """Processes that decode images; 0 keeps decoded images in memory."""
    device: str | None = None
    """None: CUDA where there is one."""
    seed: int = 0
    resume: bool = False
    """Go on from `out`/last.pt, exactly."""
    overwrite: bool = False
    """Replace the run that is in `out`."""

    def __post_init__(self) -> None:
        for name in ("train", "val"):
            files, folders = getattr(self, name), getattr(self, f"{name}_images")
            if len(folders) not in (1, len(files)) and files:
                raise ValueError(
                    f"got {len(files)} files in --{name} and {len(folders)} folders in --{name}-images, "
                    f"expected one folder for all or one for each"
                )
        for name in ("epochs", "batch_size", "warmup", "workers", "seed", "eval_every", "weight_decay"):
            value, least = getattr(self, name), int(name in ("epochs", "batch_size"))
            if not value >= least:
                raise ValueError(f"got {name}={value}, expected at least {least}")
        for name in ("lr", "sigma", "clip", "layer_decay", "max_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"got {name}={value}, expected a positive number")

    def sources(self, name: str) -> list[tuple[Path, Path]]:
        """(annotation file, image folder) of "train" or "val"."""
        files, folders = getattr(self, name), getattr(self, f"{name}_images")
        return list(zip(files, folders if len(folders) == len(files) else folders * len(files), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """A json-able dict."""

        def plain(value: Any) -> Any:
            if isinstance(value, (tuple, list)):
                return [plain(v) for v in value]
            if isinstance(value, dict):
                return {k: plain(v) for k, v in value.items()}
            return str(value) if isinstance(value, Path) else value

        return plain(dataclasses.asdict(self))


def _coco(size: str, drop_path: float, layer_decay: float) -> TrainConfig:
    return TrainConfig(
        out=Path(f"runs/coco-{size}"),
        model=f"vitpose-{size}",
        drop_path=drop_path,
        layer_decay=layer_decay,
        batch_size=512,  # of all processes together in the paper; scale lr with it
    )


PRESETS: dict[str, tuple[str, TrainConfig]] = {
    "coco-s": ("ViTPose-S on COCO, the paper's recipe", _coco("s", 0.1, 0.8)),
    "coco-b": ("ViTPose-B on COCO, the paper's recipe", _coco("b", 0.3, 0.75)),
    "coco-l": ("ViTPose-L on COCO, the paper's recipe", _coco("l", 0.5, 0.8)),
    "coco-h": ("ViTPose-H on COCO, the paper's recipe", _coco("h", 0.55, 0.8)),
    "tiny": (
        "the tiny model from scratch on a small data set, on a CPU",
        TrainConfig(
            out=Path("runs/tiny"),
            lr=1.5e-3,
            schedule="cosine",
            warmup=100,
            layer_decay=1.0,
            weight_decay=0.05,
            batch_size=32,
            augmentation=Augmentation(
                jitter_probability=0.0, half_body_probability=0.0, scale_factor=0.15, rotation_degrees=15.0
            ),
            workers=0,
        ),
    ),
    "overfit": (
        "the tiny model until it knows a few images by heart: does training work at all?",
        TrainConfig(
            out=Path("runs/overfit"),
            lr=1.5e-3,
            schedule="cosine",
            warmup=20,
            layer_decay=1.0,
            weight_decay=0.0,
            epochs=100,
            batch_size=8,
            augment=False,
            flip_test=False,
            eval_every=0,
            workers=0,
        ),
    ),
}
