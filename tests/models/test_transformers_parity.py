"""Our model and Hugging Face's VitPose give equal heatmaps for the same random weights, saved by either of them."""

from __future__ import annotations

import pytest
import torch

import vitpose_fast as vp
from vitpose_fast.checkpoints import save_hf

transformers = pytest.importorskip("transformers", reason="compares with Hugging Face transformers")

SIZES = {"tiny": (192, 4, 3), "s": (384, 12, 12), "b": (768, 12, 12)}
CASES = [(s, k) for s in SIZES for k in ("classic", "simple", "++")]


def hugging_face(size: str, kind: str, image_size=(256, 192), eps=1e-6):
    width, depth, heads = SIZES[size]
    experts = dict(num_experts=6, part_features=width // 4) if kind == "++" else dict(num_experts=1, part_features=0)
    backbone = transformers.VitPoseBackboneConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        layer_norm_eps=eps,
        image_size=list(image_size),
        out_indices=[depth],
        **experts,
    )
    config = transformers.VitPoseConfig(
        backbone_config=backbone, use_simple_decoder=kind == "simple", num_labels=17, initializer_range=0.02
    )
    return transformers.VitPoseForPoseEstimation(config).eval()


@torch.no_grad()
@pytest.mark.parametrize("size, kind", CASES)
def test_their_files_give_their_heatmaps(size, kind, tmp_path, scramble):
    theirs = scramble(hugging_face(size, kind))
    theirs.save_pretrained(tmp_path)
    ours = vp.load_model(tmp_path)
    assert not ours.load_report.missing and not ours.load_report.unexpected
    images = torch.randn(1 if size == "b" else 2, 3, 256, 192, generator=torch.Generator().manual_seed(1))
    index = torch.zeros(len(images), dtype=torch.int64) if kind == "++" else None
    expected = theirs(images, dataset_index=index).heatmaps
    heatmaps = ours(images)
    assert expected.std() > 0.1 and heatmaps.shape == (len(images), 17, 64, 48)
    assert (heatmaps - expected).abs().max() <= 2e-5
    if kind == "++":
        assert ours.tasks == ("coco", "aic", "mpii", "ap10k", "apt36k", "wholebody") and list(ours.heads) == ["coco"]
        index = torch.arange(len(images)) + 4
        features = theirs.backbone(images, dataset_index=index).feature_maps[-1]
        assert (ours.backbone(images, task=index).flatten(2).mT - features).abs().max() <= 2e-5
        assert (ours.backbone(images, task=index - 1).flatten(2).mT - features).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize(
    "name, tasks", [("vitpose-tiny", ("coco",)), ("vitpose++-tiny", ("coco", "aic")), ("vitpose++-tiny", "coco")]
)
@pytest.mark.parametrize("decoder", ["classic", "simple", "classic-fp"])
def test_they_read_our_files(name, tasks, decoder, tmp_path, scramble):
    options = dict(decoder=decoder, decoder_width=256, image_size=(64, 96), layer_norm_eps=1e-5)
    heads = {} if isinstance(tasks, str) else dict(head_tasks=("coco",))
    ours = scramble(vp.create_model(name, tasks, **options, **heads)).eval()
    save_hf(ours, tmp_path / "hf")
    theirs, info = transformers.VitPoseForPoseEstimation.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert theirs.config.backbone_config.layer_norm_eps == 1e-5 and theirs.config.id2label[0] == "nose"
    images = torch.randn(2, 3, 64, 96)
    index = torch.zeros(2, dtype=torch.int64) if len(ours.tasks) > 1 else None
    assert (theirs.eval()(images, dataset_index=index).heatmaps - ours(images)).abs().max() <= 2e-5


@torch.no_grad()
def test_their_image_size_and_epsilon_come_from_config_json(tmp_path, scramble):
    theirs = scramble(hugging_face("tiny", "classic", image_size=(48, 64), eps=0.1))
    theirs.save_pretrained(tmp_path)
    ours = vp.load_model(tmp_path)
    assert ours.config.image_size == (48, 64) and ours.config.layer_norm_eps == 0.1
    images = torch.randn(1, 3, 48, 64)
    assert (ours(images) - theirs(images).heatmaps).abs().max() <= 2e-5
