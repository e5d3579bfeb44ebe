"""Random inputs for the calls in `calls.py`; on the meta device, tensors without data."""

from __future__ import annotations

import torch
from torch import Tensor


class Draw:
    """Draws the inputs of calls from seeded random generators.

    Args:
        device: where the tensors are made, except for `boxes`. On the meta device they have shapes and dtypes only.
        dtype: dtype of tokens, weights and heatmaps.
        seed: seed of the random numbers.
    """

    def __init__(self, device: str | torch.device, dtype: torch.dtype, seed: int = 0) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self._noise = None if self.device.type == "meta" else torch.Generator(self.device).manual_seed(seed)
        self._boxes = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        """Draw from a normal distribution with mean 0 and standard deviation `scale`. Default dtype: `self.dtype`."""
        x = torch.randn(shape, generator=self._noise, device=self.device)
        return (x * scale).to(dtype or self.dtype)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw float32 uniformly from [low, high)."""
        return torch.rand(shape, generator=self._noise, device=self.device) * (high - low) + low

    def integers(self, *shape: int, high: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Draw integers uniformly from 0..high - 1."""
        return torch.randint(high, shape, generator=self._noise, device=self.device, dtype=dtype)

    def heatmaps(self, batch: int, keypoints: int, rows: int, columns: int) -> Tensor:
        """Draw heatmaps [batch, keypoints, rows, columns], each a Gaussian plus noise.

        The Gaussian has height 1, a standard deviation of 2 px and its center anywhere in the map. The noise is uniform
        in [0, 0.003).
        """
        x = self.uniform(batch, keypoints, 1, 1, high=columns - 1.0)
        y = self.uniform(batch, keypoints, 1, 1, high=rows - 1.0)
        across = torch.arange(float(columns), device=self.device)
        down = torch.arange(float(rows), device=self.device)
        maps = torch.exp(-((across - x) ** 2 + (down[:, None] - y) ** 2) / 8)
        return (maps + self.uniform(batch, keypoints, rows, columns, high=0.003)).to(self.dtype)

    def keypoints(self, count: int, height: int, width: int, *people: int) -> tuple[Tensor, Tensor]:
        """Draw keypoints [*people, count, 2] (x, y) in crop pixels and their visibility [*people, count], 0 or 1.

        `people` are any leading dimensions, for example (batch, people). Keypoints lie in the (height, width) crop or
        at most 8 px outside; about a fifth of all keypoints are not visible.
        """
        extent = torch.tensor([width + 16.0, height + 16.0]).to(self.device)
        points = self.uniform(*people, count, 2) * extent - 8
        return points, (self.uniform(*people, count) > 0.2).float()

    def boxes(self, count: int, height: int, width: int) -> Tensor:
        """Draw boxes [count, 4] (x, y, width, height) in pixels, float64, for a (height, width) image.

        Their centers are in the image; some boxes reach over its edge. The boxes are always on the CPU, where `crop`
        checks them, and hold data even if `self.device` is the meta device.
        """
        draws = torch.rand(count, 4, generator=self._boxes, dtype=torch.float64)
        sizes = torch.tensor([width, height], dtype=torch.float64)
        extent = sizes * (0.05 + 0.3 * draws[:, 2:])
        return torch.cat([draws[:, :2] * sizes - extent / 2, extent], 1)
