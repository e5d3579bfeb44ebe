"""freeze(tune=...): what is chosen runs, the report says it, and the next process finds it in the cache file."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import vitpose_fast as vp
from vitpose_fast import tune
from vitpose_kernels.choices import DEFAULT, Call, Choice, find, from_rows, to_rows, using

if torch.cuda.is_available():
    pytest.skip("the choices of a CPU are tested", allow_module_level=True)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VITPOSE_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(scramble):
    options = dict(image_size=(64, 48), depth=2, width=32, num_heads=2, decoder_width=16)
    return scramble(vp.create_model("vitpose-tiny", ("coco",), **options), 0).eval()


def freeze(model, **options):
    return vp.freeze(model, dtype=torch.float32, tune_batches=(1, 2), **options)


@torch.no_grad()
def test_a_tuned_model_computes_the_same(model):
    images = torch.randn(3, 3, 64, 48, generator=torch.Generator().manual_seed(1))
    frozen = freeze(model, tune=0.5)
    torch.testing.assert_close(frozen(images), model(images), rtol=1e-4, atol=1e-4)
    assert [m.batch for m in frozen.choices.measured] == [1, 2]
    lines = str(frozen.freeze_report).splitlines()
    assert sum(line.startswith("tuned for batch ") for line in lines) == 2
    for found in frozen.choices.measured:
        assert found.ms["chosen"] > 0 and found.ms["default"] > 0
        assert found.error["chosen"] <= 1.5 * found.error["default"]
    alike = copy.deepcopy(frozen)
    assert torch.equal(alike(images), frozen(images))


def test_every_switch_has_options_that_run(model):
    """Each option of each switch gives the same heatmaps, and the op really takes it."""
    frozen, images = freeze(model), torch.randn(2, 3, 64, 48)
    parts = tune.switches(frozen, 2, None)
    assert [part.name for part in parts] == ["products", "attention", "pieces"]
    exact = frozen(images)
    for part in parts:
        for option in part.options:
            frozen.choices = tune.Choices(tune.table_of(parts, {part.name: option}))
            assert frozen.choices.table, option
            torch.testing.assert_close(frozen(images), exact, rtol=1e-4, atol=1e-5)


def test_choices_reach_the_ops(model, monkeypatch):
    frozen, seen = freeze(model), []
    parts = tune.switches(frozen, 2, None)
    inner = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: (seen.append(len(a[0])), inner(*a, **k))[1]
    )
    for setting, expected in (
        ({"attention": Choice("sdpa")}, [2, 2]),
        ({"attention": Choice("products")}, []),
        ({"attention": Choice("sdpa"), "pieces": Choice("of", (1,))}, [1] * 4),
    ):
        frozen.choices, seen[:] = tune.Choices(tune.table_of(parts, setting)), []
        frozen(torch.randn(2, 3, 64, 48))
        assert seen == expected, setting
    frozen.choices = tune.Choices(tune.table_of(parts, {"products": Choice("reference")}))
    frozen.backbone.blocks[0].qkv._packed.clear()
    frozen(torch.randn(2, 3, 64, 48))
    assert not frozen.backbone.blocks[0].qkv._packed


def test_the_next_process_reads_what_was_measured(model, cache, monkeypatch):
    first = freeze(model, tune=0.5)
    (path,) = cache.iterdir()
    assert first.choices.source == "measured"
    monkeypatch.setattr(tune, "tune_batch", lambda *_: pytest.fail("measured again"))
    second = freeze(model, tune=0.5)
    assert second.choices == tune.Choices(first.choices.table, first.choices.measured, str(path))
    assert str(second.freeze_report).splitlines()[-1].startswith("tuned for batch 2")


def test_more_time_continues_a_search_that_was_cut_short(model, cache):
    freeze(model, tune=1e-3)
    (path,) = cache.iterdir()
    (entry,) = json.loads(path.read_text())["models"].values()
    assert not entry["complete"] and entry["seconds"] == 1e-3
    assert freeze(model, tune=1e-3).choices.source == str(path)
    assert freeze(model, tune=30).choices.source == "measured"
    (entry,) = json.loads(path.read_text())["models"].values()
    assert entry["complete"] and freeze(model, tune=600).choices.source == str(path)


@pytest.mark.parametrize("damage", ["cut", "foreign", "format", "entry", "tiles", "folder"])
def test_a_file_that_does_not_fit_is_ignored(model, cache, damage):
    freeze(model, tune=0.3)
    (path,) = cache.iterdir()
    content = json.loads(path.read_text())
    (entry,) = content["models"].values()
    if damage == "cut":
        path.write_text(path.read_text()[:-40])
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        if damage == "foreign":
            content["machine"]["threads"] += 1
        elif damage == "format":
            content["format"] = 99
        else:
            good = to_rows({Call("linear", (4, 8), "", "float32"): {1: Choice("triton")}})[0]
            entry["choices"].append(good | ({"tiles": [64]} if damage == "tiles" else {"rows": "many"}))
        path.write_text(json.dumps(content))
    again = freeze(model, tune=0.3)
    assert again.choices.source == "measured"
    if damage != "folder":
        assert len(json.loads(path.read_text())["models"]) == 1


def test_two_models_share_a_file(model, cache):
    freeze(model, tune=0.3)
    vp.freeze(model, dtype=torch.float32, tune=0.3, tune_batches=(1,))
    (path,) = cache.iterdir()
    assert len(json.loads(path.read_text())["models"]) == 2


def test_choices_of_another_model_can_be_given(model):
    first = freeze(model, tune=0.3)
    second = freeze(model, tune=first.choices)
    assert second.choices is first.choices and "tuned for batch 1" in str(second.freeze_report)


def test_refusals_in_one_line(model):
    with pytest.raises(ValueError, match=r"freeze: got tune=0.0, expected seconds above 0"):
        freeze(model, tune=0)
    with pytest.raises(ValueError, match=r"got batches=\(0,\) to tune for"):
        vp.freeze(model, tune=1, tune_batches=(0,))
    with pytest.raises(ValueError, match=r"got tune=1 and impl='reference'; pass one"):
        freeze(model, tune=1, impl="reference")


def test_the_nearest_number_of_rows_decides():
    call, x = Call("linear", (4, 8), "gelu", "float32"), torch.zeros(1)
    table = {call: {192: Choice("a"), 12288: Choice("b", (1, 2))}}
    assert find(call, 192, x) is None
    with using(table):
        assert [find(call, rows, x).impl for rows in (1, 192, 1500, 1600, 99999)] == ["a", "a", "a", "b", "b"]
        assert find(call._replace(detail=""), 192, x) is None
        with using({call: {192: Choice(DEFAULT)}}):
            assert find(call, 192, x) is None
        assert find(call, 192, x).impl == "a"
    assert from_rows(json.loads(json.dumps(to_rows(table)))) == table


@pytest.mark.parametrize("change", [{"rows": 0}, {"impl": 3}, {"shape": [-1, 2]}, {"tiles": None}, {"op": None}])
def test_a_damaged_entry_is_an_error(change):
    row = {"op": "linear", "shape": [4, 8], "detail": "", "dtype": "float32", "rows": 1, "impl": "a", "tiles": []}
    assert from_rows([row])
    with pytest.raises(ValueError, match="choices: "):
        from_rows([row | change])


GOOD = [128, 64, 128, 64, 8, 4, 1, 1, 1]


@pytest.mark.parametrize(
    ("op", "impl", "tiles", "problem"),
    [
        ("linear", "triton", GOOD[:6], "got 6 tiles, expected 9: BLOCK_M, TAIL, BLOCK_N, BLOCK_K, num_warps"),
        ("linear", "triton", [*GOOD, 1], "got 10 tiles, expected 9"),
        ("linear", "triton", [100, *GOOD[1:]], "expected tiles that are powers of two from 16 to 512"),
        ("linear", "triton", [*GOOD[:6], 0, 1, 1], "the other numbers from 1 on"),
        ("pieces", "of", [], "expected one number from 1 on"),
        ("pieces", "of", [0], "expected one number from 1 on"),
    ],
)
def test_tiles_that_do_not_fit_the_op_are_an_error(op, impl, tiles, problem):
    row = {"op": op, "shape": [4, 8], "detail": "", "dtype": "float32", "rows": 1, "impl": impl, "tiles": tiles}
    with pytest.raises(ValueError, match=problem):
        from_rows([row])
    for fits in (GOOD, [64, 0, *GOOD[2:]], []):
        assert from_rows([row | dict(op="linear", impl="triton", tiles=fits)])
