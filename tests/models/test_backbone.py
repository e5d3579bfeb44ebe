"""The backbone: official parameter names, position embedding, drop path, and the freezing options."""

from __future__ import annotations

import pytest
import torch

import vitpose_fast as vp
from vitpose_fast.models.backbone import DropPath
from vitpose_fast.modules import PatchEmbed

SMALL = dict(image_size=(64, 48), depth=4)  # 4 x 3 tokens


def small(name="vitpose-tiny", **options):
    return vp.create_model(name, **{**SMALL, **options})


BLOCK = [
    "norm1.weight",
    "norm1.bias",
    "attn.qkv.weight",
    "attn.qkv.bias",
    "attn.proj.weight",
    "attn.proj.bias",
    "norm2.weight",
    "norm2.bias",
    "mlp.fc1.weight",
    "mlp.fc1.bias",
    "mlp.fc2.weight",
    "mlp.fc2.bias",
]
EXPERTS = [
    "mlp.experts.0.weight",
    "mlp.experts.1.weight",
    "mlp.experts.0.bias",
    "mlp.experts.1.bias",
]


@pytest.mark.parametrize(
    "options, block",
    [
        (dict(), BLOCK),
        (dict(name="vitpose++-tiny", tasks=("coco", "aic")), BLOCK + EXPERTS),
        (dict(attention="window", window=(2, 2)), [*BLOCK, "attn.rel_pos_h", "attn.rel_pos_w"]),
    ],
)
def test_state_dict_has_the_official_names(options, block):
    names = ["pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "last_norm.weight", "last_norm.bias"]
    names += [f"blocks.{i}.{name}" for i in range(4) for name in block]
    assert sorted(small(**options).backbone.state_dict()) == sorted(names)


def test_expert_shapes_are_the_official_ones():
    state = small("vitpose++-tiny", tasks=("coco", "aic")).backbone.state_dict()
    shapes = {k: tuple(v.shape) for k, v in state.items() if k.startswith("blocks.1.mlp.")}
    assert shapes == {
        "blocks.1.mlp.fc1.weight": (768, 192),
        "blocks.1.mlp.fc1.bias": (768,),
        "blocks.1.mlp.fc2.weight": (144, 768),
        "blocks.1.mlp.fc2.bias": (144,),
        "blocks.1.mlp.experts.0.weight": (48, 768),
        "blocks.1.mlp.experts.0.bias": (48,),
        "blocks.1.mlp.experts.1.weight": (48, 768),
        "blocks.1.mlp.experts.1.bias": (48,),
    }


def test_split_ffn_loads_its_own_state_and_misses_a_missing_expert(scramble):
    a, b = (scramble(small("vitpose++-tiny", tasks=("coco", "aic")), seed).backbone for seed in (0, 1))
    state = a.state_dict()
    b.load_state_dict(state)
    assert all(torch.equal(state[k], v) for k, v in b.state_dict().items())
    del state["blocks.2.mlp.experts.1.bias"]
    with pytest.raises(RuntimeError, match=r"expert"):
        b.load_state_dict(state)


@torch.no_grad()
def test_class_slot_is_added_to_every_token(scramble):
    backbone = scramble(small()).eval().backbone
    images = torch.randn(2, 3, 64, 48)
    expected = backbone(images)
    slot = backbone.pos_embed[:, :1].clone()
    backbone.pos_embed[:, 1:] += slot
    backbone.pos_embed[:, :1] = 0
    torch.testing.assert_close(backbone(images), expected, atol=1e-5, rtol=1e-5)
    backbone.pos_embed[:, 1:] -= slot
    assert (backbone(images) - expected).abs().max() > 0.1  # without the slot the features differ


@torch.no_grad()
def test_patches_start_two_pixels_outside(scramble):
    embed = scramble(small()).backbone.patch_embed
    images = torch.randn(1, 3, 64, 48)
    first = embed(images)[0, 0]
    patch = torch.nn.functional.pad(images[..., :14, :14], (2, 0, 2, 0))
    torch.testing.assert_close(
        first, (embed.proj.weight * patch).sum((1, 2, 3)) + embed.proj.bias, atol=1e-4, rtol=1e-4
    )


def test_tokens_are_row_major(scramble):
    """Changing the last patch of the second row changes only the token at row 1, column 2."""
    backbone = small(depth=1).backbone
    for name, parameter in backbone.blocks.named_parameters():
        if "proj" in name or "fc2" in name:
            torch.nn.init.zeros_(parameter)  # no mixing between tokens
    images = torch.zeros(1, 3, 64, 48)
    other = images.clone()
    other[..., 20:28, 36:44] = torch.randn(8, 8)
    changed = (backbone(images) != backbone(other)).any(1)[0]
    assert changed.nonzero().tolist() == [[1, 2]]


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = DropPath(0.3)
    x = torch.ones(20_000, 2, 3)
    out = drop.train()(x)
    assert (out == out[:, :1, :1]).all()  # a sample is dropped as a whole
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert out.mean().item() == pytest.approx(1, abs=0.02)
    assert drop.eval()(x) is x
    assert DropPath(0.0).train()(x) is x


def test_drop_path_uses_the_numbers_passed_in():
    """What is dropped depends only on a sample's own numbers, so the result is the same in any batch."""
    model = small(drop_path=0.5, depth=4).train()
    images, uniform = torch.randn(3, 3, 64, 48), torch.rand(4, 2, 3)
    together = model.backbone(images, None, uniform)
    torch.manual_seed(9)
    for i in range(3):
        alone = model.backbone(images[i : i + 1], None, uniform[..., i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-4)
    kept = model.backbone(images, None, torch.ones(4, 2, 3))
    dropped = model.backbone(images, None, torch.zeros(4, 2, 3))  # numbers below the rate
    assert not torch.allclose(kept, dropped)
    tokens = model.backbone.patch_embed(images, model.backbone.pos_embed[0, 1:] + model.backbone.pos_embed[0, :1])
    only_first = model.backbone.blocks[0](tokens, None)  # rate 0: nothing to drop
    expected = model.backbone.last_norm(only_first).transpose(1, 2).unflatten(2, (4, 3))
    torch.testing.assert_close(dropped, expected, rtol=1e-4, atol=1e-4)


def test_drop_path_rises_linearly_and_branches_are_dropped_independently():
    model = vp.create_model("vitpose-s", image_size=(64, 48))
    rates = [b.drop_path.rate for b in model.backbone.blocks]
    assert rates == pytest.approx([0.1 * i / 11 for i in range(12)])
    block = small(drop_path=0.5, depth=2).backbone.blocks[1].train()
    for module in (block.attn, block.mlp):  # the branches add 1 and 10
        module.forward = lambda x, *_, m=module: torch.full_like(x, 1.0 if m is block.attn else 10.0)
    torch.manual_seed(0)
    out = block(torch.zeros(200, 12, 192), None)[:, 0, 0]
    assert sorted(out.unique().tolist()) == [0, 2, 20, 22]


def test_drop_path_is_off_in_eval(scramble):
    model = scramble(small(drop_path=0.9)).eval()
    images = torch.randn(2, 3, 64, 48)
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model.backbone(images), model.backbone(images))


EMBEDDING = {"patch_embed.proj.weight", "patch_embed.proj.bias"}


def parts(model, *prefixes: str) -> set[str]:
    names = [name for name, _ in model.backbone.named_parameters()]
    return {n for n in names if any(f".{p}." in f".{n}" for p in prefixes)}


@pytest.mark.parametrize("name", ["vitpose-tiny", "vitpose++-tiny"])
@pytest.mark.parametrize(
    "options, frozen",
    [
        (dict(), lambda m: set()),
        (dict(freeze_attn=True), lambda m: parts(m, "attn", "norm1")),
        (dict(freeze_ffn=True), lambda m: parts(m, "mlp", "norm2") | EMBEDDING | {"pos_embed"}),
        (dict(frozen_stages=0), lambda m: EMBEDDING),
        (dict(frozen_stages=2), lambda m: EMBEDDING | parts(m, "blocks.1", "blocks.2")),  # never block 0
    ],
)
def test_freezing_matches_the_official_code(name, options, frozen):
    model = small(name, drop_path=0.1, **options)
    for _ in range(2):  # every train() applies it again
        assert model.train() is model
        assert model.backbone.train() is model.backbone
        expected = frozen(model)
        assert {n for n, p in model.backbone.named_parameters() if not p.requires_grad} == expected
        for path, module in model.backbone.named_modules():
            owned = [f"{path}.{n}" for n, _ in module.named_parameters()]
            if owned and set(owned) <= expected:
                assert not module.training, path
        assert model.training and model.backbone.last_norm.training and model.heads["coco"].training
    assert all(p.requires_grad for p in model.heads.parameters())
    model(torch.randn(2, 3, 64, 48)).square().mean().backward()
    assert {n for n, p in model.backbone.named_parameters() if p.grad is None} == expected


def test_frozen_stages_freeze_their_drop_path_too():
    block = small(drop_path=0.9, frozen_stages=2).train().backbone.blocks[2]
    assert not block.drop_path.training and not block.training


@pytest.mark.parametrize("shape", [(1, 3, 48, 64), (3, 64, 48), (1, 1, 64, 48), (1, 3, 64, 64)])
def test_images_of_another_size_are_refused(shape):
    with pytest.raises(ValueError) as error:
        small().backbone(torch.zeros(shape))
    assert str(list(shape)) in str(error.value) and "[B, 3, 64, 48]" in str(error.value)


def test_several_experts_need_ids_and_one_does_not(scramble):
    images = torch.randn(2, 3, 64, 48)
    with pytest.raises(ValueError, match=r"2 experts: pass task ids \(0 coco, 1 aic\)"):
        small("vitpose++-tiny", tasks=("coco", "aic")).backbone(images)
    with pytest.raises(ValueError, match="task"):
        small("vitpose++-tiny", tasks=("coco", "aic")).backbone(images, torch.tensor([0, 2]))
    one = scramble(small("vitpose++-tiny")).eval().backbone
    assert torch.equal(one(images), one(images, torch.zeros(2, dtype=torch.int64)))
    plain = scramble(small()).eval().backbone
    assert torch.equal(plain(images), plain(images, torch.zeros(2, dtype=torch.int64)))


def test_patches_are_padded_by_two_pixels_by_default():
    """As in the released models; without it there would be as many patches, of other pixels."""
    embed, images = PatchEmbed(8), torch.randn(1, 3, 64, 48)
    expected = torch.nn.functional.conv2d(images, embed.proj.weight, embed.proj.bias, stride=16, padding=2)
    torch.testing.assert_close(embed(images), expected.flatten(2).mT)
