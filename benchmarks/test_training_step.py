"""One training step: time, FLOPs utilization and memory, against eager PyTorch with automatic mixed precision."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vitpose_fast as vp
from benchmarks.contenders import materialized_loss
from benchmarks.harness import Case, Contender, close
from benchmarks.models import crops, keypoints, network_work, official_twin, random_model
from vitpose_training.run.recompute import set_recompute

# Rows of the paper: patch stride, attention, window, training memory in M (Table 8 for the first, else Table 7).
ROWS = {
    "1/16": (16, "full", (8, 8), 14090),
    "1/8 full": (8, "full", (8, 8), 36141),
    "1/8 window 8x8": (8, "window", (8, 8), 21161),
    "1/8 window+shift 8x8": (8, "window+shift", (8, 8), 21161),
    "1/8 window+pool 8x8": (8, "window+pool", (8, 8), 22893),
    "1/8 window+shift+pool 8x8": (8, "window+shift+pool", (8, 8), 22893),
    "1/8 window+full 8x8": (8, "window+full", (8, 8), 28594),
    "1/8 window+shift+pool 16x12": (8, "window+shift+pool", (16, 12), 26778),
}


class Step:
    """A model with its optimizer. Calling it trains on one batch and returns (loss, gradient norm before clipping).

    A call takes (images [B, 3, H, W], points [B, K, 2] in pixels of the images, visible [B, K]). With `precision`
    bfloat16 the forward pass runs under autocast.
    """

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor], precision: torch.dtype) -> None:
        self.model, self.loss, self.precision = model.train(), loss, precision
        self.device = next(model.parameters()).device
        # A tiny learning rate keeps the contenders equal and leaves the amount of arithmetic unchanged.
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9, weight_decay=0.1)

    def __call__(self, images: Tensor, points: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            heatmaps = self.model(images)
        loss = self.loss(heatmaps, points, visible)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach(), norm.detach()

    def state_dict(self) -> dict[str, Tensor]:
        """Return all tensors that stay in memory between steps, under arbitrary names."""
        values = list(self.model.parameters()) + list(self.model.buffers())
        values += [p.grad for p in self.model.parameters() if p.grad is not None]
        values += [v for s in self.optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
        return {str(i): v for i, v in enumerate(values)}


@pytest.mark.parametrize("row", ROWS)
def test_training_step(compare, machine, quick, row):
    if quick and row not in ("1/16", "1/8 window+shift+pool 8x8"):
        pytest.skip("not in a quick run")
    stride, attention, window, paper_memory = ROWS[row]
    name, batch = ("vitpose-b", 64) if machine.cuda else ("vitpose-tiny", 2)
    dtype = torch.bfloat16 if machine.cuda else torch.float32
    options: dict[str, Any] = dict(patch_stride=stride, attention=attention, window=window, drop_path=0.0)
    model = random_model(name, machine.device, **options)
    official = official_twin(model, torch.float32)
    steps = {"vitpose_fast": Step(model, vp.HeatmapLoss(), dtype)}
    for level in ("norm", "most"):
        lean = deepcopy(model)
        set_recompute(lean.backbone, level)
        steps[f"vitpose_fast, recompute {level}"] = Step(lean, vp.HeatmapLoss(), dtype)
    steps["eager PyTorch"] = Step(official, materialized_loss, dtype)

    def make(seed):
        return (crops(seed, batch, model, torch.float32), *keypoints(seed, batch, machine.device))

    contenders = [Contender(n, step, graph=False, module=step) for n, step in steps.items()]
    work = network_work(model.config, batch, 4)
    extra = {"paper_memory_m": paper_memory if machine.cuda else None}  # the MFU is the fraction of the roofline
    title = f"{name.replace('vitpose', 'ViTPose')} {row}"
    flops = 3 * work["flops"]
    compare(Case("training", title, dtype, batch, make, contenders, close(0.1), flops, None, extra))
