"""Helpers of the metrics: convert arguments to arrays and check their shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def as_array(values: Any, dtype: Any = float) -> np.ndarray:
    """Convert an array, a tensor on any device and of any precision, or nested lists to an array.

    Args:
        values: The values.
        dtype: The dtype of the result. Default: float64. None keeps the dtype of the values, except that bfloat16
            becomes float32.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()  # numpy has no bfloat16
    return np.asarray(values, dtype)


def check_shapes(what: str, arrays: Sequence[np.ndarray], fits: bool, expected: str) -> None:
    """Raise a ValueError that states the shapes of `arrays` and the expected ones, unless `fits` is true.

    Args:
        what: The names of the arrays, used in the message.
        arrays: The arrays.
        fits: Whether the shapes of the arrays are as expected.
        expected: The expected shapes, used in the message.
    """
    if not fits:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise ValueError(f"{what} have shapes {shapes}, expected {expected}")
