"""What is inferred about a model from the tensors of a file, and what happens if they do not determine it."""

from __future__ import annotations

import json
import logging

import pytest
import torch

import vitpose_fast as vp
from vitpose_fast.checkpoints import save_hf
from vitpose_fast.keypoints import KEYPOINT_SETS, KeypointSet

PLUS_TASKS = ("coco", "aic", "mpii", "ap10k", "apt36k", "wholebody")  # the order of experts in the released files
PEN = KeypointSet.from_dict({"name": "pen", "names": ["tip", "cap"], "skeleton": [["tip", "cap"]]})


@torch.no_grad()
def test_one_deconvolution_means_patch_stride_8(make, official, images, tmp_path, check_same, store):
    model = make(patch_stride=8)
    loaded = vp.load_model(store(tmp_path / "m.pth", official(model)))
    check_same(loaded, model, images)
    assert (loaded.config.patch_stride, loaded.config.image_size) == (8, (64, 48))


def test_plus_keeps_all_heads_and_experts(make, official, images, tmp_path, check_same, store):
    model = make("vitpose++-tiny", tasks=PLUS_TASKS)
    loaded = vp.load_model(store(tmp_path / "vitpose+_small.pth", official(model)))
    assert loaded.tasks == tuple(loaded.heads) == PLUS_TASKS
    for task in PLUS_TASKS:
        check_same(loaded, model, images, task)
    assert loaded.load_report.unexpected == loaded.load_report.missing == []


@pytest.mark.parametrize("part", [48, 96])
def test_part_features_come_from_the_tensors(part, make, official, images, tmp_path, check_same, store):
    model = make("vitpose++-tiny", tasks=("coco", "aic"), width=384, num_heads=12, depth=1, part_features=part)
    loaded = vp.load_model(store(tmp_path / "s.pth", official(model)))
    assert loaded.config.part_features == part and loaded.config.num_heads == 12
    check_same(loaded, model, images, "aic")


def test_leftovers_of_model_split(make, official, images, tmp_path, check_same, store):
    """The official splitting tool merges fc2 but leaves the experts, and in coco.pth also the other heads."""
    plus = make("vitpose++-tiny", tasks=PLUS_TASKS)
    state = official(plus)
    for i in range(4):
        for kind in ("weight", "bias"):
            name = f"backbone.blocks.{i}.mlp.fc2.{kind}"
            state[name] = torch.cat([state[name], state[f"backbone.blocks.{i}.mlp.experts.0.{kind}"]])
    loaded = vp.load_model(store(tmp_path / "coco.pth", state))
    report = check_same(loaded, plus, images)
    assert loaded.tasks == ("coco",) and loaded.config.part_features == 0
    assert report.unexpected == []
    assert len([k for k in report.ignored if ".experts." in k]) == 4 * 6 * 2
    assert len([k for k in report.ignored if k.startswith("associate_keypoint_heads.")]) == 5 * 14


def test_several_heads_without_experts(make, official, images, tmp_path, check_same, store):
    model = make(tasks=("coco", "aic", "mpii"))
    loaded = vp.load_model(store(tmp_path / "vitpose_base_coco_aic_mpii.pth", official(model)))
    assert tuple(loaded.heads) == ("coco", "aic", "mpii") and loaded.config.part_features == 0
    for task in loaded.tasks:
        check_same(loaded, model, images, task)


def test_a_head_with_unexpected_keypoints_among_several(make, official, images, tmp_path, check_same, store):
    model = make("vitpose++-tiny", tasks=("coco", PEN))
    loaded = vp.load_model(store(tmp_path / "m.pth", official(model)))
    assert loaded.tasks == ("coco", "custom1")
    check_same(loaded, model, images, "custom1", "pen")
    assert "head 1 has 2 keypoints, unlike aic, and is named custom1" in loaded.load_report.guesses


def test_an_unknown_number_of_keypoints_is_custom(make, official, images, tmp_path, check_same, store):
    model = make(tasks=PEN)
    loaded = vp.load_model(store(tmp_path / "vitpose-b-coco_25.pth", official(model)))
    check_same(loaded, model, images, "custom", "pen")
    assert loaded.config.tasks[0].num_keypoints == 2


@pytest.mark.parametrize(
    "file, keypoints, task, reason",
    [
        ("vitpose-b.pth", "coco", "coco", "17 keypoints"),
        ("model.pth", "aic", "aic", "14 keypoints"),
        ("model.pth", "mpii", "mpii", "16 keypoints"),
        ("model.pth", "wholebody", "wholebody", "133 keypoints"),
        ("model.pth", "interhand", "interhand", "21 keypoints"),
        ("vitpose-b-ap10k.pth", "ap10k", "ap10k", "the name vitpose-b-ap10k.pth"),
        ("ViTPose_AP-10K_from_coco.pth", "ap10k", "ap10k", "the name ViTPose_AP-10K_from_coco.pth"),
        ("apt36k.pth", "ap10k", "apt36k", "the name apt36k.pth"),
        ("crowdpose.pth", "aic", "crowdpose", "the name crowdpose.pth"),
        ("coco-wholebody.pth", "wholebody", "wholebody", "the name coco-wholebody.pth"),
        ("coco.pth", "aic", "aic", "14 keypoints"),  # the tensors contradict the name
        ("ap10k/best.pth", "ap10k", "ap10k", "the name ap10k"),
    ],
)
def test_the_task_is_guessed_and_the_guess_reported(
    file, keypoints, task, reason, make, official, tmp_path, caplog, store
):
    path = tmp_path / "x" / file
    path.parent.mkdir(parents=True)
    state = official(make(tasks=(keypoints,), depth=1, decoder="simple"))
    with caplog.at_level(logging.WARNING, "vitpose_fast"):
        loaded = vp.load_model(store(path, state))
    assert loaded.tasks == (task,)
    assert f"task {task} from {reason}" in loaded.load_report.guesses
    assert f"task {task} from {reason}" in caplog.text and str(path) in caplog.text


