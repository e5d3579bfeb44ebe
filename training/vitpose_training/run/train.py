"""Train ViTPose and ViTPose++: `vitpose-fast train PRESET`, or `torchrun training/train.py PRESET` for several GPUs.

The options of a preset are listed by `vitpose-fast train PRESET --help`. Tables are those of the ViTPose++ paper.
"""

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
    """Train a model, in a single process or as one of the processes that torchrun started.

    Under torchrun every process must call this; the process group stays open afterwards, see `distributed.leave`.

    Writes into `config.out`: `config.json`, `metrics.jsonl`, `quarantine.jsonl` (unusable training images, and the
    samples of skipped optimizer steps), `states/` (to resume from), `model/` (the final model) and `best/` (the model
    with the highest score). The score is the headline metric of the first evaluated task. A dry run writes all this
    into a temporary folder and removes it.

    Returns:
        The metrics of the final evaluation, and one line for each annotation, image, box or detection that was left
        out. The metrics are empty without validation data; with several evaluated tasks, their names begin with the
        task.

    Raises:
        ValueError, OSError: before anything is written, options, data or folders cannot be used; or later, ten
            optimizer steps in a row were skipped, too many images are unusable, memory is exhausted, or the disk is
            full. The last saved state is kept. Later errors may occur in one process only, which must then exit.
        ImportError: the package of a tracker is not installed; in processes other than rank 0, a ValueError.
        InterruptedError: SIGTERM stopped the run; its state was saved.
    """
    with _dry_run_folder(config) as config:
        world = join(config.device)
        with _explain_out_of_memory(config, world):
            inputs = read_inputs(config, world)
            state = start_state(config, world, inputs.resumes)
            records = world.agree(lambda: start_records(config, state.step) if world.first else None)
            if world.first:
                _print_summary(config, world, inputs, state)
            with records or nullcontext(), StopSignal() as stop:
                loop = Loop(config, world, inputs, state, records, stop)
                return loop.run(), loop.problems


@contextmanager
def _dry_run_folder(config: TrainConfig) -> Iterator[TrainConfig]:
    """A context manager that yields the config to run. A dry run gets a temporary folder, removed at the end, as `out`.

    A dry run also logs every step and never resumes. It leaves the given `out` untouched.
    """
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
def _explain_out_of_memory(config: TrainConfig, world: World) -> Iterator[None]:
    """A context manager that turns an out-of-memory error into a ValueError that says which options to change."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        share = math.ceil(config.batch_size / world.size)
        raise ValueError(
            f"out of memory with {min(share, config.micro_batch or share)} samples at once per process; lower "
            f"--micro-batch, raise --recompute (now {config.recompute}) or use --precision bf16 "
            f"(now {config.precision})"
        ) from None


def _print_summary(config: TrainConfig, world: World, inputs: Inputs, state: State) -> None:
    """Print the size of the model, the number of training samples, the devices, and a line for each annotation file."""
    count = sum(p.numel() for p in state.model.parameters())
    print(f"{config.model}: {count:,} parameters, {len(inputs.samples)} people, {world.size} x {world.device}")
    for use, labels in (("train", inputs.labels), ("evaluate", inputs.val)):
        for one in labels:
            print(f"{use} on {one.summary()}")


def _exit_if_distributed(error: Exception) -> None:
    """Exit immediately with code 1 when this rank fails, if there are several processes; else do nothing.

    An orderly shutdown would deadlock with the ranks that wait for this one; torchrun ends them instead. Errors that
    the user can cause are printed in one line. A broken connection means that another rank failed, so only this is
    said. Of any other error the traceback is printed.
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
    """Parse the arguments of `vitpose-fast train`: the name of a preset, then flags that change it.

    Wrong usage, such as an unknown preset, prints a message and exits with code 2; --help exits with code 0.
    """
    import tyro

    prog, name = "vitpose-fast train", args[0] if args else ""
    if name not in PRESETS:  # tyro then lists the presets
        return tyro.extras.overridable_config_cli(PRESETS, prog=prog, args=args, description=__doc__)
    text, preset = PRESETS[name]
    return tyro.cli(TrainConfig, default=preset, prog=f"{prog} {name}", description=text, args=args[1:])


def main(args: list[str] | None = None) -> int:
    """Run `vitpose-fast train` and return the exit code: 1 if any input was left out, else 0.

    Under torchrun the code is 0 in both cases, since torchrun would take 1 for a crash. With several processes, this
    exits with the code instead of returning it, and with 1 on an error.

    Args:
        args: the arguments after `vitpose-fast train`. None means `sys.argv[1:]`.
    """
    config = parse(sys.argv[1:] if args is None else args)
    try:
        metrics, problems = train(config)
    except Exception as error:
        _exit_if_distributed(error)
        raise
    joined = several()
    leave()
    code = 0
    if int(os.environ.get("RANK", "0")) == 0:
        code = print_problems(problems)
        print("  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
        print(f"model in {config.out / 'model'}" if not config.dry_run else "dry run: everything fits together")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        code = 0  # torchrun would take any other code for a crash and restart the run
    if joined:  # threads that torch leaves running can abort the interpreter at exit (seen with FSDP on gloo)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
