"""The sizes of the models: what the shapes that kernels ship for and the presets of the library follow from.

Source: ViTPose, Table 1 and section 4.1; "tiny" is ours, for tests and demonstrations.
"""

from __future__ import annotations

from typing import NamedTuple


class Size(NamedTuple):
    """One size of model: channels of a token, blocks, attention heads, drop-path rate, channels of its decoder."""

    width: int
    depth: int
    num_heads: int
    drop_path: float = 0.0
    decoder_width: int = 256


SIZES = {
    "tiny": Size(192, 4, 3, decoder_width=64),
    "s": Size(384, 12, 12, 0.1),
    "b": Size(768, 12, 12, 0.3),
    "l": Size(1024, 24, 16, 0.5),
    "h": Size(1280, 32, 16, 0.55),
}
PAPER = tuple(name for name in SIZES if name != "tiny")


def part_features(width: int) -> int:
    """Channels of each task's expert in ViTPose++: a quarter of the FFN's outputs."""
    return width // 4
