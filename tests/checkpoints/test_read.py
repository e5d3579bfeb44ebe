"""Files that are no valid checkpoints are refused with one line that names the file, and their code is never run."""

from __future__ import annotations

import argparse
import json
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import vitpose_fast as vp


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def write_pickle(data, path, how):
    if how == "bare pickle":
        path.write_bytes(pickle.dumps(data))
    else:
        torch.save(data, path, _use_new_zipfile_serialization=how == "zip")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["zip", "legacy", "bare pickle"])
@pytest.mark.parametrize("wrap", [lambda s, e: e, lambda s, e: {"state_dict": s, "meta": {"x": e}}])
def test_code_is_not_run_but_named(how, wrap, make, official, tmp_path, check_refusal):
    path, target = tmp_path / "model.pth", tmp_path / "evidence"
    write_pickle(wrap({} if how == "bare pickle" else official(make(depth=1)), Evil(target)), path, how)
    text = check_refusal(lambda: vp.load_model(path), path, "would run or build", "safetensors")
    assert "os.system" in text or "posix.system" in text
    assert not target.exists()
    with pytest.raises(ValueError, match="refused"):
        vp.load_pretrained(make(depth=1), path)
    assert not target.exists()
    torch.load(path, weights_only=False) if how != "bare pickle" else pickle.loads(path.read_bytes())
    assert target.exists()  # the payload works when it is run


