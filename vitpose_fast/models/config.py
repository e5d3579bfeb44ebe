"""The options that define a ViTPose model (`ModelConfig`), and the presets of the published sizes.

Source: docs/numerics.md 1.1.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from vitpose_fast.keypoints import KeypointSet, keypoint_set
from vitpose_kernels.sizes import SIZES, part_features

DECODERS = ("classic", "classic-fp", "simple", "minimal")
EXPERTS = ("none", "instead", "added")
ATTENTION = ("full", "window", "window+shift", "window+pool", "window+shift+pool", "window+full")
# Tasks of the released ViTPose++ checkpoints, in the order of their experts.
PLUS_TASKS = ("coco", "aic", "mpii", "ap10k", "apt36k", "wholebody")  # docs/numerics.md 1.4


@dataclass(frozen=True)
class ModelConfig:
    """All options of one model, checked and immutable.

    Sizes in pixels are (height, width). `tasks` are the keypoint sets of the tasks that the backbone was made for, at
    least one; their order defines the task ids (from 0) and the order of the experts. `head_tasks` are the names of the
    tasks that have a head.

    Raises:
        ValueError: If an option is out of range, `tasks` is empty or contains a name twice, or two options contradict
            each other; one line.
    """

    width: int = 192  # C, the channels of a token
    depth: int = 4  # number of blocks
    num_heads: int = 3  # attention heads
    part_features: int = 0  # output channels of each expert in the split FFN of ViTPose++; 0 means a dense FFN
    # A whole FFN per task (ViTPose++ paper, Table 11): "instead" of the shared FFN (I-FFN) or "added" to it (IS-FFN).
    experts: str = "none"
    ffn_ratio: int = 4  # hidden channels / width of a dense FFN; 8 after merging the two FFNs of an IS-FFN
    decoder: str = "classic"  # one of DECODERS
    decoder_width: int = 256  # channels of the deconvolutions
    image_size: tuple[int, int] = (256, 192)
    patch_stride: int = 16  # 16, or 8 for features at 1/8 of the resolution (heatmaps stay at 1/4)
    tasks: tuple[KeypointSet, ...] = ()
    head_tasks: tuple[str, ...] = ()  # empty means all tasks
    drop_path: float = 0.0  # rate of the last block; rates rise linearly from 0 in the first
    attention: str = "full"  # one of ATTENTION, the variants of the ViTPose++ paper, Table 7
    window: tuple[int, int] = (8, 8)  # (rows, columns) in tokens; unused by "full"
    rel_pos: bool | None = None  # decomposed relative position; None means with windows only, as in the paper
    layer_norm_eps: float = 1e-6
    freeze_attn: bool = False  # freeze attention and norm1 of every block
    freeze_ffn: bool = False  # freeze position and patch embedding, and FFN and norm2 of every block
    # s >= 0 freezes the patch embedding and blocks 1 to s, but not block 0, as the official code does (docs/numerics.md
    # 1.5). -1 freezes nothing.
    frozen_stages: int = -1

    def __post_init__(self) -> None:
        if not self.head_tasks:
            object.__setattr__(self, "head_tasks", tuple(t.name for t in self.tasks))
        names = [t.name for t in self.tasks]
        self._check(bool(names), "needs at least one task")
        self._check(len(set(names)) == len(names), f"tasks {names} contain one task twice")
        self._check(set(self.head_tasks) <= set(names), f"head_tasks {self.head_tasks} are not all in tasks {names}")
        self._check(self.decoder in DECODERS, f"decoder {self.decoder!r}, expected one of {', '.join(DECODERS)}")
        self._check(
            self.attention in ATTENTION, f"attention {self.attention!r}, expected one of {', '.join(ATTENTION)}"
        )
        for name in ("width", "depth", "num_heads", "ffn_ratio", "decoder_width"):
            self._check(getattr(self, name) >= 1, f"{name} {getattr(self, name)}, expected at least 1")
        self._check(
            self.width % self.num_heads == 0, f"width {self.width} is not a multiple of num_heads {self.num_heads}"
        )
        self._check(0 <= self.drop_path < 1, f"drop_path {self.drop_path}, expected 0 <= rate < 1")
        self._check(
            0 <= self.part_features < self.width, f"part_features {self.part_features}, expected 0..{self.width - 1}"
        )
        self._check(self.experts in EXPERTS, f"experts {self.experts!r}, expected one of {', '.join(EXPERTS)}")
        self._check(
            self.experts == "none" or not self.part_features,
            f"experts {self.experts!r} and part_features {self.part_features} exclude each other; choose one",
        )
        self._check(
            self.ffn_ratio == 4 or not self.has_experts,
            f"ffn_ratio {self.ffn_ratio}, expected 4 in models with experts",
        )
        self._check(self.patch_stride in (8, 16), f"patch_stride {self.patch_stride}, expected 16 or 8")
        sizes = len(self.image_size) == 2 and all(isinstance(s, int) and 16 <= s <= 4096 for s in self.image_size)
        self._check(sizes, f"image_size {self.image_size}, expected (height, width) of 16 to 4096")
        stages = f"frozen_stages {self.frozen_stages}, expected -1 (none) to {self.depth - 1}"
        self._check(-1 <= self.frozen_stages < self.depth, stages)
        if self.attention != "full":
            fits = all(1 <= w <= g for w, g in zip(self.window, self.grid, strict=True))
            self._check(fits, f"window {self.window} does not fit the {self.grid[0]}x{self.grid[1]} grid of tokens")
        if self.attention == "window+full":
            self._check(self.depth % 4 == 0, f"attention 'window+full' needs a depth divisible by 4, got {self.depth}")

    @staticmethod
    def _check(condition: bool, message: str) -> None:
        if not condition:
            raise ValueError(f"model: {message}")

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the grid of tokens, the output size of the patch convolution (docs/numerics.md 1.2)."""
        rows, columns = ((s + 2 * self.patch_padding - 16) // self.patch_stride + 1 for s in self.image_size)
        return rows, columns

    @property
    def heatmap_size(self) -> tuple[int, int]:
        """(rows, columns) of the heatmaps: a quarter of the image size, if the patch stride divides the image size."""
        factor = self.patch_stride // 4
        return self.grid[0] * factor, self.grid[1] * factor

    @property
    def patch_padding(self) -> int:
        """Zero padding of the 16x16 patch convolution: 2 (not 0) at stride 16, 4 at stride 8 (docs/numerics.md 1.2)."""
        ratio = 16 // self.patch_stride
        return 4 + 2 * (ratio // 2 - 1)

    @property
    def has_experts(self) -> bool:
        """Whether the backbone has weights per task, so that its features depend on the task id."""
        return bool(self.part_features) or self.experts != "none"

    @property
    def has_rel_pos(self) -> bool:
        """Whether attention has a relative position, with the default of `rel_pos` resolved."""
        return self.attention != "full" if self.rel_pos is None else self.rel_pos

    def block_attention(self, block: int) -> dict[str, Any]:
        """Return the arguments `window`, `shift` and `pool` of `WindowAttention` for the block of this index (from 0).

        With "window+full" every block at the end of a quarter of the depth has full attention. With "shift" every
        second block, from block 1 on, has shifted windows. Source: ViTPose++ paper, Table 7.
        """
        full = self.attention == "full" or (self.attention == "window+full" and (block + 1) % (self.depth // 4) == 0)
        if full:
            return {"window": None, "shift": (0, 0), "pool": False}
        shifted = "shift" in self.attention and block % 2 == 1
        shift = (self.window[0] // 2, self.window[1] // 2) if shifted else (0, 0)
        return {"window": self.window, "shift": shift, "pool": "pool" in self.attention}

    def task(self, name: str) -> KeypointSet:
        """Return the keypoint set of the task called `name`.

        Raises:
            ValueError: If there is no such task; lists the valid ones.
        """
        for candidate in self.tasks:
            if candidate.name == name:
                return candidate
        raise ValueError(f"task {name!r} is not in this model; it has {', '.join(t.name for t in self.tasks)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the options as a dict that JSON can hold; keypoint sets are written out in full."""
        out = {f.name: getattr(self, f.name) for f in fields(self)}
        out["tasks"] = [t.to_dict() for t in self.tasks]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in out.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Build a config from the result of `to_dict`, also after a round trip through JSON.

        Fields that are missing get their defaults.

        Raises:
            ValueError: If this version does not know a field, a keypoint set in `tasks` is invalid, or as in the
                constructor.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        cls._check(not unknown, f"config has unknown fields {', '.join(unknown)}; was it written by a newer version?")
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        values["tasks"] = tuple(KeypointSet.from_dict(t) for t in values.get("tasks", ()))
        return cls(**values)


PRESETS = (*(f"vitpose-{size}" for size in SIZES), *(f"vitpose++-{size}" for size in SIZES))


def preset(name: str, tasks: tuple[str | KeypointSet, ...] = ("coco",), **overrides: Any) -> ModelConfig:
    """Return the config of a preset for the given tasks.

    In "vitpose++-*" presets each task has an expert with a quarter of the FFN's output channels.

    Args:
        name: one of `PRESETS`.
        tasks: keypoint sets, each as its name, the path of a JSON file, or a `KeypointSet`.
        overrides: other fields of `ModelConfig`, which replace the values of the preset.

    Raises:
        FileNotFoundError: If the JSON file of a keypoint set does not exist.
        ValueError: If the preset, a task or an override is unknown (lists the valid ones), or if options contradict
            each other.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; valid: {', '.join(PRESETS)}")
    family, size = name.rsplit("-", 1)
    unknown = sorted(set(overrides) - {f.name for f in fields(ModelConfig)})
    if unknown:
        valid = ", ".join(f.name for f in fields(ModelConfig))
        raise ValueError(f"unknown model option {', '.join(unknown)}; valid: {valid}")
    values: dict[str, Any] = SIZES[size]._asdict()
    del values["layer_decay"]  # an option of the optimizer, not of the model
    values |= {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()}
    if family == "vitpose++":
        values.setdefault("part_features", part_features(values["width"]))
    if isinstance(tasks, (str, KeypointSet)):
        tasks = (tasks,)
    return replace(ModelConfig(tasks=tuple(keypoint_set(t) for t in tasks)), **values)
