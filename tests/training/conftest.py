"""Fixtures shared by the tests of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitpose_training.demo.synthetic import write_dataset


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Folder with annotations.json and images/: 12 rendered people on 8 images. Tests must not change it."""
    folder = tmp_path_factory.mktemp("people")
    write_dataset(folder, images=8, seed=5, size=(120, 160))
    return folder
