"""The GPUs that this library knows: what each has, and what it can do at best.

From the vendor's data sheets; `reached` is what others measured with a large product and a large copy.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Chip(NamedTuple):
    """One kind of GPU board.

    Attributes:
        name: as it occurs in the name that the driver gives to the device.
        arch: compute capability times ten.
        multiprocessors: how many programs of a kernel run at once at least.
        shared_memory: bytes that one program may use.
        tensor_cores: the instruction that feeds them: "mma" from registers; "wgmma" and "tcgen05" from shared memory.
        flops: dense matrix products in FLOP/s with bfloat16 inputs, without sparsity.
        bandwidth: of the memory, in bytes/s.
        reached: (FLOP/s, bytes/s) that were measured; None: not known.
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
        """Whether it is a board for data centers: the others have 99 KiB for a program."""
        return self.shared_memory > 128 << 10

    @property
    def has_descriptors(self) -> bool:
        """Whether tiles for the tensor cores are loaded through tensor descriptors."""
        return self.tensor_cores != "mma"

    def floor(self, flops: float, bytes: float) -> float:
        """Seconds that so much work takes at least: by what is reached where that is known, else by the data sheet."""
        flops_s, bytes_s = self.reached or (self.flops, self.bandwidth)
        return max(flops / flops_s, bytes / bytes_s)


CHIPS = (  # of two names that both occur in a device's name the longer one comes first; of each arch the usual board
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
    """The board that stands for an architecture where none is there: the first of it in `CHIPS`."""
    return next(chip for chip in CHIPS if chip.arch == arch)


def chip_named(device_name: str) -> Chip | None:
    """The board that a device's name, such as "NVIDIA H100 80GB HBM3", speaks of; None: one that is not known."""
    return next((chip for chip in CHIPS if chip.name in device_name), None)


def architecture_of(device: torch.device) -> int:
    """Compute capability times ten of a CUDA device, the newest known one at most."""
    major, minor = torch.cuda.get_device_capability(device)
    return max((a for a in ARCHITECTURES if a <= 10 * major + minor), default=ARCHITECTURES[0])
