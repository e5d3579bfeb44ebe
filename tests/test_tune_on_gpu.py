"""What tuning offers on a GPU, checked without one: options reach the launches, and are compiled in time or dropped."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

import vitpose_fast as vp
from vitpose_fast import functional as F
from vitpose_fast import switches as tuning
from vitpose_fast.frozen import FrozenLinear
from vitpose_fast.runtime import FrozenViTPose
from vitpose_fast.switches import compiled_in_time, launches_of, switches, table_of
from vitpose_fast.tune import Choices
from vitpose_kernels import choices
from vitpose_kernels.chips import CHIPS, usual_chip
from vitpose_kernels.choices import DEFAULT, Call, Choice, find, from_rows, using

pytest.importorskip("triton")

TINY = dict(image_size=(64, 48), depth=2, width=64, num_heads=2, decoder_width=16)
LAYERS = {"fc1": (4, 1), "fc2": (1, 4), "qkv": (3, 1), "proj": (1, 1)}  # outputs, inputs / width of the model


def frozen_model(name="vitpose-b", dtype=torch.bfloat16, device="meta", fold=True, **options):
    with torch.device(device):
        return FrozenViTPose(vp.create_model(name, ("coco",), **options).eval(), dtype, True, fold)


def product_of(launches, layer, width):
    """Return the launches of a linear layer: its product, and after it the sum of its slices if there are any."""
    columns, inputs = (more * width for more in LAYERS[layer])
    out = []
    for before, launch in zip([None, *launches], launches):
        a = launch.arguments
        follows = launch.kernel.__name__ == "add_slices_kernel" and bool(out) and before is out[-1]
        if follows or (a.get("num_columns"), a.get("num_inputs")) == (columns, inputs):
            out.append(launch)
    return out


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("batch", [1, 64])
def test_every_option_of_a_linear_layer_reaches_its_launch(arch, batch):
    frozen = frozen_model()
    parts, width = switches(frozen, batch, arch), frozen.config.width
    names = ["fc1", "fc2", "qkv", "proj", "attention", "decoder", "deconv1", "deconv2"]
    assert [part.name for part in parts] == names[: len(parts)] and len(parts) >= 6
    found = launches_of(frozen, parts, batch, arch)
    tried, splits = 0, 0
    for part in parts[6:]:
        for option in part.options:
            usual, new = found[None], found[part.name, option]
            shapes = [
                [la.arguments.get("BLOCK_M") for la in ls if la.kernel.__name__ == "deconv_kernel"]
                for ls in (usual, new)
            ]
            chosen = shapes[1][int(part.name[-1]) - 1]
            assert chosen == option.tiles[0] and len(new) == len(usual)
    for part in parts[:4]:
        assert part.library == part.options[0] == Choice("library")
        usual = product_of(found[None], part.name, width)
        for option in part.options:
            launches = product_of(found[part.name, option], part.name, width)
            assert len(found[part.name, option]) - len(launches) == len(found[None]) - len(usual)
            if option.impl == "library":
                assert not launches
                continue
            m, tail, n, k, warps, stages, split, _, descriptors = option.tiles
            first, *second = launches
            wanted = dict(BLOCK_M=m, TAIL=tail, BLOCK_N=n, BLOCK_K=k, SPLIT=split)
            assert {name: first.arguments[name] for name in wanted} == wanted
            assert (first.num_warps, first.num_stages) == (warps, stages) and len(second) == (split > 1)
            assert descriptors == 0 or ("descriptor" in first.kernel.__name__) == usual_chip(arch).has_descriptors
            assert (first.arguments["num_columns"], first.flops) == (usual[0].arguments["num_columns"], usual[0].flops)
            tried, splits = tried + 1, splits + (split > 1)
    assert tried >= 6 and (splits >= 2 or batch > 1)


def test_the_library_gets_standardized_inputs_where_the_norm_is_folded():
    frozen = frozen_model()
    parts = switches(frozen, 8, 90)
    found = launches_of(frozen, parts, 8, 90)

    def norms(key):
        return [x.arguments["y_ptr"] is not None for x in found[key] if x.kernel.__name__ == "layer_norm_kernel"]

    library = Choice("library")
    assert norms(None) == [False, False]  # statistics only, of both norms
    assert norms(("qkv", library)) == [True, False] and norms(("fc1", library)) == [False, True]
    assert norms(("proj", library)) == norms(("fc2", library)) == [False, False]
    plain = frozen_model(fold=False)
    found = launches_of(plain, switches(plain, 8, 90), 8, 90)
    assert norms(None) == norms(("qkv", library)) == [True, True]


def test_a_model_with_experts_tunes_what_its_blocks_have_in_common():
    frozen = frozen_model("vitpose++-b", **TINY)
    parts = switches(frozen, 4, 90)
    assert [part.name for part in parts] == ["qkv", "proj", "attention", "decoder"]
    assert launches_of(frozen, parts, 4, 90)[None]


@torch.no_grad()
def test_all_libraries_together_compute_the_same(scramble):
    model = scramble(vp.create_model("vitpose-tiny", ("coco",), **TINY), 0).eval()
    frozen, images = FrozenViTPose(model, torch.float32, True, True), torch.randn(2, 3, 64, 48)
    parts = switches(frozen, 2, 90)
    exact, seen = model(images), []
    torch.testing.assert_close(frozen(images), exact, rtol=1e-4, atol=1e-4)
    decoder = frozen.heads["coco"]
    decoder._by_convolutions = lambda *a: (seen.append("decoder"), type(decoder)._by_convolutions(decoder, *a))[1]
    frozen.choices = Choices(table_of(parts, {part.name: part.library for part in parts}))
    torch.testing.assert_close(frozen(images), exact, rtol=1e-4, atol=1e-4)
    assert seen == ["decoder"]


@torch.no_grad()
def test_a_folded_layer_by_the_library_is_its_reference(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    norm = torch.nn.LayerNorm(64, eps=1e-6)
    norm.weight.add_(0.3 * torch.randn(64, generator=draw))
    norm.bias.add_(0.3 * torch.randn(64, generator=draw))
    weight, bias = (torch.randn(*s, generator=draw, dtype=torch.float64) for s in ((96, 64), (96,)))
    layer, x = FrozenLinear(weight, bias, torch.float32, norm), 3 + torch.randn(2, 5, 64, generator=draw)
    inner, used = F.linear, []
    monkeypatch.setattr(F, "linear", lambda *a, **k: (used.append(k.get("impl")), inner(*a, **k))[1])
    expected = torch.nn.functional.gelu(torch.nn.functional.linear(norm(x).double(), weight, bias)).float()
    table = {Call("linear", (96, 64), "norm+gelu", "float32"): {10: Choice("library")}}
    torch.testing.assert_close(layer(x, gelu=True), expected, rtol=1e-4, atol=1e-4)
    with using(table):
        torch.testing.assert_close(layer(x, gelu=True), expected, rtol=1e-4, atol=1e-4)
    assert used == [None, "library"]


def test_options_that_are_not_compiled_in_time_are_dropped(monkeypatch):
    """Only what an option adds to the default counts, and what needs no kernel of ours stays."""
    from vitpose_kernels.gpu import aot

    def name(launch):
        a = launch.arguments
        constants = tuple(a.get(n) for n in ("BLOCK_M", "TAIL", "BLOCK_N", "SPLIT"))
        return launch.kernel.__name__, *constants, launch.num_warps, a.get("num_columns"), a.get("y_ptr") is None

    frozen = frozen_model()
    parts, asked = switches(frozen, 8, 90), []
    monkeypatch.setattr(aot, "source", name)

    def none(sources, arch, seconds):
        asked.extend([sources, arch, seconds])
        return set()

    monkeypatch.setattr(tuning, "compile_all", none)
    left = compiled_in_time(frozen, parts, 8, 90, 7.0)
    usual = {name(x) for x in launches_of(frozen, parts, 8, 90)[None]}
    assert asked[1:] == [90, 7.0] and set(asked[0][: len(usual)]) == usual and len(set(asked[0])) == len(asked[0])
    assert [len(part.options) for part in left[4:6]] == [len(part.options) for part in parts[4:6]]
    assert [len(part.options) for part in parts[6:]] == [3, 2] and not any(part.options for part in left[6:])
    assert [part.options for part in left[:4]] == [[Choice("library")]] * 4

    chosen = parts[3].options[1]
    wanted = {name(x) for x in launches_of(frozen, parts, 8, 90)["proj", chosen]} - usual
    monkeypatch.setattr(tuning, "compile_all", lambda *_: set(wanted))
    assert chosen in compiled_in_time(frozen, parts, 8, 90, 7.0)[3].options
    monkeypatch.setattr(tuning, "compile_all", lambda sources, *_: set(sources))
    assert compiled_in_time(frozen, parts, 8, 90, 7.0) == parts


def test_kernels_are_compiled_in_processes_of_their_own(tmp_path):
    """From a script without `if __name__ == "__main__"`: a good kernel, one that fails, one that kills its process."""
    (tmp_path / "deadly.py").write_text("import os\nos._exit(3)\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import json, sys, time, torch\n"
        "print('started')\n"
        "from vitpose_fast.compile_kernels import compile_all\n"
        "from vitpose_kernels import layer_norm\n"
        "from vitpose_kernels.gpu.aot import Source, source\n"
        "from vitpose_kernels.launch import recording\n"
        "with recording(90) as recorded:\n"
        "    layer_norm.layer_norm(torch.empty(8, 64, device='meta'), None, None)\n"
        "good = source(recorded.launches[0])\n"
        "bad, deadly = (Source(m, 'kernel', (), 4, 2) for m in ('vitpose_kernels.gpu.layer_norm', 'deadly'))\n"
        "began = time.monotonic()\n"
        "none = compile_all([good], 90, 0.0) | compile_all([good], 90, 0.05)\n"
        "print(json.dumps([len(none), time.monotonic() - began]))\n"
        "done = compile_all([bad, good, deadly, good], 90, 100.0, jobs=1)\n"
        "print(json.dumps([len(done), good in done]))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr
    started, early, late = ran.stdout.splitlines()
    assert started == "started" and json.loads(early)[0] == 0 and json.loads(early)[1] < 5
    assert json.loads(late) == [1, True]
    assert list((tmp_path / "cache").rglob("layer_norm_kernel.cubin"))


class _OnGPU:
    """Stands for a CUDA tensor, as far as `find` looks at it."""

    is_cuda, device = True, "cuda:0"


def test_a_gpu_falls_back_to_the_shipped_table(monkeypatch):
    call, other = Call("linear", (96, 64), "", "bfloat16"), Call("linear", (64, 96), "", "bfloat16")
    shipped = {call: {192: Choice("library"), 12288: Choice("triton", (1,) * 9)}, other: {192: Choice(DEFAULT)}}
    asked = []
    monkeypatch.setattr(choices, "_shipped", lambda name: (asked.append(name), shipped)[1])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"NVIDIA H100 ({device})")
    assert find(call, 200, _OnGPU()) == Choice("library") and find(call, 9999, _OnGPU()).impl == "triton"
    assert find(other, 192, _OnGPU()) is None and find(call, 200, torch.zeros(1)) is None
    assert set(asked) == {"NVIDIA H100 (cuda:0)"}
    with using({call: {192: Choice("triton")}}):  # what was measured here comes first
        assert find(call, 99999, _OnGPU()) == Choice("triton")
    with using({call: {192: Choice(DEFAULT)}}):
        assert find(call, 200, _OnGPU()) == Choice("library")


def test_the_shipped_table_can_be_read_for_every_chip():
    content = json.loads(choices._SHIPPED.read_text(encoding="utf-8"))
    assert content["format"] == 1 and content["chips"].keys() <= {chip.name for chip in CHIPS}
    for chip in CHIPS:
        assert choices._shipped(f"NVIDIA {chip.name}") == from_rows(content["chips"].get(chip.name, []))
    assert choices._shipped("GeForce GTX 1080") == {}
