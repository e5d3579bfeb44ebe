"""TrainConfig: one training run as a value; every field is a flag (SPEC 6). Presets are in `presets`."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vitpose_fast.models.config import ModelConfig, preset
from vitpose_training.data.augment import Augmentation
from vitpose_training.data.catalog import DataSet, data_set
from vitpose_training.run.optim import OptimizerConfig, ScheduleConfig

Source = tuple[DataSet, Path, Path]  # a data set, its annotation file and its image folder


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Sizes are (height, width) in pixels.

    Raises:
        ValueError: values that contradict each other, in one line.
    """

    out: Path = Path("runs/train")
    """Folder of the run: config.json, metrics.jsonl, quarantine.jsonl, states/ (to resume), model/ (last), best/."""

    data: Path = Path("data")
    """Root of all data sets, in their original layouts (data/coco, data/aic, ...); unused where files are given."""
    tasks: tuple[str, ...] = ("coco",)
    """Data sets by name, one head (and in ViTPose++ one expert) each; or a .json file with your own keypoints."""
    train: tuple[Path, ...] = ()
    """Annotation files to train on, one for each task or all for the only one. Not given: those below --data."""
    train_images: tuple[Path, ...] = ()
    """Image folder of each file in --train, or one for all."""
    val: tuple[Path, ...] = ()
    """Annotation files to evaluate on, one for each task or all for the only one."""
    val_images: tuple[Path, ...] = ()
    """Image folder of each file in --val, or one for all."""
    val_tasks: tuple[str, ...] | None = None
    """Tasks to evaluate; the first one decides which model is the best. None: all."""
    boxes: Path | None = None
    """Detected boxes (COCO detections) for the evaluation of the first task. None: the annotated ones."""
    sampling: Literal["proportional", "balanced"] = "proportional"
    """proportional: every sample once an epoch, as in the paper; balanced: every task equally often."""

    model: str = "vitpose-tiny"
    """Model preset: vitpose-SIZE or vitpose++-SIZE, with SIZE one of tiny, s, b, l, h."""
    decoder: str = "classic"
    """Head: classic (two deconvolutions), classic-fp (its last layer stays random), simple or minimal (Table 3)."""
    image_size: tuple[int, int] = (256, 192)
    """Height and width in pixels of the network's input."""
    patch_stride: Literal[16, 8] = 16
    """16; or 8 for overlapping patches and features at 1/8 (Table 7)."""
    attention: str = "full"
    """full, window, window+shift, window+pool, window+shift+pool or window+full (Table 7)."""
    window: tuple[int, int] = (8, 8)
    """Height and width of a window in tokens."""
    part_features: int | None = None
    """Channels of each task's expert in ViTPose++. None: a quarter of the width."""
    experts: Literal["none", "instead", "added"] = "none"
    """A whole FFN for each task, instead of the shared one (I-FFN) or added to it (IS-FFN), Table 11."""
    freeze_attn: bool = False
    """Do not train attention and the norm before it (Table 8)."""
    freeze_ffn: bool = False
    """Do not train embeddings, FFN and the norm before it (Table 8)."""
    frozen_stages: int = -1
    """Do not train the patch embedding and blocks 1 to this one (the very first is block 0); -1: train all."""
    drop_path: float | None = None
    """Rate at which the last block is dropped; lower in earlier blocks. None: that of the model preset."""
    init: str | None = None
    """Checkpoint of any format to start from: a pretrained backbone (MAE), or a ViTPose to fine-tune, head included."""

    sigma: float = 2.0
    """Standard deviation of the target Gaussian in heatmap pixels."""
    codec: Literal["official", "udp", "msra"] = "official"
    """How heatmaps are encoded and crops cut. official: udp for COCO and MPII, msra (not unbiased) for the others."""
    batchnorm: Literal["all", "own"] = "all"
    """BatchNorm of a head sees the samples of all tasks in a batch, as in the official code, or its own only."""

    epochs: int = 210
    """Times that all samples are seen."""
    batch_size: int = 64
    """Samples of one update, over all processes and micro-batches."""
    micro_batch: int | None = None
    """Samples that a process computes at once; the gradients of several add up. None: its share of the batch."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: automatic mixed precision; the loss is always in float32."""
    ema: float | None = None
    """Decay of a moving average of the weights, such as 0.9999; it is what is evaluated and saved. None: off."""
    recompute: Literal["none", "norm", "ffn", "most"] = "none"
    """Activations that the backward pass computes again instead of keeping them, from none to most; saves memory."""
    compile: bool = False
    """Compile the backbone with torch.compile."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: every process holds the whole model (ddp) or a share of it (fsdp, which is FSDP2)."""

    augment: bool = True
    """Augment the samples; with --no-augment each box is cut out as it is annotated."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """How samples vary; the recipe of the paper."""
    official_boxes: bool = True
    """Annotated boxes lose one pixel of width and height, as in the official loader."""
    mpii_stretch: bool = True
    """MPII's square crops are stretched to the aspect of the input, as in the official code."""

    flip_test: bool = True
    """Evaluate each image and its mirror image, and average the heatmaps."""
    blur_kernel: int = 11
    """Size in heatmap pixels of the blur before heatmaps are decoded in evaluations; odd."""
    eval_every: int = 10
    """Epochs between evaluations; 0: at the end only."""
    max_seconds: float | None = None
    """Stop training after so much time; the schedule then follows the clock where it is ahead of the epochs."""

    save_every: int | None = None
    """Updates between saved states. None: once an epoch."""
    keep: int = 2
    """How many of the last states stay on disk."""
    log_every: int = 20
    """Updates between rows of metrics.jsonl."""
    track: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Other places that the rows of metrics.jsonl go to."""
    max_bad_images: int = 100
    """Images that may be unusable before the run stops; each is named in quarantine.jsonl and replaced."""
    workers: int = 2
    """Processes that decode images, for each training process; 0: none."""
    keep_images: bool = False
    """Keep every decoded image in memory; for small data sets."""
    device: str | None = None
    """cpu, cuda or cuda:1, for instance. None: CUDA where there is one."""
    seed: int = 0
    """Of the first weights, order, augmentation and drop path."""
    resume: bool = False
    """Continue from the last state in the folder of the run, exactly. A restart by torchrun does so by itself."""
    overwrite: bool = False
    """Replace the run that is in the folder."""
    dry_run: bool = False
    """Only try whether everything fits together: two updates and a small evaluation, which leave nothing behind."""

    def __post_init__(self) -> None:
        for name in ("train", "val"):
            files, folders = getattr(self, name), getattr(self, f"{name}_images")
            if len(folders) not in (1, len(files)) and files:
                raise ValueError(
                    f"got {len(files)} files in --{name} and {len(folders)} folders in --{name}-images, "
                    f"expected one folder for all or one for each"
                )
            if files and len(self.tasks) not in (1, len(files)):
                raise ValueError(
                    f"got {len(files)} files in --{name} and {len(self.tasks)} tasks, expected a file for each task"
                )
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"got tasks={self.tasks}, expected at least one, each once")
        least = {"workers": 0, "seed": 0, "eval_every": 0, "max_bad_images": 0}
        for name in (*least, "epochs", "batch_size", "micro_batch", "keep", "log_every", "save_every"):
            value = getattr(self, name)
            if value is not None and not value >= least.get(name, 1):
                raise ValueError(f"got {name}={value}, expected at least {least.get(name, 1)}")
        for name in ("sigma", "max_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"got {name}={value}, expected a positive number")
        if self.val_tasks is not None and (not self.val_tasks or len(set(self.val_tasks)) != len(self.val_tasks)):
            raise ValueError(f"got val_tasks={self.val_tasks}, expected at least one, each once; leave it out for all")
        if self.seed >= 2**32:
            raise ValueError(f"got seed={self.seed}, expected less than 2**32")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"got ema={self.ema}, expected a decay between 0 and 1, such as 0.9999")
        if self.blur_kernel < 1 or self.blur_kernel % 2 == 0:
            raise ValueError(f"got blur_kernel={self.blur_kernel}, expected an odd number")
        if self.micro_batch is not None and self.micro_batch > self.batch_size:
            raise ValueError(f"got micro_batch={self.micro_batch}, more than batch_size={self.batch_size}")
        if self.resume and self.overwrite:
            raise ValueError("--resume goes on with the run in --out, --overwrite replaces it: choose one")
        if self.boxes is not None and len(self.val) > 1 and len(self.tasks) == 1:
            raise ValueError(f"got --boxes and {len(self.val)} files in --val, expected one file with them")

    def data_sets(self) -> list[DataSet]:
        """The data sets of `tasks`, in the codec of this run.

        Raises:
            ValueError: an unknown one (lists the valid ones).
        """
        found = [data_set(task) for task in self.tasks]
        if self.codec == "official":
            return found
        return [
            dataclasses.replace(d, keypoint_set=dataclasses.replace(d.keypoint_set, codec=self.codec)) for d in found
        ]

    def model_config(self) -> ModelConfig:
        """The model of this run.

        Raises:
            ValueError: unknown preset, options that contradict each other.
        """
        options: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("decoder", "image_size", "patch_stride", "attention", "window", "experts")
            + ("freeze_attn", "freeze_ffn", "frozen_stages")
        }
        options |= {n: v for n in ("drop_path", "part_features") if (v := getattr(self, n)) is not None}
        return preset(self.model, tuple(d.keypoint_set for d in self.data_sets()), **options)

    def sources(self, name: Literal["train", "val"]) -> list[Source]:
        """What to train or evaluate on: the files given, else those of the data sets below `data`.

        A run that is given files to train on and none to evaluate on is not evaluated.

        Raises:
            ValueError: a data set for evaluation only in training, an unknown task.
        """
        files, folders, sets = getattr(self, name), getattr(self, f"{name}_images"), self.data_sets()
        only = next((d.name for d in sets if d.evaluation_only), None)
        if name == "train" and only:
            raise ValueError(f"{only} is for evaluation only (SPEC 6.3): train on coco and evaluate on it")
        if files:
            folders = folders if len(folders) == len(files) else folders * len(files)
            sets = sets if len(sets) == len(files) else sets * len(files)
            found = list(zip(sets, files, folders, strict=True))
        elif name == "train" or not self.train:
            found = [(d, *d.split(self.data, name)) for d in sets if name == "train" or "val" in d.splits]
        else:
            found = []
        if name == "train":
            return found
        if self.val_tasks is not None:
            unknown = [t for t in self.val_tasks if t not in [d.name for d in sets]]
            if unknown:
                valid = ", ".join(d.name for d in sets)
                raise ValueError(f"got {unknown[0]!r} in val_tasks, expected some of the tasks: {valid}")
            found = [s for task in self.val_tasks for s in found if s[0].name == task]
        return found

    def to_dict(self) -> dict[str, Any]:
        """A json-able dict."""

        def plain(value: Any) -> Any:
            if isinstance(value, (tuple, list)):
                return [plain(v) for v in value]
            if isinstance(value, dict):
                return {k: plain(v) for k, v in value.items()}
            return str(value) if isinstance(value, Path) else value

        return plain(dataclasses.asdict(self))
