"""The training loop: optimizer steps, evaluations, saved states and rows of metrics."""

from __future__ import annotations

import logging
import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
from tqdm import tqdm

from vitpose_fast.checkpoints import save_model
from vitpose_training.data.feeder import Feeder
from vitpose_training.data.order import MicroBatches
from vitpose_training.data.people import by_data_set
from vitpose_training.distributed import World
from vitpose_training.evaluation.validate import evaluate_labels
from vitpose_training.run.checkpoint import States, run_state
from vitpose_training.run.config import TrainConfig
from vitpose_training.run.flops import forward_flops, peak_flops
from vitpose_training.run.inputs import Inputs
from vitpose_training.run.optim import lr_factor, set_lr
from vitpose_training.run.state import State
from vitpose_training.run.step import Update
from vitpose_training.run.tracking import Meter, Records

log = logging.getLogger("vitpose_fast")
_MAX_SKIPPED = 10  # after so many skipped optimizer steps in a row the run stops


class StopSignal:
    """A context manager during which SIGTERM sets `asked` to True instead of ending the process.

    Python handles signals in the main thread only, so in any other thread it changes nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self._main_thread = threading.current_thread() is threading.main_thread()
        self._before = signal.getsignal(signal.SIGTERM)

    def __enter__(self) -> StopSignal:
        if self._main_thread:
            signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._main_thread and self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True


class Loop:
    """Trains a model from its current state to the end of the run.

    Every process of the run has a loop. Its methods communicate, so every process must call them at the same step.

    Args:
        inputs: the samples, their order and the validation data.
        state: the state of the run; every optimizer step changes it.
        records: metrics.jsonl and quarantine.jsonl; None in all processes except rank 0.
        stop: says, after each optimizer step, whether to save the state and stop.
    """

    def __init__(
        self, config: TrainConfig, world: World, inputs: Inputs, state: State, records: Records | None, stop: StopSignal
    ) -> None:
        self.config, self.world, self.inputs, self.state = config, world, inputs, state
        self.records, self.stop = records, stop
        self.states = States(config.out / "states", config.keep)
        self.problems = list(inputs.problems)
        """One line for each annotation, image, box or detection that was left out so far, without duplicates."""
        peak = peak_flops(world.device, config.precision)
        self.meter = Meter(world.device, 3 * forward_flops(state.model.config), peak and peak * world.size)
        self.skipped = 0  # number of optimizer steps skipped in a row, up to now
        self.began = time.monotonic() - state.seconds  # as if earlier parts of the run had ended just now

    def run(self) -> dict[str, float]:
        """Train to the end of the run, save the final model and evaluate it.

        Returns:
            The metrics of the final evaluation by name; empty if there are no validation data.

        Raises:
            InterruptedError: in every process, if SIGTERM asked any of them to stop. The state was saved.
            ValueError, OSError: ten optimizer steps in a row were skipped, too many images are unusable, a data worker
                died, or a file cannot be written. The error may occur in one process only. That process must then exit
                at once, because the others may be waiting for it.
        """
        config, world, inputs, state = self.config, self.world, self.inputs, self.state
        left = range(state.step, inputs.updates)
        keys = MicroBatches(inputs.order, left, config.micro_batch, world.rank, world.size)
        metrics: dict[str, float] = {}
        feeder = Feeder(inputs.samples, keys, state.loss.codecs, world.device, config.workers)
        with feeder, self._bar() as bar:
            progress = self._progress()
            if state.step and progress < 1 and self._evaluation_due():  # interrupted before this evaluation
                metrics = self._validate()
            while progress < 1:
                self._update(feeder, keys.pieces(), progress, bar)
                progress = self._progress()
                stop = self._stop_asked()
                if stop or progress >= 1 or self._save_due():
                    self._save()
                if stop:
                    raise InterruptedError(
                        f"stopped by a signal after step {state.step}; pass --resume to continue from there"
                    )
                if progress < 1 and self._evaluation_due():
                    metrics = self._validate()
        with state.averaged():
            model = state.whole_model()
            if world.first:
                save_model(model, config.out / "model", overwrite=True)
        return self._validate() if inputs.val else metrics

    def _bar(self) -> tqdm:
        """Make the progress bar, which counts seconds if the run has a time limit, else steps. Only rank 0 shows it."""
        seconds, first = self.config.max_seconds, self.world.first
        if seconds is not None:
            return tqdm(total=round(seconds), unit="s", mininterval=2, disable=not first)
        return tqdm(total=self.inputs.updates, initial=self.state.step, unit="step", mininterval=2, disable=not first)

    def _elapsed(self) -> float:
        """Return the seconds of training so far: over all parts of the run, evaluations included."""
        return time.monotonic() - self.began

    def _progress(self) -> float:
        """Return the fraction of the run that is done: of the steps or of the time limit, whichever is larger.

        It may exceed 1. The clock of rank 0 counts, so that all processes get the same result.
        """
        by_updates, limit = self.state.step / self.inputs.updates, self.config.max_seconds
        if limit is None:
            return by_updates
        return max(by_updates, self.world.gather(self._elapsed() / limit)[0])

    def _update(self, feeder: Feeder, pieces: int, progress: float, bar: tqdm) -> None:
        """Make one optimizer step from `pieces` micro-batches and record its outcome.

        `progress`, the fraction of the run that is done, sets the decay of the learning rate.
        """
        state, optimizer = self.state, self.config.optimizer
        set_lr(state.optimizer, optimizer.lr * lr_factor(self.config.schedule, state.step, progress))
        update, bad_images = state.updater(state.step, feeder, pieces)
        if update.replaced:
            self._note_bad_images(bad_images)
        self.skipped = 0 if update.taken else self.skipped + 1
        self.meter.images += update.images
        if update.taken:
            self._note_progress(update, feeder.waited, bar)
        else:
            self._note_skipped(update)
        state.step += 1
        bar.update(int(state.step if self.config.max_seconds is None else self._elapsed()) - bar.n)

    def _note_progress(self, update: Update, waited: float, bar: tqdm) -> None:
        """Write a row of metrics and update the progress bar, on rank 0 and every `log_every` steps.

        Call this after a step that was taken and before it is counted: `state.step` is its index, from 0.
        """
        state, records = self.state, self.records
        if records is None or state.step % self.config.log_every:
            return
        row: dict[str, Any] = {"step": state.step, "loss": update.loss, "norm": update.norm}
        row |= {"lr": state.optimizer.param_groups[-1]["lr"], **self.meter.row(waited)}
        if len(update.losses) > 1:
            row |= {f"{name} loss": value for name, value in update.losses.items()}
        records.metrics.write({**row, "seconds": round(self._elapsed(), 2)})
        best = f"{records.metrics.best:.3f}" if records.metrics.best >= 0 else "-"
        shown = {"loss": f"{update.loss:.2e}", "lr": f"{row['lr']:.1e}", "img/s": f"{row['images_per_s']:.0f}"}
        shown |= {"wait": f"{row['data_wait']:.0%}", "MiB": row["memory_mib"], "best": best}
        bar.set_postfix(shown, refresh=False)

    def _note_skipped(self, update: Update) -> None:
        """Record a skipped optimizer step, with the samples of all processes that may have caused it.

        Every process must call this. Rank 0 writes to metrics.jsonl, quarantine.jsonl and the log.

        Raises:
            ValueError: on rank 0, if this is the tenth skipped step in a row (`_MAX_SKIPPED`).
        """
        names = [name for own in self.world.gather([str(p) for p in update.bad]) for name in own]
        step, records = self.state.step, self.records
        if records is None:
            return
        reason = f"loss {update.loss}, gradient norm {update.norm}, step skipped"
        records.quarantine.add_step(step, names, reason)
        records.metrics.write({"step": step, "skipped": True, "samples": names[:8]})
        log.warning("step %d: %s; %s", step, reason, ", ".join(names[:4]))
        if self.skipped >= _MAX_SKIPPED:
            raise ValueError(
                f"{self.skipped} optimizer steps in a row were not finite (the last: {reason}); lower --optimizer.lr, "
                f"or check the samples listed in {records.quarantine.path}"
            )

    def _note_bad_images(self, bad: list[tuple[str, str]]) -> None:
        """Record the unusable images that all processes found in one step. Every process must call this.

        Args:
            bad: (image, reason) of each unusable image of this process.

        Raises:
            ValueError: on rank 0, if the run has more than `max_bad_images` unusable images so far.
        """
        images = [one for own in self.world.gather(bad) for one in own]
        self.problems += [reason for _, reason in dict(images).items() if reason not in self.problems]
        if self.records is not None:
            self.records.quarantine.add_images(self.state.step, images)

    def _stop_asked(self) -> bool:
        """Return whether any process of the run was asked to stop. Every process must call this."""
        if self.world.size == 1:
            return self.stop.asked
        return bool(self.world.sum(torch.tensor(int(self.stop.asked), device=self.world.device)).item())

    def _save_due(self) -> bool:
        """Return whether a state is due after the steps so far: every `save_every` steps, or after every epoch."""
        return self.state.step % (self.config.save_every or self.inputs.order.steps) == 0

    def _save(self) -> None:
        """Save the current state.

        Every process must call this: rank 0 writes the file, and under FSDP all processes gather the state.

        Raises:
            OSError: on rank 0, if the state cannot be written; the earlier states are kept.
            ValueError: on the other ranks in this case, with the same message.
        """
        state, first = self.state, self.world.first
        saved: dict[str, Any] = {}
        if first or self.config.parallel == "fsdp":
            parts = state.model, state.optimizer, state.updater.ema
            saved = run_state(self.config, *parts, state.step, self._elapsed(), first)
        self.world.agree(lambda: self.states.save(state.step, saved) if first else None)

    def _evaluation_due(self) -> bool:
        """Return whether an evaluation during the run is due after the steps so far. Every process must call this.

        It is due after every `eval_every` epochs (never if 0), unless metrics.jsonl already has one for this step.
        """
        epochs, rest = divmod(self.state.step, self.inputs.order.steps)
        if not self.inputs.val or not self.config.eval_every or rest or epochs % self.config.eval_every:
            return False
        scored = self.records is not None and self.records.metrics.scored(self.state.step)
        return not self.world.gather(scored)[0]

    def _validate(self) -> dict[str, float]:
        """Evaluate every task that has validation data, record the metrics, and save the model if it is the best.

        With EMA, the averaged weights are evaluated and saved. Every process must call this: all of them predict, and
        rank 0 writes the files. The BatchNorm statistics of rank 0 replace those of all other processes.

        The score, by which models are compared, is the headline metric of the first task. An evaluation of a step that
        metrics.jsonl already has is not recorded again.

        Returns:
            The metrics by name, the same in every process; with several tasks, names begin with the task.
        """
        config, state, records = self.config, self.state, self.records
        by_task = by_data_set(self.inputs.val)
        metrics: dict[str, float] = {}
        score = 0.0  # of the first task
        self.world.from_first(state.model.buffers())  # evaluate with the BatchNorm statistics that are saved
        with self.meter.paused(), state.averaged():
            model = state.whole_model()
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
                metrics |= {name if len(by_task) == 1 else f"{task} {name}": value for name, value in found.items()}
            if records is not None:
                best = score > records.metrics.best
                row = {"step": state.step, "score": score, **metrics, "seconds": round(self._elapsed(), 2)}
                if not records.metrics.scored(state.step):
                    records.metrics.write(row)
                if best:
                    save_model(model, config.out / "best", overwrite=True)
        return metrics
