"""Partition of a token grid into (shifted) windows: the geometry of `attention`."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as nnF
from torch import Tensor


class Windows(NamedTuple):
    """A partition of a grid of tokens into windows of equal size.

    The grid is padded at the right and at the bottom to whole windows, rolled by (-shift) and cut. A slot is a position
    in a window; it holds a token or padding. Tokens, windows and the slots of a window are in row-major order.

    Letters in the shapes: B batch, N tokens, M windows, L slots per window, F features.

    Attributes:
        grid, window: (rows, columns) in tokens.
        shift: (rows, columns) by which the windows are shifted, 0 <= shift < window.
    """

    grid: tuple[int, int]
    window: tuple[int, int]
    shift: tuple[int, int]

    @property
    def windows(self) -> tuple[int, int]:
        """Number of windows along each axis, (rows, columns)."""
        return -(-self.grid[0] // self.window[0]), -(-self.grid[1] // self.window[1])

    @property
    def padded(self) -> tuple[int, int]:
        """Size of the grid after padding to whole windows, (rows, columns) in tokens."""
        return self.windows[0] * self.window[0], self.windows[1] * self.window[1]

    @property
    def is_whole(self) -> bool:
        """Whether there is one window, which holds the tokens of the grid in their order."""
        return self.window == self.grid and not any(self.shift)

    def unshifted(self) -> Windows:
        """Return the same partition without shift."""
        return self._replace(shift=(0, 0))

    def cut(self, x: Tensor) -> Tensor:
        """Cut tokens into windows, [B, N, F] -> [B, M, L, F]. Padding is zero."""
        if self.is_whole:
            return x.unsqueeze(1)
        (gy, gx), (py, px), (h, w), (my, mx) = self.grid, self.padded, self.window, self.windows
        x = x.reshape(x.shape[0], gy, gx, x.shape[-1])
        if (py, px) != (gy, gx):  # pad would copy a map that needs no padding
            x = nnF.pad(x, (0, 0, 0, px - gx, 0, py - gy))
        if any(self.shift):
            x = x.roll((-self.shift[0], -self.shift[1]), (1, 2))
        x = x.reshape(x.shape[0], my, h, mx, w, x.shape[-1]).transpose(2, 3)
        return x.reshape(x.shape[0], my * mx, h * w, x.shape[-1])

    def join(self, x: Tensor) -> Tensor:
        """Join windows to tokens, [B, M, L, F] -> [B, N, F], without padding. Undoes `cut`, and is its adjoint."""
        if self.is_whole:
            return x.squeeze(1)
        (gy, gx), (py, px), (h, w), (my, mx) = self.grid, self.padded, self.window, self.windows
        x = x.reshape(x.shape[0], my, mx, h, w, x.shape[-1]).transpose(2, 3)
        x = x.reshape(x.shape[0], py, px, x.shape[-1])
        if any(self.shift):
            x = x.roll(self.shift, (1, 2))
        return x[:, :gy, :gx].reshape(x.shape[0], gy * gx, x.shape[-1])

    def is_token(self, device: torch.device) -> Tensor:
        """Return which slots hold a token rather than padding, bool [M, L]."""
        return self.cut(torch.ones(1, self.grid[0] * self.grid[1], 1, device=device))[0, :, :, 0] > 0

    def visible(self, device: torch.device) -> Tensor | None:
        """Return which query slots attend to which key slots, bool [M, 1, L (query), L (key)]; None if all do.

        Hidden are padding and, with a shift, keys that share the query's window only because the roll wraps around. No
        slot is hidden from itself.
        """
        mask = self.is_token(device)[:, None, :] if self.padded != self.grid else None
        if any(self.shift):
            py, px = self.padded
            wrapped_y = torch.arange(py, device=device) + self.shift[0] >= py
            wrapped_x = torch.arange(px, device=device) + self.shift[1] >= px
            region = (2 * wrapped_y[:, None] + wrapped_x[None, :]).reshape(1, py * px, 1).float()
            region = Windows(self.padded, self.window, (0, 0)).cut(region)[0, :, :, 0]
            same = region[:, :, None] == region[:, None, :]
            mask = same if mask is None else mask & same
        # Every slot attends to itself, so that padded queries, which are dropped later, do not give NaN.
        return None if mask is None else (mask | torch.eye(mask.shape[-1], dtype=torch.bool, device=device))[:, None]
