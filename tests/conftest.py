"""Shared fixtures. Sample photos are not part of the project: tests that need them are skipped without them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Two shared cores: neither a slow draw nor a slow example says anything about the code.
settings.register_profile("shared-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared-machine")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def samples() -> Path:
    """Folder of the sample data: $VITPOSE_SAMPLES, else ../shared/samples beside the checkout."""
    folder = Path(os.environ.get("VITPOSE_SAMPLES", ROOT.parent / "shared" / "samples"))
    if not (folder / "coco" / "test_coco.json").is_file():
        pytest.skip(f"no sample data in {folder}; set VITPOSE_SAMPLES")
    return folder


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT
