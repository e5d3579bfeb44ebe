"""ModelConfig: presets, the attention variants of Table 7, and contradicting options."""

from __future__ import annotations

import pytest

from vitpose_fast.keypoints import KeypointSet
from vitpose_fast.models.config import ATTENTION, PRESETS, ModelConfig, preset

PEN = KeypointSet.from_dict({"name": "pen", "names": ["tip", "cap"], "skeleton": [["tip", "cap"]]})


@pytest.mark.parametrize(
    "size, width, depth, heads, rate, part",
    [
        ("tiny", 192, 4, 3, 0.0, 48),
        ("s", 384, 12, 12, 0.1, 96),  # 12 heads, and 96 although the official config says 192
        ("b", 768, 12, 12, 0.3, 192),
        ("l", 1024, 24, 16, 0.5, 256),
        ("h", 1280, 32, 16, 0.55, 320),
    ],
)
def test_presets_match_the_table_of_sizes(size, width, depth, heads, rate, part):
    plain, plus = preset(f"vitpose-{size}"), preset(f"vitpose++-{size}")
    for config in (plain, plus):
        assert (config.width, config.depth, config.num_heads, config.drop_path) == (width, depth, heads, rate)
    assert (plain.part_features, plus.part_features) == (0, part)
    assert plain.layer_norm_eps == 1e-6


def blocks(attention: str, depth: int = 12) -> list[tuple]:
    config = preset("vitpose-b", depth=depth, patch_stride=8, attention=attention, window=(8, 6))
    return [tuple(config.block_attention(i).values()) for i in range(depth)]


def test_attention_of_each_block_in_table_7():
    full, window, shifted = (None, (0, 0), False), ((8, 6), (0, 0), False), ((8, 6), (4, 3), False)
    assert blocks("full") == [full] * 12
    assert blocks("window") == [window] * 12
    assert blocks("window+shift") == [window, shifted] * 6
    assert blocks("window+pool") == [((8, 6), (0, 0), True)] * 12
    assert blocks("window+shift+pool") == [((8, 6), (0, 0), True), ((8, 6), (4, 3), True)] * 6
    assert [i for i, b in enumerate(blocks("window+full")) if b == full] == [2, 5, 8, 11]
    assert [i for i, b in enumerate(blocks("window+full", 24)) if b == full] == [5, 11, 17, 23]
    assert set(blocks("window+full")) == {full, window}


@pytest.mark.parametrize("attention", ATTENTION)
def test_relative_position_comes_with_windows(attention):
    assert preset("vitpose-tiny", attention=attention).has_rel_pos == (attention != "full")
    assert preset("vitpose-tiny", attention=attention, rel_pos=False).has_rel_pos is False
    assert preset("vitpose-tiny", attention=attention, rel_pos=True).has_rel_pos is True


def test_grid_padding_and_heatmap_size():
    for stride, grid, padding in ((16, (16, 12), 2), (8, (32, 24), 4)):
        config = preset("vitpose-tiny", patch_stride=stride)
        assert (config.grid, config.patch_padding, config.heatmap_size) == (grid, padding, (64, 48))


def test_options_override_what_the_preset_says():
    config = preset("vitpose++-s", drop_path=0.0, depth=6, width=240, num_heads=4, decoder_width=32)
    assert (config.drop_path, config.depth, config.width, config.decoder_width) == (0.0, 6, 240, 32)
    assert config.part_features == 60  # a quarter of the overridden width
    assert preset("vitpose++-s", part_features=192).part_features == 192


def test_lists_are_accepted_for_tuples():
    config = preset("vitpose-tiny", ("coco", "aic"), image_size=[128, 96], window=[4, 3], head_tasks=["aic"])
    assert hash(config) == hash(
        preset("vitpose-tiny", ("coco", "aic"), image_size=(128, 96), window=(4, 3), head_tasks=("aic",))
    )


def test_dict_round_trip_with_the_users_own_keypoints():
    import json

    config = preset("vitpose++-b", ("coco", PEN), attention="window", patch_stride=8, head_tasks=("pen",))
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(name="vitpose-xl"), ["'vitpose-xl'", *PRESETS]),
        (dict(color=3), ["color", "patch_stride", "drop_path"]),
        (dict(tasks=("cocoa",)), ["'cocoa'", "coco", "wholebody"]),
        (dict(tasks=("coco", "coco")), ["twice"]),
        (dict(tasks=()), ["at least one task"]),
        (dict(head_tasks=("mpii",)), ["mpii", "coco"]),
        (dict(decoder="clasic"), ["'clasic'", "classic, classic-fp, simple, minimal"]),
        (dict(attention="shift"), ["'shift'", *ATTENTION]),
        (dict(attention="window", window=(8, 13)), ["(8, 13)", "16x12"]),
        (dict(attention="window", window=(0, 4)), ["(0, 4)", "16x12"]),
        (dict(attention="window+full", depth=6), ["depth", "6"]),
        (dict(image_size=(250, 15)), ["(250, 15)", "16 to 4096"]),
        (dict(image_size=(0, 192)), ["(0, 192)"]),
        (dict(patch_stride=4), ["patch_stride 4", "16 or 8"]),
        (dict(num_heads=5), ["192", "5"]),
        (dict(num_heads=0), ["num_heads 0"]),
        (dict(depth=0), ["depth 0"]),
        (dict(part_features=192), ["192", "0..191"]),
        (dict(drop_path=1.0), ["drop_path 1.0"]),
    ],
)
def test_contradictions_are_refused_in_one_line(options, words):
    with pytest.raises(ValueError) as error:
        preset(**{"name": "vitpose-tiny", "tasks": ("coco",), **options})
    text = str(error.value)
    assert "\n" not in text
    assert [w for w in words if w not in text] == []


def test_a_field_of_a_newer_version_is_refused():
    with pytest.raises(ValueError, match="unknown fields flavor; was it written by a newer version"):
        ModelConfig.from_dict({**preset("vitpose-tiny").to_dict(), "flavor": 1})
