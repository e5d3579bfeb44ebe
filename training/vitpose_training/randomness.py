"""Random numbers of a training run, reproducible for any number of processes and workers and after a resume.

Every draw has a key, (seed, purpose, epoch or step, sample), and depends on nothing else. The generator, Philox, is
counter-based, so neither the process or worker that draws nor any earlier draw changes the numbers.
"""

from __future__ import annotations

import numpy as np

JITTER, VIEW, ORDER, REPLACEMENT, DROP_PATH = range(5)  # purposes; the numbers are part of every key: never renumber


def draws(seed: int, purpose: int, time: int, sample: int = 0) -> np.random.Generator:
    """Return the random number generator of one sample at one time.

    Args:
        seed: seed of the run, below 2^32.
        purpose: one of the constants of this module.
        time: epoch or step, below 2^40.
        sample: index of the sample, below 2^40; 0 for a draw that covers all samples.
    """
    key = np.array([(seed << 32) | purpose, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, sample, time]))


def drop_path_numbers(seed: int, step: int, depth: int, samples: int) -> np.ndarray:
    """Return the uniform numbers that decide which residual branches drop path drops in one optimizer step.

    Returns:
        [depth, 2, samples] float32 in [0, 1); the second dimension is attention, then FFN.
    """
    return draws(seed, DROP_PATH, step).random((depth, 2, samples), dtype="float32")
