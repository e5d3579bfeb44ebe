"""Sizes of the models, for the presets of the library and for the shapes of the calls in `calls.py`.

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
        drop_path: drop path rate of the last block. The rate grows linearly from 0 in the first block.
        layer_decay: factor on the learning rate from each layer to the next one towards the input.
        decoder_width: output channels of each deconvolution in the classic head.
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
    """Return how many of the `width` output channels of an FFN a task's expert computes in ViTPose++: a quarter."""
    return width // 4


class Model(NamedTuple):
    """A model, as far as the shapes of its calls in `calls.py` depend on it.

    Attributes:
        width, depth, num_heads, decoder_width: as in `Size`.
        part_features: output channels of a task's expert.
        batch: crops in a call.
        tasks: number of tasks, each with an expert.
        num_keypoints: keypoints of most calls.
        whole_body: keypoints of the calls for the largest task.
        grid: (rows, columns) of tokens at 1/16 of the crop. Features at 1/8 have twice, heatmaps four times as many
            rows and columns.
        window: (rows, columns) of an attention window, in tokens.
        variants: whether there are also calls for the variants of Table 7 (features at 1/8), which the paper has for B.
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
# For checks: no number of channels, tokens or keypoints is a power of two or a multiple of a tile, 16-bit tokens are
# not aligned to 16 bytes, and windows do not divide the grid.
ODD = Model("odd", 76, 1, 2, 20, batch=3, tasks=3, num_keypoints=5, decoder_width=40, grid=(13, 11), window=(5, 3))
