"""The sizes of the models: what the presets of the library and the shapes that kernels ship for follow from.

Source: ViTPose, Table 1 and section 4.1; "tiny" is ours, for tests and demonstrations.
"""

from __future__ import annotations

from typing import NamedTuple


class Size(NamedTuple):
    """One size of model, with what Table 1 trains it with.

    Attributes:
        width: channels of a token. depth: blocks. decoder_width: channels of the deconvolutions.
        drop_path: rate of the last block. layer_decay: factor on the learning rate from a layer to the one before it.
    """

    width: int
    depth: int
    num_heads: int
    drop_path: float = 0.0
    layer_decay: float = 1.0
    decoder_width: int = 256


SIZES = {
    "tiny": Size(192, 4, 3, decoder_width=64),
    "s": Size(384, 12, 12, 0.1, 0.80),
    "b": Size(768, 12, 12, 0.3, 0.75),
    "l": Size(1024, 24, 16, 0.5, 0.80),
    "h": Size(1280, 32, 16, 0.55, 0.80),
}
PAPER = tuple(name for name in SIZES if name != "tiny")


def part_features(width: int) -> int:
    """Channels of each task's expert in ViTPose++: a quarter of the FFN's outputs."""
    return width // 4


class Model(NamedTuple):
    """What the shapes of a model's calls follow from.

    Attributes:
        grid: (rows, columns) of tokens at 1/16; at 1/8 and in heatmaps there are two and four times as many.
        variants: whether the variants of Table 7 (features at 1/8) are among its calls; the paper has them for B.
    """

    name: str
    width: int
    depth: int
    num_heads: int
    part_features: int
    batch: int = 64  # that of the paper's Table 12
    tasks: int = 6
    num_keypoints: int = 17
    whole_body: int = 133  # the most keypoints of a task
    decoder_width: int = 256
    grid: tuple[int, int] = (16, 12)
    window: tuple[int, int] = (8, 8)
    variants: bool = False


MODELS = {  # "S", "B", ...: the shapes that kernels ship for
    name.upper(): Model(name.upper(), *SIZES[name][:3], part_features(SIZES[name].width), variants=name == "b")
    for name in PAPER
}
# Nothing is a power of two or a multiple of a tile, rows do not start at multiples of 16 bytes, windows do not fit.
ODD = Model("odd", 76, 1, 2, 20, batch=3, tasks=3, num_keypoints=5, decoder_width=40, grid=(13, 11), window=(5, 3))
