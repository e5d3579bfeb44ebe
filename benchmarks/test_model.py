"""Network alone and network with decoding, against Hugging Face and the official way; ViTPose++ with mixed tasks."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

import vitpose_fast as vp
from benchmarks.harness import Case, Contender, close, same_place
from benchmarks.models import crops, network_work, official_twin, random_model
from benchmarks.rivals import hugging_face
from vitpose_fast import functional as F
from vitpose_fast.runtime import count_launches

TOLERANCE = {torch.float32: 2e-2, torch.bfloat16: 0.1}  # float32: rivals and kernels round products differently


def batches(config) -> list[int]:
    """1 (latency), 8, 64 and one that leaves an H200's last wave nearly empty."""
    quick, cuda = config.getoption("--quick"), config.getoption("--device") == "cuda"
    return [1, 8, 64, 72] if cuda else [1, 8] if not quick else [1]


def pytest_generate_tests(metafunc):
    if "batch" in metafunc.fixturenames:
        metafunc.parametrize("batch", batches(metafunc.config), ids=lambda b: f"batch {b}")
    if "size" in metafunc.fixturenames:
        cuda = metafunc.config.getoption("--device") == "cuda"
        metafunc.parametrize("size", "sblh" if cuda else "sb" if not metafunc.config.getoption("--quick") else "b")
    if "dtype" in metafunc.fixturenames:
        cuda, quick = metafunc.config.getoption("--device") == "cuda", metafunc.config.getoption("--quick")
        dtypes = [torch.bfloat16] if cuda else [torch.float32, torch.bfloat16]
        metafunc.parametrize("dtype", dtypes[: 1 if quick else 2], ids=lambda d: str(d).removeprefix("torch."))


@pytest.fixture(scope="module")
def models(machine):
    """models(name, **options): a random model on the device; the last one is kept."""
    last: dict = {}

    def get(name, **options):
        key = (name, *options.items())
        if key not in last:
            last.clear()
            last[key] = random_model(name, machine.device, **options)
        return last[key]

    return get


def contenders_of(model, dtype, machine, quick, mixed=False):
    """Ours frozen and as a module, Hugging Face eager and compiled, the official way; all take (images, experts)."""
    frozen = vp.freeze(model, None if mixed else "coco", dtype)
    head = "coco"

    def mixed_frozen(images, experts):
        def both(images, experts):
            return frozen.heads[head](frozen.backbone(images, experts))

        return frozen.run("mixed", both, images, experts)

    def plain(used):
        return lambda images, experts: used.heads[head](used.backbone(images, experts))

    ours = copy.deepcopy(model).to(dtype)
    official = official_twin(model, dtype)
    quiet = torch.inference_mode()
    out = [
        Contender(
            "vitpose_fast frozen",
            mixed_frozen if mixed else lambda images, experts: frozen(images, head),
            own_graph=frozen.graphs is not None,
            module=frozen,
        ),
        Contender("vitpose_fast module", quiet(plain(ours)), module=ours),
        Contender("official, eager kernels", quiet(plain(official)), module=official),
    ]
    reason = hugging_face.why_missing()
    theirs = None if reason else hugging_face.twin(model).to(dtype)

    def hf(used):
        return quiet(lambda images, experts: hugging_face.heatmaps(used, images, experts if mixed else zero(experts)))

    def zero(experts):
        return torch.zeros_like(experts) if model.config.part_features else None

    out.append(Contender("Hugging Face (SDPA)", None if reason else hf(theirs), reason, module=theirs))
    out.append(Contender("Hugging Face, eager launches", None if reason else hf(theirs), reason, False, module=theirs))
    compile_reason = reason or ("compiled on GPUs, not in quick runs" if quick or not machine.cuda else None)
    best = None if compile_reason else torch.compile(theirs, mode="max-autotune")
    out.append(
        Contender(
            "Hugging Face, max-autotune", hf(best) if best else None, compile_reason, own_graph=True, module=theirs
        )
    )
    return [c for c in out if machine.cuda or c.name != "Hugging Face, eager launches"], frozen, theirs


def inputs(model, batch, dtype, mixed):
    def make(seed):
        task = torch.arange(batch, device=model.device) % (len(model.tasks) if mixed else 1)
        return crops(seed, batch, model, dtype), task

    return make


@pytest.mark.parametrize("latency", [False, True], ids=["throughput", "latency"])
def test_network(compare, machine, quick, models, size, batch, dtype, latency):
    if latency and batch != 1:
        pytest.skip("latency is that of one person")
    if batch == 1 and not latency:
        pytest.skip("batch 1 is measured as latency")
    model = models(f"vitpose-{size}")
    contenders, *_ = contenders_of(model, dtype, machine, quick)
    work = network_work(model.config, batch, dtype.itemsize)
    make = inputs(model, batch, dtype, False)
    values = make(0)
    with torch.inference_mode():
        counts = {c.name: count_launches(lambda c=c: c.function(*values)) for c in contenders if c.function}
    contenders = [replace(c, extra={"launches": counts.get(c.name)}) for c in contenders]
    name = f"ViTPose-{size.upper()} network{' latency' if latency else ''}"
    case = Case("model", name, dtype, batch, make, contenders, close(TOLERANCE[dtype]), latency=latency, **work)
    compare(case)


def test_network_and_decoding(compare, machine, quick, models, size, batch, dtype):
    """Heatmaps stay where they are; Hugging Face takes them to the host and decodes there."""
    if batch == 1:
        pytest.skip("see the pipeline")
    model = models(f"vitpose-{size}")
    _, frozen, theirs = contenders_of(model, dtype, machine, quick)
    size_px = torch.tensor(model.config.image_size[::-1], dtype=torch.float32, device=machine.device)
    center, scale = (size_px / 2).expand(batch, 2).contiguous(), size_px.expand(batch, 2).contiguous()

    def decoded(images, experts):
        def both(images, center, scale):
            return F.heatmap_decode(frozen(images, "coco"), centers=center, scales=scale)

        return frozen.run("network and decoding", both, images, center, scale)

    out = [Contender("vitpose_fast frozen", decoded, own_graph=frozen.graphs is not None, module=frozen)]
    reason = hugging_face.why_missing()
    if reason is None:
        process = hugging_face.processor()
        width, height = size_px.tolist()
        boxes = [[[0.1 * width, 0.1 * height, 0.8 * width, 0.8 * height]] * batch]  # padded by a quarter: the crop

        @torch.inference_mode()
        def hf(images, experts):
            return hugging_face.decode(process, hugging_face.heatmaps(theirs, images).float().cpu(), boxes)

    out.append(Contender("Hugging Face (eager, decodes on CPU)", None if reason else hf, reason, False, module=theirs))
    work = network_work(model.config, batch, dtype.itemsize)
    name = f"ViTPose-{size.upper()} network + decoding"
    case = Case("model", name, dtype, batch, inputs(model, batch, dtype, False), out, same_place(4.0), **work)
    compare(case)


def test_mixed_tasks(compare, machine, quick, models, size, batch, dtype):
    """ViTPose++: every sample with an expert of its own."""
    if batch == 1:
        batch = 4 if quick else pytest.skip("one sample is not mixed")
    model = models(f"vitpose++-{size}")
    contenders, *_ = contenders_of(model, dtype, machine, quick, mixed=True)
    work = network_work(model.config, batch, dtype.itemsize)
    name = f"ViTPose++-{size.upper()} mixed tasks"
    compare(
        Case(
            "model", name, dtype, batch, inputs(model, batch, dtype, True), contenders, close(TOLERANCE[dtype]), **work
        )
    )
