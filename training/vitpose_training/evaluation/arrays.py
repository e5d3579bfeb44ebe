"""What the metrics share: arrays of what is given, and whether their shapes go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def as_array(values: Any, dtype: Any = float) -> np.ndarray:
    """An array of `dtype` (None: as given) of an array, a tensor of any device and precision, or nested lists."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()  # numpy has no bfloat16
    return np.asarray(values, dtype)


def check_shapes(what: str, arrays: Sequence[np.ndarray], fits: bool, expected: str) -> None:
    """Refuse arrays whose shapes do not go together.

    Args:
        what: their names, for the message. fits: whether their shapes are as `expected`, which the message says.

    Raises:
        ValueError: they do not fit; one line.
    """
    if not fits:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise ValueError(f"{what} have shapes {shapes}, expected {expected}")
