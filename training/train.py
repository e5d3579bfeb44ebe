"""Train ViTPose and ViTPose++: `python training/train.py PRESET`, `vitpose-fast train PRESET`, or under torchrun."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from vitpose_fast.checkpoints import load_model, load_pretrained, save_model
from vitpose_fast.coco import print_problems
from vitpose_fast.codec import HeatmapCodec
from vitpose_fast.files import make_folder, remove_leftovers, write_atomic
from vitpose_fast.models.vitpose import ViTPose
from vitpose_fast.predictor import is_out_of_memory
from vitpose_fast.training.checkpoint import States, check_free, put_back, read_state, remove_run, run_state
from vitpose_fast.training.config import TrainConfig
from vitpose_fast.training.data import Feeder, MicroBatches, Order, SampleSet
from vitpose_fast.training.distributed import World, job, join, leave, several, share, whole
from vitpose_fast.training.optim import lr_factor, make_optimizer, set_lr
from vitpose_fast.training.people import Labels, adjusted
from vitpose_fast.training.presets import PRESETS
from vitpose_fast.training.readers import read_labels
from vitpose_fast.training.recompute import set_recompute
from vitpose_fast.training.scores import SCORE, check_can_evaluate
from vitpose_fast.training.speed import forward_flops, peak_flops
from vitpose_fast.training.step import PoseLoss, Update, Updater
from vitpose_fast.training.tracking import TRACKERS, Meter, MetricsFile, Quarantine, Tracker
from vitpose_fast.training.validate import check_detections, evaluate_labels

log = logging.getLogger("vitpose_fast")
_MAX_SKIPPED = 10  # updates in a row that were not finite


def build_model(config: TrainConfig) -> ViTPose:
    """The freshly initialised model of a run, from `config.init` where given.

    Raises:
        ValueError: a checkpoint that does not fit the model, in one line.
    """
    torch.manual_seed(config.seed)
    model = ViTPose(config.model_config())
    if config.init is None:
        return model
    source = load_model(config.init, image_size=config.image_size)
    pose = source.load_report.family != "mae"
    if not pose or model.config.has_experts or len(model.tasks) > 1:
        print(load_pretrained(model, config.init))
        if pose:
            _take_heads(model, source)
        return model
    for name in ("width", "depth", "heads", "decoder", "decoder_width", "patch_stride", "attention"):
        found, wanted = getattr(source.config, name), getattr(model.config, name)
        if found != wanted:
            raise ValueError(f"{config.init}: has {name} {found}, {config.model} has {wanted}; choose --model to match")
    target = model.config.tasks[0]
    start = target.name if target.name in source.heads else next(iter(source.heads))
    training = {n: getattr(model.config, n) for n in ("drop_path", "freeze_attn", "freeze_ffn", "frozen_stages")}
    return source.with_keypoints(target, start, **training)


def _take_heads(model: ViTPose, source: ViTPose) -> None:
    """The heads of tasks that the source has, too, as far as they are built alike; says which."""
    taken = []
    for name, head in model.heads.items():
        own, theirs = head.state_dict(), source.heads[name].state_dict() if name in source.heads else {}
        if {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in theirs.items()}:
            head.load_state_dict(theirs)
            taken.append(name)
    new = [name for name in model.heads if name not in taken]
    print(f"heads from the checkpoint: {', '.join(taken) or 'none'}; new: {', '.join(new) or 'none'}")


class Run:
    """A training: what it is made of, and the loop over it. `train` is the way to use it.

    Raises:
        ValueError, OSError: bad options, data or folders, in one line, before anything is written.
    """

    def __init__(self, config: TrainConfig, world: World) -> None:
        self.config, self.world, self.out = config, world, Path(config.out)
        self.states = States(self.out / "states", config.keep)
        self.step, self.seconds, self.stopping = 0, 0.0, False
        world.agree(self._read)  # in here nobody waits for another process, so that all of them can refuse alike
        model = self.model.config
        self.module = share(self.loss, list(self.model.backbone.blocks), world, config.parallel)
        if config.compile:
            self.model.backbone.compile()
        self.optimizer = make_optimizer(self.model, config)
        self.updater = Updater(self.module, self.loss, self.optimizer, config, world)
        if world.gather(self.resumes)[0]:
            path = world.gather(world.agree(self.states.last) if world.first else world.agree(lambda: None))[0]
            state = world.agree(lambda: read_state(path, self.states.folder, config))
            self.step, self.seconds = put_back(state, path, self.model, self.optimizer, self.updater.ema)
        self.samples = SampleSet(
            self.labels,
            model.image_size,
            config.augmentation if config.augment else None,
            config.seed,
            config.keep_images,
        )
        self.order = Order(self.samples.task_of, config.batch_size, config.seed, config.sampling)
        self.total = 2 if config.dry_run else config.epochs * self.order.steps

    def _read(self) -> None:
        """Everything that can be refused: options, data, the model, the folder."""
        config, world = self.config, self.world
        if config.batch_size < world.size:
            raise ValueError(f"got batch_size={config.batch_size} for {world.size} processes, expected one each")
        smallest, largest = config.batch_size // world.size, math.ceil(config.batch_size / world.size)
        if smallest < math.ceil(largest / (config.micro_batch or largest)):
            raise ValueError(
                f"--batch-size {config.batch_size} in pieces of --micro-batch {config.micro_batch} leaves one of "
                f"{world.size} processes without samples at times: choose a batch that they divide"
            )
        if config.parallel == "fsdp" and world.size == 1:
            raise ValueError("--parallel fsdp shares a model among processes: start it with torchrun")
        self.resumes = False
        if world.first:  # torchrun may start its own run again; anybody else's is asked for
            own = self.out / "job"
            if job() and own.is_file() and own.read_text(encoding="utf-8") == job():
                self.resumes = bool(self.states.files())
            else:
                check_free(self.out, config)
                self.resumes = config.resume
        oddities = config.official_boxes, config.mpii_stretch
        self.labels = [adjusted(read_labels(*source), *oddities) for source in config.sources("train")]
        for one in self.labels:
            one.truth = None  # of use in evaluations only, and large
        self.val = [adjusted(read_labels(*source), *oddities) for source in config.sources("val")]
        check_can_evaluate(self.val)
        if config.boxes is not None and self.val:
            first = [one for one in self.val if one.data_set.name == self.val[0].data_set.name]
            check_detections(first, config.boxes)
        self.problems = list(dict.fromkeys(p for one in (*self.labels, *self.val) for p in one.problems))
        self.model = build_model(config).to(world.device).train()
        model = self.model.config
        self.codecs = {t.name: HeatmapCodec(t, model.image_size, model.heatmap_size, config.sigma) for t in model.tasks}
        self.loss = PoseLoss(self.model, self.codecs, config.batchnorm, config.precision == "bf16")
        set_recompute(self.model.backbone, config.recompute)

    def start_files(self) -> None:
        """Make the folder, and in it everything that is written from the beginning."""
        config, out, world = self.config, self.out, self.world
        trackers: list[Tracker] = []
        if world.first:
            make_folder(out)
            remove_leftovers(out)
            if self.step == 0 and config.overwrite:
                remove_run(out, self.states)
            if job():
                write_atomic(out / "job", lambda p: p.write_text(job(), encoding="utf-8"))
            write_atomic(out / "config.json", lambda p: p.write_text(json.dumps(config.to_dict(), indent=1)))
            trackers = [TRACKERS[name](out, config) for name in config.track]
            self.metrics_file = MetricsFile(out / "metrics.jsonl", self.step, trackers)
            self.quarantine = Quarantine(out / "quarantine.jsonl", config.max_bad_images)
        peak = peak_flops(world.device, config.precision)
        flops = 3 * forward_flops(self.model.config)
        self.meter = Meter(world.device, flops, peak and peak * world.size)

    def elapsed(self) -> float:
        return self.seconds + time.monotonic() - self._started

    def progress(self) -> float:
        """Share of the run that is over; by the clock where that is further."""
        limit = self.config.max_seconds
        by_clock = 0.0 if limit is None else self.elapsed() / limit
        return max(self.step / self.total, self.world.gather(by_clock)[0] if limit is not None else 0.0)

    def loop(self) -> dict[str, float]:
        """Train to the end, or until SIGTERM: the last metrics."""
        config, world = self.config, self.world
        keys = MicroBatches(self.order, range(self.step, self.total), config.micro_batch, world.rank, world.size)
        feeder = Feeder(self.samples, keys, self.codecs, world.device, config.workers)
        clock = config.max_seconds is not None  # then the bar counts seconds, which end the run, and not steps
        limit = round(config.max_seconds) if config.max_seconds is not None else self.total
        unit = "s" if clock else "step"
        bar = tqdm(total=limit, initial=0 if clock else self.step, unit=unit, mininterval=2, disable=not world.first)
        self._started = time.monotonic()
        skipped, saved, metrics = 0, self.step, {}
        progress = self.progress()
        if self.step and progress < 1 and self._evaluation_due():  # it was interrupted before its end
            metrics = self.validate()
        while progress < 1:
            set_lr(self.optimizer, config, lr_factor(config, self.step, progress))
            update, bad_images = self.updater(self.step, feeder, keys.pieces())
            if update.replaced:
                self._note_bad_images(bad_images)
            skipped = 0 if update.taken else skipped + 1
            self._note(update, feeder.waited, skipped, bar)
            self.step += 1
            bar.update(int(self.elapsed() if clock else self.step) - bar.n)
            progress = self.progress()
            stop = self._stop_asked()
            epoch_over = self.step % self.order.steps == 0
            every = config.save_every
            if stop or progress >= 1 or (epoch_over if every is None else self.step % every == 0):
                self.save()
                saved = self.step
            if stop:
                bar.close()
                raise InterruptedError(f"stopped by a signal after update {saved}; --resume goes on from there")
            if progress < 1 and self._evaluation_due():
                metrics = self.validate()
        bar.close()
        with self.averaged():
            self._save_model("model")
        return self.validate() if self.val else metrics

    def _evaluation_due(self) -> bool:
        """Whether the model of now is to be evaluated in the middle of the run, and has not been."""
        epochs, rest = divmod(self.step, self.order.steps)
        if not self.val or not self.config.eval_every or rest or epochs % self.config.eval_every:
            return False
        return not self.world.gather(self.world.first and self.metrics_file.scored(self.step))[0]

    def _note(self, update: Update, waited: float, skipped: int, bar: tqdm) -> None:
        """Write a row, name what was not finite, and stop after too many of those."""
        self.meter.images += update.images
        everybody = self.world.gather([str(p) for p in update.bad]) if not update.taken else []
        if not self.world.first:
            return
        row: dict[str, Any] = {"step": self.step, "loss": update.loss, "norm": update.norm}
        if not update.taken:
            names = [name for own in everybody for name in own]
            reason = f"loss {update.loss}, gradient norm {update.norm}: the update was not taken"
            self.quarantine.add_step(self.step, names, reason)
            self.metrics_file.write({"step": self.step, "skipped": True, "samples": names[:8]})
            log.warning("update %d: %s; %s", self.step, reason, ", ".join(names[:4]))
            if skipped >= _MAX_SKIPPED:
                raise ValueError(
                    f"{skipped} updates in a row were not finite (the last: {reason}); lower --lr, or look "
                    f"at the samples in {self.quarantine.path}"
                )
        elif self.step % self.config.log_every == 0:
            row |= {"lr": self.optimizer.param_groups[-1]["lr"], **self.meter.row(waited)}
            if len(update.losses) > 1:
                row |= {f"{name} loss": value for name, value in update.losses.items()}
            self.metrics_file.write({**row, "seconds": round(self.elapsed(), 2)})
            best = f"{self.metrics_file.best:.3f}" if self.metrics_file.best >= 0 else "-"
            shown = {"loss": f"{update.loss:.2e}", "lr": f"{row['lr']:.1e}", "img/s": f"{row['images_per_s']:.0f}"}
            shown |= {"wait": f"{row['data_wait']:.0%}", "MiB": row["memory_mib"], "best": best}
            bar.set_postfix(shown, refresh=False)

    def _note_bad_images(self, bad: list[tuple[str, str]]) -> None:
        everybody = [one for own in self.world.gather(bad) for one in own]
        self.problems += [reason for _, reason in dict(everybody).items() if reason not in self.problems]
        if self.world.first:
            self.quarantine.add_images(self.step, everybody)

    def _stop_asked(self) -> bool:
        if self.world.size == 1:
            return self.stopping
        return bool(self.world.sum(torch.tensor(int(self.stopping), device=self.world.device)).item())

    def save(self) -> None:
        """The state of now, by the first process; all processes help to put it together.

        Raises:
            OSError: it cannot be written; the one before stays.
        """
        state: dict[str, Any] = {}
        if self.world.first or self.config.parallel == "fsdp":
            state = run_state(
                self.config, self.model, self.optimizer, self.updater.ema, self.step, self.elapsed(), self.world.first
            )
        self.world.agree(lambda: self.states.save(self.step, state) if self.world.first else None)

    def averaged(self) -> Any:
        """A context in which the model has its averaged weights, where there are any."""
        return _Swapped(self.updater.ema)

    def _plain_model(self) -> ViTPose:
        """The model in one piece; where it is shared out (FSDP) a copy, in every process."""
        if self.config.parallel != "fsdp" or self.world.size == 1:
            return self.model
        copy = ViTPose(self.model.config).to(self.world.device)
        own = {**dict(copy.named_parameters()), **dict(copy.named_buffers())}
        with torch.no_grad():
            for name, value in (*self.model.named_parameters(), *self.model.named_buffers()):
                own[name].copy_(whole(value.detach()))
        return copy

    def _save_model(self, name: str) -> None:
        model = self._plain_model()
        if self.world.first:
            save_model(model, self.out / name, overwrite=True)

    def validate(self) -> dict[str, float]:
        """Metrics of every task that has something to be evaluated on; the best model so far is kept."""
        config = self.config
        by_task: dict[str, list[Labels]] = {}
        for one in self.val:
            by_task.setdefault(one.data_set.name, []).append(one)
        out: dict[str, float] = {}
        self.world.from_first(self.model.buffers())  # BatchNorm's statistics: those that are saved
        with self.averaged():
            model = self._plain_model()
            for i, (task, labels) in enumerate(by_task.items()):
                found, _, left_out = evaluate_labels(
                    model,
                    labels,
                    detections=config.boxes if i == 0 else None,
                    flip_test=config.flip_test,
                    blur_kernel=config.blur_kernel,
                    world=self.world,
                    limit=32 if config.dry_run else None,
                )
                self.problems += [p for p in left_out if p not in self.problems]
                if i == 0:
                    score = found[SCORE[labels[0].data_set.metric]]
                out |= {name if len(by_task) == 1 else f"{task} {name}": value for name, value in found.items()}
            if self.world.first:
                best = score > self.metrics_file.best
                row = {"step": self.step, "score": score, **out, "seconds": round(self.elapsed(), 2)}
                if not self.metrics_file.scored(self.step):
                    self.metrics_file.write(row)
                if best:
                    save_model(model, self.out / "best", overwrite=True)
        self.meter.start_again()
        return out


class _Swapped:
    def __init__(self, ema: Any) -> None:
        self.ema = ema

    def __enter__(self) -> None:
        if self.ema is not None:
            self.ema.swap()

    def __exit__(self, *_: object) -> None:
        if self.ema is not None:
            self.ema.swap()


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

    before = signal.signal(signal.SIGTERM, stop) if _in_main_thread() else None
    try:
        return run.loop(), run.problems
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
        if world.first:
            run.metrics_file.close()


def _in_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()


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
    leave()
    if int(os.environ.get("RANK", "0")) > 0:
        return 0
    code = print_problems(problems)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        code = 0  # torchrun would take it for a crash, and start again
    print("  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
    print(f"model in {config.out / 'model'}" if not config.dry_run else "dry run: everything fits together")
    return code


if __name__ == "__main__":
    from vitpose_fast.__main__ import run

    sys.exit(run(main))
