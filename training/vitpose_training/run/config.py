"""Configuration of a training run (docs/numerics.md 6). Every field of `TrainConfig` is a command-line flag.

The named configurations (presets) are in `presets`.
"""

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
    """Configuration of one training run. Image sizes are (height, width) in pixels.

    Raises:
        ValueError: values that are out of range or contradict each other. Tasks and options of the model are checked
            later, by `data_sets` and `model_config`.
    """

    out: Path = Path("runs/train")
    """Output folder of the run, for config.json, metrics.jsonl, quarantine.jsonl, states/, model/ and best/.
    quarantine.jsonl lists unusable training images and the samples of skipped optimizer steps.
    states/ is to resume from. model/ is the final model, best/ the one with the highest score in an evaluation."""

    data: Path = Path("data")
    """Root folder of all data sets, in their original layouts (data/coco, data/aic, ...). Ignored with --train."""
    tasks: tuple[str, ...] = ("coco",)
    """Tasks to train: names of data sets, or .json files that define your own keypoints.
    Each task has its own head and, in ViTPose++, its own expert."""
    train: tuple[Path, ...] = ()
    """Annotation files to train on: one per task, or any number for a single task.
    If unset, the training files of the tasks below --data."""
    train_images: tuple[Path, ...] = ()
    """Image folders of the --train files: one per file, or one for all."""
    val: tuple[Path, ...] = ()
    """Annotation files to evaluate on: one per task, or any number for a single task.
    If unset, the validation files of the tasks below --data, or none if --train is given."""
    val_images: tuple[Path, ...] = ()
    """Image folders of the --val files: one per file, or one for all."""
    val_tasks: tuple[str, ...] | None = None
    """Tasks to evaluate. The score of the first one decides which model is the best.
    If unset, all tasks that have validation files."""
    boxes: Path | None = None
    """COCO detection file whose boxes are used to evaluate the first evaluated task. If unset, the annotated boxes.
    The other tasks are always evaluated with their annotated boxes."""
    sampling: Literal["proportional", "balanced"] = "proportional"
    """proportional: every sample once per epoch, as in the paper.
    balanced: as many samples per epoch, about equally many of every task."""

    model: str = "vitpose-tiny"
    """Model preset: vitpose-SIZE or vitpose++-SIZE, where SIZE is tiny, s, b, l or h."""
    decoder: str = "classic"
    """Head: classic (two deconvolutions), classic-fp, simple or minimal (Table 3 of the paper).
    classic-fp is classic with a last layer that stays at its random initialization."""
    image_size: tuple[int, int] = (256, 192)
    """Height and width of the network input in pixels."""
    patch_stride: Literal[16, 8] = 16
    """Stride of the 16x16 patches in pixels. 8 makes patches overlap and gives features at 1/8 resolution (Table 7)."""
    attention: str = "full"
    """Attention pattern: full, window, window+shift, window+pool, window+shift+pool or window+full (Table 7)."""
    window: tuple[int, int] = (8, 8)
    """Height and width of an attention window in tokens. Ignored with full attention."""
    part_features: int | None = None
    """Output channels of the FFN that the expert of each task computes (ViTPose++).
    If unset, a quarter of the width in vitpose++ presets and 0 (no experts) in vitpose presets."""
    experts: Literal["none", "instead", "added"] = "none"
    """Use a whole FFN per task, instead of the shared FFN (I-FFN) or added to it (IS-FFN); Table 11.
    In vitpose++ presets this also needs --part-features 0."""
    freeze_attn: bool = False
    """Freeze the attention of every block and the norm before it (Table 8)."""
    freeze_ffn: bool = False
    """Freeze the FFN of every block, the norm before it, and the patch and position embeddings (Table 8)."""
    frozen_stages: int = -1
    """Freeze the patch embedding and blocks 1 to this one; -1 freezes nothing.
    Blocks are counted from 0, as in the official code, so this never freezes the first block."""
    drop_path: float | None = None
    """Drop path rate of the last block, with a linear rise from 0 in the first block.
    If unset, the rate of the model preset."""
    init: str | None = None
    """Checkpoint to start from, in any supported format: a pretrained backbone (MAE) or a ViTPose to fine-tune.
    From a ViTPose, a run with several tasks or with experts takes the heads whose task name and shapes match.
    Any other run takes one head, but of its last layer only the keypoints with the same names."""

    sigma: float = 2.0
    """Standard deviation of the target Gaussians in heatmap pixels."""
    codec: Literal["official", "udp", "msra"] = "official"
    """How crops are cut and keypoints encoded: udp (unbiased) or msra (biased, Gaussians centered on whole pixels).
    official is udp for COCO and MPII and msra for the other data sets.
    For your own keypoints it is the codec in the .json file, by default udp."""
    batchnorm: Literal["all", "own"] = "all"
    """Samples of a micro-batch that the BatchNorm layers of a head see.
    all: every sample, as in the official code. own: only the samples of the head's task."""

    epochs: int = 210
    """Number of epochs. Each has as many samples as there are in the training files, see --sampling."""
    batch_size: int = 64
    """Global batch size: samples per optimizer step, over all processes and micro-batches."""
    micro_batch: int | None = None
    """Largest number of samples that a process computes at once; gradients are accumulated over micro-batches.
    If unset, the whole share of the process in the batch."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is automatic mixed precision (autocast). The loss is computed in float32 with either choice."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, for example 0.9999. If unset, no average is kept.
    With it, the averaged weights are the ones that are evaluated and saved in model/ and best/."""
    recompute: Literal["none", "norm", "ffn", "most"] = "none"
    """Activations that the backward pass recomputes instead of keeping them in memory.
    From none to most, each choice recomputes more and needs less memory."""
    compile: bool = False
    """Compile the backbone with torch.compile."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Parallelism under torchrun: every process holds the whole model (ddp) or a shard of it (fsdp, that is FSDP2)."""

    augment: bool = True
    """Augment the training samples. With --no-augment, they are cropped as in evaluations."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Random augmentation of the training samples, by default with the recipe of the paper."""
    official_boxes: bool = True
    """Shrink annotated boxes by one pixel in width and height, except in MPII and InterHand (official loaders)."""
    mpii_stretch: bool = True
    """Stretch the square crops of MPII to the aspect ratio of the network input (official code)."""

    flip_test: bool = True
    """In evaluations, average the heatmaps of each crop and its mirror image."""
    blur_kernel: int = 11
    """Kernel size in heatmap pixels, odd, of the Gaussian blur with which evaluations decode udp heatmaps."""
    eval_every: int = 10
    """Epochs between evaluations. The final model is always evaluated; 0 evaluates only that one."""
    max_seconds: float | None = None
    """Stop training after this many seconds, if the epochs do not end before. If unset, there is no time limit.
    The time includes the evaluations, except the final one, and the earlier parts of a resumed run.
    The learning rate schedule follows the fraction of the time or of the epochs, whichever is larger."""

    save_every: int | None = None
    """Optimizer steps between saved states. If unset, a state is saved after every epoch.
    A state is also saved at the end of the run and when SIGTERM stops it."""
    keep: int = 2
    """Number of most recent states to keep on disk."""
    log_every: int = 20
    """Optimizer steps between rows of training metrics in metrics.jsonl."""
    track: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Experiment trackers that also receive the numbers in metrics.jsonl."""
    max_bad_images: int = 100
    """Largest number of unusable training images; the run stops when there are more.
    Each is named in quarantine.jsonl, and its sample is replaced by another sample of the same task."""
    workers: int = 2
    """Worker processes that decode images, per training process. 0 decodes in the training process itself."""
    keep_images: bool = False
    """Keep every decoded image in memory. Only for small data sets."""
    device: str | None = None
    """Device: cpu, cuda or a particular GPU such as cuda:1. If unset, CUDA if available, else CPU.
    Under torchrun with several processes, cuda gives each its own GPU, and a particular GPU is refused."""
    seed: int = 0
    """Seed of weight initialization, sample order, augmentation and drop path."""
    resume: bool = False
    """Resume exactly from the last saved state in --out.
    Restarts by torchrun resume without this flag, if a state has been saved."""
    overwrite: bool = False
    """Replace the run that --out already holds."""
    dry_run: bool = False
    """Check the whole setup with two optimizer steps and a small evaluation, and leave no files behind.
    Each task is evaluated on its first 32 people, or with --boxes on the first 32 images."""

    def __post_init__(self) -> None:
        for name in ("train", "val"):
            files, folders = getattr(self, name), getattr(self, f"{name}_images")
            if len(folders) not in (1, len(files)) and files:
                raise ValueError(
                    f"got {len(files)} files in --{name} and {len(folders)} folders in --{name}-images, "
                    f"expected one folder for all files or one per file"
                )
            if files and len(self.tasks) not in (1, len(files)):
                raise ValueError(
                    f"got {len(files)} files in --{name} and {len(self.tasks)} tasks, "
                    f"expected one file per task, or a single task"
                )
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"got tasks={self.tasks}, expected at least one task and no duplicates")
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
            raise ValueError(
                f"got val_tasks={self.val_tasks}, expected at least one task and no duplicates; "
                f"leave it out to evaluate all tasks"
            )
        if self.seed >= 2**32:
            raise ValueError(f"got seed={self.seed}, expected less than 2**32")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"got ema={self.ema}, expected a decay between 0 and 1, such as 0.9999")
        if self.blur_kernel < 1 or self.blur_kernel % 2 == 0:
            raise ValueError(f"got blur_kernel={self.blur_kernel}, expected an odd number")
        if self.micro_batch is not None and self.micro_batch > self.batch_size:
            raise ValueError(f"got micro_batch={self.micro_batch}, more than batch_size={self.batch_size}")
        if self.resume and self.overwrite:
            raise ValueError(
                "got --resume and --overwrite: --resume continues the run in --out, --overwrite replaces it; choose one"
            )
        if self.boxes is not None and len(self.val) > 1 and len(self.tasks) == 1:
            raise ValueError(f"got --boxes and {len(self.val)} files in --val, expected a single file with --boxes")

    def data_sets(self) -> list[DataSet]:
        """Return the data sets of `tasks`, in order. Their keypoint sets have the codec of this run.

        Raises:
            ValueError: an unknown task (the message lists the valid ones), or an invalid .json file.
        """
        found = [data_set(task) for task in self.tasks]
        if self.codec == "official":
            return found
        return [
            dataclasses.replace(d, keypoint_set=dataclasses.replace(d.keypoint_set, codec=self.codec)) for d in found
        ]

    def model_config(self) -> ModelConfig:
        """Return the model configuration of this run.

        Raises:
            ValueError: an unknown model preset or task, or a model option that is out of range or contradicts another.
        """
        same_names = ["decoder", "image_size", "patch_stride", "attention", "window", "experts"]
        same_names += ["freeze_attn", "freeze_ffn", "frozen_stages"]
        options: dict[str, Any] = {name: getattr(self, name) for name in same_names}
        options |= {n: v for n in ("drop_path", "part_features") if (v := getattr(self, n)) is not None}
        return preset(self.model, tuple(d.keypoint_set for d in self.data_sets()), **options)

    def sources(self, name: Literal["train", "val"]) -> list[Source]:
        """Return what to train on ("train") or to evaluate on ("val").

        These are the files given in the config. If none are given, they are the files of the data sets of `tasks` below
        the folder `data`; for "val", data sets without a validation split are skipped. If training files are given but
        no validation files, the list for "val" is empty: the run is not evaluated.

        Returns:
            (data set, annotation file, image folder) of each annotation file, in the order of `tasks` or, for "val", of
            `val_tasks` if set. Whether the files exist is not checked.

        Raises:
            ValueError: for "train", a data set of `tasks` is for evaluation only or has no training split; for "val",
                `val_tasks` names a task that is not in `tasks`.
        """
        files, folders, sets = getattr(self, name), getattr(self, f"{name}_images"), self.data_sets()
        only = next((d.name for d in sets if d.evaluation_only), None)
        if name == "train" and only:
            raise ValueError(
                f"{only} is for evaluation only (docs/numerics.md 6.3): train on coco, then evaluate the model on it"
            )
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
                raise ValueError(f"got {unknown[0]!r} in val_tasks, expected tasks of this run: {valid}")
            found = [s for task in self.val_tasks for s in found if s[0].name == task]
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as a dict that can be written as JSON: paths as strings, tuples as lists."""

        def plain(value: Any) -> Any:
            if isinstance(value, (tuple, list)):
                return [plain(v) for v in value]
            if isinstance(value, dict):
                return {k: plain(v) for k, v in value.items()}
            return str(value) if isinstance(value, Path) else value

        return plain(dataclasses.asdict(self))