def test_whole_modules_are_refused(make, tmp_path, check_refusal):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pth")
    check_refusal(lambda: vp.load_model(tmp_path / "m.pth"), "torch.nn.modules.linear.Linear", tmp_path / "m.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_plain_values_beside_the_weights_are_read(zipped, make, official, tmp_path):
    meta = {"score": np.float64(0.7), "n": np.int64(3), "f": np.float32(1), "ok": np.bool_(True), "a": np.arange(3)}
    args = argparse.Namespace(lr=0.1, output=tmp_path, betas=(0.9, 0.95))
    data = {"meta": meta, "args": args, "model": official(make(depth=1)), "optimizer": {"state": {0: torch.ones(1)}}}
    torch.save(data, tmp_path / "m.pth", _use_new_zipfile_serialization=zipped)
    assert vp.load_model(tmp_path / "m.pth").tasks == ("coco",)
    data["unknown"] = np.random.RandomState  # the message must not name the allowed types as well
    torch.save(data, tmp_path / "m.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError) as error:
        vp.load_model(tmp_path / "m.pth")
    assert "RandomState" in str(error.value) and "Namespace" not in str(error.value)


@pytest.mark.parametrize(
    "name, content",
    [
        ("text.pth", b"hello world\nthis is no checkpoint"),
        ("page.pth", b"<!DOCTYPE html>\n<html>not found</html>"),
        ("pointer.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"),
        ("empty.pth", b""),
        ("empty.safetensors", b""),
        ("text.safetensors", b"hello world, this is no checkpoint"),
        ("zeros.safetensors", bytes(100)),
    ],
)
def test_other_files_are_refused(name, content, tmp_path, check_refusal):
    (tmp_path / name).write_bytes(content)
    text = check_refusal(lambda: vp.load_model(tmp_path / name), tmp_path / name)
    assert "not a readable checkpoint" in text or "contains no tensors" in text
    assert ": refused," not in text


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_truncated_files_are_refused(suffix, keep, make, official, tmp_path, check_refusal):
    path, state = tmp_path / f"m{suffix}", official(make(depth=1))
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    check_refusal(lambda: vp.load_model(path), path, "not a readable checkpoint", "download it again")


def test_files_without_a_vitpose_model_are_refused(make, official, tmp_path, check_refusal):
    path = tmp_path / "m.pth"

    def refused(data, *words):
        torch.save(data, path)
        check_refusal(lambda: vp.load_model(path), path, *words)
        check_refusal(lambda: vp.load_pretrained(make(depth=1), path), path)

    refused({}, "contains no tensors")
    refused({"state_dict": {}}, "contains no tensors")
    refused({"state_dict": {"epoch": 3}}, "contains no tensors")
    refused([torch.ones(2)], "list")
    refused(torch.ones(2), "Tensor")
    resnet = {"conv1.weight": torch.ones(64, 3, 7, 7), "layer1.0.conv1.weight": torch.ones(64, 64, 3, 3)}
    refused({"state_dict": resnet}, "not a ViTPose checkpoint", "conv1.weight")


def test_a_weight_of_another_shape_is_named_with_both_shapes(make, official, tmp_path, check_refusal):
    for key, bad, shapes in (
        ("backbone.blocks.1.attn.qkv.weight", torch.zeros(576, 191), ("[576, 191]", "[576, 192]")),
        ("backbone.blocks.0.mlp.fc1.bias", torch.zeros(767), ("[767]", "[768]")),
        ("keypoint_head.final_layer.bias", torch.zeros(16), ("[16]", "[17]")),
    ):
        torch.save(official(make()) | {key: bad}, tmp_path / "m.pth")
        shown = key.replace("keypoint_head", "heads.coco")
        check_refusal(lambda: vp.load_model(tmp_path / "m.pth"), tmp_path / "m.pth", shown, *shapes)


@pytest.mark.parametrize(
    "key",
    [
        "backbone.pos_embed",
        "backbone.patch_embed.proj.weight",
        "backbone.blocks.2.attn.proj.bias",
        "backbone.last_norm.weight",
        "keypoint_head.deconv_layers.4.running_var",
        "keypoint_head.final_layer.weight",
    ],
)
def test_a_missing_weight_is_named(key, make, official, tmp_path, check_refusal):
    state = official(make())
    del state[key]
    torch.save(state, tmp_path / "m.pth")
    shown = key.removeprefix("keypoint_head.")
    check_refusal(lambda: vp.load_model(tmp_path / "m.pth"), tmp_path / "m.pth", shown, "not in the file")


def test_a_backbone_without_a_head_is_no_pose_model(make, tmp_path, check_refusal):
    state = {f"backbone.{k}": v for k, v in make().backbone.state_dict().items()}
    torch.save(state, tmp_path / "m.pth")
    check_refusal(lambda: vp.load_model(tmp_path / "m.pth"), "heads.coco", "not in the file")
    assert vp.load_pretrained(make(seed=2), tmp_path / "m.pth").missing


def test_missing_paths(make, official, tmp_path, check_refusal):
    check_refusal(lambda: vp.load_model(tmp_path / "no.pth"), tmp_path / "no.pth", error=FileNotFoundError)
    check_refusal(lambda: vp.load_model(tmp_path), tmp_path, "found none", error=FileNotFoundError)
    for name in ("a.pth", "b.pth"):
        torch.save(official(make(depth=1)), tmp_path / name)
    check_refusal(lambda: vp.load_model(tmp_path), "a.pth, b.pth", error=FileNotFoundError)


def test_a_flipped_byte_is_noticed(make, tmp_path, check_refusal):
    vp.save_model(make(depth=1), tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    check_refusal(lambda: vp.load_model(tmp_path / "m"), path, "damaged", "manifest.json")


@pytest.mark.parametrize("text", ["{", "[]", '{"sha256": 3}', ""])
def test_an_invalid_manifest_or_config_does_not_crash(text, make, official, tmp_path):
    torch.save(official(make(depth=1)), tmp_path / "m.pth")
    for name in ("manifest.json", "config.json"):
        (tmp_path / name).write_text(text)
        try:
            vp.load_model(tmp_path / "m.pth")
            assert json.loads(text) == {"sha256": 3}  # valid JSON, written by another program
        except ValueError as error:
            assert name in str(error) and "\n" not in str(error)
        (tmp_path / name).unlink()


WEIGHTS = [
    (name, content)
    for name in ("w.pth", "w.safetensors")
    for content in (b"", b"hello world, this is no checkpoint", bytes(100), b"PK\x03\x04", b"{}", None)
]


@pytest.mark.parametrize(("name", "content"), WEIGHTS)
def test_files_that_are_no_weights_are_refused(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, OSError)) as error:
        vp.load_model(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_the_list_of_bad_weights_has_no_duplicates():
    assert len(set(WEIGHTS)) == len(WEIGHTS)
