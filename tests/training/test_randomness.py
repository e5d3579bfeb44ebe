"""Random numbers depend only on their key and stay the same from version to version."""

from __future__ import annotations

import numpy as np
import pytest

from vitpose_training.randomness import DROP_PATH, JITTER, VIEW, draws, drop_path_numbers


def test_draws_depend_only_on_their_key():
    numbers = {
        key: tuple(draws(*key).random(3))
        for key in [(s, p, t, n) for s in (0, 1) for p in (JITTER, VIEW) for t in (0, 1) for n in (0, 1)]
    }
    assert len(set(numbers.values())) == 16
    assert all(tuple(draws(*key).random(3)) == value for key, value in numbers.items())
    many = np.array([draws(0, VIEW, t, n).random() for t in range(50) for n in range(50)])
    assert abs(many.mean() - 0.5) < 0.02 and abs(many.std() - 12**-0.5) < 0.02


def test_a_key_gives_the_same_numbers_in_every_version():
    """A run must continue with the same numbers when another version resumes it."""
    assert draws(1, VIEW, 2, 3).random(3).tolist() == [0.7308602716503296, 0.23882528196917974, 0.7573497311996447]
    assert drop_path_numbers(1, 2, 1, 2).ravel() == pytest.approx(
        [0.6948697, 0.7318916, 0.4763595, 0.5810978], abs=1e-7
    )


def test_drop_path_numbers_depend_on_the_step():
    numbers = drop_path_numbers(3, 7, depth=2, samples=5)
    assert numbers.shape == (2, 2, 5) and numbers.dtype == np.float32 and (numbers >= 0).all() and (numbers < 1).all()
    assert np.array_equal(numbers, draws(3, DROP_PATH, 7).random((2, 2, 5), dtype="float32"))
    assert not np.array_equal(numbers, drop_path_numbers(3, 8, depth=2, samples=5))
