"""Train ViTPose and ViTPose++: `python training/train.py PRESET`, `vitpose-fast train PRESET`, or under torchrun."""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from dataclasses import replace
from pathlib import Path

from vitpose_fast.device import is_out_of_memory
from vitpose_fast.problems import print_problems
from vitpose_training.distributed import World, join, leave, several
from vitpose_training.run.config import TrainConfig
from vitpose_training.run.loop import Run
from vitpose_training.run.presets import PRESETS


def train(config: TrainConfig) -> tuple[dict[str, float], list[str]]:
    """Run a training, alone or as one of the processes that torchrun started.

    Writes into `config.out`: `config.json`, `metrics.jsonl`, `quarantine.jsonl` (what could not be used), `states/`
    (to resume), `model/` at the end, `best/` at the highest score (AP, PCKh or AUC of the first task).

    Returns:
        The last validation metrics (empty without validation data; names begin with the task where there are several),
        and what was left out: damaged annotations and images, by name.

    Raises:
        ValueError, OSError: bad options, data or folders, in one line, before anything is written; later ten updates
            in a row that were not finite, too many unusable images, a full disk; the last state is kept.
        InterruptedError: stopped by SIGTERM, with the state saved.
    """
    if not config.dry_run:
        return _train(config)
    there = next(parent for parent in Path(config.out).absolute().parents if parent.is_dir())
    folder = Path(tempfile.mkdtemp(dir=there, prefix="dry-run-"))
    try:
        return _train(replace(config, out=folder, overwrite=True, resume=False, log_every=1))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _train(config: TrainConfig) -> tuple[dict[str, float], list[str]]:
    world = join(config.device)
    try:
        return _run(config, world)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        share = math.ceil(config.batch_size / world.size)
        raise ValueError(
            f"out of memory with {min(share, config.micro_batch or share)} samples at once in one process: lower "
            f"--micro-batch, raise --recompute (now {config.recompute}) or use bf16 (now {config.precision})"
        ) from None


def _run(config: TrainConfig, world: World) -> tuple[dict[str, float], list[str]]:
    run = Run(config, world)
    world.agree(run.start_files)
    if world.first:
        count = sum(p.numel() for p in run.model.parameters())
        print(f"{config.model}: {count:,} parameters, {len(run.samples)} people, {world.size} x {world.device}")
        for use, labels in (("train", run.labels), ("evaluate", run.val)):
            for one in labels:
                print(f"{use} on {one.summary()}")

    def stop(*_: object) -> None:
        run.stopping = True

    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if main_thread else None
    try:
        return run.loop(), run.problems
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
        if world.first:
            run.metrics_file.close()


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


def main(args: list[str] | None = None) -> int:
    import tyro

    config = tyro.extras.overridable_config_cli(PRESETS, prog="vitpose-fast train", args=args, description=__doc__)
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
