"""The state of a run on disk: written atomically, resumed exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vitpose_fast.files import write_atomic
from vitpose_fast.models.vitpose import ViTPose


def save_state(
    path: Path, model: ViTPose, optimizer: torch.optim.Optimizer, step: int, best: float, seconds: float
) -> None:
    """Everything the next step depends on, after `step` steps and `seconds` of training."""
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "best": best,
        "seconds": seconds,
        "random": torch.get_rng_state(),
    }
    write_atomic(path, lambda p: torch.save(state, p))


def load_state(path: Path, model: ViTPose, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a saved state back; returns its `step`, `best` and `seconds`.

    Raises:
        ValueError: missing, damaged, or of another model.
    """
    if not path.is_file():
        raise ValueError(f"{path}: nothing to resume from; start without --resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except Exception as error:
        raise ValueError(f"{path}: cannot resume from it ({' '.join(str(error).split())[:200]})") from None
    torch.set_rng_state(state["random"])
    return {k: state[k] for k in ("step", "best", "seconds")}
