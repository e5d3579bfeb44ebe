"""A run: what a training is made of, and the loop over its updates."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from vitpose_fast.checkpoints import save_model
from vitpose_fast.codec import HeatmapCodec
from vitpose_fast.files import make_folder, remove_leftovers, write_atomic
from vitpose_fast.models.vitpose import ViTPose
from vitpose_training.data.batches import Feeder, SampleSet
from vitpose_training.data.order import MicroBatches, Order
from vitpose_training.data.people import adjusted, by_data_set
from vitpose_training.data.read import read_labels
from vitpose_training.distributed import World, job, share, whole
from vitpose_training.evaluation.scores import check_can_evaluate
from vitpose_training.evaluation.validate import check_detections, evaluate_labels
from vitpose_training.run.checkpoint import States, check_free, put_back, read_state, remove_run, run_state
from vitpose_training.run.config import TrainConfig
from vitpose_training.run.flops import forward_flops, peak_flops
from vitpose_training.run.optim import lr_factor, make_optimizer, set_lr
from vitpose_training.run.recompute import set_recompute
from vitpose_training.run.starting_model import build_model
from vitpose_training.run.step import PoseLoss, Update, Updater
from vitpose_training.run.tracking import TRACKERS, Meter, MetricsFile, Quarantine, Tracker

log = logging.getLogger("vitpose_fast")
_MAX_SKIPPED = 10  # updates in a row that were not finite


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
            file = self.out / "job"
            if job() and file.is_file() and file.read_text(encoding="utf-8") == job():
                self.resumes = bool(self.states.files())
            else:
                check_free(self.out, config)
                self.resumes = config.resume
        oddities = config.official_boxes, config.mpii_stretch
        self.labels = [adjusted(read_labels(*source), *oddities) for source in config.sources("train")]
        for one in self.labels:
            one.truth = None  # of use in evaluations only, and large
        sources, missing = config.sources("val"), []
        if not config.val and config.val_tasks is None:  # nobody has asked for them
            gone = [source for source in sources if not source[1].is_file()]
            missing = [f"{file}: no such file, so {own.name} is not evaluated" for own, file, _ in gone]
            sources = [source for source in sources if source not in gone]
        self.val = [adjusted(read_labels(*source), *oddities) for source in sources]
        check_can_evaluate(self.val)
        if config.boxes is not None and self.val:
            check_detections(by_data_set(self.val)[self.val[0].data_set.name], config.boxes)
        self.problems = list(dict.fromkeys([*missing, *(p for one in (*self.labels, *self.val) for p in one.problems)]))
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

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """A context in which the model has its averaged weights, where there are any."""
        ema = self.updater.ema
        if ema is None:
            yield
            return
        ema.swap()
        try:
            yield
        finally:
            ema.swap()

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
        by_task = by_data_set(self.val)
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
                    score = found[labels[0].data_set.metric.headline]
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