def test_config_json_names_the_task(make, official, tmp_path, store):
    labels = {str(i): name for i, name in enumerate(KEYPOINT_SETS["ap10k"].names)}
    (tmp_path / "config.json").write_text(json.dumps({"id2label": labels}))
    loaded = vp.load_model(store(tmp_path / "coco.pth", official(make(depth=1))))
    assert loaded.load_report.guesses[0] == "task ap10k from config.json"


def test_the_task_argument_wins(make, official, tmp_path, check_refusal, store):
    path = store(tmp_path / "coco.pth", official(make(depth=1)))
    loaded = vp.load_model(path, task="ap10k")
    assert loaded.tasks == ("ap10k",) and not [g for g in loaded.load_report.guesses if "task" in g]
    check_refusal(lambda: vp.load_model(path, task="mpii"), "17 keypoints", "'mpii' has 16", path)
    check_refusal(lambda: vp.load_model(path, task="mpi"), "'mpi'", "wholebody")
    pen = store(tmp_path / "pen.pth", official(make(depth=1, tasks=PEN)))
    assert vp.load_model(pen, task=PEN).config.tasks == (PEN,)
    (tmp_path / "pen.json").write_text(json.dumps(PEN.to_dict()))
    assert vp.load_model(pen, task=str(tmp_path / "pen.json")).config.tasks == (PEN,)
    several = store(tmp_path / "m.pth", official(make(depth=1, tasks=("coco", "aic"))))
    assert vp.load_model(several, task="aic").tasks == ("coco", "aic")
    check_refusal(lambda: vp.load_model(several, task="mpii"), "'mpii'", "coco, aic")


def test_num_heads_is_needed_for_an_unknown_width(make, official, images, tmp_path, check_refusal, check_same, store):
    model = make(width=160, num_heads=5)
    path = store(tmp_path / "m.pth", official(model))
    check_refusal(lambda: vp.load_model(path), path, "width 160", "num_heads=")
    check_same(vp.load_model(path, num_heads=5), model, images)
    tiny = make(num_heads=6)
    path = store(tmp_path / "tiny.pth", official(tiny))
    check_same(vp.load_model(path, num_heads=6), tiny, images)
    assert "3 attention heads from the width 192" in vp.load_model(path).load_report.guesses
    vp.save_model(make(), tmp_path / "ours")
    assert vp.load_model(tmp_path / "ours", num_heads=6).config.num_heads == 6


def test_image_size_determines_the_aspect(make, official, tmp_path, check_refusal, check_same, store):
    model = make(image_size=(48, 80))  # 3 x 5 tokens
    path = store(tmp_path / "m.pth", official(model))
    check_refusal(lambda: vp.load_model(path), path, "15 tokens", "image_size=(H, W)")
    loaded = vp.load_model(path, image_size=(48, 80))
    check_same(loaded, model, torch.randn(1, 3, 48, 80))
    assert loaded.load_report.reshaped == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backbone.pos_embed", torch.zeros(13)),
        ("backbone.patch_embed.proj.weight", torch.tensor(1.0)),
        ("keypoint_head.final_layer.weight", torch.tensor(1.0)),
        ("keypoint_head.deconv_layers.0.weight", torch.zeros(3)),
    ],
)
def test_tensors_of_absurd_shapes_are_refused(key, value, make, official, tmp_path, check_refusal):
    torch.save({**official(make()), key: value}, tmp_path / "m.pth")
    check_refusal(lambda: vp.load_model(tmp_path / "m.pth"), "m.pth")


@pytest.mark.parametrize(
    "config",
    [
        {"vitpose_fast": None},
        {"vitpose_fast": {"width": "x"}},
        {"vitpose_fast": {"tasks": None}},
        {"model_type": "vitpose", "backbone_config": None},
        {"model_type": "vitpose", "backbone_config": {"num_attention_heads": "many"}},
        {"id2label": ["nose"]},
    ],
)
def test_configs_of_absurd_types_are_refused_or_ignored(config, make, official, tmp_path):
    torch.save(official(make()), tmp_path / "m.pth")
    (tmp_path / "config.json").write_text(json.dumps(config))
    try:
        vp.load_model(tmp_path / "m.pth")
    except ValueError as error:
        assert "\n" not in str(error) and "m.pth" in str(error)


def test_what_hugging_face_leaves_out_of_its_config_is_its_default(make, tmp_path):
    """12 attention heads, an epsilon of 1e-12 in LayerNorm, images of 256x192."""
    save_hf(make(decoder_width=256, image_size=(256, 192)), tmp_path / "hf")
    (tmp_path / "hf" / "manifest.json").unlink()
    file = tmp_path / "hf" / "config.json"
    config = json.loads(file.read_text())
    for name in ("num_attention_heads", "layer_norm_eps", "image_size"):
        del config["backbone_config"][name]
    file.write_text(json.dumps(config))
    found = vp.load_model(tmp_path / "hf").config
    assert (found.num_heads, found.layer_norm_eps, found.image_size) == (12, 1e-12, (256, 192))
