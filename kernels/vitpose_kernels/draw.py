"""Random tensors for the calls in `calls`; on the meta device tensors without data."""

from __future__ import annotations

import torch
from torch import Tensor


class Draw:
    """Draws the inputs of calls from seeded generators.

    Args:
        device: where the tensors are made. On the meta device they have shapes and dtypes only.
        dtype: of the network's tensors (tokens, weights, heatmaps).
        seed: of the random numbers.
    """

    def __init__(self, device: str | torch.device, dtype: torch.dtype, seed: int = 0) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self._noise = None if self.device.type == "meta" else torch.Generator(self.device).manual_seed(seed)
        self._boxes = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        """Draw from a normal distribution with standard deviation `scale`. Default dtype: that of the network."""
        x = torch.randn(shape, generator=self._noise, device=self.device)
        return (x * scale).to(dtype or self.dtype)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw float32 uniformly from [low, high)."""
        return torch.rand(shape, generator=self._noise, device=self.device) * (high - low) + low

    def integers(self, *shape: int, high: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Draw integers uniformly from 0..high - 1."""
        return torch.randint(high, shape, generator=self._noise, device=self.device, dtype=dtype)

    def heatmaps(self, batch: int, keypoints: int, rows: int, columns: int) -> Tensor:
        """Draw heatmaps with one Gaussian peak each, anywhere in the map, and noise too small to move the peak."""
        x = self.uniform(batch, keypoints, 1, 1, high=columns - 1.0)
        y = self.uniform(batch, keypoints, 1, 1, high=rows - 1.0)
        across = torch.arange(float(columns), device=self.device)
        down = torch.arange(float(rows), device=self.device)
        maps = torch.exp(-((across - x) ** 2 + (down[:, None] - y) ** 2) / 8)
        return (maps + self.uniform(batch, keypoints, rows, columns, high=0.003)).to(self.dtype)

    def keypoints(self, count: int, height: int, width: int, *people: int) -> tuple[Tensor, Tensor]:
        """Draw keypoints [*people, count, 2] in crop pixels and their visibility [*people, count].

        Some keypoints lie up to 8 px outside the (height, width) crop; about a fifth of them are not visible (0).
        """
        extent = torch.tensor([width + 16.0, height + 16.0]).to(self.device)
        points = self.uniform(*people, count, 2) * extent - 8
        return points, (self.uniform(*people, count) > 0.2).float()

    def boxes(self, count: int, height: int, width: int) -> Tensor:
        """Draw (x, y, width, height) boxes, float64 [count, 4]; some reach over the edge of the (height, width) image.

        They are on the CPU, where `crop` checks boxes, whatever the device of the other tensors.
        """
        draws = torch.rand(count, 4, generator=self._boxes, dtype=torch.float64)
        sizes = torch.tensor([width, height], dtype=torch.float64)
        extent = sizes * (0.05 + 0.3 * draws[:, 2:])
        return torch.cat([draws[:, :2] * sizes - extent / 2, extent], 1)
