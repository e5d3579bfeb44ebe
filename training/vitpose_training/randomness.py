"""Random numbers of a training run, reproducible for any number of processes and workers and after a resume.

Every draw has a key, (seed, purpose, epoch or step, sample), and depends on nothing else: Philox is a counter-based
generator. In particular, earlier draws and the process or worker that draws do not change the numbers.
"""

from __future__ import annotations

import numpy as np

# Purposes: jitter of the box center, the rest of the augmentation, sample order, replacement of unusable images, and
# drop path. The numbers are part of every key: never renumber them.
JITTER, VIEW, ORDER, REPLACEMENT, DROP_PATH = range(5)


def draws(seed: int, purpose: int, time: int, sample: int = 0) -> np.random.Generator:
    """Return a new random number generator for one sample in one epoch or optimizer step.

    Args:
        seed: seed of the run, below 2^32.
        purpose: one of the constants of this module.
        time: epoch or optimizer step, or another counter that the purpose defines; below 2^40.
        sample: index of the sample, or another number that the purpose defines; below 2^40. 0 for a draw that covers
            all samples.
    """
    key = np.array([(seed << 32) | purpose, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, sample, time]))


def drop_path_numbers(seed: int, step: int, depth: int, samples: int) -> np.ndarray:
    """Return the uniform numbers that decide which residual branches drop path drops in one optimizer step.

    A branch is dropped for a sample if its number is below the drop path rate of the block.

    Args:
        step: index of the optimizer step, from 0.
        depth: number of blocks.
        samples: number of samples in the global batch.

    Returns:
        [depth, 2, samples] float32 in [0, 1); index 0 of the second dimension is attention, index 1 the FFN.
    """
    return draws(seed, DROP_PATH, step).random((depth, 2, samples), dtype="float32")
