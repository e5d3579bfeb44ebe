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

    Pillow decodes the file, with one exception: simplejpeg, if it is installed, decodes JPEG files that EXIF does not
    rotate or mirror, because it detects damage that Pillow turns into wrong pixels. If simplejpeg rejects a file, this
    is logged, and Pillow decodes the file.

    Raises:
        ValueError: the file is missing, damaged, in none of `FORMATS`, has more than 8 bits per channel, or announces
            more than `PIL.Image.MAX_IMAGE_PIXELS` pixels in its header (checked before decoding). The message is one
            line.
        OSError: the operating system cannot look up the path, for instance because the name is too long.
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
    """Return whether the EXIF orientation of an image asks for a rotation or reflection."""
    return image.getexif().get(ExifTags.Base.Orientation, 1) != 1


def _decode_strictly(path: Path) -> Tensor | None:
    """Decode a JPEG file with simplejpeg to uint8 [h, w, 3] RGB; its EXIF orientation is ignored.

    Returns None if simplejpeg is not installed, or if it rejects the file (only the latter is logged).
    """
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
        ValueError: the mode of the image has 16 or 32 bits per channel ("I..." or "F"), which a conversion to 8 bits
            would clip silently.
    """
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"image has mode {image.mode}, expected 8 bits per channel; convert it first")
    return torch.from_numpy(np.array(image.convert("RGB")))


def as_image(image: Any) -> Tensor:
    """Convert a path, PIL image, or uint8 [h, w, 3] RGB array or tensor to a uint8 [h, w, 3] RGB tensor.

    A tensor is returned unchanged, on its device; the others give a tensor on the CPU.

    Raises:
        ValueError: the input is anything else or has no pixels, or the file or PIL image cannot be used (see
            `read_image`, `from_pil`). The message tells what was given and what is expected.
        OSError: as in `read_image`.
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

    Images that cannot be read, and boxes that lie completely outside their image, are skipped and reported in
    `problems`.

    Args:
        wanted: (path, rows) of each image. Each row has a `bbox` [x, y, width, height] in pixels of this image. Instead
            of rows, None means that no boxes are known.
        problems: list that messages are appended to.

    Yields:
        The index in `wanted` (from 0), the pixels uint8 [h, w, 3] RGB, and the rows whose box overlaps the image: an
        empty list if there are none, and None if the given rows are None.
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
