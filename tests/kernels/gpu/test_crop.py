"""The Triton kernel of crop: bit for bit equal to the reference for "exact-cv4", close to float64 for "float"."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitpose_fast import functional as F
from vitpose_kernels.boxes import box_to_center_scale, warp_matrix
from vitpose_kernels.crop import _inverse

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(height, width, seed=0):
    """Random uint8 image [height, width, 3], so smooth that a small error of a coordinate changes values little."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 8, generator=g)
    return (torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0] * 255).byte().permute(1, 2, 0)


def boxes_around(p, seed=0, height=60, width=80):
    """Return (boxes, rotations, flips): boxes inside, across and beyond the edges; integer ones hit rounding ties."""
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(p, 2, generator=g, dtype=torch.float64) * torch.tensor([width + 30.0, height + 30.0]) - 30
    extent = torch.rand(p, 2, generator=g, dtype=torch.float64) * 90 + 3
    boxes = torch.cat([corner, extent], 1)
    boxes[::2] = boxes[::2].round()
    return boxes, torch.rand(p, generator=g) * 160 - 80, torch.rand(p, generator=g) < 0.5


def layouts(image):
    """Views of the same image with other strides: a slice of a frame, of an RGBA image, and a planar image."""
    height, width, _ = image.shape
    frame = torch.full((height + 4, width + 6, 3), 255, dtype=torch.uint8, device=image.device)
    frame[2:-2, 3:-3] = image
    rgba = torch.cat([image.new_full((height, width, 1), 255), image], -1)
    planar = image.permute(2, 0, 1).contiguous()
    return frame[2:-2, 3:-3], rgba[..., 1:], planar.permute(1, 2, 0)


