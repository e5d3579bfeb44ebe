"""Joint training of ViTPose++ on six data sets: the tiny model overfits their samples, which needs its experts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import vitpose_fast as vp
from vitpose_fast.codec import HeatmapCodec
from vitpose_fast.draw import keypoint_colours
from vitpose_fast.geometry import transform_points, warp_matrix
from vitpose_fast.models.config import PLUS_TASKS
from vitpose_training.data.augment import Augmentation, crop_of
from vitpose_training.data.batches import SampleSet, make_batch
from vitpose_training.data.catalog import data_set
from vitpose_training.data.read import read_labels
from vitpose_training.evaluation.scores import score
from vitpose_training.evaluation.validate import evaluate_labels
from vitpose_training.run.presets import PRESETS
from vitpose_training.run.train import train

FILES = {
    "coco": ("coco/test_coco.json", "coco"),
    "aic": ("aic/test_aic.json", "aic"),
    "mpii": ("mpii/test_mpii.json", "mpii"),
    "ap10k": ("ap10k/test_ap10k.json", "ap10k"),
    "apt36k": ("apt-36k/apt36k_wolf_reconstructed.json", None),
    "wholebody": ("coco-wholebody/test_coco_wholebody.json", "coco"),
}


@pytest.fixture
def sources(samples, tmp_path):
    """{task: (annotation file, image folder)}. The sample of APT-36K has no images, so its wolves are rendered."""
    out = {task: (samples / file, samples / (folder or "")) for task, (file, folder) in FILES.items()}
    out["apt36k"] = out["apt36k"][0], tmp_path / "wolves"
    render(read_labels("apt36k", *out["apt36k"]))
    return out


def render(labels):
    """Write the images of `labels`: skeletons in the colors of their keypoints on a blurred background."""
    rng, keypoints = np.random.default_rng(0), labels.data_set.keypoint_set
    for image in labels.truth["images"]:
        small = Image.fromarray(rng.integers(60, 190, (27, 48, 3), dtype=np.uint8))
        picture = small.resize((image["width"], image["height"]), Image.Resampling.BICUBIC)
        canvas = ImageDraw.Draw(picture)
        for person in [p for p in labels.people if p.image_id == image["id"]]:
            points = person.keypoints.tolist()
            for a, b in keypoints.skeleton:
                if person.visible[a] and person.visible[b]:
                    canvas.line((*points[a], *points[b]), fill=(240, 240, 60), width=3)
            for (x, y), seen, color in zip(points, person.visible, keypoint_colours(keypoints)):
                if seen:
                    canvas.ellipse((x - 3, y - 3, x + 3, y + 3), fill=color)
        image["path"].parent.mkdir(parents=True, exist_ok=True)
        picture.save(image["path"])


def ceiling(labels, size=(256, 192)):
    """Return the main metric that a network would reach whose heatmaps equal the training targets."""
    codec, rows = HeatmapCodec(labels.data_set.keypoint_set, size), []
    for person in labels.people:
        center, scale = (torch.from_numpy(v)[None] for v in crop_of(person, size))
        matrix = warp_matrix(center, scale, None, size, codec.kind)
        points = transform_points(matrix, torch.from_numpy(person.keypoints)[None].double()).float()
        maps, _ = codec.encode(points, torch.from_numpy(person.visible)[None])
        found, scores = codec.decode(maps, center, scale)
        ids = dict(image_id=person.image_id, category_id=person.category_id, annotation_id=person.annotation_id)
        rows.append({**ids, "keypoints": torch.cat([found[0], scores[0, :, None]], 1).flatten().tolist(), "score": 1.0})
    return main_number(labels, score([labels], rows))


def main_number(labels, metrics):
    return metrics[labels.data_set.metric.headline]


def test_perfect_targets_have_the_known_ceilings(sources):
    """Quarter-pixel decoding of 64x48 heatmaps limits AI Challenger, whose sigmas are small, and whole bodies."""
    found = {task: ceiling(read_labels(task, *files)) for task, files in sources.items()}
    known = {"coco": 1.0, "aic": 0.751, "mpii": 100.0, "ap10k": 1.0, "apt36k": 1.0, "wholebody": 0.805}
    assert found == pytest.approx(known, abs=1e-3)


def test_a_joint_dry_run(sources, tmp_path):
    files = tuple(sources[task][0] for task in PLUS_TASKS), tuple(sources[task][1] for task in PLUS_TASKS)
    config = replace(
        PRESETS["joint-s"][1], model="vitpose++-tiny", out=tmp_path / "run", image_size=(64, 48), batch_size=6,
        train=files[0], train_images=files[1], val=files[0], val_images=files[1], val_tasks=("mpii", "aic"),
        workers=0, device="cpu", flip_test=False, dry_run=True, sampling="balanced",
    )  # fmt: skip
    metrics, problems = train(config)
    assert {"mpii PCKh", "aic AP", "aic AIC score"} <= set(metrics) and problems == []


@torch.no_grad()
def loss_of(model, labels):
    """Return the training loss of the task of `labels` on the crops that evaluation uses, in evaluation mode."""
    config = model.config
    codec = HeatmapCodec(labels.data_set.keypoint_set, config.image_size, config.heatmap_size)
    samples = SampleSet([labels], config.image_size)
    batch = make_batch([samples[0, i, i] for i in range(len(samples))], {labels.data_set.name: codec}, "cpu")
    part = batch.parts[labels.data_set.name]
    return codec.loss(model.eval()(batch.crops, labels.data_set.name), part.keypoints, part.visible).item()


@pytest.mark.slow
def test_six_data_sets_are_overfitted(sources, tmp_path):
    """Every task reaches 0.95 of its ceiling, and loses score without its experts. About 4 minutes on two cores.

    Scale and rotation vary a little. Then the best fit to the integer-centered targets is skewed to the side of the
    peak on which the keypoint is, and the quarter-pixel decoder reads that. On crops that never change the skew is
    noise (AIC reaches 0.6 of 0.75).
    """
    annotations, images = (tuple(sources[task][i] for task in PLUS_TASKS) for i in (0, 1))
    views = Augmentation(0.0, False, 0.0, 0.0, scale_factor=0.1, rotation_degrees=4.0, rotation_probability=1.0)
    preset = PRESETS["overfit"][1]
    config = replace(
        preset, model="vitpose++-tiny", tasks=PLUS_TASKS, out=tmp_path / "run", batch_size=15,
        epochs=260, schedule=replace(preset.schedule, warmup=50), batchnorm="own", precision="bf16", device="cpu",
        augment=True, augmentation=views,
        train=annotations, train_images=images, val=annotations, val_images=images,
    )  # fmt: skip
    metrics, problems = train(config)
    assert problems == []
    model = vp.load_model(config.out / "model")
    bare = vp.load_model(config.out / "model")
    with torch.no_grad():
        for block in bare.backbone.blocks:
            block.mlp.expert_weight.zero_()
            block.mlp.expert_bias.zero_()
    fallen = {}
    for task in PLUS_TASKS:
        labels = read_labels(data_set(task), *sources[task])
        found, without = (main_number(labels, evaluate_labels(m, [labels], flip_test=False)[0]) for m in (model, bare))
        loss, loss_without = loss_of(model, labels), loss_of(bare, labels)
        most, fallen[task] = ceiling(labels), 1 - without / found
        print(f"{task:10} found {found:8.4f}  ceiling {most:8.4f}  without experts {without:8.4f}", end="  ")
        print(f"loss {loss:.2e}  without experts {loss_without:.2e}")
        assert found == pytest.approx(metrics[f"{task} {labels.data_set.metric.headline}"], abs=1e-9)
        assert found >= 0.95 * most, task
        assert loss_without > 1.2 * loss, task
    assert fallen["aic"] > 0.1 and fallen["wholebody"] > 0.1  # the tasks that are sensitive to half a heatmap pixel
