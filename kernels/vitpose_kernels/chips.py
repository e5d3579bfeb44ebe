"""The GPU boards that this library knows: their resources and peak rates.

The numbers are from the vendors' data sheets, except for `Chip.reached`, which are rates that others measured.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Chip(NamedTuple):
    """One kind of GPU board.

    Attributes:
        name: a part of the device name that the driver reports, as `chip_named` looks for it.
        arch: compute capability times ten.
        multiprocessors: number of streaming multiprocessors, each of which runs one program or more at a time.
        shared_memory: bytes of shared memory that one program may use.
        tensor_cores: the matrix instruction. "mma" reads its operands from registers, "wgmma" and "tcgen05" from shared
            memory.
        flops: peak FLOP/s of dense matrix products with bfloat16 inputs, without structured sparsity.
        bandwidth: peak bytes/s of the GPU's memory.
        reached: (FLOP/s of a large matrix product, bytes/s of a large copy) as measured, or None if not known.
    """

    name: str
    arch: int
    multiprocessors: int
    shared_memory: int
    tensor_cores: str
    flops: float
    bandwidth: float
    reached: tuple[float, float] | None = None

    @property
    def has_large_shared_memory(self) -> bool:
        """Whether a program may use more than 128 KiB of shared memory. The others in `CHIPS` have 99 KiB."""
        return self.shared_memory > 128 << 10

    @property
    def max_warps(self) -> int:
        """The most warps that a multiprocessor holds, of all its programs."""
        return 64 if self.has_large_shared_memory else 48

    @property
    def needs_more_registers(self) -> bool:
        """Whether the compiler takes more registers than for other "mma" chips, so that the largest tiles spill."""
        return self.arch == 120

    @property
    def has_descriptors(self) -> bool:
        """Whether `linear` can load 16-bit tiles through tensor descriptors: the tensor cores read shared memory."""
        return self.tensor_cores != "mma"

    def floor(self, flops: float, bytes: float) -> float:
        """Return the roofline: the least time in seconds to compute `flops` FLOPs and to move `bytes` bytes.

        This is the longer of the two times. The rates are `reached` if known, otherwise `flops` and `bandwidth` of the
        board.
        """
        flops_s, bytes_s = self.reached or (self.flops, self.bandwidth)
        return max(flops / flops_s, bytes / bytes_s)


# The order matters: `chip_named` takes the first name that matches, so "H100 PCIe" precedes "H100"; `usual_chip` takes
# the first board of an architecture.
CHIPS = (
    Chip("A100", 80, 108, 166912, "mma", 312e12, 2.0e12),
    Chip("RTX A6000", 86, 84, 101376, "mma", 155e12, 0.77e12),
    Chip("RTX 3090", 86, 82, 101376, "mma", 71e12, 0.94e12),
    Chip("A10", 86, 72, 101376, "mma", 125e12, 0.6e12),
    Chip("RTX 4090", 89, 128, 101376, "mma", 165e12, 1.0e12),
    Chip("L40S", 89, 142, 101376, "mma", 362e12, 0.86e12),
    Chip("L40", 89, 142, 101376, "mma", 181e12, 0.86e12),
    Chip("L4", 89, 58, 101376, "mma", 121e12, 0.3e12),
    Chip("H200", 90, 132, 232448, "wgmma", 989e12, 4.8e12, reached=(790e12, 4.3e12)),
    Chip("H100 PCIe", 90, 114, 232448, "wgmma", 756e12, 2.0e12),
    Chip("H100", 90, 132, 232448, "wgmma", 989e12, 3.35e12),
    Chip("B200", 100, 148, 232448, "tcgen05", 2250e12, 8.0e12),
    Chip("RTX 5090", 120, 170, 101376, "mma", 209e12, 1.79e12),
)
ARCHITECTURES = tuple(sorted({chip.arch for chip in CHIPS}))


def usual_chip(arch: int) -> Chip:
    """Return the first board in `CHIPS` with this `arch` (one of `ARCHITECTURES`), to assume without a device."""
    return next(chip for chip in CHIPS if chip.arch == arch)


def chip_named(device_name: str) -> Chip | None:
    """Return the first board whose `name` occurs in a device name such as "NVIDIA H100 80GB HBM3", or None."""
    return next((chip for chip in CHIPS if chip.name in device_name), None)


def architecture_of(device: torch.device) -> int:
    """Return the compute capability of a CUDA device times ten, rounded down to one of `ARCHITECTURES`.

    A device older than all of `ARCHITECTURES` counts as the oldest of them.
    """
    major, minor = torch.cuda.get_device_capability(device)
    return max((a for a in ARCHITECTURES if a <= 10 * major + minor), default=ARCHITECTURES[0])