@settings(max_examples=20)
@given(
    size=st.sampled_from([(32, 24), (9, 70), (41, 16), (2, 2)]),  # several strips, several column tiles, partial tiles
    p=st.integers(1, 3),
    num_images=st.integers(1, 3),
    codec=st.sampled_from(["udp", "msra"]),
    turned=st.booleans(),
    flipped=st.booleans(),
    twin=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_exact_cv4_is_the_reference_bit_for_bit(device, size, p, num_images, codec, turned, flipped, twin, seed):
    images = [picture(60 - 20 * i, 80 + 10 * i, seed + i) for i in range(num_images)]
    boxes, rotation, flip = boxes_around(p, seed)
    options = dict(size=size, sampling="exact-cv4", codec=codec, twin=twin, image_index=torch.arange(p) % num_images)
    options |= dict(rotation=rotation if turned else None, flip=flip if flipped else None)
    ours = F.crop([image.to(device) for image in images], boxes, impl="triton", **options)
    assert torch.equal(ours.cpu(), F.crop(images, boxes, impl="reference", **options))


def bilinear(image, boxes, size, rotation, flip):
    """Normalized crops by bilinear sampling with zero padding, entirely in float64."""
    inverse = _inverse(warp_matrix(*box_to_center_scale(boxes, size), rotation, size))
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in size)
    padded = torch.nn.functional.pad(image.permute(2, 0, 1).double(), (2, 2, 2, 2))
    crops = []
    for coefficients, mirrored in zip(inverse, flip.tolist(), strict=True):
        column, row = torch.meshgrid(columns.flip(0) if mirrored else columns, rows, indexing="xy")
        x, y = (c[0] * column + c[1] * row + c[2] for c in coefficients)
        x, y = x.clamp(-1, image.shape[1]), y.clamp(-1, image.shape[0])
        i, j = x.floor().long(), y.floor().long()
        taps = [padded[:, j + 2 + dy, i + 2 + dx] for dy in (0, 1) for dx in (0, 1)]
        fx, fy = x - i, y - j
        weights = [(1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx]
        crops.append(sum(tap * weight for tap, weight in zip(taps, weights, strict=True)))
    mean, std = (torch.tensor(v).double()[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (torch.stack(crops) / 255 - mean) / std


@settings(max_examples=15)
@given(size=st.sampled_from([(32, 24), (9, 70)]), turned=st.booleans(), seed=st.integers(0, 2**16))
def test_float_is_bilinear_in_float64(device, check_error_rule, size, turned, seed):
    image, (boxes, rotation, flip) = picture(60, 80, seed), boxes_around(2, seed)
    options = dict(size=size, rotation=rotation if turned else None, flip=flip)
    ours = F.crop(image.to(device), boxes, impl="triton", **options)
    plain = F.crop(image, boxes, impl="reference", **options)
    check_error_rule(ours, plain, bilinear(image, boxes, size, options["rotation"], flip))


def test_exact_cv4_rounds_ties_to_even(device):
    """Columns 1/2048 px apart: every second one lies halfway between two steps of 1/1024 px.

    How such a tie is rounded decides the coordinate in 1/32 px.
    """
    image = torch.tensor([0, 255], dtype=torch.uint8).view(1, 2, 1).expand(4, 2, 3)
    matrices = torch.tensor([[[2048.0, 0, -30], [0, 1, 0]]], dtype=torch.float64)  # first column at 15/1024 px
    arguments = (torch.zeros(1, dtype=torch.int64), matrices, [4, 16], None, True, True, torch.float32, False)
    expected = torch.ops.vitpose_fast.crop([image], *arguments, False)
    arguments = [x.to(device) if isinstance(x, torch.Tensor) else x for x in arguments]
    assert torch.equal(torch.ops.vitpose_fast.crop([image.to(device)], *arguments, True).cpu(), expected)
    assert expected[0, 0].unique().numel() == 2


@pytest.mark.parametrize("sampling", ["float", "exact-cv4"])
def test_other_dtypes_are_the_rounded_crop(device, dtype, sampling):
    image, (boxes, rotation, _) = picture(60, 80).to(device), boxes_around(2)
    options = dict(size=(20, 15), sampling=sampling, rotation=rotation, impl="triton")
    assert torch.equal(F.crop(image, boxes, dtype=dtype, **options), F.crop(image, boxes, **options).to(dtype))


@pytest.mark.parametrize("axis", [0, 1])
def test_coordinates_are_good_to_a_ten_thousandth_pixel_far_out(device, axis):
    """On a ramp of one level per pixel, 8000 pixels long, the sampled level is the coordinate."""
    ramp = (torch.arange(8000) % 256).byte()
    image = ramp[:, None, None].expand(8000, 40, 3) if axis == 0 else ramp[None, :, None].expand(40, 8000, 3)
    x, y = (20.0, 7810.3) if axis == 0 else (7810.3, 20.0)  # the ramp wraps at 7680 and 7936, outside of the crop
    box, size = torch.tensor([[x - 8.17, y - 8.17, 16.34, 16.34]], dtype=torch.float64), (24, 24)
    (a, b, c), (d, e, f) = _inverse(warp_matrix(*box_to_center_scale(box, size), None, size))[0]
    place = torch.arange(24.0).double()
    expected = (e * place + f)[:, None] if axis == 0 else (a * place + c)[None, :]
    red = F.crop(image.to(device), box, size, impl="triton")[0, 0].double().cpu()
    levels = (red * IMAGENET_STD[0] + IMAGENET_MEAN[0]) * 255
    assert (levels + 7680 - expected).abs().max() < 1e-4 and b == d == 0


@pytest.mark.parametrize("sampling", ["float", "exact-cv4"])
def test_invariants(device, poisoned, sampling):
    image, (boxes, rotation, flip) = picture(60, 80).to(device), boxes_around(4, seed=3)

    def crop(boxes, **options):
        return F.crop(image, boxes, (33, 20), sampling, impl="triton", **options)

    plain, turned = crop(boxes), crop(boxes, rotation=rotation)
    assert plain.isfinite().all()
    assert torch.equal(crop(boxes, rotation=torch.zeros(4)), plain), "a rotation by 0 equals no rotation"
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(crop(boxes[order], rotation=rotation[order]), turned[order.to(device)]), "boxes permute crops"
    mirrored = torch.where(flip.to(device)[:, None, None, None], turned.flip(-1), turned)
    assert torch.equal(crop(boxes, rotation=rotation, flip=flip), mirrored), "flip reverses the columns of its crops"
    twins = crop(boxes, rotation=rotation, flip=flip, twin=True)
    assert torch.equal(twins[:4], mirrored), "the first half equals the crops without twins"
    assert torch.equal(twins[4:], crop(boxes, rotation=rotation, flip=~flip)), "the second half is the flipped crops"


def test_the_identity_box_is_the_image(device):
    image = picture(64, 48)
    box = torch.tensor([[0.0, 0.0, 47.0, 63.0]])
    ours = F.crop(image.to(device), box, (64, 48), "exact-cv4", padding=1.0, fix_aspect=False, impl="triton")
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    assert torch.equal(ours[0].cpu(), (image.permute(2, 0, 1).float() / 255 - mean) / std)


@pytest.mark.parametrize("sampling", ["float", "exact-cv4"])
def test_strided_images_give_the_same_crops(device, sampling):
    image, (boxes, rotation, _) = picture(30, 40).to(device), boxes_around(3, seed=1, height=30, width=40)
    options = dict(size=(24, 18), sampling=sampling, rotation=rotation, impl="triton")
    expected = F.crop(image, boxes, **options)
    for other in layouts(image):
        assert not other.is_contiguous() and torch.equal(F.crop(other, boxes, **options), expected)
    index = torch.arange(3)
    many = F.crop([*layouts(image)], boxes, image_index=index, **options)
    assert torch.equal(many, expected), "other images of a batch do not show either"


class Traced(torch.Tensor):
    """A tensor subclass, treated like the tensors without an address that occur while tracing."""


def test_packed_images_give_the_same_crops(device):
    images = [picture(30 + 5 * i, 40 - 7 * i, i).to(device) for i in range(3)]
    boxes, _, _ = boxes_around(3, height=30, width=30)
    options = dict(size=(16, 12), image_index=torch.tensor([2, 0, 1]), impl="triton")
    packed = F.crop([image.as_subclass(Traced) for image in images], boxes, **options)
    assert torch.equal(packed.as_subclass(torch.Tensor), F.crop(images, boxes, **options))


def test_an_image_index_out_of_range_reads_the_nearest_image(device):
    """The public function rejects such an index only if it may read the values, which it does not do on CUDA."""
    images = [picture(20, 30, i).to(device) for i in range(2)]
    boxes = torch.tensor([[2.0, 3, 10, 12]] * 2)
    matrices = warp_matrix(*box_to_center_scale(boxes, (16, 12)), None, (16, 12)).to(device)
    index = torch.tensor([-(2**40), 2**40], device=device)
    arguments = (matrices, [16, 12], None, True, False, torch.float32, False, True)
    ours = torch.ops.vitpose_fast.crop(images, index, *arguments)
    assert torch.equal(ours, torch.ops.vitpose_fast.crop(images, index.clamp(0, 1), *arguments))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("triton", [False, True])
def test_a_matrix_that_is_not_finite_gives_nan_in_its_crop_alone(device, exact, triton):
    boxes = torch.tensor([[2.0, 3, 10, 12], [float("nan"), 3, 10, 12], [2, 3, 0, 0]])
    matrices = warp_matrix(*box_to_center_scale(boxes, (16, 12)), None, (16, 12)).to(device)
    arguments = (torch.zeros(3, dtype=torch.int64, device=device), matrices, [16, 12], None, True, exact)
    out = torch.ops.vitpose_fast.crop([picture(20, 30).to(device)], *arguments, torch.float32, False, triton)
    assert out[0].isfinite().all() and out[1:].isnan().all()


def test_no_boxes(device):
    image = picture(20, 30).to(device)
    assert F.crop(image, torch.zeros(0, 4), (16, 12), twin=True, impl="triton").shape == (0, 3, 16, 12)


def test_float64_is_refused_in_one_line(device):
    with pytest.raises(ValueError, match=r"crop: got torch.float64 .*, the Triton kernels take"):
        image = torch.zeros(4, 4, 3, dtype=torch.uint8, device=device)
        F.crop(image, torch.ones(1, 4), dtype=torch.float64, impl="triton")


@pytest.mark.cuda
def test_opcheck():
    images = [picture(20, 30).cuda(), picture(10, 12).cuda()]
    matrices = warp_matrix(*box_to_center_scale(torch.tensor([[1.0, 2, 8, 9], [3, 3, 4, 4]]), (16, 12)), None, (16, 12))
    for frames in (images, images[:1]):
        index, flip = torch.zeros(2, dtype=torch.int64).cuda(), torch.tensor([True, False]).cuda()
        args = (frames, index, matrices.cuda(), [16, 12], flip, True, False, torch.bfloat16, True, True)
        assert set(torch.library.opcheck(torch.ops.vitpose_fast.crop, args).values()) == {"SUCCESS"}
