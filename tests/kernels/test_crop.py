"""Tests of crops, against OpenCV 4.11 (bit for bit), grid_sample and the golden matrices of docs/numerics.md 12.1."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch

from vitpose_fast import functional as F
from vitpose_kernels.boxes import box_to_center_scale, warp_matrix
from vitpose_kernels.crop import crop_reference

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

BOX_A, BOX_B = (412.8, 157.61, 53.05, 138.01), (10.0, 20.0, 200.0, 100.0)


def picture(height=90, width=120, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height)) // 2 + rng.integers(0, 128, (height, width, 3), dtype=np.uint8)


def normalized(crops: np.ndarray) -> torch.Tensor:
    """Normalize uint8 [P, H, W, 3] to float32 [P, 3, H, W] as the official pipeline does."""
    x = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]


def official_matrix(box, size, rotation, codec, padding=1.25):
    """Compute the matrix [2, 3] from image to crop like the official code, in numpy, with float32 where it has it.

    `box` is (x, y, width, height), `size` (H, W) of the crop, and `rotation` is in degrees.
    """
    height, width = size
    x, y, w, h = box
    center = np.array([x + w * 0.5, y + h * 0.5], dtype=np.float32)
    aspect = width / height
    if w > aspect * h:
        h = w / aspect
    elif w < aspect * h:
        w = h * aspect
    scale = np.array([w / 200.0, h / 200.0], dtype=np.float32) * np.float32(padding)
    if codec == "udp":
        theta = np.deg2rad(rotation)
        iw, ih = (center * np.float32(2.0)).astype(np.float64)
        tw, th = (scale * np.float32(200.0)).astype(np.float64)
        sx, sy = (width - 1) / tw, (height - 1) / th
        m = np.zeros((2, 3), dtype=np.float32)
        m[0, 0], m[0, 1] = math.cos(theta) * sx, -math.sin(theta) * sx
        m[0, 2] = sx * (-0.5 * iw * math.cos(theta) + 0.5 * ih * math.sin(theta) + 0.5 * tw)
        m[1, 0], m[1, 1] = math.sin(theta) * sy, math.cos(theta) * sy
        m[1, 2] = sy * (-0.5 * iw * math.sin(theta) - 0.5 * ih * math.cos(theta) + 0.5 * th)
        return m
    angle = np.pi * rotation / 180
    src_w = float(scale[0] * np.float32(200.0))
    src = np.zeros((3, 2), dtype=np.float32)
    dst = np.zeros((3, 2), dtype=np.float32)
    src[0] = center
    src[1] = center + np.array([-(src_w * -0.5) * math.sin(angle), src_w * -0.5 * math.cos(angle)])
    dst[0] = [width * 0.5, height * 0.5]
    dst[1] = [width * 0.5, height * 0.5 - width * 0.5]
    for p in (src, dst):
        d = p[0] - p[1]
        p[2] = p[1] + np.array([-d[1], d[0]], dtype=np.float32)
    return cv2.getAffineTransform(src, dst)


@pytest.mark.parametrize(
    ("box", "center", "scale", "flat", "turned"),
    [
        (
            BOX_A,
            (439.325, 226.615),
            (0.6469219, 0.86256254),
            [[1.47622156, 0, -553.041077], [0, 1.47815371, -207.471802]],
            [[1.27844536, -0.738110781, -298.886047], [0.739076853, 1.28011858, -487.289032]],
        ),
        (
            BOX_B,
            (110, 70),
            (1.25, 1.6666667),
            [[0.764, 0, 11.46], [0, 0.765, 73.95]],
            [[0.661643386, -0.382, 49.4592247], [0.3825, 0.662509441, 39.0493431]],
        ),
    ],
)
def test_golden_matrices(box, center, scale, flat, turned):
    c, s = box_to_center_scale(torch.tensor([box], dtype=torch.float64), (256, 192))
    assert c[0].tolist() == pytest.approx(center, abs=1e-4)
    assert (s[0] / 200).tolist() == pytest.approx(scale, abs=1e-7)
    for rotation, expected in ((None, flat), (torch.tensor([30.0]), turned)):
        np.testing.assert_allclose(warp_matrix(c, s, rotation, (256, 192))[0], expected, atol=1e-4)


def random_boxes(n, seed=0, width=120, height=90):
    rng = np.random.default_rng(seed)
    boxes = np.stack(
        [rng.uniform(-30, width, n), rng.uniform(-30, height, n), rng.uniform(3, 150, n), rng.uniform(3, 150, n)], 1
    )
    return boxes, rng.uniform(-80, 80, n)


@pytest.mark.parametrize("codec", ["udp", "msra"])
@pytest.mark.parametrize("turned", [False, True])
def test_exact_cv4_is_opencv_bit_for_bit(codec, turned):
    image, size = picture(), (128, 96)
    boxes, rotation = random_boxes(40)
    angles = torch.from_numpy(rotation if turned else rotation * 0)
    expected = np.stack(
        [
            cv2.warpAffine(image, official_matrix(b, size, r, codec), (size[1], size[0]), flags=cv2.INTER_LINEAR)
            for b, r in zip(boxes, angles.tolist(), strict=True)
        ]
    )
    given = angles if turned else None
    got = F.crop(torch.from_numpy(image), torch.from_numpy(boxes), size, "exact-cv4", given, codec=codec)
    assert torch.equal(got, normalized(expected))


@pytest.mark.parametrize("codec", ["udp", "msra"])
def test_exact_cv4_on_the_sample_photos(samples, codec):
    boxes = np.array([BOX_A, BOX_B, (100.5, 80.25, 90, 200), (-40, -30, 300, 300), (400, 300, 500, 500)])
    rotation = np.array([0.0, 30.0, -45.5, 17.0, 80.0])
    photos = sorted((samples / "coco").glob("*.jpg"))
    assert len(photos) == 4
    for path in photos:
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        expected = np.stack(
            [
                cv2.warpAffine(image, official_matrix(b, (256, 192), r, codec), (192, 256), flags=cv2.INTER_LINEAR)
                for b, r in zip(boxes, rotation, strict=True)
            ]
        )
        got = F.crop(
            torch.from_numpy(image),
            torch.from_numpy(boxes),
            sampling="exact-cv4",
            codec=codec,
            rotation=torch.from_numpy(rotation),
        )
        assert torch.equal(got, normalized(expected)), path.name


def test_float_is_grid_sample():
    image, size = torch.from_numpy(picture()), (64, 48)
    boxes, rotation = (torch.from_numpy(a) for a in random_boxes(20, seed=1))
    center, scale = box_to_center_scale(boxes, size)
    matrix = warp_matrix(center, scale, rotation, size)
    square = torch.cat([matrix, torch.tensor([0.0, 0, 1]).double().expand(20, 1, 3)], 1).inverse()
    ys, xs = torch.meshgrid(torch.arange(64.0).double(), torch.arange(48.0).double(), indexing="ij")
    source = torch.einsum("pij,hwj->phwi", square, torch.stack([xs, ys, torch.ones_like(xs)], -1))[..., :2]
    grid = source / torch.tensor([119.0, 89.0]) * 2 - 1
    pixels = image.permute(2, 0, 1).double()[None].expand(20, -1, -1, -1)
    sampled = torch.nn.functional.grid_sample(pixels, grid, padding_mode="zeros", align_corners=True)
    expected = normalized(np.zeros((1, 1, 1, 3), np.uint8)).double()
    std = torch.tensor(IMAGENET_STD).double()[:, None, None]
    expected = sampled / 255 / std + expected
    torch.testing.assert_close(F.crop(image, boxes, size, rotation=rotation).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampling", ["float", "exact-cv4"])
@pytest.mark.parametrize("codec", ["udp", "msra"])
def test_no_rotation_is_a_rotation_by_zero(sampling, codec):
    image, (boxes, _) = torch.from_numpy(picture()), random_boxes(20, seed=2)
    options = dict(size=(64, 48), sampling=sampling, codec=codec, flip=torch.arange(20) % 2 == 0)
    upright = F.crop(image, torch.from_numpy(boxes), **options)
    turned = F.crop(image, torch.from_numpy(boxes), rotation=torch.zeros(20), **options)
    assert torch.equal(upright, turned)


@pytest.mark.parametrize("sampling", ["float", "exact-cv4"])
def test_identity_box_is_the_image(sampling):
    image = picture(64, 48)
    box = torch.tensor([[0.0, 0.0, 47.0, 63.0]])
    got = F.crop(torch.from_numpy(image), box, (64, 48), sampling, padding=1.0, fix_aspect=False)
    torch.testing.assert_close(got, normalized(image[None]), rtol=0, atol=1e-3 if sampling == "float" else 0)


def test_flip_mirrors_single_crops_only():
    image = torch.from_numpy(picture())
    boxes, rotation = (torch.from_numpy(a) for a in random_boxes(3))
    plain = F.crop(image, boxes, (64, 48), rotation=rotation)
    mixed = F.crop(image, boxes, (64, 48), rotation=rotation, flip=torch.tensor([True, False, True]))
    assert torch.equal(mixed[[0, 2]], plain[[0, 2]].flip(-1)) and torch.equal(mixed[1], plain[1])


def test_twins_are_the_mirrored_crops():
    image, (boxes, rotation) = torch.from_numpy(picture()), (torch.from_numpy(a) for a in random_boxes(3))
    flip = torch.tensor([True, False, True])
    plain = F.crop(image, boxes, (64, 48), rotation=rotation, flip=flip)
    both = F.crop(image, boxes, (64, 48), rotation=rotation, flip=flip, twin=True)
    assert torch.equal(both, torch.cat([plain, plain.flip(-1)]))


def test_many_images_equal_one_at_a_time():
    images = [torch.from_numpy(picture(50 + 10 * i, 70 - 5 * i, seed=i)) for i in range(3)]
    boxes, _ = random_boxes(7, width=60, height=60)
    index = torch.tensor([2, 0, 1, 1, 0, 2, 2])
    together = F.crop(images, torch.from_numpy(boxes), (32, 24), image_index=index)
    for i in range(7):
        assert torch.equal(together[i], F.crop(images[index[i]], torch.from_numpy(boxes[i : i + 1]), (32, 24))[0])


def test_box_outside_the_image_is_black_and_no_boxes_give_no_crops():
    image = torch.from_numpy(picture())
    outside = F.crop(image, torch.tensor([[500.0, 500, 20, 20]]), (32, 24))
    assert torch.equal(outside, normalized(np.zeros((1, 32, 24, 3), np.uint8)))
    assert F.crop(image, torch.zeros(0, 4), (32, 24), dtype=torch.bfloat16).shape == (0, 3, 32, 24)


def test_opcheck():
    images = [torch.from_numpy(picture(20, 30)), torch.from_numpy(picture(10, 12))]
    boxes = torch.tensor([[1.0, 2, 8, 9], [3, 3, 4, 4]])
    matrices = warp_matrix(*box_to_center_scale(boxes, (16, 12)), None, (16, 12))
    for exact in (False, True):
        which, flip = torch.tensor([1, 0]), torch.tensor([True, False])
        args = (images, which, matrices, [16, 12], flip, True, exact, torch.float32, exact, False)
        assert set(torch.library.opcheck(torch.ops.vitpose_fast.crop, args).values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (torch.zeros(8, 8, 3), {}, "image 0 is torch.float32"),
        (torch.zeros(8, 8, 4, dtype=torch.uint8), {}, r"\[8, 8, 4\], expected torch.uint8 \[height, width, 3\]"),
        (torch.zeros(8, 8, dtype=torch.uint8), {}, r"expected torch.uint8 \[height, width, 3\]"),
        ([], {}, "empty list of images"),
        (None, dict(boxes=torch.tensor([[0.0, 0, 5, 5], [1, 1, -2, 3]])), r"box 1 is \[1.0, 1.0, -2.0, 3.0\]"),
        (None, dict(boxes=torch.tensor([[0.0, 0, 5, math.nan]])), "box 0 is .*nan"),
        (None, dict(boxes=torch.zeros(4)), r"expected \[P, 4\]"),
        (None, dict(sampling="cubic"), "expected 'float' or 'exact-cv4'"),
        (None, dict(codec="argmax"), "expected 'udp' or 'msra'"),
        (None, dict(rotation=torch.zeros(3)), r"rotation has shape \[3\], expected a tensor of shape \[1\]"),
        (None, dict(rotation=30), "rotation has type int"),
        (None, dict(size=(1, 1)), "expected .rows, columns. >= 2"),
        (None, dict(boxes=torch.tensor([[0.0, 0, 1e30, 5]])), "box 0 is"),
        ([[[1]]], {}, "image 0 is a list, expected a torch.Tensor"),
        (None, dict(dtype=torch.uint8), "got dtype=torch.uint8, expected a floating dtype"),
        (None, dict(image_index=torch.tensor([1])), "image_index has values outside 0..0"),
    ],
)
def test_refuses_in_one_line(image, options, message):
    image = torch.zeros(8, 8, 3, dtype=torch.uint8) if image is None else image
    with pytest.raises(ValueError, match=message) as error:
        F.crop(image, **{"boxes": torch.tensor([[0.0, 0, 5, 5]]), **options})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("sampling", ["float", "exact-cv4"])
@pytest.mark.parametrize("codec", ["udp", "msra"])
def test_upright_crops_on_the_cpu_equal_the_reference_bit_for_bit(sampling, codec):
    """They interpolate along y, then x, crop by crop; the reference adds up four taps, for all crops at once."""
    images = [torch.from_numpy(picture(seed=i, height=90 + 7 * i)) for i in range(3)]
    images[1] = images[1].transpose(0, 1)  # any strides
    boxes = torch.tensor([BOX_B, (-30.0, 50, 60, 90), (90.0, 80, 70, 40), (3.3, 4.4, 5.5, 6.6), (300.0, 10, 20, 30)])
    index, flip = torch.tensor([0, 2, 1, 0, 1]), torch.tensor([True, False, True, False, False])
    size = (64, 48)
    center, scale = box_to_center_scale(boxes, size)
    matrices = warp_matrix(center, scale, None, size, codec)
    for mirror in (None, flip):
        ours = F.crop(images, boxes, size, sampling, flip=mirror, codec=codec, image_index=index, twin=True)
        expected = crop_reference(
            images, index, matrices, size, mirror, True, sampling == "exact-cv4", torch.float32, True
        )
        assert torch.equal(ours, expected)
    assert ours[:4].flatten(1).std(1).min() > 0.1


def test_only_cpu_tensors_take_the_cpu_path(monkeypatch):
    """With VITPOSE_FAST_DEBUG=1 values on a GPU may be read too; the meta device stands for it here."""
    monkeypatch.setattr("vitpose_kernels.crop.may_look_at_values", lambda x: x.dtype == torch.float64)  # the matrices
    image = torch.zeros(20, 30, 3, dtype=torch.uint8, device="meta")
    out = F.crop([image], torch.tensor([[2.0, 3.0, 9.0, 12.0]]), (16, 12), impl="reference")
    assert out.device.type == "meta" and out.shape == (1, 3, 16, 12)
