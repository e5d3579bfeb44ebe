"""Train a ViTPose model on COCO-format data: `python training/train.py PRESET`, `vitpose-fast train PRESET`."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from vitpose_fast.checkpoints import load_model, load_pretrained, save_model
from vitpose_fast.codec import HeatmapCodec
from vitpose_fast.files import make_folder, write_atomic
from vitpose_fast.keypoints import keypoint_set
from vitpose_fast.models.vitpose import ViTPose, create_model
from vitpose_fast.training.checkpoint import load_state, save_state
from vitpose_fast.training.config import PRESETS, TrainConfig
from vitpose_fast.training.data import EpochSampler, PeopleDataset, keep_usable, make_batch, read_people
from vitpose_fast.training.optim import lr_factor, make_optimizer, set_lr
from vitpose_fast.training.validate import evaluate

log = logging.getLogger("vitpose_fast")


def build_model(config: TrainConfig) -> ViTPose:
    """The freshly initialised model of a run, from `config.init` where given."""
    torch.manual_seed(config.seed)
    options: dict[str, Any] = {} if config.drop_path is None else {"drop_path": config.drop_path}
    model = create_model(config.model, (config.task,), config.decoder, config.image_size, **options)
    if config.init is None:
        return model
    source = load_model(config.init, image_size=config.image_size)
    if source.load_report.family == "mae":
        print(load_pretrained(model, config.init))
        return model
    found, wanted = source.config, model.config
    if (found.width, found.depth, found.decoder) != (wanted.width, wanted.depth, wanted.decoder):
        raise ValueError(
            f"{config.init}: width {found.width}, depth {found.depth}, {found.decoder} decoder; {config.model} has "
            f"{wanted.width}, {wanted.depth}, {wanted.decoder}: choose the --model and --decoder of the checkpoint"
        )
    name = wanted.tasks[0].name
    start = name if name in source.heads else next(iter(source.heads))
    return source.with_keypoints(wanted.tasks[0], start, drop_path=wanted.drop_path)


def train(config: TrainConfig) -> dict[str, float]:
    """Run a training; returns the last validation metrics (empty without validation data).

    Writes into `config.out`: `config.json`, `metrics.jsonl` (a line per logged step and per evaluation), `last.pt`
    after every epoch, `model/` at the end, `best/` at the highest AP.

    Raises:
        ValueError, OSError: bad data or folders, in one line.
    """
    if not config.train:
        raise ValueError("nothing to train on: give --train FILE.json and --train-images FOLDER")
    keypoints = keypoint_set(config.task)
    people = [p for annotations, images in config.sources("train") for p in read_people(annotations, images, keypoints)]
    out = make_folder(config.out)
    write_atomic(out / "config.json", lambda p: p.write_text(json.dumps(config.to_dict(), indent=1)))

    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = build_model(config).to(device).train()
    codec = HeatmapCodec(keypoints, model.config.image_size, model.config.heatmap_size, config.sigma)
    optimizer = make_optimizer(model, config)
    dataset = PeopleDataset(
        people,
        keypoints,
        config.augmentation if config.augment else None,
        config.seed,
        model.config.image_size,
        keep_images=config.workers == 0,
    )
    sampler = EpochSampler(len(dataset), config.batch_size, config.seed)
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=keep_usable,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
        generator=torch.Generator(),  # its own, so that the order of epochs does not move drop path's draws
    )
    step, best, before = 0, -1.0, 0.0
    if config.resume:
        state = load_state(out / "last.pt", model, optimizer)
        step, best, before = state["step"], state["best"], state["seconds"]
    log_file = (out / "metrics.jsonl").open("a" if config.resume else "w", encoding="utf-8", buffering=1)
    per_epoch, total = len(sampler), config.epochs * len(sampler)
    print(f"{config.model}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(people)} people, {device}")
    bar = tqdm(total=total, initial=step, unit="step", mininterval=2)
    started = time.monotonic()
    metrics: dict[str, float] = {}
    last_evaluation = -1

    def elapsed() -> float:
        return before + time.monotonic() - started

    def progress() -> float:
        by_clock = 0.0 if config.max_seconds is None else elapsed() / config.max_seconds
        return max(step / total, by_clock)

    named: set[str] = set()
    while progress() < 1:
        epoch = step // per_epoch
        sampler.start(epoch, step % per_epoch)
        for samples, reasons in loader:
            for reason in sorted(set(reasons) - named):
                log.warning("skipped %s", reason)
                named.add(reason)
            if samples:
                set_lr(optimizer, config, lr_factor(config, step, progress()))
                loss, norm = _train_step(model, optimizer, codec, samples, config, device)
                if step % 20 == 0:
                    row = {"step": step, "loss": loss, "norm": norm, "lr": optimizer.param_groups[-1]["lr"]}
                    log_file.write(json.dumps({**row, "seconds": round(elapsed(), 2)}) + "\n")
                    bar.set_postfix(loss=f"{loss:.2e}", AP=f"{best:.3f}" if best >= 0 else "-", refresh=False)
            step += 1
            bar.update()
            if progress() >= 1:
                break
        if len(named) >= len(people):
            raise ValueError(f"none of the images can be used; the first: {sorted(named)[0]}")
        finished_epochs = step // per_epoch
        due = config.eval_every > 0 and finished_epochs > 0 and finished_epochs % config.eval_every == 0
        if config.val and (progress() >= 1 or (due and step % per_epoch == 0)):
            metrics, _, _ = evaluate(model, config.sources("val"), flip_test=config.flip_test)
            log_file.write(json.dumps({"step": step, **metrics, "seconds": round(elapsed(), 2)}) + "\n")
            last_evaluation = step
            if metrics["AP"] > best:
                best = metrics["AP"]
                save_model(model, out / "best", overwrite=True)
        save_state(out / "last.pt", model, optimizer, step, best, elapsed())
    bar.close()
    save_model(model, out / "model", overwrite=True)
    log_file.close()
    if config.val and last_evaluation != step:
        metrics, _, _ = evaluate(model, config.sources("val"), flip_test=config.flip_test)
    return metrics


def _train_step(
    model: ViTPose,
    optimizer: torch.optim.Optimizer,
    codec: HeatmapCodec,
    samples: list[dict[str, Any]],
    config: TrainConfig,
    device: torch.device,
) -> tuple[float, float]:
    """One update; returns loss and gradient norm.

    Raises:
        ValueError: a loss that is not finite; nothing has been updated.
    """
    batch = make_batch(samples, codec, device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"):
        heatmaps = model(batch.crops)
    loss = codec.loss(heatmaps, batch.keypoints, batch.visible)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    if not math.isfinite(loss.item()) or not math.isfinite(norm.item()):
        raise ValueError(f"loss {loss.item()} or gradient norm {norm.item()} is not finite; lower --lr")
    optimizer.step()
    return loss.item(), norm.item()


def main(args: list[str] | None = None) -> int:
    import tyro

    config = tyro.extras.overridable_config_cli(PRESETS, prog="vitpose-fast train", args=args, description=__doc__)
    metrics = train(config)
    print("  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
    print(f"model in {Path(config.out) / 'model'}")
    return 0


if __name__ == "__main__":
    from vitpose_fast.__main__ import run

    sys.exit(run(main))
