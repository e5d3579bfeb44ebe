"""The whole model: parameter counts, shapes, tasks, merged experts, new keypoint sets, and one training step."""

from __future__ import annotations

import pytest
import torch

import vitpose_fast as vp
from vitpose_fast.keypoints import KeypointSet
from vitpose_fast.models.config import ATTENTION, DECODERS, PLUS_TASKS

SMALL = dict(image_size=(64, 48), depth=4)  # 4 x 3 tokens, 8 x 6 at patch stride 8
WINDOW = {16: (2, 2), 8: (3, 4)}  # neither divides its grid
PEN = KeypointSet.from_dict({"name": "pen", "names": ["tip", "Nose", "cap"]})


def small(name="vitpose-tiny", **options):
    return vp.create_model(name, **{**SMALL, **options})


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    "size, backbone, classic, simple, plus",
    [
        ("s", 21_663_744, 2_626_833, 58_769, 46.31),
        ("b", 85_794_816, 4_199_697, 117_521, 146.42),
        ("l", 303_296_512, 5_248_273, 156_689, 460.67),
        ("h", 630_912_000, 6_296_849, 195_857, 930.92),
    ],
)
def test_parameter_counts_are_the_published_ones(size, backbone, classic, simple, plus):
    with torch.device("meta"):
        model = vp.create_model(f"vitpose-{size}")
        head = vp.create_model(f"vitpose-{size}", decoder="simple", depth=1).heads["coco"]
        full = vp.create_model(f"vitpose++-{size}", PLUS_TASKS)
    assert (count(model.backbone), count(model.heads["coco"]), count(head)) == (backbone, classic, simple)
    assert count(model) == backbone + classic
    assert round(count(full) / 1e6, 2) == plus


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("stride", [16, 8])
@pytest.mark.parametrize("decoder", DECODERS)
def test_heatmaps_are_at_a_quarter_of_the_image(decoder, stride, attention):
    model = small(decoder=decoder, patch_stride=stride, attention=attention, window=WINDOW[stride]).eval()
    images = torch.randn(2, 3, 64, 48)
    assert model.backbone(images).shape == (2, 192, 64 // stride, 48 // stride)
    heatmaps = model(images)
    assert heatmaps.shape == (2, 17, 16, 12)
    assert model.config.heatmap_size == (16, 12)
    assert heatmaps.isfinite().all()


@torch.no_grad()
def test_attention_variants_are_different_functions_of_the_same_weights(scramble):
    images, weights, outputs = torch.randn(1, 3, 64, 48), None, []
    for attention in ATTENTION:
        # depth 8: at depth 4 every block of "window+full" is a full one
        options = dict(patch_stride=8, depth=8, attention=attention, window=(4, 3), rel_pos=False)
        model = scramble(small(**options)).eval()
        weights = weights or model.state_dict()
        model.load_state_dict(weights)
        outputs.append(model(images))
    for i, a in enumerate(outputs):
        for b in outputs[:i]:
            assert (a - b).abs().max() > 1e-3


@torch.no_grad()
def test_relative_position_is_used(scramble):
    model = scramble(small(attention="window", window=(2, 2))).eval()
    images = torch.randn(1, 3, 64, 48)
    before = model(images)
    for name in ("rel_pos_h", "rel_pos_w"):
        getattr(model.backbone.blocks[1].attn, name).mul_(-3)
        after = model(images)
        assert (after - before).abs().max() > 1e-4, name
        before = after


@pytest.mark.parametrize("attention", ATTENTION)
def test_a_training_step_gives_gradients_to_all_weights_except_unused_experts(scramble, attention):
    model = small("vitpose++-tiny", tasks=("coco", "aic", PEN), attention=attention, window=(2, 2), depth=4)
    scramble(model).train()
    out = model(torch.randn(3, 3, 64, 48), task=["coco", "pen", "coco"])
    sum(heatmaps.square().sum() for _, heatmaps in out.values()).backward()
    unused = {n for n, p in model.named_parameters() if p.grad is None}
    assert unused == {n for n, _ in model.named_parameters() if n.startswith("heads.aic.")}
    for name, parameter in model.named_parameters():
        if name in unused:
            continue
        if "expert_" in name:
            used = parameter.grad.flatten(1).abs().sum(1) > 0
            assert used.tolist() == [True, False, True], name
        else:
            assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name
    tables = [n for n, _ in model.named_parameters() if "rel_pos" in n]
    assert len(tables) == (0 if attention == "full" else 2 * 4)


@torch.no_grad()
def test_a_mixed_batch_equals_each_sample_alone(scramble):
    model = scramble(small("vitpose++-tiny", tasks=("coco", "aic", "mpii"))).eval()
    images, names = torch.randn(4, 3, 64, 48), ["mpii", "coco", "mpii", "aic"]
    out = model(images, task=names)
    assert list(out) == ["coco", "aic", "mpii"]
    assert {k: i.tolist() for k, (i, _) in out.items()} == {"coco": [1], "aic": [3], "mpii": [0, 2]}
    for name, (index, heatmaps) in out.items():
        assert index.dtype == torch.int64
        for i, heatmap in zip(index.tolist(), heatmaps):
            torch.testing.assert_close(model(images[i : i + 1], task=name)[0], heatmap, atol=1e-5, rtol=1e-5)
    other = model(images[:1], task="coco")
    assert other.shape[1] == 17 and list(model(images[:1], task=("coco",))) == ["coco"]
    by_id = [model.backbone(images[:1], torch.tensor([t])) for t in range(3)]
    assert all((by_id[a] - by_id[b]).abs().max() > 1e-2 for a, b in ((0, 1), (0, 2), (1, 2)))


@torch.no_grad()
@pytest.mark.parametrize("name", ["vitpose++-tiny", "vitpose-tiny"])
def test_for_task_is_a_plain_model_with_the_same_outputs(scramble, name):
    model = scramble(small(name, tasks=("coco", "aic", "mpii"), attention="window", window=(2, 2))).eval()
    images = torch.randn(2, 3, 64, 48)
    for task in model.tasks:
        plain = model.for_task(task)
        torch.testing.assert_close(plain(images), model(images, task=task), atol=1e-5, rtol=1e-5)
        assert (plain.tasks, list(plain.heads), plain.training) == ((task,), [task], False)
        assert not [k for k in plain.state_dict() if "expert" in k]
        assert plain.config.part_features == 0 and plain.config.attention == "window"
    with pytest.raises(ValueError, match="choose one with task="):
        model.for_task()
    plain.backbone.pos_embed += 1
    assert (model.backbone.pos_embed - plain.backbone.pos_embed).abs().max() > 0.5  # a copy
    assert model.train().for_task("coco").training
    assert model.to(torch.float64).for_task("coco").backbone.pos_embed.dtype == torch.float64


@torch.no_grad()
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("target, shared", [(PEN, {"nose"}), ("mpii", 12), ("crowdpose", 12), ("ochuman", 17)])
def test_with_keypoints_keeps_channels_of_equal_names(scramble, decoder, target, shared):
    model = scramble(small("vitpose++-tiny", tasks=("aic", "coco"), decoder=decoder)).eval()
    new = model.with_keypoints(target, source="coco")
    images = torch.randn(2, 3, 64, 48)
    old_maps, new_maps = model(images, task="coco"), new(images)
    old_names, new_names = (m.config.task(t).names for m, t in ((model, "coco"), (new, new.tasks[0])))
    new_names, same = [n.lower() for n in new_names], 0
    for i, name in enumerate(new_names):
        if name in old_names:
            torch.testing.assert_close(new_maps[:, i], old_maps[:, old_names.index(name)], atol=1e-5, rtol=1e-5)
            same += 1
        else:
            assert new_maps[:, i].abs().max() < 0.2  # a new channel: small random weights, bias 0
            assert new_maps[:, i].std() > 0
    assert same == (shared if isinstance(shared, int) else len(shared))
    assert (new.tasks, list(new.heads), new.config.part_features) == ((new.tasks[0],), [new.tasks[0]], 0)
    for key, value in model.heads["coco"].state_dict().items():
        if "deconv" in key:
            assert torch.equal(new.heads[new.tasks[0]].state_dict()[key], value)


def test_a_single_keypoint_trains():
    one = KeypointSet.from_dict({"name": "ball", "names": ["center"]})
    for model in (small().with_keypoints(one), small(tasks=(one,)), small(tasks=one)):
        heatmaps = model.train()(torch.randn(2, 3, 64, 48))
        assert heatmaps.shape == (2, 1, 16, 12)
        heatmaps.sum().backward()
        assert model.heads["ball"].final_layer.weight.grad.shape[0] == 1


def test_keypoints_from_a_file(tmp_path):
    (tmp_path / "pen.json").write_text('{"name": "pen", "names": ["tip", "cap"]}')
    assert small(tasks=str(tmp_path / "pen.json")).tasks == ("pen",)
    assert small().with_keypoints(str(tmp_path / "pen.json")).tasks == ("pen",)


def refused(call) -> str:
    """Return the message of the ValueError that `call` raises, which must be one line."""
    with pytest.raises(ValueError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_wrong_calls_are_refused_in_one_line():
    assert "vitpose++-h" in refused(lambda: vp.create_model("vitpose-huge"))
    assert "color" in refused(lambda: small(color=1))
    model = small(tasks=("coco", "aic"), head_tasks=("coco",))
    images = torch.zeros(2, 3, 64, 48)
    assert refused(lambda: model(images, task="mpii")) == "unknown task 'mpii'; heads: coco"
    assert "'aic' has an expert but no head" in refused(lambda: model(images, task="aic"))
    assert "unknown task 'mpii'" in refused(lambda: model(images, task=["coco", "mpii"]))
    assert "got 3 task names for 2 images" in refused(lambda: model(images, task=["coco"] * 3))
    assert "[2, 3, 48, 64]" in refused(lambda: model(images.mT))
    several = small(tasks=("coco", "aic"))
    assert refused(lambda: several(images)) == "this model has heads for coco, aic; choose one with task="
    assert "unknown keypoint set 'pen'" in refused(lambda: small().with_keypoints("pen"))


@pytest.mark.parametrize("size", [(100, 100), (250, 190), (16, 16)])
@pytest.mark.parametrize("patch_stride", [16, 8])
def test_any_image_size(size, patch_stride):
    model = vp.create_model("vitpose-tiny", image_size=size, depth=1, patch_stride=patch_stride).eval()
    heatmaps = model(torch.randn(1, 3, *size))
    assert tuple(heatmaps.shape[2:]) == model.config.heatmap_size


@pytest.mark.parametrize("name", ["keys", "training", "a.b"])
def test_names_that_modules_cannot_have_are_refused(name):
    keypoints = vp.KeypointSet(name, ("tip",), (), (), (0.05,), ())
    with pytest.raises(ValueError, match="cannot be the name of a keypoint set in a model"):
        vp.create_model("vitpose-tiny", tasks=(keypoints,))


@torch.no_grad()
@pytest.mark.parametrize("attention", ["full", "window+shift+pool"])
def test_a_model_on_the_meta_device_gives_shapes(attention):
    with torch.device("meta"):
        options = dict(attention=attention, patch_stride=8, image_size=(64, 64))
        model = vp.create_model("vitpose++-tiny", ("coco", "mpii"), **options).eval()
        heatmaps = model(torch.empty(2, 3, 64, 64), ["coco", "mpii"])["mpii"][1]
    assert heatmaps.is_meta and heatmaps.shape == (1, 16, 16, 16)
