"""Named training configurations: the runs of the paper's tables, and two small ones.

Where the paper and the released configuration of a model differ, the preset follows the paper, and its description
names the difference.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from vitpose_fast.models.config import PLUS_TASKS
from vitpose_kernels.sizes import PAPER, SIZES
from vitpose_training.data.augment import Augmentation
from vitpose_training.run.config import TrainConfig
from vitpose_training.run.optim import OptimizerConfig, ScheduleConfig

Preset = tuple[str, TrainConfig]  # the description that --help shows, and the configuration

_RELEASED = {  # model -> how the released configuration differs
    "vitpose-h": "the released configuration has layer decay 0.85",
    "vitpose++-s": "the released configuration has experts of 192 channels, not 96: --part-features 192",
}


def _recipe(name: str, model: str, **changes: Any) -> TrainConfig:
    """Return the training recipe of Table 1: AdamW for 210 epochs.

    The batch size is 512 and the learning rate 5e-4; if `changes` has several tasks, they are 1024 and 1e-3.

    Args:
        name: name of the preset; the output folder is runs/`name`.
        model: model preset, whose size determines the drop path rate and the layer decay.
        changes: fields of `TrainConfig` that replace the values of the recipe.
    """
    size = SIZES[model.rsplit("-", 1)[1]]
    joint = len(changes.get("tasks", ())) > 1
    values = dict(
        out=Path("runs") / name,
        model=model,
        drop_path=size.drop_path,
        batch_size=1024 if joint else 512,
        optimizer=OptimizerConfig(lr=1e-3 if joint else 5e-4, layer_decay=size.layer_decay),
        keep=2,
    )
    return TrainConfig(**{**values, **changes})


def _presets() -> dict[str, Preset]:
    """Build the presets of the paper's tables, by name."""
    out: dict[str, Preset] = {}

    def add(name: str, text: str, model: str, **changes: Any) -> None:
        differs = _RELEASED.get(model)
        out[name] = f"{text}{f' ({differs})' if differs else ''}", _recipe(name, model, **changes)

    for size in PAPER:
        add(f"coco-{size}", f"ViTPose-{size.upper()} on COCO, Table 1", f"vitpose-{size}")
    for size in PAPER:
        text = f"ViTPose++-{size.upper()} on six data sets, Table 1"
        add(f"joint-{size}", text, f"vitpose++-{size}", tasks=PLUS_TASKS, val_tasks=("coco",))
    for size in PAPER:
        note = "; the released configuration of this model names another head" if size == "s" else ""
        text = f"ViTPose-{size.upper()} with the simple decoder, Table 2{note}"
        add(f"coco-{size}-simple", text, f"vitpose-{size}", decoder="simple")
    for decoder in ("classic-fp", "minimal"):
        add(f"coco-b-{decoder}", f"ViTPose-B with the {decoder} decoder, Table 3", "vitpose-b", decoder=decoder)
    for height, width in ((224, 224), (256, 256), (384, 288), (384, 384), (576, 432)):
        text = f"ViTPose-B at {height}x{width}, Table 6 (the paper does not state sigma; it stays at 2 heatmap pixels)"
        add(f"coco-b-{height}x{width}", text, "vitpose-b", image_size=(height, width))
    variants = {
        "full": ("full", (8, 8)),
        "window": ("window", (8, 8)),
        "shift": ("window+shift", (8, 8)),
        "pool": ("window+pool", (8, 8)),
        "shift-pool": ("window+shift+pool", (8, 8)),
        "window-full": ("window+full", (8, 8)),
        "shift-pool-16x12": ("window+shift+pool", (16, 12)),
    }
    for name, (attention, window) in variants.items():
        note = " (fp16 in the paper, bf16 here)" if attention == "full" else f", windows of {window[0]}x{window[1]}"
        text = f"ViTPose-B with features at 1/8, {attention} attention{note}, Table 7"
        precision = "bf16" if attention == "full" else "fp32"
        options = dict(patch_stride=8, attention=attention, window=window, precision=precision)
        add(f"coco-b-8-{name}", text, "vitpose-b", **options)
    add("coco-b-ffn-only", "ViTPose-B with attention frozen, Table 8", "vitpose-b", freeze_attn=True)
    add("coco-b-mhsa-only", "ViTPose-B with FFN and embeddings frozen, Table 8", "vitpose-b", freeze_ffn=True)
    mixtures = {
        "coco-aic": ("coco", "aic"),
        "coco-aic-mpii": ("coco", "aic", "mpii"),
        "coco-aic-mpii-wholebody": ("coco", "aic", "mpii", "wholebody"),
        "coco-aic-ap10k": ("coco", "aic", "ap10k"),
        "coco-aic-ap10k-apt36k": ("coco", "aic", "ap10k", "apt36k"),
    }
    for name, tasks in mixtures.items():
        text = f"ViTPose-B with one FFN shared by {', '.join(tasks)}, Table 10"
        add(f"mix-{name}", text, "vitpose-b", tasks=tasks, val_tasks=("coco",))
    three = ("coco", "aic", "ap10k")
    kinds = {
        "i-ffn": ("I-FFN (one FFN per task)", "instead"),
        "is-ffn": ("IS-FFN (a shared FFN plus one per task)", "added"),
    }
    for name, (text, experts) in kinds.items():
        add(
            f"experts-{name}",
            f"ViTPose-B with {text}, Table 11",
            "vitpose-b",
            tasks=three,
            experts=experts,
            val_tasks=("coco",),
        )
    for share in (6, 4, 3):
        text = f"ViTPose++-B with PS-FFN, alpha 1/{share}, Table 11"
        options = dict(tasks=three, part_features=768 // share, val_tasks=("coco",))
        add(f"experts-ps-ffn-{share}", text, "vitpose++-b", **options)
    return out


_TINY = TrainConfig(
    out=Path("runs/tiny"),
    optimizer=OptimizerConfig(lr=1.5e-3, weight_decay=0.05, layer_decay=1.0),
    schedule=ScheduleConfig(decay="cosine", warmup=100),
    batch_size=32,
    augmentation=Augmentation(
        jitter_probability=0.0, half_body_probability=0.0, scale_factor=0.15, rotation_degrees=15.0
    ),
    workers=0,
    keep_images=True,
)
PRESETS: dict[str, Preset] = {
    **_presets(),
    "tiny": ("The tiny model from scratch on a small data set, on a CPU", _TINY),
    "overfit": (
        "The tiny model on a few images until it has memorized them, to check that training works",
        replace(
            _TINY,
            out=Path("runs/overfit"),
            optimizer=replace(_TINY.optimizer, weight_decay=0.0),
            schedule=replace(_TINY.schedule, warmup=20),
            epochs=100,
            batch_size=8,
            augment=False,
            augmentation=Augmentation(),
            flip_test=False,
            eval_every=0,
        ),
    ),
}
