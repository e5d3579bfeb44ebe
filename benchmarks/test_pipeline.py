"""From frames and boxes to keypoints in image coordinates, against Hugging Face's processor, model and decoding."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

import vitpose_fast as vp
from benchmarks.harness import Case, Contender, same_place
from benchmarks.models import TASKS, frame, people, random_model
from benchmarks.rivals import hugging_face
from vitpose_fast.geometry import box_to_center_scale
from vitpose_kernels.sizes import PAPER


def pytest_generate_tests(metafunc):
    quick, cuda = metafunc.config.getoption("--quick"), metafunc.config.getoption("--device") == "cuda"
    if "size" in metafunc.fixturenames:
        metafunc.parametrize("size", PAPER if cuda else "b")
    if "dtype" in metafunc.fixturenames:
        dtypes = [torch.bfloat16] if cuda else [torch.float32, torch.bfloat16]
        metafunc.parametrize("dtype", dtypes, ids=lambda d: str(d).removeprefix("torch."))
    if "count" in metafunc.fixturenames:
        metafunc.parametrize("count", [1, 8, 64] if cuda else [8], ids=lambda n: f"{n} people")
    if "flip" in metafunc.fixturenames:
        metafunc.parametrize("flip", [False] if quick else [False, True], ids=lambda f: "flip test" if f else "no flip")


def with_cpu_seconds(contender: Contender, values: tuple, count: int) -> Contender:
    """Return the contender with `cpu_seconds_per_1000` in its `extra`, unless it is missing.

    That is the CPU time of this process, summed over all cores, for a thousand people. It is measured in one call,
    after a warm-up call, on `values`: inputs with `count` people.
    """
    if contender.function is None:
        return contender
    contender.function(*values)
    started = time.process_time()
    contender.function(*values)
    seconds = (time.process_time() - started) / count * 1000
    return replace(contender, extra={"cpu_seconds_per_1000": seconds})


NEAR = same_place(15.0)  # pixels, a fiftieth of the frame height


def test_frames_to_keypoints(compare, machine, quick, lineup, size, dtype, count, flip):
    """On a CPU, Hugging Face runs in float32, as in its documentation, whatever our dtype."""
    theirs_dtype = dtype if machine.cuda else torch.float32
    used = lineup(f"vitpose-{size}", dtype, theirs_dtype=theirs_dtype)
    model, frozen, theirs, reason = used.model, used.frozen, used.theirs, used.absent
    process = None if reason else hugging_face.processor()
    predictor = vp.PosePredictor(frozen, flip_test=flip)
    boxes = people(3, count)

    def ours(image):
        poses = predictor(image, boxes)
        return poses.keypoints, poses.scores

    def make(seed):
        image = torch.from_numpy(frame(seed))
        return (image,)

    rival = "Hugging Face" if machine.cuda else "Hugging Face float32"
    pairs = torch.tensor(model.config.tasks[0].flip_pairs, device=machine.device) if flip else None

    @torch.inference_mode()
    def hf(image):
        return hugging_face.predict(theirs, process, [image.numpy()], [boxes], pairs)

    contenders = [
        Contender("vitpose_fast", ours, graph=False, module=frozen),
        Contender(f"{rival} (eager, CPU)", None if reason else hf, reason, graph=False, module=theirs),
    ]
    contenders = [with_cpu_seconds(c, make(0), count) for c in contenders]
    extra = {"people_per_frame": count, "flip_test": flip}
    name = f"ViTPose-{size.upper()} frame to keypoints, {count} people{', flip test' if flip else ''}"
    compare(Case("pipeline", name, dtype, count, make, contenders, NEAR, extra=extra, latency=count == 1), fewest=7)


def test_stream(compare, machine, quick, dtype):
    """Eight frames with one to eight people each: batched across frames, against frame by frame."""
    if quick:
        pytest.skip("not in a quick run")
    model = random_model("vitpose-b" if machine.cuda else "vitpose-s", machine.device)
    frozen = vp.freeze(model, "coco", dtype)
    predictor = vp.PosePredictor(frozen)
    boxes = [people(i, i + 1) for i in range(8)]

    def make(seed):
        return tuple(torch.from_numpy(frame(seed + i)).to(machine.device) for i in range(8))

    def stream(*frames):
        return (torch.cat([p.keypoints for p in predictor.stream(zip(frames, boxes))]),)

    def one_by_one(*frames):
        return (torch.cat([predictor(f, b).keypoints for f, b in zip(frames, boxes)]),)

    contenders = [
        Contender("vitpose_fast stream", stream, graph=False, module=frozen),
        Contender("vitpose_fast frame by frame", one_by_one, graph=False, module=frozen),
    ]
    count = sum(map(len, boxes))
    extra = {"people_per_frame": count / 8, "flip_test": False}
    frames = make(0)
    contenders = [with_cpu_seconds(c, frames, count) for c in contenders]
    case = Case("pipeline", "stream of 8 frames", dtype, count, make, contenders, NEAR, extra=extra)
    compare(case, fewest=7)


def test_mixed_tasks(compare, machine, quick, lineup, dtype, size):
    """ViTPose++ on one frame: the people use the experts of different tasks, and one head gives the heatmaps."""
    if quick and dtype == torch.bfloat16:
        pytest.skip("not in a quick run")
    count = 64 if machine.cuda else 8
    theirs_dtype = dtype if machine.cuda else torch.float32
    used = lineup(f"vitpose++-{size}", dtype, mixed=True, theirs_dtype=theirs_dtype)
    frozen, theirs, reason = used.frozen, used.theirs, used.absent
    process = None if reason else hugging_face.processor()
    codec = vp.HeatmapCodec(used.model.config.task("coco"))
    boxes = people(4, count)
    double = torch.tensor(boxes, dtype=torch.float64)
    experts = torch.arange(count, device=machine.device) % len(TASKS)
    center, scale = (x.to(machine.device) for x in box_to_center_scale(double, (256, 192)))

    def step(crops, experts, center, scale):
        return codec.decode(frozen.heads["coco"](frozen.backbone(crops, experts)), center, scale)

    @torch.inference_mode()
    def ours(image):
        image = image.to(machine.device)
        crops = codec.crop([image], double, torch.zeros(count, dtype=torch.int64), dtype=dtype)
        points, scores = frozen.run("mixed people", step, crops, experts, center, scale)
        return points.cpu(), scores.cpu()

    @torch.inference_mode()
    def hf(image):
        return hugging_face.predict(theirs, process, [image.numpy()], [boxes], experts=experts)

    rival = "Hugging Face (eager, CPU)" if machine.cuda else "Hugging Face float32 (eager, CPU)"
    contenders = [
        Contender("vitpose_fast", ours, graph=False, module=frozen),
        Contender(rival, None if reason else hf, reason, graph=False, module=theirs),
    ]
    extra = {"people_per_frame": count, "flip_test": False}
    name = f"ViTPose++-{size.upper()} frame to keypoints, {count} people of six tasks"

    def make(seed):
        return (torch.from_numpy(frame(seed)),)

    contenders = [with_cpu_seconds(c, make(0), count) for c in contenders]
    compare(Case("pipeline", name, dtype, count, make, contenders, NEAR, extra=extra), fewest=3 if quick else 7)
