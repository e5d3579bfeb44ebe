"""Convert image files, PIL images, arrays and tensors to uint8 [h, w, 3] RGB tensors."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vitpose_fast.geometry import boxes_outside
from vitpose_fast.problems import shown
from vitpose_fast.rows import Row

try:
    import simplejpeg
except ImportError:  # optional; the extra [train] installs it
    simplejpeg = None

log = logging.getLogger("vitpose_fast")

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def read_image(path: str | os.PathLike) -> Tensor:
    """Decode an image file to uint8 [h, w, 3] RGB, with its EXIF orientation applied.

    If simplejpeg is installed it decodes JPEG files, because it detects damage that Pillow turns into wrong pixels.
    Files that it rejects are logged and decoded by Pillow, and so are JPEG files that EXIF rotates or mirrors (without
    a log message).

    Raises:
        ValueError: the file is missing, not an image, truncated, not 8 bits per channel, or has too many pixels (which
            its header tells, before decoding). The message is one line.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such image file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:  # reads the header only
                strict = _decode_strictly(path) if image.format == "JPEG" and not _is_rotated(image) else None
                return from_pil(ImageOps.exif_transpose(image)) if strict is None else strict
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = Image.MAX_IMAGE_PIXELS
        raise ValueError(f"{path}: refused, its header announces more than {limit:,} pixels") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path}: not an image, expected {', '.join(FORMATS)}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes the decoders raise OSError, SyntaxError, struct.error, ...
        raise ValueError(f"{path}: damaged image ({' '.join(str(error).split()) or type(error).__name__})") from None


def _is_rotated(image: Image.Image) -> bool:
    """Return whether the EXIF orientation asks for a rotation or reflection."""
    return image.getexif().get(ExifTags.Base.Orientation, 1) != 1


def _decode_strictly(path: Path) -> Tensor | None:
    """Decode a JPEG file with simplejpeg; return None if it is not installed or rejects the file, which is logged."""
    if simplejpeg is None:
        return None
    try:
        return torch.from_numpy(simplejpeg.decode_jpeg(path.read_bytes(), strict=True))
    except ValueError as error:
        log.warning("%s: simplejpeg rejects it (%s); decoded by Pillow", path, " ".join(str(error).split()))
        return None


def from_pil(image: Image.Image) -> Tensor:
    """Convert a PIL image to uint8 [h, w, 3] RGB. Its EXIF orientation is ignored, unlike in `read_image`.

    Raises:
        ValueError: the image has 16 or 32 bits per channel, which a conversion to 8 bits would clip silently.
    """
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"image has mode {image.mode}, expected 8 bits per channel; convert it first")
    return torch.from_numpy(np.array(image.convert("RGB")))


def as_image(image: Any) -> Tensor:
    """Convert a path, PIL image, or uint8 [h, w, 3] RGB array or tensor (CPU or CUDA) to a uint8 [h, w, 3] tensor.

    Raises:
        ValueError: the input is anything else; the message tells what was given and what is expected.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    if isinstance(image, Image.Image):
        return from_pil(image)
    if isinstance(image, np.ndarray):
        given = f"an array of {image.dtype} {list(image.shape)}"
        broken = np.issubdtype(image.dtype, np.floating) and not np.isfinite(image).all()
        image = torch.from_numpy(np.ascontiguousarray(image)) if image.dtype == np.uint8 else None
    elif isinstance(image, Tensor):
        given = f"a tensor of {image.dtype} {list(image.shape)}"
        broken = image.is_floating_point() and not bool(image.isfinite().all())
    else:
        raise ValueError(
            f"image is of type {type(image).__name__}, expected a path, PIL image, uint8 array or uint8 tensor"
        )
    if image is None or image.dtype != torch.uint8 or image.dim() != 3 or image.shape[2] != 3 or not image.numel():
        also = " with NaN or infinite pixels" if broken else ""
        raise ValueError(f"image is {given}{also}, expected uint8 [height, width, 3] RGB")
    return image


def open_images(
    wanted: Iterable[tuple[Path, list[Row] | None]], problems: list[str]
) -> Iterator[tuple[int, Tensor, list[Row] | None]]:
    """Decode images one at a time and yield (index, pixels, rows).

    Images that cannot be read, and boxes that lie outside their image, are skipped and reported in `problems`.

    Args:
        wanted: (path, rows) of each image; the rows have a `bbox` [x, y, width, height]. None: no boxes are known.
        problems: list that messages are appended to.

    Yields:
        The index in `wanted`, the pixels uint8 [h, w, 3], and the rows whose box overlaps the image (None for None).
    """
    for index, (path, rows) in enumerate(wanted):
        try:
            pixels = read_image(path)
        except (ValueError, OSError) as error:  # OSError: name too long, or folder not accessible
            problems.append(str(error))
            continue
        if rows:
            height, width = pixels.shape[:2]
            boxes = torch.tensor([row["bbox"] for row in rows], dtype=torch.float64)
            outside = boxes_outside(boxes, (height, width)).tolist()
            dropped = [row["bbox"] for row, out in zip(rows, outside) if out]
            problems += [f"{path}: box {shown(list(box))} lies outside the {width}x{height} image" for box in dropped]
            rows = [row for row, out in zip(rows, outside) if not out]
        yield index, pixels, rows
