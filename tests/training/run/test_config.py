"""Presets match the paper's tables, and contradicting options are refused with the reason."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from vitpose_training.data.augment import Augmentation
from vitpose_training.run.config import TrainConfig
from vitpose_training.run.optim import OptimizerConfig, ScheduleConfig
from vitpose_training.run.presets import PRESETS
from vitpose_training.run.train import parse


def config(name):
    return PRESETS[name][1]


PLUS_TASKS = ("coco", "aic", "mpii", "ap10k", "apt36k", "wholebody")
# Table 1: batch, learning rate, weight decay, layer decay, drop path (ViTPose / ViTPose++)
TABLE_1 = {
    "s": ((512, 1024), (5e-4, 1e-3), 0.1, 0.80, 0.10),
    "b": ((512, 1024), (5e-4, 1e-3), 0.1, 0.75, 0.30),
    "l": ((512, 1024), (5e-4, 1e-3), 0.1, 0.80, 0.50),
    "h": ((512, 1024), (5e-4, 1e-3), 0.1, 0.80, 0.55),
}


@pytest.mark.parametrize("size", TABLE_1)
def test_table_1(size):
    batches, rates, weight_decay, layer_decay, drop_path = TABLE_1[size]
    for i, name in enumerate((f"coco-{size}", f"joint-{size}")):
        c = config(name)
        assert (c.batch_size, c.optimizer.lr, c.optimizer.weight_decay) == (batches[i], rates[i], weight_decay)
        assert (c.optimizer.layer_decay, c.model_config().drop_path) == (layer_decay, drop_path)
        assert (c.epochs, c.schedule.warmup, c.optimizer.clip, c.sampling) == (210, 500, 1.0, "proportional")
        assert [round(210 * m) for m in c.schedule.decay] == [170, 200]
        assert c.tasks == (("coco",) if i == 0 else PLUS_TASKS) and c.batchnorm == "all"
        assert c.model_config().part_features == (0 if i == 0 else c.model_config().width // 4)


def test_tables_2_3_and_6():
    for size in "sblh":
        assert config(f"coco-{size}-simple").model_config().decoder == "simple"
    assert {config(f"coco-b-{d}").decoder for d in ("simple", "classic-fp", "minimal")} == {
        "simple",
        "classic-fp",
        "minimal",
    }
    sizes = {(224, 224), (256, 256), (384, 288), (384, 384), (576, 432)}
    assert {config(f"coco-b-{h}x{w}").model_config().image_size for h, w in sizes} == sizes


def test_table_7():
    rows = {
        "full": ("full", (8, 8)),
        "window": ("window", (8, 8)),
        "shift": ("window+shift", (8, 8)),
        "pool": ("window+pool", (8, 8)),
        "shift-pool": ("window+shift+pool", (8, 8)),
        "window-full": ("window+full", (8, 8)),
        "shift-pool-16x12": ("window+shift+pool", (16, 12)),
    }
    for name, (attention, window) in rows.items():
        model = config(f"coco-b-8-{name}").model_config()
        assert (model.attention, model.window, model.grid, model.heatmap_size) == (
            attention,
            window,
            (32, 24),
            (64, 48),
        )


def test_tables_8_10_and_11():
    assert config("coco-b-ffn-only").model_config().freeze_attn and config("coco-b-mhsa-only").model_config().freeze_ffn
    mixtures = [config(name).tasks for name in PRESETS if name.startswith("mix-")]
    assert sorted(mixtures, key=len) == [
        ("coco", "aic"),
        ("coco", "aic", "mpii"),
        ("coco", "aic", "ap10k"),
        ("coco", "aic", "mpii", "wholebody"),
        ("coco", "aic", "ap10k", "apt36k"),
    ]
    assert all(not config(n).model_config().has_experts for n in PRESETS if n.startswith("mix-"))
    experts = {n: config(n).model_config() for n in PRESETS if n.startswith("experts-")}
    kinds = {n.removeprefix("experts-"): (m.experts, m.part_features) for n, m in experts.items()}
    assert kinds == {
        "i-ffn": ("instead", 0),
        "is-ffn": ("added", 0),
        "ps-ffn-6": ("none", 128),
        "ps-ffn-4": ("none", 192),
        "ps-ffn-3": ("none", 256),
    }
    assert all([t.name for t in m.tasks] == ["coco", "aic", "ap10k"] for m in experts.values())


def test_presets_say_what_they_are_and_where_the_released_configuration_differs():
    for name, (text, c) in PRESETS.items():
        assert re.search(r"Table \d", text) or name in ("tiny", "overfit"), name
        assert c.out == Path("runs") / name and c.model_config().tasks
    assert "0.85" in PRESETS["coco-h"][0] and "192 channels, not 96" in PRESETS["joint-s"][0]
    assert "0.85" not in PRESETS["joint-h"][0]  # the released ViTPose++-H has the paper's 0.80


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(tasks=("coco", "dog")), "unknown keypoint set 'dog', expected coco, aic"),
        (dict(model="vitpose-xl"), "unknown preset 'vitpose-xl'"),
        (dict(tasks=("coco", "aic"), experts="added", model="vitpose++-tiny"), "exclude each other"),
        (dict(attention="window", window=(20, 8)), "window (20, 8) does not fit the 16x12 grid"),
        (dict(tasks=("ochuman",)), "ochuman is for evaluation only"),
        (dict(val_tasks=("aic",)), "got 'aic' in val_tasks, expected tasks of this run: coco"),
        (dict(tasks=("coco", "coco")), "expected at least one task and no duplicates"),
        (dict(tasks=()), "expected at least one task and no duplicates"),
        (dict(micro_batch=65), "got micro_batch=65, more than batch_size=64"),
        (dict(micro_batch=0), "got micro_batch=0, expected at least 1"),
        (dict(ema=1.0), "got ema=1.0, expected a decay between 0 and 1"),
        (dict(blur_kernel=4), "got blur_kernel=4, expected an odd number"),
        (dict(resume=True, overwrite=True), "choose one"),
        (dict(seed=2**32), "expected less than 2**32"),
        (
            dict(train=(Path("a"), Path("b")), train_images=(Path("c"),), tasks=("coco", "aic", "mpii")),
            "expected one file per task, or a single task",
        ),
        (dict(val_tasks=()), "got val_tasks=(), expected at least one"),
        (dict(val_tasks=("coco", "coco")), "no duplicates; leave it out to evaluate all tasks"),
        (dict(frozen_stages=99), "frozen_stages 99, expected -1 (none) to 3"),
        (dict(frozen_stages=-2), "frozen_stages -2, expected -1 (none) to 3"),
        (dict(image_size=(100000, 192)), "expected (height, width) of 16 to 4096"),
    ],
)
def test_contradictions_are_refused_with_the_reason(changes, message):
    with pytest.raises(ValueError) as error:
        made = replace(TrainConfig(), **changes)
        made.model_config()
        made.sources("train")
        made.sources("val")
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (OptimizerConfig, dict(lr=float("nan")), "got optimizer.lr=nan, expected a positive number"),
        (OptimizerConfig, dict(lr=0), "got optimizer.lr=0, expected a positive number"),
        (OptimizerConfig, dict(clip=float("inf")), "got optimizer.clip=inf, expected a positive number"),
        (OptimizerConfig, dict(layer_decay=2.0), "got optimizer.layer_decay=2.0, expected at most 1"),
        (OptimizerConfig, dict(weight_decay=float("inf")), "got optimizer.weight_decay=inf, expected a finite number"),
        (OptimizerConfig, dict(weight_decay=-1), "got optimizer.weight_decay=-1, expected a finite number, at least 0"),
        (ScheduleConfig, dict(decay=(0.9, 0.5)), "got schedule.decay=(0.9, 0.5), expected cosine or rising fractions"),
        (ScheduleConfig, dict(decay=(0.5, float("nan"))), "expected cosine or rising fractions of the run"),
        (ScheduleConfig, dict(decay="linear"), "got schedule.decay=linear, expected cosine or rising fractions"),
        (ScheduleConfig, dict(warmup=-5), "got schedule.warmup=-5, expected at least 0"),
    ],
)
def test_optimizer_and_schedule_refuse_values_by_the_names_of_their_flags(kind, values, message):
    with pytest.raises(ValueError) as error:
        kind(**values)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "decay"),
    [("cosine", "cosine"), ("0.5 0.9", (0.5, 0.9)), ("", ())],
)
def test_the_schedule_is_chosen_by_one_flag(flags, decay):
    for name in ("tiny", "coco-b"):  # presets with a cosine schedule and with milestones
        args = [name, "--schedule.decay", *flags.split(), "--optimizer.lr", "0.01", "--schedule.warmup", "7"]
        made = parse(args)
        before = config(name)
        assert made.schedule == ScheduleConfig(decay, warmup=7)
        assert made == replace(before, schedule=made.schedule, optimizer=replace(before.optimizer, lr=0.01))


def test_files_go_with_tasks():
    c = TrainConfig(tasks=("coco", "mpii"), data=Path("d"))
    assert [(s.name, a, i) for s, a, i in c.sources("train")] == [
        ("coco", Path("d/coco/annotations/person_keypoints_train2017.json"), Path("d/coco/train2017")),
        ("mpii", Path("d/mpii/annotations/mpii_train.json"), Path("d/mpii/images")),
    ]
    one = replace(c, tasks=("coco",), train=(Path("a"), Path("b")), train_images=(Path("i"),), val_images=(Path("i"),))
    assert [(s.name, str(a), str(i)) for s, a, i in one.sources("train")] == [("coco", "a", "i"), ("coco", "b", "i")]
    assert one.sources("val") == []  # training files without validation files
    both = replace(c, train=(Path("a"), Path("b")), train_images=(Path("i"), Path("j")), val_tasks=("mpii",))
    both = replace(both, val=(Path("v"), Path("w")), val_images=(Path("i"),))
    assert [(s.name, str(a)) for s, a, _ in both.sources("val")] == [("mpii", "w")]


def test_the_codec_of_all_tasks_can_be_chosen():
    c = TrainConfig(tasks=("coco", "aic"))
    assert [d.keypoint_set.codec for d in c.data_sets()] == ["udp", "msra"]
    assert [t.codec for t in replace(c, codec="udp").model_config().tasks] == ["udp", "udp"]


def test_a_config_is_plain_json():
    import json

    made = TrainConfig(augmentation=Augmentation(scale_factor=0.2), train=(Path("x"),), train_images=(Path("y"),))
    plain = json.loads(json.dumps(made.to_dict()))
    assert plain["augmentation"]["scale_factor"] == 0.2
    assert plain["optimizer"] == {"lr": 5e-4, "weight_decay": 0.1, "layer_decay": 0.75, "clip": 1.0}
    assert plain["schedule"] == {"decay": [170 / 210, 200 / 210], "warmup": 500}


def test_what_all_runs_of_the_paper_have_in_common():
    """It is also what a run without a preset does."""
    common = dict(
        official_boxes=True, mpii_stretch=True, augment=True, flip_test=True, blur_kernel=11, sigma=2.0, ema=None,
        codec="official", sampling="proportional", batchnorm="all", eval_every=10, init=None, boxes=None,
        augmentation=Augmentation(), keep=2, max_bad_images=100,
    )  # fmt: skip
    runs = {"no preset": TrainConfig()} | {
        name: c for name, (_, c) in PRESETS.items() if name not in ("tiny", "overfit")
    }
    for name, c in runs.items():
        assert {key: getattr(c, key) for key in common} == common, name
    assert [name for name, c in runs.items() if c.precision != "fp32"] == ["coco-b-8-full"]
