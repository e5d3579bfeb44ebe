"""Images in: files, PIL images, arrays and tensors to uint8 [h, w, 3] RGB tensors, or one clear line why not."""

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
except ImportError:  # in the extra [train]
    simplejpeg = None

log = logging.getLogger("vitpose_fast")

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def read_image(path: str | os.PathLike) -> Tensor:
    """Decode a file: uint8 [h, w, 3] RGB, EXIF orientation applied.

    JPEG files are decoded by simplejpeg where it is installed, which notices damage that Pillow shows as wrong pixels;
    what it refuses is logged and tried by Pillow.

    Raises:
        ValueError: missing, not an image, truncated, too many pixels (refused from the header), or not 8 bit; one line.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such image file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:  # reads the header only
                strict = _decode_strictly(path) if image.format == "JPEG" and not _turned(image) else None
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


def _turned(image: Image.Image) -> bool:
    """Whether EXIF says that the picture is to be turned or mirrored."""
    return image.getexif().get(ExifTags.Base.Orientation, 1) != 1


def _decode_strictly(path: Path) -> Tensor | None:
    """A JPEG file by simplejpeg; None where that is not installed, or refuses the file (logged)."""
    if simplejpeg is None:
        return None
    try:
        return torch.from_numpy(simplejpeg.decode_jpeg(path.read_bytes(), strict=True))
    except ValueError as error:
        log.warning("%s: simplejpeg refuses it (%s); decoded by Pillow", path, " ".join(str(error).split()))
        return None


def from_pil(image: Image.Image) -> Tensor:
    """PIL image as it stands (paths honour EXIF, PIL images are the caller's) to uint8 [h, w, 3] RGB.

    Raises:
        ValueError: 16 or 32 bits per channel, which a conversion to 8 bits would clip silently.
    """
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"image has mode {image.mode}, expected 8 bits per channel; convert it first")
    return torch.from_numpy(np.array(image.convert("RGB")))


def as_image(image: Any) -> Tensor:
    """A path, PIL image, uint8 [h, w, 3] RGB array or tensor (CPU or CUDA) to a uint8 [h, w, 3] tensor.

    Raises:
        ValueError: anything else, saying what was given.
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
    """Decode images, one at a time: (index, pixels uint8 [h, w, 3], the rows whose `bbox` meets the image or None).

    Images that cannot be read and boxes outside of theirs are left out and named in `problems`.
    """
    for index, (path, rows) in enumerate(wanted):
        try:
            pixels = read_image(path)
        except (ValueError, OSError) as error:  # OSError: a name too long, a folder that may not be searched
            problems.append(str(error))
            continue
        if rows:
            height, width = pixels.shape[:2]
            boxes = torch.tensor([row["bbox"] for row in rows], dtype=torch.float64)
            outside = boxes_outside(boxes, (height, width)).tolist()
            lost = [row["bbox"] for row, out in zip(rows, outside) if out]
            problems += [f"{path}: box {shown(list(box))} lies outside the {width}x{height} image" for box in lost]
            rows = [row for row, out in zip(rows, outside) if not out]
        yield index, pixels, rows
