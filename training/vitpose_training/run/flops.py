"""FLOPs of a model and peak FLOP/s of a device, for the MFU (model FLOPs utilization) of a training run."""

from __future__ import annotations

import math

import torch

from vitpose_fast.models.config import ModelConfig
from vitpose_kernels.chips import chip_named


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return the peak FLOP/s of a device for dense matrix products, or None for CPUs and unknown GPUs.

    Args:
        precision: "bf16", or "fp32", for which the rate of TF32 tensor cores is taken as half the rate of bf16.
    """
    if device.type != "cuda":
        return None
    chip = chip_named(torch.cuda.get_device_name(device))
    if chip is None:
        return None
    return chip.flops if precision == "bf16" else chip.flops / 2


def forward_flops(config: ModelConfig) -> float:
    """Return the FLOPs of the forward pass for one image: the backbone, and the head of the first of `head_tasks`.

    Only matrix products, convolutions and attention are counted, at 2 FLOPs per multiply-add (MAC). Half of the result
    is the number of MACs, which the paper calls GFLOPs: 17.1 G for ViTPose-B at 256x192 without the decoder.
    """
    c, rows, columns = config.width, *config.grid
    tokens = rows * columns
    hidden = 2 * config.ffn_ratio * (2 if config.experts == "added" else 1)  # MACs of fc1 and fc2 per token / C²
    macs = tokens * c * 16 * 16 * 3  # patch embedding
    for i in range(config.depth):
        macs += tokens * c * c * (4 + hidden)
        attention = config.block_attention(i)
        window = attention["window"] or config.grid
        keys = window[0] * window[1]
        if attention["pool"]:
            keys += math.ceil(rows / window[0]) * math.ceil(columns / window[1])
        macs += 2 * tokens * keys * c
    return 2.0 * (macs + _decoder_macs(config))


def _decoder_macs(config: ModelConfig) -> int:
    """Return the multiply-adds (MACs) of the head of the first of `head_tasks`, for one image; convolutions only."""
    keypoints = config.task(config.head_tasks[0]).num_keypoints
    rows, columns = config.grid
    if config.decoder == "minimal":
        return rows * columns * config.width * keypoints * (config.patch_stride // 4) ** 2
    height, width = config.heatmap_size
    if config.decoder == "simple":
        return height * width * config.width * keypoints * 9
    macs, channels, places = 0, config.width, rows * columns
    for _ in range(2 if config.patch_stride == 16 else 1):
        macs += places * 16 * channels * config.decoder_width  # every input pixel meets the 4x4 taps of the kernel
        channels, places = config.decoder_width, 4 * places
    return macs + places * channels * keypoints
