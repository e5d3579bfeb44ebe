"""Crops, targets and decoding on the host in the style of mmpose: numpy and OpenCV, one map or person at a time."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from vitpose_kernels.boxes import box_to_center_scale, warp_matrix
from vitpose_kernels.normalization import IMAGENET_MEAN, IMAGENET_STD


def why_missing() -> str | None:
    """Return the reason why OpenCV cannot be used, or None if it can."""
    return None if find_spec("cv2") is not None else "opencv-python is not installed"


def mmpose_udp(maps: Tensor, centers: Tensor, scales: Tensor, kernel: int = 11) -> tuple[Tensor, Tensor]:
    """Decode heatmaps to keypoints float64 [B, K, 2] in image pixels and scores [B, K], the maxima of the maps.

    The steps are arg-max, an OpenCV blur of every map, a logarithm and one Newton step.

    Args:
        maps: float32 [B, K, h, w], on the CPU.
        centers, scales: [B, 2], centers and sizes of the crops in image pixels.
        kernel: size of the Gaussian blur, in cells of a map.
    """
    import cv2

    heatmaps = maps.numpy().copy()
    b, k, h, w = heatmaps.shape
    flat = heatmaps.reshape(b, k, -1)
    best, scores = flat.argmax(2), flat.max(2)
    points = np.stack([best % w, best // w], -1).astype(np.float64)
    for sample in heatmaps:
        for one in sample:
            cv2.GaussianBlur(one, (kernel, kernel), 0, one)
    log = np.log(np.clip(heatmaps, 0.001, 50))
    log = np.pad(log, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    sample, joint = np.arange(b)[:, None], np.arange(k)[None]
    x, y = best % w + 1, best // w + 1

    def at(dy: int, dx: int) -> np.ndarray:
        return log[sample, joint, y + dy, x + dx].astype(np.float64)

    dx, dy = (at(0, 1) - at(0, -1)) / 2, (at(1, 0) - at(-1, 0)) / 2
    dxx, dyy = at(0, 1) - 2 * at(0, 0) + at(0, -1), at(1, 0) - 2 * at(0, 0) + at(-1, 0)
    dxy = (at(1, 1) - at(0, 1) - at(1, 0) + 2 * at(0, 0) - at(0, -1) - at(-1, 0) + at(-1, -1)) / 2
    hessian = np.stack([np.stack([dxx, dxy], -1), np.stack([dxy, dyy], -1)], -2)
    hessian += np.finfo(np.float32).eps * np.eye(2)
    points -= np.linalg.solve(hessian, np.stack([dx, dy], -1)[..., None])[..., 0]
    size = scales.numpy()[:, None]
    points = points * size / np.array([w - 1, h - 1]) + centers.numpy()[:, None] - size / 2
    return torch.from_numpy(points), torch.from_numpy(scores)


def opencv_crop(image: Tensor, boxes: Tensor, size: tuple[int, int] = (256, 192)) -> Tensor:
    """Crop and normalize each person with `cv2.warpAffine`: uint8 [h, w, 3] -> [P, 3, H, W] on the image's device.

    `boxes` are [P, 4] (x, y, width, height) in pixels of the image, and `size` is (H, W).
    """
    import cv2

    pixels = image.cpu().numpy()
    matrices = warp_matrix(*box_to_center_scale(boxes, size), None, size).numpy()
    mean, std = (np.array(v, dtype=np.float32) for v in (IMAGENET_MEAN, IMAGENET_STD))
    out = []
    for matrix in matrices:
        one = cv2.warpAffine(pixels, matrix, (size[1], size[0]), flags=cv2.INTER_LINEAR)
        out.append(((one.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(out)).to(image.device)


def mmpose_target(
    points: Tensor, visible: Tensor, size: tuple[int, int] = (64, 48), sigma: float = 2.0
) -> tuple[Tensor, Tensor]:
    """Draw UDP Gaussians person by person; return heatmaps [B, K, h, w] and weights [B, K].

    A weight is the visibility, or 0 if the Gaussian's window misses the map. (As in the official code, a window that
    ends one cell before the first row or column does not count as missing it.) Maps with a weight of 0.5 or less stay
    0.

    Args:
        points: [B, K, 2] in pixels of a crop that is 4 times as large as a heatmap.
        visible: visibilities [B, K].
        size: (h, w) of a heatmap.
        sigma: standard deviation of the Gaussians in cells of a heatmap.
    """
    h, w = size
    stride = np.array([(4 * w - 1) / (w - 1), (4 * h - 1) / (h - 1)])
    radius = sigma * 3
    out = np.zeros((*points.shape[:2], h, w), dtype=np.float32)
    weights = visible.numpy().copy()
    axis = np.arange(0, 2 * radius + 1, dtype=np.float32)
    for i, person in enumerate(points.numpy()):
        for j, point in enumerate(person):
            exact = point / stride
            x, y = int(exact[0] + 0.5), int(exact[1] + 0.5)
            left, top = int(x - radius), int(y - radius)
            right, bottom = int(x + radius + 1), int(y + radius + 1)
            if left >= w or top >= h or right < 0 or bottom < 0:
                weights[i, j] = 0
            if weights[i, j] <= 0.5:
                continue
            dx, dy = axis[None] - (radius + exact[0] - x), axis[:, None] - (radius + exact[1] - y)
            bump = np.exp(-(dx**2 + dy**2) / (2 * sigma**2))
            rows, columns = slice(max(0, top), min(bottom, h)), slice(max(0, left), min(right, w))
            inside = bump[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
            out[i, j, rows, columns] = inside
    return torch.from_numpy(out), torch.from_numpy(weights)
