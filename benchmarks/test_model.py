"""The network alone and with decoding, against its rivals; ViTPose++ with mixed tasks.

The rivals are Hugging Face, official-style PyTorch and, for the network alone on a CPU, ONNX Runtime and OpenVINO.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness import Case, Contender, close, same_place
from benchmarks.lineup import HEAD
from benchmarks.models import crops, frozen_contender, network_work
from benchmarks.rivals import hugging_face
from vitpose_fast import functional as F
from vitpose_kernels.sizes import PAPER

TOLERANCE = {torch.float32: 2e-2, torch.bfloat16: 0.1}  # float32: rivals and kernels round products differently


def pytest_generate_tests(metafunc):
    """Parametrize sizes, dtypes and batch sizes: 1 (latency), 8, 64, and 72, whose last wave occupies the GPU poorly.

    A CPU gets fewer of them, and a quick run on a CPU only one of each.
    """
    quick, cuda = metafunc.config.getoption("--quick"), metafunc.config.getoption("--device") == "cuda"
    choices = {
        "size": sorted(PAPER, key=lambda size: size != "b") if cuda else "b" if quick else "bs",
        "dtype": [torch.bfloat16] if cuda else [torch.float32] if quick else [torch.float32, torch.bfloat16],
        "batch": [64, 1, 8, 72] if cuda else [1] if quick else [1, 8],
    }
    for name, values in choices.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values, ids=lambda v: str(v).removeprefix("torch."))


def is_compiled(machine, quick, size, batch) -> bool:
    """Return whether torch.compile takes part: on a GPU, not in quick runs, and only for B at batch 1 and 64.

    It compiles for minutes per model and batch size.
    """
    return machine.cuda and not quick and size == "b" and batch in (1, 64)


def inputs(model, batch, dtype, mixed):
    def make(seed):
        task = torch.arange(batch, device=model.device) % (len(model.tasks) if mixed else 1)
        return crops(seed, batch, model, dtype), task

    return make


def test_network(compare, machine, quick, lineup, size, dtype, batch):
    """Batch 1 measures latency: every call is waited for."""
    used = lineup(f"vitpose-{size}", dtype)
    contenders = used.contenders(is_compiled(machine, quick, size, batch))
    make = inputs(used.model, batch, dtype, False)
    latency = batch == 1
    name = f"ViTPose-{size.upper()} network{' latency' if latency else ''}"
    work = network_work(used.model.config, batch, dtype.itemsize)
    agree = close(TOLERANCE[dtype])
    compare(Case("model", name, dtype, batch, make, contenders, agree, latency=latency, launches=True, **work))


def test_network_and_decoding(compare, machine, lineup, size, dtype, batch):
    """Our heatmaps are decoded on the device; Hugging Face copies them to the host and decodes there."""
    if batch == 1:
        pytest.skip("batch 1 is measured in test_pipeline.py")
    used = lineup(f"vitpose-{size}", dtype)
    model, frozen = used.model, used.frozen
    size_px = torch.tensor(model.config.image_size[::-1], dtype=torch.float32, device=machine.device)
    center, scale = (size_px / 2).expand(batch, 2).contiguous(), size_px.expand(batch, 2).contiguous()

    def decoded(images, experts):
        def both(images, center, scale):
            return F.heatmap_decode(frozen(images, HEAD), centers=center, scales=scale)

        return frozen.run("network and decoding", both, images, center, scale)

    contenders = [frozen_contender("vitpose_fast frozen", frozen, decoded)]
    process = None if used.absent else hugging_face.processor()
    width, height = size_px.tolist()
    boxes = [[[0.1 * width, 0.1 * height, 0.8 * width, 0.8 * height]] * batch]  # padded by a quarter: the whole crop

    @torch.inference_mode()
    def hf(images, experts):
        return hugging_face.decode(process, used.hugging_face(images, experts).float().cpu(), boxes)

    name, rival = f"ViTPose-{size.upper()} network + decoding", "Hugging Face (eager, decodes on CPU)"
    theirs = dict(missing=used.absent, graph=False, module=used.theirs)
    contenders.append(Contender(rival, None if used.absent else hf, **theirs))
    work = network_work(model.config, batch, dtype.itemsize)
    make = inputs(model, batch, dtype, False)
    compare(Case("model", name, dtype, batch, make, contenders, same_place(4.0), **work))


def test_mixed_tasks(compare, machine, quick, lineup, size, dtype, batch):
    """ViTPose++ on a batch whose samples use the experts of different tasks; the head is COCO's for all."""
    if batch == 1:
        batch = 4 if quick else pytest.skip("one sample cannot mix tasks")
    used = lineup(f"vitpose++-{size}", dtype, mixed=True)
    contenders = used.contenders(batch == 64 and is_compiled(machine, quick, size, batch))
    name = f"ViTPose++-{size.upper()} mixed tasks"
    work = network_work(used.model.config, batch, dtype.itemsize)
    make = inputs(used.model, batch, dtype, True)
    compare(Case("model", name, dtype, batch, make, contenders, close(TOLERANCE[dtype]), **work))
