"""Reading images: what is accepted, and the one-line errors for everything else."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from vitpose_fast.images import as_image, open_images, read_image


def photo(height=12, width=16):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_file_pil_array_and_tensor_give_the_same_pixels(tmp_path):
    pixels = photo()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for given in (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        Image.fromarray(pixels),
        pixels,
        torch.from_numpy(pixels),
    ):
        assert torch.equal(as_image(given), torch.from_numpy(pixels))


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    Image.fromarray(photo()).save(tmp_path / "a.png", exif=exif)
    assert read_image(tmp_path / "a.png").shape == (16, 12, 3)
    with Image.open(tmp_path / "a.png") as image:  # the boxes of a PIL image refer to its stored pixels
        assert as_image(image).shape == (12, 16, 3)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_other_8_bit_modes_become_rgb(mode):
    assert as_image(Image.fromarray(photo()).convert(mode)).shape == (12, 16, 3)


def bomb(width=30000, height=30000):
    """Return a PNG of a few hundred bytes whose header announces 900 million pixels by default."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 90001))
        + chunk(b"IEND", b"")
    )


def test_errors_for_bad_files_are_one_line_with_the_file_name(tmp_path):
    Image.fromarray(photo(64, 64)).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    Image.fromarray(photo(64, 64)).save(tmp_path / "whole.png")
    cases = {
        "truncated.jpg": (whole[: len(whole) // 2], "damaged image"),
        "truncated.png": ((tmp_path / "whole.png").read_bytes()[:300], "damaged image"),
        "text.jpg": (b"this is not an image", "not an image, expected JPEG, PNG"),
        "empty.png": (b"", "not an image"),
        "bomb.png": (bomb(), "refused, its header announces more than"),
        "large.png": (bomb(10000, 10000), "refused, its header announces more than"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message) as error:
            read_image(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"missing\.jpg: no such image file"):
        read_image(tmp_path / "missing.jpg")
    with pytest.raises(ValueError, match="no such image file"):
        read_image(tmp_path)
    Image.fromarray((photo().astype(np.uint16) * 256)[..., 0]).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png: image has mode I;16, expected 8 bits per channel"):
        read_image(tmp_path / "deep.png")


def test_a_bomb_is_refused_without_decoding(tmp_path, monkeypatch):
    (tmp_path / "bomb.png").write_bytes(bomb())
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="refused"):
        read_image(tmp_path / "bomb.png")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (photo().astype(np.float32), r"an array of float32 \[12, 16, 3\], expected uint8 \[height, width, 3\] RGB"),
        (np.full((4, 4, 3), np.nan), "with NaN or infinite pixels, expected uint8"),
        (torch.full((4, 4, 3), float("inf")), "with NaN or infinite pixels, expected uint8"),
        (photo()[..., 0], r"uint8 \[12, 16\], expected"),
        (photo()[..., :1], r"uint8 \[12, 16, 1\], expected"),
        (np.zeros((4, 4, 4), np.uint8), r"uint8 \[4, 4, 4\], expected"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"torch.uint8 \[3, 8, 8\], expected"),
        (np.zeros((0, 4, 3), np.uint8), r"uint8 \[0, 4, 3\], expected"),
        (17, "image is of type int, expected a path"),
        (None, "image is of type NoneType, expected a path"),
    ],
)
def test_bad_arrays_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        as_image(image)


@pytest.mark.parametrize("installed", [True, False])
def test_jpeg_files_have_the_same_pixels_with_and_without_simplejpeg(tmp_path, monkeypatch, installed, caplog):
    pytest.importorskip("simplejpeg")
    if not installed:
        monkeypatch.setattr("vitpose_fast.images.simplejpeg", None)
    for mode in ("RGB", "L", "CMYK"):
        path = tmp_path / f"{mode}.jpg"
        Image.fromarray(photo(64, 48)).convert(mode).save(path, quality=90)
        with Image.open(path) as image:
            expected = np.array(image.convert("RGB")).astype(int)
        difference = np.abs(read_image(path).numpy().astype(int) - expected)
        assert difference.max() <= (1 if mode == "CMYK" else 0)
    rotated = tmp_path / "rotated.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo(64, 48)).save(rotated, exif=exif)
    with Image.open(rotated) as image:
        assert np.array_equal(read_image(rotated).numpy(), np.array(ImageOps.exif_transpose(image)))
    assert not caplog.text


def test_damage_that_pillow_misses_is_logged(tmp_path, caplog):
    """With zeros in the middle of the scan Pillow returns wrong pixels, while simplejpeg rejects the file."""
    pytest.importorskip("simplejpeg")
    path = tmp_path / "scratched.jpg"
    Image.fromarray(photo(256, 256)).save(path, quality=95)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(200)
    path.write_bytes(content)
    assert read_image(path).shape == (256, 256, 3)
    assert "scratched.jpg: simplejpeg rejects it (" in caplog.text and "decoded by Pillow" in caplog.text


def test_images_that_cannot_be_opened_are_reported(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"broken")
    problems: list[str] = []
    wanted = [(tmp_path / name, None) for name in ("broken.png", "gone.png", "x" * 300 + ".png")]
    assert list(open_images(wanted, problems)) == []
    assert len(problems) == 3 and all(w[0].name in p and "\n" not in p for w, p in zip(wanted, problems))
