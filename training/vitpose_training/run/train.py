"""Train ViTPose and ViTPose++: `python training/train.py PRESET`, `vitpose-fast train PRESET`, or under torchrun."""

from __future__ import annotations

import math
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from vitpose_fast.device import is_out_of_memory
from vitpose_fast.problems import print_problems
from vitpose_training.distributed import World, join, leave, several
from vitpose_training.run.config import TrainConfig
from vitpose_training.run.inputs import Inputs, read_inputs
from vitpose_training.run.loop import Loop, StopSignal
from vitpose_training.run.presets import PRESETS
from vitpose_training.run.state import State, start_state
from vitpose_training.run.tracking import start_records


def train(config: TrainConfig) -> tuple[dict[str, float], list[str]]:
    """Run a training, alone or as one of the processes that torchrun started.

    Writes into `config.out`: `config.json`, `metrics.jsonl`, `quarantine.jsonl` (what could not be used), `states/`
    (to resume), `model/` at the end, `best/` at the highest score (the headline of the first task's metric).

    Returns:
        The last validation metrics (empty without validation data; names begin with the task where there are several),
        and what was left out: damaged annotations and images, by name.

    Raises:
        ValueError, OSError: bad options, data or folders, in one line, before anything is written; later ten updates
            in a row that were not finite, too many unusable images, a full disk; the last state is kept.
        InterruptedError: stopped by SIGTERM, with the state saved.
    """
    with _folder_of_dry_run(config) as config:
        world = join(config.device)
        with _advice_when_out_of_memory(config, world):
            inputs = read_inputs(config, world)
            state = start_state(config, world, inputs.resumes)
            records = world.agree(lambda: start_records(config, state.step) if world.first else None)
            if world.first:
                _introduce(config, world, inputs, state)
            with records or nullcontext(), StopSignal() as stop:
                loop = Loop(config, world, inputs, state, records, stop)
                return loop.run(), loop.problems


@contextmanager
def _folder_of_dry_run(config: TrainConfig) -> Iterator[TrainConfig]:
    """The config to run; that of a dry run with a folder of its own, which is removed at the end."""
    config = replace(config, out=Path(config.out))
    if not config.dry_run:
        yield config
        return
    there = next(parent for parent in config.out.absolute().parents if parent.is_dir())
    folder = Path(tempfile.mkdtemp(dir=there, prefix="dry-run-"))
    try:
        yield replace(config, out=folder, overwrite=True, resume=False, log_every=1)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _advice_when_out_of_memory(config: TrainConfig, world: World) -> Iterator[None]:
    """Replace an error of the allocator by one that says what to lower."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        share = math.ceil(config.batch_size / world.size)
        raise ValueError(
            f"out of memory with {min(share, config.micro_batch or share)} samples at once in one process: lower "
            f"--micro-batch, raise --recompute (now {config.recompute}) or use bf16 (now {config.precision})"
        ) from None


def _introduce(config: TrainConfig, world: World, inputs: Inputs, state: State) -> None:
    """Print what is trained, on what, where."""
    count = sum(p.numel() for p in state.model.parameters())
    print(f"{config.model}: {count:,} parameters, {len(inputs.samples)} people, {world.size} x {world.device}")
    for use, labels in (("train", inputs.labels), ("evaluate", inputs.val)):
        for one in labels:
            print(f"{use} on {one.summary()}")


def _leave_others(error: Exception) -> None:
    """One of several processes failed: go at once, since a good-bye would wait for the others, who wait for this one.

    torchrun then ends them. What a process says that lost another one is of no interest.
    """
    if not several():
        return
    if isinstance(error, (ValueError, OSError, ImportError, MemoryError)):
        print(f"vitpose-fast: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    elif "onnection" in str(error) or "NCCL" in str(error):
        print("vitpose-fast: another process of this run has failed", file=sys.stderr, flush=True)
    else:
        traceback.print_exc()
    os._exit(1)


def parse(args: list[str]) -> TrainConfig:
    """The config that a command line asks for: a preset by name, then flags. Leaves with code 2 for wrong usage."""
    import tyro

    prog, name = "vitpose-fast train", args[0] if args else ""
    if name not in PRESETS:  # lists the presets
        return tyro.extras.overridable_config_cli(PRESETS, prog=prog, args=args, description=__doc__)
    text, preset = PRESETS[name]
    return tyro.cli(TrainConfig, default=preset, prog=f"{prog} {name}", description=text, args=args[1:])


def main(args: list[str] | None = None) -> int:
    config = parse(sys.argv[1:] if args is None else args)
    try:
        metrics, problems = train(config)
    except Exception as error:
        _leave_others(error)
        raise
    joined = several()
    leave()
    code = 0
    if int(os.environ.get("RANK", "0")) == 0:
        code = print_problems(problems)
        print("  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
        print(f"model in {config.out / 'model'}" if not config.dry_run else "dry run: everything fits together")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        code = 0  # torchrun would take it for a crash, and start again
    if joined:  # threads that torch leaves behind can abort an interpreter that ends (seen with FSDP on gloo)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
