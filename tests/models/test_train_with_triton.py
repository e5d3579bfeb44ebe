"""Training with the Triton kernels gives the losses of the PyTorch references, for every attention variant."""

from __future__ import annotations

import pytest
import torch

import vitpose_fast as vp

pytest.importorskip("triton", reason="triton is not installed")


@pytest.fixture(scope="module")
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def deterministic(monkeypatch):
    """Use deterministic cuDNN kernels: twenty Adam steps would amplify the differences between runs."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


def small(name="vitpose++-tiny", tasks=("coco", "mpii"), **options):
    torch.manual_seed(0)
    options = dict(image_size=(64, 48), depth=2, width=32, num_heads=2, decoder_width=16) | options
    return vp.create_model(name, tasks=tasks, **options).train()


def losses(model, impl, steps, device):
    """Train with Adam on one batch of two samples, one for each of two tasks, and return the loss of each step."""
    vp.use_impl(model.to(device), impl)
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 64, 48, generator=draw).to(device)
    keypoints = {t.name: torch.rand(1, t.num_keypoints, 2, generator=draw).to(device) * 48 for t in model.config.tasks}
    criterion = vp.use_impl(vp.HeatmapLoss(), impl)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)
    names = list(keypoints) if len(keypoints) == 2 else [*keypoints] * 2
    seen = []
    for _ in range(steps):
        loss = images.new_zeros(())
        for name, (_, heatmaps) in model(images, task=names).items():
            points = keypoints[name].expand(heatmaps.shape[0], -1, -1)
            loss = loss + 1e3 * criterion(heatmaps, points, torch.ones_like(points[..., 0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    return torch.tensor(seen)


def test_twenty_steps_give_the_losses_of_the_reference(device):
    """Train ViTPose++ with two tasks in a batch: forward and backward of attention, split FFN, LayerNorm and loss."""
    ours = losses(small(attention="window+shift+pool", window=(2, 3)), "triton", 20, device)
    plain = losses(small(attention="window+shift+pool", window=(2, 3)), "reference", 20, device)
    assert plain[-1] < 0.9 * plain[0]
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    "attention", ["full", "window", "window+shift", "window+pool", "window+shift+pool", "window+full"]
)
def test_every_variant_of_table_7_trains(attention, device):
    options = dict(attention=attention, depth=4 if attention == "window+full" else 2, patch_stride=8)
    if attention != "full":
        options["window"] = (4, 3)
    ours = losses(small("vitpose-tiny", ("coco",), **options), "triton", 2, device)
    plain = losses(small("vitpose-tiny", ("coco",), **options), "reference", 2, device)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=0)


def test_inference_gives_the_heatmaps_of_the_reference(device):
    model = small(attention="window+shift+pool", window=(2, 3)).to(device).eval()
    images = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(2)).to(device)
    with torch.no_grad():
        plain, ours = (vp.use_impl(model, impl)(images, task="coco") for impl in ("reference", "triton"))
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6 + 1e-4 * plain.abs().max().item())
