"""Sizes of the models, from which the presets of the library and the shapes of `calls` are derived.

Source: ViTPose, Table 1 and section 4.1. "tiny" is an addition of this library, for tests and demonstrations.
"""

from __future__ import annotations

from typing import NamedTuple


class Size(NamedTuple):
    """One model size, with its training hyperparameters from Table 1.

    Attributes:
        width: channels of a token.
        depth: number of transformer blocks.
        num_heads: attention heads of a block.
        drop_path: drop path rate of the last block.
        layer_decay: factor on the learning rate from each layer to the one below it.
        decoder_width: channels of the deconvolutions.
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
    """Return the channels of each task's expert in ViTPose++: a quarter of the FFN's output channels."""
    return width // 4


class Model(NamedTuple):
    """The numbers that determine the shapes of a model's calls.

    Attributes:
        grid: (rows, columns) of tokens at 1/16 of the image. Features at 1/8 have twice, heatmaps four times as many
            rows and columns.
        window: (rows, columns) of an attention window, in tokens.
        variants: whether its calls include the variants of Table 7 (features at 1/8), which the paper has for B.
    """

    name: str
    width: int
    depth: int
    num_heads: int
    part_features: int
    batch: int = 64  # as in Table 12 of the paper
    tasks: int = 6
    num_keypoints: int = 17
    whole_body: int = 133  # keypoints of the largest task, COCO-WholeBody
    decoder_width: int = 256
    grid: tuple[int, int] = (16, 12)
    window: tuple[int, int] = (8, 8)
    variants: bool = False


MODELS = {  # "S", "B", "L" and "H", whose shapes the kernels are compiled and checked for
    name.upper(): Model(name.upper(), *SIZES[name][:3], part_features(SIZES[name].width), variants=name == "b")
    for name in PAPER
}
# No size is a power of two or a multiple of a tile, rows are not aligned to 16 bytes, windows do not divide the grid.
ODD = Model("odd", 76, 1, 2, 20, batch=3, tasks=3, num_keypoints=5, decoder_width=40, grid=(13, 11), window=(5, 3))
