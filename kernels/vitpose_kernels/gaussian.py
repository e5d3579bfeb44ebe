"""Constants of the official sub-pixel refinement in `heatmap_decode`: an epsilon, and the taps of a Gaussian blur."""

from __future__ import annotations

import math

EPSILON = 1.1920929e-07  # float32 machine epsilon, added to the diagonal of the Hessian by the official code
_OPENCV_SMALL_KERNELS = {  # OpenCV uses these instead of its sigma formula
    1: (1.0,),
    3: (0.25, 0.5, 0.25),
    5: (0.0625, 0.25, 0.375, 0.25, 0.0625),
    7: (0.03125, 0.109375, 0.21875, 0.28125, 0.21875, 0.109375, 0.03125),
}


def gaussian_taps(size: int) -> list[float]:
    """Return the `size` taps (odd) of OpenCV's GaussianBlur with sigma=0. Their sum is 1 (docs/numerics.md 5.3).

    With sigma=0 OpenCV derives the taps from `size`: fixed taps up to size 7, a formula for sigma above. Size 11 means
    sigma 2.
    """
    if size in _OPENCV_SMALL_KERNELS:
        return list(_OPENCV_SMALL_KERNELS[size])
    sigma = 0.3 * ((size - 1) * 0.5 - 1) + 0.8
    taps = [math.exp(-((i - (size - 1) / 2) ** 2) / (2 * sigma**2)) for i in range(size)]
    return [tap / sum(taps) for tap in taps]
