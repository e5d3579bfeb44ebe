"""Train a ViTPose model on COCO-format data: `python training/train.py PRESET`, `vitpose-fast train PRESET`."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from vitpose_fast.checkpoints import load_model, load_pretrained, save_model
from vitpose_fast.coco import print_problems
from vitpose_fast.codec import HeatmapCodec
from vitpose_fast.files import make_folder, write_atomic
from vitpose_fast.keypoints import keypoint_set
from vitpose_fast.models.vitpose import ViTPose, create_model
from vitpose_fast.predictor import pick_device
from vitpose_fast.training.checkpoint import MetricsFile, load_state, save_state
from vitpose_fast.training.config import PRESETS, TrainConfig
from vitpose_fast.training.data import EpochSampler, PeopleDataset, keep_usable, make_batch, read_people
from vitpose_fast.training.optim import lr_factor, make_optimizer, set_lr
from vitpose_fast.training.validate import check_can_evaluate, evaluate


def build_model(config: TrainConfig) -> ViTPose:
    """The freshly initialised model of a run, from `config.init` where given.

    Raises:
        ValueError: a checkpoint that does not fit the model, in one line.
    """
    torch.manual_seed(config.seed)
    options: dict[str, Any] = {} if config.drop_path is None else {"drop_path": config.drop_path}
    model = create_model(config.model, (config.task,), config.decoder, config.image_size, **options)
    if config.init is None:
        return model
    source = load_model(config.init, image_size=config.image_size)
    if source.load_report.family == "mae" or model.config.part_features:
        print(load_pretrained(model, config.init))
        return model
    for name in ("width", "depth", "heads", "decoder", "decoder_width", "patch_stride", "attention"):
        found, wanted = getattr(source.config, name), getattr(model.config, name)
        if found != wanted:
            raise ValueError(f"{config.init}: has {name} {found}, {config.model} has {wanted}; choose --model to match")
    target = model.config.tasks[0]
    start = target.name if target.name in source.heads else next(iter(source.heads))
    return source.with_keypoints(target, start, drop_path=model.config.drop_path)


def train(config: TrainConfig) -> tuple[dict[str, float], list[str]]:
    """Run a training.

    Writes into `config.out`: `config.json`, `metrics.jsonl` (a line per logged step and per evaluation), `last.pt`
    after every epoch, `model/` at the end, `best/` at the highest AP.

    Returns:
        The last validation metrics (empty without validation data), and what was left out: damaged annotations and
        images, by name.

    Raises:
        ValueError, OSError: bad options, data or folders, in one line, before anything is written; later a loss that is
            not finite, with the last epoch's state kept.
    """
    if not config.train:
        raise ValueError("nothing to train on: give --train FILE.json and --train-images FOLDER")
    out = Path(config.out)
    if (out / "last.pt").exists() and not (config.resume or config.overwrite):
        raise ValueError(f"{out}: holds a run already; --resume goes on with it, --overwrite replaces it")
    keypoints = keypoint_set(config.task)
    problems: list[str] = []
    people = [p for file, images in config.sources("train") for p in read_people(file, images, keypoints, problems)]
    if config.val:
        check_can_evaluate(keypoints, config.sources("val"))
    device = pick_device(config.device)
    model = build_model(config).to(device).train()
    codec = HeatmapCodec(keypoints, model.config.image_size, model.config.heatmap_size, config.sigma)
    optimizer = make_optimizer(model, config)
    step, before = load_state(out / "last.pt", config, model, optimizer) if config.resume else (0, 0.0)

    make_folder(out)
    write_atomic(out / "config.json", lambda p: p.write_text(json.dumps(config.to_dict(), indent=1)))
    log_file = MetricsFile(out / "metrics.jsonl", step)
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
    per_epoch, total = len(sampler), config.epochs * len(sampler)
    print(f"{config.model}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(people)} people, {device}")
    clock = config.max_seconds is not None  # then the bar counts seconds, which end the run, and not steps
    bar = tqdm(total=round(config.max_seconds or total), unit="s" if clock else "step", mininterval=2)
    started = time.monotonic()

    def elapsed() -> float:
        return before + time.monotonic() - started

    def progress() -> float:
        by_clock = 0.0 if config.max_seconds is None else elapsed() / config.max_seconds
        return max(step / total, by_clock)

    def validate() -> dict[str, float]:
        metrics, _, left_out = evaluate(
            model, config.sources("val"), flip_test=config.flip_test, blur_kernel=config.blur_kernel
        )
        problems.extend(p for p in left_out if p not in problems)
        best = metrics["AP"] > log_file.best
        log_file.write({"step": step, **metrics, "seconds": round(elapsed(), 2)})
        if best:
            save_model(model, out / "best", overwrite=True)
        return metrics

    metrics: dict[str, float] = {}
    unusable: set[str] = set()
    while progress() < 1:
        sampler.start(step // per_epoch, step % per_epoch)
        for samples, reasons in loader:
            unusable.update(reasons)
            if samples:
                set_lr(optimizer, config, lr_factor(config, step, progress()))
                loss, norm = _train_step(model, optimizer, codec, samples, config, device)
                if step % 20 == 0:
                    row = {"step": step, "loss": loss, "norm": norm, "lr": optimizer.param_groups[-1]["lr"]}
                    log_file.write({**row, "seconds": round(elapsed(), 2)})
                    best = f"{log_file.best:.3f}" if log_file.best >= 0 else "-"
                    bar.set_postfix(loss=f"{loss:.2e}", AP=best, refresh=False)
            step += 1
            bar.update(int(elapsed() if clock else step) - bar.n)
            if progress() >= 1:
                break
        if len(unusable) >= len({p.image for p in people}):
            raise ValueError(f"none of the images can be used; the first: {min(unusable)}")
        save_state(out / "last.pt", config, model, optimizer, step, elapsed())
        epochs, rest = divmod(step, per_epoch)
        if config.val and config.eval_every and rest == 0 and epochs % config.eval_every == 0 and progress() < 1:
            metrics = validate()
    bar.close()
    save_model(model, out / "model", overwrite=True)
    if config.val:
        metrics = validate()
    problems.extend(r for r in sorted(unusable) if r not in problems)
    return metrics, problems


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
    metrics, problems = train(config)
    code = print_problems(problems)
    print("  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
    print(f"model in {config.out / 'model'}")
    return code


if __name__ == "__main__":
    from vitpose_fast.__main__ import run

    sys.exit(run(main))
