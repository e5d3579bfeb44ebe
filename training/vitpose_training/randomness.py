"""Random numbers of a training run: each draw depends on what it is for and on nothing else.

The key of a draw is (seed, purpose, epoch or step, sample). Which process or worker draws, and what was drawn before,
makes no difference, because Philox is counter-based: a run gives the same numbers alone, in several processes and after
it was resumed.
"""

from __future__ import annotations

import numpy as np

JITTER, VIEW, ORDER, REPLACEMENT, DROP_PATH = range(5)  # purposes; their numbers are part of every run's key


def draws(seed: int, purpose: int, time: int, sample: int = 0) -> np.random.Generator:
    """Return the random numbers of one sample at one time.

    Args:
        seed: of the run, below 2^32.
        purpose: one of the constants of this module.
        time: epoch or step, below 2^40.
        sample: number of the sample, below 2^40; 0 where a draw is for all samples at once.
    """
    key = np.array([(seed << 32) | purpose, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, sample, time]))


def drop_path_numbers(seed: int, step: int, depth: int, samples: int) -> np.ndarray:
    """Draw the numbers that decide which residual branches an update drops: [depth, 2, samples] float32 in [0, 1)."""
    return draws(seed, DROP_PATH, step).random((depth, 2, samples), dtype="float32")
