"""The state of a run on disk: written atomically, resumed exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from vitpose_fast.files import write_atomic
from vitpose_fast.models.vitpose import ViTPose
from vitpose_fast.training.config import TrainConfig

# What may differ between a run and its continuation: none of it changes a step.
_FREE = (
    "out",
    "resume",
    "overwrite",
    "workers",
    "device",
    "val",
    "val_images",
    "eval_every",
    "flip_test",
    "blur_kernel",
)


def save_state(
    path: Path, config: TrainConfig, model: ViTPose, optimizer: torch.optim.Optimizer, step: int, seconds: float
) -> None:
    """Everything the next step depends on, after `step` steps and `seconds` of training."""
    device = model.device
    state = {
        "config": config.to_dict(),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "seconds": seconds,
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }
    write_atomic(path, lambda p: torch.save(state, p))


def load_state(path: Path, config: TrainConfig, model: ViTPose, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Put a saved state back: (steps done, seconds spent).

    Raises:
        ValueError: missing, damaged, or of a run with other options (named).
    """
    if not path.is_file():
        raise ValueError(f"{path}: nothing to resume from; start without --resume")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        before, now = state["config"], config.to_dict()
        changed = [k for k in now if k not in _FREE and now[k] != before.get(k)]
        if not changed:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["random"])
            device = model.device
            if device.type == "cuda" and state["random_cuda"] is not None:
                torch.cuda.set_rng_state(state["random_cuda"], device)
    except Exception as error:
        raise ValueError(f"{path}: cannot resume from it ({' '.join(str(error).split())[:200]})") from None
    if changed:
        name = changed[0]
        raise ValueError(f"{path}: cannot resume with another {name}: {before.get(name)} then, {now[name]} now")
    return state["step"], state["seconds"]


class MetricsFile:
    """`metrics.jsonl`: a line a row, flushed at once. A resumed run drops the rows that it will write again."""

    def __init__(self, path: Path, step: int) -> None:
        self.best = -1.0  # highest AP so far
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if step else []
        rows = [r for r in rows if r["step"] < step or (r["step"] == step and "AP" in r)]
        write_atomic(path, lambda p: p.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8"))
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self.best = max([r["AP"] for r in rows if "AP" in r], default=-1.0)

    def write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self.best = max(self.best, row.get("AP", -1.0))
