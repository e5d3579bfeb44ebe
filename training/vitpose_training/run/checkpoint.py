"""Training states on disk: written atomically, verified when read, and exact to resume from."""

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

# Options that may change when a run is resumed: they belong neither to the data nor to the recipe of the training.
# (Of these, compile and parallel change rounding, and micro_batch also the samples over which BatchNorm averages.)
_MAY_CHANGE = {
    *("out", "resume", "overwrite", "workers", "keep_images", "device", "dry_run", "track", "log_every", "init"),
    *("val", "val_images", "val_tasks", "boxes", "eval_every", "flip_test", "blur_kernel"),
    *("save_every", "keep", "max_bad_images", "recompute", "compile", "parallel", "micro_batch"),
}


class States:
    """The most recent states of a run, in files named `step-00000120-<first 16 digits of the sha256>.pt`.

    A file gets this name, and with it its checksum, only once it is completely on disk, so that an interrupted write is
    never mistaken for a state. The checksum reveals files that were damaged later (see `last`).

    Args:
        folder: the folder of the states.
        keep: number of most recent states that `save` keeps, at least 1.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def files(self) -> list[Path]:
        """Return the files of all states, damaged ones included, in descending order of their steps."""
        found = [p for p in self.folder.glob("step-*.pt") if re.fullmatch(r"step-\d+-[0-9a-f]{16}\.pt", p.name)]
        return sorted(found, key=_step_of, reverse=True)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state after `step` optimizer steps, then remove all but the `keep` most recent states.

        Other states of the same or a later step are removed as well.

        Raises:
            OSError: the state cannot be written; in this case no state is removed.
        """
        remove_leftovers(self.folder)
        new = write_named_by_digest(self.folder, f"step-{step:08d}-", ".pt", lambda p: torch.save(state, p))
        others = [p for p in self.files() if p != new]
        # states of a later step are damaged or belong to an abandoned run
        stale = [p for p in others if _step_of(p) >= step]
        for old in (*stale, *[p for p in others if p not in stale][self.keep - 1 :]):
            old.unlink(missing_ok=True)

    def last(self) -> Path | None:
        """Return the file of the most recent state whose checksum matches its name, or None if there are no states.

        A warning is logged for every more recent file that is damaged.

        Raises:
            ValueError: there are states, but all of them are damaged.
        """
        files = self.files()
        for path in files:
            if sha256(path).startswith(path.stem.rsplit("-", 1)[1]):
                return path
            log.warning("%s: damaged (its checksum differs); using the next older state", path)
        if files:
            raise ValueError(
                f"{self.folder}: all {len(files)} states are damaged; pass --overwrite to start the run again"
            )
        return None


def read_state(path: Path | None, folder: Path, config: TrainConfig) -> dict[str, Any]:
    """Load the state at `path` to the CPU and check that a run with `config` can continue from it.

    Args:
        path: file of the state; None means that there is no state.
        folder: folder of the states, which the message names if there is no state.

    Raises:
        ValueError: there is no state; the file is unreadable or not a training state; `TrainConfig` had other options
            when it was written; or an option that must not change had another value (named in the message).
    """
    if path is None:
        raise ValueError(f"{folder}: holds no state to resume from; start without --resume")
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
            f"pass --overwrite to start the run again"
        )
    for name, value in now.items():
        if value != then[name]:
            raise ValueError(f"{path}: cannot resume with another {name}: it was {then[name]}, it is now {value}")
    return state


def _fixed_options(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the options of `TrainConfig.to_dict` that must not change on resume, such as `optimizer.lr`, by name.

    These are all nested options, whose names are joined by dots, and the others that are not in `_MAY_CHANGE`.
    """
    fixed: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, dict):
            fixed |= _fixed_options(value, f"{prefix}{name}.")
        elif prefix or name not in _MAY_CHANGE:
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
    """Collect everything that the next optimizer step depends on, as a dict to be saved.

    Tensors are unsharded, on the CPU and stored under the name of their parameter or buffer, so that any number of
    processes can resume from them. Under FSDP every process must call this, because parameters are gathered.

    Args:
        step: optimizer steps done, skipped ones included.
        seconds: seconds of training so far, over all parts of the run.
        keep: False returns empty tensors, for processes that only take part in the gathering.
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
    """Restore model, optimizer and EMA in place from a state that `read_state` returned. Every process must call this.

    Args:
        path: file of the state, for error messages.

    Returns:
        (optimizer steps done, seconds of training so far), as given to `run_state`.

    Raises:
        ValueError: the state does not fit: its weights have other names or shapes, or it lacks the averages for `ema`.
            The model may have changed in part.
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
    """Return a copy of the unsharded `value` with the device, dtype and sharding of `parameter` (see `put`)."""
    out = torch.zeros_like(parameter)
    put(out, value)
    return out


def check_free(out: Path, config: TrainConfig) -> None:
    """Check that `out` holds no run, unless the config says to resume or to replace it.

    Raises:
        ValueError: `out` holds a saved state or a metrics.jsonl that is not empty, and neither `config.resume` nor
            `config.overwrite` is set.
    """
    metrics = out / "metrics.jsonl"
    begun = States(out / "states").files() or (metrics.is_file() and metrics.stat().st_size)
    if begun and not (config.resume or config.overwrite):
        raise ValueError(f"{out}: already holds a run; pass --resume to continue it or --overwrite to replace it")


def remove_run(out: Path) -> None:
    """Remove the states, the quarantine*.jsonl files and the models of an earlier run from `out`, and no other files.

    `best` and `model` are removed only if they hold exactly the three files of a saved model.
    """
    for file in (*States(out / "states").files(), *out.glob("quarantine*.jsonl")):
        file.unlink()
    for name in ("best", "model"):
        ours = {"model.safetensors", "config.json", "manifest.json"}
        if (out / name).is_dir() and {p.name for p in (out / name).iterdir()} == ours:
            shutil.rmtree(out / name)
