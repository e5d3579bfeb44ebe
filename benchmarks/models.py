"""Models and inputs for the benchmarks, all random: their values vary like those of trained models and photographs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import vitpose_fast as vp
from benchmarks.harness import Contender
from benchmarks.rivals.count import macs, parameters
from benchmarks.rivals.official_vitpose import OfficialViTPose
from vitpose_fast.models.config import PLUS_TASKS, ModelConfig
from vitpose_fast.models.vitpose import ViTPose

TASKS = PLUS_TASKS


def random_model(name: str, device: torch.device, seed: int = 0, **options: Any) -> ViTPose:
    """Create an untrained model, in evaluation mode, whose heatmaps vary like a trained model's.

    By default ++ models get the experts of six tasks, and the head of COCO only; `options` are those of `create_model`.
    The model is initialized on the device: on one CPU thread, H takes longer to initialize than to measure on a GPU.
    """
    torch.manual_seed(seed)
    if name.startswith("vitpose++"):
        options = dict(tasks=TASKS, head_tasks=("coco",)) | options
    with device:
        model = vp.create_model(name, **options).eval()
    for module in model.heads.modules():
        if isinstance(module, nn.ConvTranspose2d):
            # With stride 2, a quarter of the 4x4 taps contributes to each output.
            nn.init.normal_(module.weight, std=(4 * module.in_channels) ** -0.5)
        elif isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.normal_(module.bias, std=0.1)
    return model


def frozen_contender(name: str, frozen: vp.FrozenViTPose, function: Callable[..., Any]) -> Contender:
    """Return a contender for `function`, which runs `frozen`, a model that has its own CUDA graphs on a GPU."""

    def eager(*inputs):
        graphs, frozen.graphs = frozen.graphs, None
        try:
            return function(*inputs)
        finally:
            frozen.graphs = graphs

    return Contender(name, function, own_graph=frozen.graphs is not None, eager=eager, module=frozen)


def official_twin(model: ViTPose, dtype: torch.dtype) -> OfficialViTPose:
    """Return an `OfficialViTPose` in `dtype` with the weights of `model`, in evaluation mode on the same device."""
    windows = model.config.attention != "full"  # the constructor computes masks for them, so it needs a real device
    with model.device if windows else torch.device("meta"):
        official = OfficialViTPose(model.config)
    official = official if windows else official.to_empty(device=model.device)
    official.load_state_dict(model.state_dict())
    return official.to(dtype).eval()


def randn(seed: int, *shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return standard normal numbers of this shape, drawn in float32 on the device and converted to `dtype`."""
    draw = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=draw, device=device).to(dtype)


def crops(seed: int, batch: int, model: ViTPose, dtype: torch.dtype) -> Tensor:
    """Return random network input [batch, 3, H, W] of the model's image size, like normalized photographs.

    It has structure at several scales.
    """
    height, width = model.config.image_size
    out = torch.zeros(batch, 3, height, width, device=model.device)
    for i, step in enumerate((64, 16, 4)):
        coarse = randn(10 * seed + i, batch, 3, -(-height // step), -(-width // step), device=model.device)
        out += nn.functional.interpolate(coarse, (height, width), mode="bilinear") * (0.7, 0.5, 0.3)[i]
    return out.to(dtype)


def frame(seed: int, size: tuple[int, int] = (720, 1280)) -> np.ndarray:
    """Return a random image, uint8 [h, w, 3] for `size` (h, w), with structure at several scales."""
    noise = np.random.default_rng(seed)
    out = np.zeros((*size, 3), dtype=np.float32)
    for step, weight in ((80, 60), (20, 30), (4, 15)):
        coarse = noise.standard_normal((-(-size[0] // step), -(-size[1] // step), 3), dtype=np.float32)
        out += weight * np.repeat(np.repeat(coarse, step, 0), step, 1)[: size[0], : size[1]]
    return np.clip(out + 128, 0, 255).astype(np.uint8)


def people(seed: int, count: int, size: tuple[int, int] = (720, 1280)) -> list[list[float]]:
    """Return `count` random boxes [x, y, width, height] in pixels inside a frame of `size` (h, w).

    Each is a sixth to a half of the frame in height, and 0.3 to 0.6 times as wide as high.
    """
    noise = np.random.default_rng(seed)
    heights = noise.uniform(size[0] / 6, size[0] / 2, count)
    widths = heights * noise.uniform(0.3, 0.6, count)
    x, y = noise.uniform(0, size[1] - widths), noise.uniform(0, size[0] - heights)
    return np.stack([x, y, widths, heights], 1).round(2).tolist()


def bumps(seed: int, batch: int, device: torch.device, dtype: torch.dtype, keypoints: int = 17) -> Tensor:
    """Return heatmaps [batch, keypoints, 64, 48], each with one random peak away from the border and a little noise."""
    draw = torch.Generator(device).manual_seed(seed)
    x, y = (torch.rand(batch, keypoints, 1, 1, generator=draw, device=device) * (s - 20) + 10 for s in (48, 64))
    rows, columns = (torch.arange(float(s), device=device) for s in (64, 48))
    maps = torch.exp(-((columns - x) ** 2 + (rows[:, None] - y) ** 2) / 8)
    return (maps + 0.003 * torch.rand(maps.shape, generator=draw, device=device)).to(dtype)


def keypoints(seed: int, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return random keypoints [batch, 17, 2] in pixels of a 256x192 crop, and their visibility [batch, 17].

    About a fifth of the visibilities is 0, the others are 1.
    """
    draw = torch.Generator(device).manual_seed(seed)
    points = torch.rand(batch, 17, 2, generator=draw, device=device) * torch.tensor([191.0, 255.0], device=device)
    return points, (torch.rand(batch, 17, generator=draw, device=device) > 0.2).float()


def network_work(config: ModelConfig, batch: int, element_size: int) -> dict[str, int]:
    """Return the `flops` and `bytes` of one forward pass of a batch, with merged experts and the first head only.

    `flops` are twice the multiply-adds. `bytes` count every weight, image and heatmap once, at `element_size` bytes.
    """
    with torch.device("meta"):
        plain = OfficialViTPose(replace(config, part_features=0, head_tasks=config.head_tasks[:1]))
    height, width = config.image_size
    pixels = 3 * height * width + config.task(config.head_tasks[0]).num_keypoints * height * width // 16
    moved = parameters(plain) + batch * pixels
    return dict(flops=2 * batch * macs(plain, (height, width)), bytes=moved * element_size)
