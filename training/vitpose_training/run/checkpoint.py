"""The states of a run on disk: written atomically, checked when read, resumed exactly."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitpose_fast.files import remove_leftovers, sha256, write_named_by_digest
from vitpose_training.distributed import put, whole
from vitpose_training.run.config import TrainConfig
from vitpose_training.run.optim import Ema

log = logging.getLogger("vitpose_fast")

# What may differ between a run and its continuation: none of it changes an update.
_FREE = {"out", "resume", "overwrite", "workers", "keep_images", "device", "dry_run", "track", "log_every", "init"}
_FREE |= {"val", "val_images", "val_tasks", "boxes", "eval_every", "flip_test", "blur_kernel"}
_FREE |= {"save_every", "keep", "max_bad_images", "recompute", "compile", "parallel", "micro_batch"}


class States:
    """The last states of a run: `step-00000120-<first 16 digits of the sha256>.pt`.

    A file gets its name, and with it its checksum, when it is whole and on disk: one that can be seen can be read. A
    damaged one is named and the one before it is used.

    Args:
        folder: of the states. keep: how many of them stay.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def files(self) -> list[Path]:
        """The states, the last one first."""
        found = [p for p in self.folder.glob("step-*.pt") if re.fullmatch(r"step-\d+-[0-9a-f]{16}\.pt", p.name)]
        return sorted(found, key=_step_of, reverse=True)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a state, then remove those that are too old.

        Raises:
            OSError: it cannot be written; the states before it stay.
        """
        remove_leftovers(self.folder)
        new = write_named_by_digest(self.folder, f"step-{step:08d}-", ".pt", lambda p: torch.save(state, p))
        others = [p for p in self.files() if p != new]
        # later ones are of a run that was given up, or damaged
        stale = [p for p in others if _step_of(p) >= step]
        for old in (*stale, *[p for p in others if p not in stale][self.keep - 1 :]):
            old.unlink(missing_ok=True)

    def last(self) -> Path | None:
        """The last whole state; None if there are no states.

        Raises:
            ValueError: there are states, and every one of them is damaged.
        """
        files = self.files()
        for path in files:
            if sha256(path).startswith(path.stem.rsplit("-", 1)[1]):
                return path
            log.warning("%s: damaged (its checksum differs); the state before it is used", path)
        if files:
            raise ValueError(f"{self.folder}: none of its {len(files)} states can be read; start with --overwrite")
        return None


def read_state(path: Path | None, folder: Path, config: TrainConfig) -> dict[str, Any]:
    """A state to go on from with a config.

    Raises:
        ValueError: there is none, it is not ours, or of a run or a version with other options (named).
    """
    if path is None:
        raise ValueError(f"{folder}: nothing to resume from; start without --resume")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        then = _fixed_options(state["config"])
    except Exception as error:
        raise ValueError(f"{path}: cannot resume from it ({' '.join(str(error).split())[:200]})") from None
    now = _fixed_options(config.to_dict())
    foreign = next((name for name in (*then, *now) if (name in then) != (name in now)), None)
    if foreign is not None:
        differs = f"it {'has' if foreign in then else 'lacks'} {foreign}"
        raise ValueError(
            f"{path}: cannot resume, it was written by a version with other options ({differs}); "
            f"start again with --overwrite"
        )
    for name, value in now.items():
        if value != then[name]:
            raise ValueError(f"{path}: cannot resume with another {name}: {then[name]} then, {value} now")
    return state


def _fixed_options(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The options of `TrainConfig.to_dict` that a continuation must share, nested ones by their dotted names."""
    fixed: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, dict):
            fixed |= _fixed_options(value, f"{prefix}{name}.")
        elif prefix or name not in _FREE:
            fixed[prefix + name] = value
    return fixed


def _step_of(path: Path) -> int:
    return int(path.name.split("-")[1])


def run_state(
    config: TrainConfig,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: Ema | None,
    step: int,
    seconds: float,
    keep: bool = True,
) -> dict[str, Any]:
    """Everything the next update depends on, after `step` updates and `seconds` of training.

    Tensors are whole, on the host and named by parameter, so that any number of processes can go on. Where a model is
    shared out (FSDP) every process has to call it; those that do not `keep` it get empty tensors.
    """

    def host(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        gathered = whole(value.detach())
        return gathered.cpu().clone() if keep else gathered.new_empty(0)

    named = dict(model.named_parameters())
    name_of: dict[Any, str] = {p: n for n, p in named.items()}
    moments = {name_of[p]: {k: host(v) for k, v in s.items()} for p, s in optimizer.state.items()}
    return {
        "config": config.to_dict(),
        "model": {n: host(v) for n, v in (*named.items(), *model.named_buffers())},
        "optimizer": moments,
        "ema": None
        if ema is None
        else {"updates": ema.updates, "average": {name_of[p]: host(a) for p, a in zip(ema.parameters, ema.average)}},
        "step": step,
        "seconds": seconds,
    }


@torch.no_grad()
def put_back(
    state: dict[str, Any], path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None
) -> tuple[int, float]:
    """Continue from what `read_state` gave: (updates done, seconds spent). Every process has to call it.

    Raises:
        ValueError: a state of another model.
    """
    try:
        own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        if own.keys() != state["model"].keys():
            raise ValueError(f"it holds other weights: {sorted(own.keys() ^ state['model'].keys())[0]}")
        for name, value in state["model"].items():
            put(own[name], value)
        for name, moments in state["optimizer"].items():
            parameter = own[name]
            optimizer.state[parameter] = {
                k: _like(parameter, v) if torch.is_tensor(v) and v.dim() else v for k, v in moments.items()
            }
        if ema is not None:
            ema.updates = state["ema"]["updates"]
            names = {p: n for n, p in model.named_parameters()}
            for parameter, average in zip(ema.parameters, ema.average):
                put(average, state["ema"]["average"][names[parameter]])
        return state["step"], state["seconds"]
    except Exception as error:
        raise ValueError(f"{path}: cannot resume from it ({' '.join(str(error).split())[:200]})") from None


def _like(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(parameter)
    put(out, value)
    return out


def check_free(out: Path, config: TrainConfig) -> None:
    """Refuse a folder that holds a run already, unless it is to be continued or replaced.

    Raises:
        ValueError: in one line.
    """
    metrics = out / "metrics.jsonl"
    begun = States(out / "states").files() or (metrics.is_file() and metrics.stat().st_size)
    if begun and not (config.resume or config.overwrite):
        raise ValueError(f"{out}: holds a run already; --resume goes on with it, --overwrite replaces it")


def remove_run(out: Path) -> None:
    """Take away what another run has left in a folder, so that nothing of it is taken for this one's."""
    for file in (*States(out / "states").files(), *out.glob("quarantine*.jsonl")):
        file.unlink()
    for name in ("best", "model"):
        ours = {"model.safetensors", "config.json", "manifest.json"}
        if (out / name).is_dir() and {p.name for p in (out / name).iterdir()} == ours:
            shutil.rmtree(out / name)
