"""Saving: bit-exact round trips, atomic writes, and models that a layout cannot hold are refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

import vitpose_fast as vp
from vitpose_fast.checkpoints import save, save_hf, save_official
from vitpose_fast.keypoints import KeypointSet
from vitpose_fast.models.config import PLUS_TASKS

PEN = KeypointSet.from_dict(
    {"name": "pen", "names": ["tip", "cap"], "skeleton": [["tip", "cap"]], "codec": "msra", "sigmas": [0.1, 0.2]}
)


def equal(a: dict, b: dict) -> None:
    assert list(a) == list(b) or sorted(a) == sorted(b)
    for key, value in a.items():
        assert value.dtype == b[key].dtype and torch.equal(value, b[key]), key


def test_official_to_ours_to_official_is_bit_exact(make, official, tmp_path):
    model = make("vitpose++-tiny", tasks=PLUS_TASKS)
    state = official(model)
    assert sum(k.endswith("final_layer.weight") for k in state) == 6
    data = {"meta": {"mmpose": "0.24.0"}, "state_dict": dict(state), "optimizer": {"lr": 1}}
    data["state_dict"]["backbone.cls_token"] = torch.randn(1, 1, 192)
    torch.save(data, tmp_path / "in.pth")
    loaded = vp.load_model(tmp_path / "in.pth")
    equal(loaded.state_dict(), model.state_dict())
    save_official(loaded, tmp_path / "out.pth")
    written = torch.load(tmp_path / "out.pth", weights_only=True)
    assert set(written) == {"meta", "state_dict"}
    equal(written["state_dict"], state)


@pytest.mark.parametrize(
    "name, decoder", [("vitpose-tiny", "classic"), ("vitpose-tiny", "simple"), ("vitpose++-tiny", "classic")]
)
def test_ours_to_hugging_face_to_ours_is_bit_exact(name, decoder, make, tmp_path):
    tasks = PLUS_TASKS if "++" in name else ("coco",)
    model = make(name, tasks=tasks, head_tasks=("coco",), decoder=decoder, decoder_width=256)
    save_hf(model, tmp_path / "hf")
    assert sorted(p.name for p in (tmp_path / "hf").iterdir()) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    loaded = vp.load_model(tmp_path / "hf")
    equal(loaded.state_dict(), model.state_dict())
    assert loaded.config == model.config
    assert loaded.load_report.guesses == (["task coco from config.json"] if "++" not in name else [])


def test_a_single_expert_is_merged_for_hugging_face(make, images, tmp_path):
    """transformers builds a model without experts for num_experts = 1."""
    model = make("vitpose++-tiny", decoder="simple")
    save_hf(model, tmp_path / "hf")
    loaded = vp.load_model(tmp_path / "hf")
    assert loaded.config.part_features == 0
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), model(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(tasks=("coco", "aic")), ["one head, the model has 2"]),
        (dict(decoder="minimal"), ["no minimal decoder"]),
        (dict(attention="window", window=(2, 2), rel_pos=False), ["no window attention"]),
        (dict(rel_pos=True), ["no relative position"]),
        (dict(patch_stride=8), ["patch stride is 16"]),
        (dict(decoder_width=64), ["256 wide"]),
        (dict(tasks=("coco", "aic"), head_tasks=("aic",)), ["heads belong to the first tasks"]),
        (dict(decoder="minimal", patch_stride=8), ["no minimal decoder", "patch stride is 16"]),
    ],
)
def test_what_hugging_face_cannot_hold_is_refused(options, words, make, tmp_path, check_refusal):
    model = make(**{"decoder_width": 256, **options})
    check_refusal(lambda: save_hf(model, tmp_path / "hf"), "cannot write the Hugging Face layout", *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(decoder="minimal"), "no minimal decoder"),
        (dict(attention="window+shift", window=(2, 2)), "no window+shift attention"),
        (dict(rel_pos=True), "no relative position"),
        (dict(name="vitpose++-tiny", tasks=("coco", "aic"), head_tasks=("aic",)), "heads belong to the first tasks"),
    ],
)
def test_what_the_official_layout_cannot_hold_is_refused(options, words, make, tmp_path, check_refusal):
    model = make(**options)
    check_refusal(lambda: save_official(model, tmp_path / "m.pth"), "cannot write the official layout", words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(name="vitpose++-tiny", tasks=("coco", PEN), head_tasks=("pen",)),
        dict(tasks=PEN, attention="window+shift+pool", window=(2, 3), drop_path=0.2, freeze_attn=True),
        dict(decoder="minimal", patch_stride=8, layer_norm_eps=1e-5),
        dict(decoder="classic-fp", frozen_stages=1),
        dict(image_size=(48, 80), width=160, num_heads=5),
    ],
)
def test_our_own_format_keeps_everything(options, make, tmp_path):
    model = make(**options)
    vp.save_model(model, tmp_path / "deep" / "m")
    loaded = vp.load_model(tmp_path / "deep" / "m")
    equal(loaded.state_dict(), model.state_dict())
    assert loaded.config == model.config  # including a user's keypoint set
    assert str(loaded.load_report).endswith("ours checkpoint")
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["m"]


def test_the_weights_file_alone_is_enough(make, tmp_path, check_refusal):
    model = make(tasks=PEN, attention="window", window=(2, 2))
    vp.save_model(model, tmp_path / "m")
    shutil.move(tmp_path / "m" / "model.safetensors", tmp_path / "pen.safetensors")
    loaded = vp.load_model(tmp_path / "pen.safetensors")
    equal(loaded.state_dict(), model.state_dict())
    assert loaded.config == model.config
    assert vp.load_model(tmp_path / "pen.safetensors", task="pen").tasks == ("pen",)
    check_refusal(lambda: vp.load_model(tmp_path / "pen.safetensors", task="coco"), "'coco'", "heads: pen")
    check_refusal(lambda: vp.load_model(tmp_path / "pen.safetensors", task="nonsense"), "'nonsense'")


def test_nothing_is_overwritten_by_default(make, tmp_path, check_refusal):
    a, b = make(), make(seed=1)
    vp.save_model(a, tmp_path / "m")
    for write in (vp.save_model, save_hf):
        model = make(decoder="simple")
        check_refusal(lambda w=write, m=model: w(m, tmp_path / "m"), tmp_path / "m", "exists", error=FileExistsError)
    equal(vp.load_model(tmp_path / "m").state_dict(), a.state_dict())
    vp.save_model(b, tmp_path / "m", overwrite=True)
    equal(vp.load_model(tmp_path / "m").state_dict(), b.state_dict())
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_failing_write_leaves_the_old_model(make, tmp_path, monkeypatch):
    model = make()
    vp.save_model(model, tmp_path / "m")
    save_official(model, tmp_path / "m.pth")

    def fail(state, path, *rest, **more):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(save, "save_file", fail)
    monkeypatch.setattr(torch, "save", fail)
    for write in (
        lambda: vp.save_model(make(seed=1), tmp_path / "m", overwrite=True),
        lambda: save_hf(make(seed=1, decoder="simple"), tmp_path / "m", overwrite=True),
        lambda: save_official(make(seed=1), tmp_path / "m.pth"),
    ):
        with pytest.raises(OSError, match="no space left"):
            write()
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "m.pth"]
    equal(vp.load_model(tmp_path / "m").state_dict(), model.state_dict())
    equal(vp.load_model(tmp_path / "m.pth").state_dict(), model.state_dict())


def test_saving_does_not_disturb_the_model(make, tmp_path):
    model = make("vitpose++-tiny", tasks=("coco", "aic")).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    vp.save_model(model, tmp_path / "m")
    save_official(model, tmp_path / "m.pth")
    equal(model.state_dict(), before)
    assert model.training and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "options",
    [
        dict(decoder="simple", patch_stride=8),
        dict(image_size=(48, 64)),
        dict(decoder="classic-fp"),
        dict(name="vitpose++-tiny", tasks=("ap10k",)),
        dict(tasks=("coco", "ap10k")),
        dict(drop_path=0.25),
    ],
)
def test_our_official_files_keep_the_config(options, make, tmp_path):
    model = make(**options)
    save_official(model, tmp_path / "m.pth")
    back = vp.load_model(tmp_path / "m.pth")
    assert back.config == model.config
    equal(back.state_dict(), model.state_dict())


def test_the_official_layout_is_a_pth_file(make, tmp_path, check_refusal):
    check_refusal(lambda: save_official(make(), tmp_path / "m.safetensors"), "m.safetensors", ".pth")


def test_a_full_disk_is_an_os_error(make, tmp_path, monkeypatch, check_refusal):
    def full(*args, **kwargs):
        raise RuntimeError("PytorchStreamWriter failed writing file: file write failed")

    monkeypatch.setattr(torch, "save", full)
    check_refusal(lambda: save_official(make(), tmp_path / "m.pth"), "cannot write", "m.pth", error=OSError)
    assert list(tmp_path.iterdir()) == []


def test_the_preprocessor_of_hugging_face_is_that_of_the_released_models(make, tmp_path):
    save_hf(make(decoder_width=256, image_size=(256, 192)), tmp_path / "hf")
    assert json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text()) == {
        "image_processor_type": "VitPoseImageProcessor",
        "do_affine_transform": True,
        "do_normalize": True,
        "do_rescale": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "normalize_factor": 200.0,
        "rescale_factor": pytest.approx(0.00392156862745098),
        "size": {"height": 256, "width": 192},
    }
