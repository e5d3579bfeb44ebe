"""The ops before and after the network: crops, targets, loss and decoding."""

from __future__ import annotations

import pytest
import torch

from benchmarks.contenders import TOLERANCE, compiled, materialized_loss, on_gpus_only, with_gradients
from benchmarks.harness import Case, Contender, close, declared, same_place
from benchmarks.models import bumps, frame, keypoints, people
from benchmarks.rivals import decoding, hugging_face
from vitpose_fast import functional as F
from vitpose_kernels.heatmap_decode import flip_permutation

COCO_PAIRS = [(i, i + 1) for i in range(1, 17, 2)]


@pytest.mark.parametrize("flip", [False, True], ids=["", "flip"])
@pytest.mark.parametrize("people_count", [8, 64])
def test_heatmap_decode(compare, machine, dtype, on, flip, people_count):
    boxes = torch.tensor(people(1, people_count))
    centers = (boxes[:, :2] + boxes[:, 2:] / 2).to(on)
    scales = torch.stack([boxes[:, 3] * 0.75, boxes[:, 3]], 1).mul(1.25).to(on)

    def make(seed):
        maps = bumps(seed, people_count, on, dtype)
        permuted = maps.flip(-1)[:, flip_permutation(17, COCO_PAIRS)].contiguous()
        return (maps, permuted) if flip else (maps,)

    def ours(maps, flipped=None, impl=None):
        pairs = COCO_PAIRS if flip else None
        place = centers.to(maps.device), scales.to(maps.device)
        return F.heatmap_decode(maps, "udp", 11, flipped, pairs, *place, impl=impl)

    def on_host(decode):
        def run(maps, flipped=None):
            if flipped is not None:
                maps = (maps + flipped.flip(-1)[:, flip_permutation(17, COCO_PAIRS)]) / 2
            return decode(maps.float().cpu())

        return run

    no_cv2, no_hf = decoding.why_missing(), hugging_face.why_missing()
    process = None if no_hf else hugging_face.processor()
    xywh = torch.cat([centers - scales / 2.5, scales / 1.25], 1).tolist()

    def mmpose(maps):
        return decoding.mmpose_udp(maps, centers.cpu(), scales.cpu())

    def theirs(maps):
        return hugging_face.decode(process, maps, [xywh])

    host = dict(graph=False, on_host=True)
    contenders = [
        Contender("ours", ours),
        Contender(
            "reference (eager)", **on_gpus_only(lambda *maps: ours(*maps, impl="reference"), machine), graph=False
        ),
        Contender(
            "mmpose-style numpy (eager, CPU)", None if no_cv2 else on_host(mmpose), no_cv2, graph=False, on_host=True
        ),
        Contender("Hugging Face (eager, CPU)", None if no_hf else on_host(theirs), no_hf, **host),
    ]
    _, moved = declared(ours, make(0))
    name = f"heatmap_decode {people_count} people{' flip' if flip else ''}"
    compare(Case("ops", name, dtype, people_count, make, contenders, same_place(1.0), None, moved))


@pytest.mark.parametrize("people_count", [8, 64])
def test_crop(compare, machine, dtype, on, people_count):
    boxes = people(2, people_count)
    double = torch.tensor(boxes, dtype=torch.float64)

    def make(seed):
        return (torch.from_numpy(frame(seed)).to(on),)

    no_cv2, no_hf = decoding.why_missing(), hugging_face.why_missing()
    process = None if no_hf else hugging_face.processor()

    def opencv(image):
        return decoding.opencv_crop(image, double)

    def theirs(image):
        return process(images=[image.cpu().numpy()], boxes=[boxes], return_tensors="pt")["pixel_values"]

    contenders = [
        Contender("ours", lambda image: F.crop(image, double, dtype=dtype), graph=False),
        Contender("OpenCV (eager, CPU)", None if no_cv2 else opencv, no_cv2, graph=False, on_host=True),
        Contender("Hugging Face (eager, CPU)", None if no_hf else theirs, no_hf, graph=False, on_host=True),
    ]
    _, moved = declared(lambda image: F.crop(image, double, dtype=dtype), make(0))
    agree = close(0.1)  # scipy and OpenCV round to 0..255, and scipy ends the image half a pixel earlier
    compare(Case("ops", f"crop {people_count} people", dtype, people_count, make, contenders, agree, None, moved))


def test_heatmap_target(compare, machine, quick, on):
    batch = 64 if machine.cuda else 8

    def target(impl=None):
        return lambda points, visible: F.heatmap_target(points, visible, (64, 48), impl=impl)

    def mmpose(points, visible):
        return decoding.mmpose_target(points.cpu(), visible.cpu())

    contenders = [
        Contender("ours", target()),
        Contender("reference", **on_gpus_only(target("reference"), machine)),
        Contender("torch.compile of it", **compiled(target("reference"), quick, machine)),
        Contender("mmpose-style numpy (eager, CPU)", mmpose, graph=False, on_host=True),
    ]
    make = lambda seed: keypoints(seed, batch, on)
    _, moved = declared(target(), make(0))
    compare(Case("ops", "heatmap_target", torch.float32, batch, make, contenders, close(1e-2), None, moved))


def test_heatmap_loss(compare, machine, quick, dtype, on):
    """The loss and its gradient with respect to the heatmaps."""
    batch = 64 if machine.cuda else 8

    def make(seed):
        return bumps(seed, batch, on, dtype).requires_grad_(), *keypoints(seed, batch, on), torch.rand((), device=on)

    def loss(impl=None):
        return with_gradients(lambda maps, points, visible: F.heatmap_loss(maps, points, visible, impl=impl))

    contenders = [
        Contender("ours", loss()),
        Contender("reference", **on_gpus_only(loss("reference"), machine)),
        Contender("target + weighted MSE", with_gradients(materialized_loss)),
        Contender("torch.compile of it", **compiled(with_gradients(materialized_loss), quick, machine)),
    ]
    _, moved = declared(loss(), make(0))
    agree = close(TOLERANCE[dtype])
    compare(Case("ops", "heatmap_loss forward+backward", dtype, batch, make, contenders, agree, None, moved))
