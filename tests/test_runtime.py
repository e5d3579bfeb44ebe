"""freeze: the heatmaps stay the same, with PyTorch's operators, the Triton kernels and CUDA graphs."""

from __future__ import annotations

import copy
import threading

import pytest
import torch

import vitpose_fast as vp
from vitpose_fast import graphs, runtime
from vitpose_fast.graphs import Graphs
from vitpose_kernels.launch import HAS_TRITON

IMPLS = ["reference", pytest.param("triton", marks=pytest.mark.skipif(not HAS_TRITON, reason="needs triton"))]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def make(scramble):
    """make(name="vitpose-tiny", tasks=("coco",), seed=0, **options) -> a small random model on the test device."""

    def make(name="vitpose-tiny", tasks=("coco",), seed=0, **options):
        options = dict(image_size=(64, 48), depth=2, width=32, num_heads=2, decoder_width=16) | options
        return scramble(vp.create_model(name, tasks, **options), seed).eval().to(DEVICE)

    return make


def draw(batch, size=(64, 48), seed=1):
    """Return random images [batch, 3, *size] on the test device."""
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def check_close(ours, exact, tolerance):
    """Assert that the root mean square error of `ours`, relative to that of `exact`, is within `tolerance`."""
    assert ours.shape == exact.shape
    error = (ours.double() - exact.double()).square().mean().sqrt() / exact.double().square().mean().sqrt()
    assert error <= tolerance, f"relative error {error:.2e}"


@torch.no_grad()
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(decoder="simple"),
        dict(decoder="minimal"),
        dict(decoder="classic-fp", decoder_width=272, image_size=(32, 32)),  # too wide for the kernel's fused predictor
        dict(
            attention="window+shift+pool", window=(4, 3), patch_stride=8, image_size=(32, 32)
        ),  # one deconvolution; relative position
        dict(attention="window+shift+pool", window=(2, 3), rel_pos=False),
        dict(image_size=(48, 64)),
    ],
    ids=lambda options: " ".join(map(str, options.values())) or "plain",
)
def test_freezing_preserves_the_heatmaps(make, impl, options):
    model = make(**options, depth=2 if impl == "reference" else 1)
    images = draw(1, options.get("image_size", (64, 48)))
    exact = model(images)
    for fold in (False, True) if impl == "triton" else (None,):
        frozen = vp.freeze(model, dtype=torch.float32, impl=impl, fold_layer_norm=fold)
        check_close(frozen(images), exact, 1e-5)
    assert exact.std() > 0.05


@torch.no_grad()
@pytest.mark.parametrize("impl", IMPLS)
def test_one_task_is_merged_and_all_tasks_serve_mixed_batches(make, impl):
    model = make("vitpose++-tiny", ("coco", "ap10k"), depth=1, image_size=(32, 32))
    images, names = draw(3, (32, 32)), ["ap10k", "coco", "ap10k"]
    exact = model(images, names)
    mixed = vp.freeze(model, dtype=torch.float32, impl=impl)
    found = mixed(images, names)
    assert list(found) == list(exact)
    for name, (index, heatmaps) in exact.items():
        assert torch.equal(found[name][0], index)
        check_close(found[name][1], heatmaps, 1e-5)
    alone = vp.freeze(model, "ap10k", torch.float32, impl=impl)
    check_close(alone(images), model(images, "ap10k"), 1e-5)
    check_close(mixed(images, "ap10k"), model(images, "ap10k"), 1e-5)
    assert "experts of the task" in alone.freeze_report.folded and not alone.config.part_features
    assert "experts of the task" not in mixed.freeze_report.folded
    assert sum(p.numel() for p in alone.parameters()) < sum(p.numel() for p in mixed.parameters())


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_is_about_as_accurate_as_the_plain_model_in_it(make, dtype):
    model = make()
    images = draw(4)
    exact, plain = model(images), copy.deepcopy(model).to(dtype)(images.to(dtype))
    frozen = vp.freeze(model, dtype=dtype)
    assert frozen.dtype == dtype and frozen(images).dtype == dtype

    def error(x):
        return (x.double() - exact.double()).square().mean().sqrt()

    assert error(frozen(images)) <= 2 * error(plain)
    assert frozen.freeze_report.heatmap_error > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("decoder", ["classic", "simple"])
def test_model_and_frozen_model_are_independent(make, decoder):
    model = make(decoder=decoder).train()
    before = copy.deepcopy(model.state_dict())
    frozen = vp.freeze(model, dtype=torch.float32)  # the dtype of the model: nothing has to be converted
    assert model.training and not frozen.train().training
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    exact = frozen(draw(2))
    for parameter in model.parameters():
        parameter.zero_()
    assert torch.equal(frozen(draw(2)), exact)
    assert not any(p.requires_grad for p in frozen.parameters())


def test_the_report_has_the_measured_numbers(make, capsys):
    model = make()
    frozen = vp.freeze(model, dtype=torch.bfloat16)
    report = frozen.report()
    printed = capsys.readouterr().out
    assert "frozen to bfloat16" in printed and "folded: position, scale of q, BatchNorm" in printed
    assert 1e-4 < report.heatmap_error < 0.1 and 0 <= report.keypoint_error[0] <= report.keypoint_error[1]
    weights = sum(p.numel() for p in model.parameters())
    assert 0.9 < report.weights_mib * 2**20 / (2 * weights) < 1.05
    depth = model.config.depth
    assert 6 * depth < report.launches < 40 * depth
    exact = vp.freeze(model, dtype=torch.float32).freeze_report
    assert exact.heatmap_error < 1e-5 and exact.keypoint_error[1] < 1e-2
    windowed = make(attention="window", window=(2, 3))
    assert "scale of q" not in vp.freeze(windowed).freeze_report.folded


def test_the_keypoint_error_is_in_crop_pixels(make):
    """Peaks that are one column apart: 47/11 crop pixels for udp (coco), 48/12 for msra (aic)."""
    model = make("vitpose++-tiny", tasks=("coco", "aic"))
    maps = {}
    for column in (5, 6):
        distance = ((torch.arange(12.0) - column) ** 2 + (torch.arange(16.0)[:, None] - 8) ** 2) / 8
        maps[column] = torch.exp(-distance).expand(1, 14, 16, 12)
    for task, pixels in (("coco", 47 / 11), ("aic", 4.0)):
        found = runtime._keypoint_error(model, {task: maps[5]}, {task: maps[6]})
        assert found == pytest.approx((pixels, pixels), rel=0.02), task  # decoding is not exact near the edge


@pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
def test_layer_norm_is_folded_if_the_measured_error_allows_it(make, monkeypatch):
    model = make(depth=1, image_size=(32, 32))
    assert "LayerNorm" in vp.freeze(model, dtype=torch.float32, impl="triton").freeze_report.folded
    errors = iter([1e-6, 1e-5])  # without folding, with folding
    monkeypatch.setattr(runtime, "_relative_error", lambda ours, exact: next(errors))
    assert "LayerNorm" not in vp.freeze(model, dtype=torch.float32, impl="triton").freeze_report.folded


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_are_measured_against_a_wider_dtype(make, monkeypatch, dtype):
    """The error of float32 itself (on a GPU the larger error of TF32) must not be attributed to freezing."""
    seen = []
    measure = runtime._relative_error
    monkeypatch.setattr(runtime, "_relative_error", lambda a, b: (seen.append(b["coco"]), measure(a, b))[1])
    model = make()
    before = copy.deepcopy(model.state_dict())
    report = vp.freeze(model, dtype=dtype).freeze_report
    wide = torch.float32 if DEVICE == "cpu" and dtype == torch.bfloat16 else torch.float64
    images = runtime._smooth_images(model)
    truth = vp.use_impl(copy.deepcopy(model).to(wide), "reference")(images.to(wide))
    assert seen[0].dtype == torch.float64 and len(images) == (1 if DEVICE == "cpu" else 2)
    torch.testing.assert_close(seen[0], truth.double(), rtol=1e-9, atol=1e-12)
    assert 0 < report.heatmap_error < (1e-5 if dtype == torch.float32 else 0.05)
    assert "error against the unfrozen model" in str(report)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(module.impl is None for module in model.modules() if hasattr(module, "impl"))
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def test_wrong_use_is_reported(make):
    model = make("vitpose++-tiny", ("coco", "aic"))
    with pytest.raises(ValueError, match=r"got dtype=torch.float64, expected float32, bfloat16 or float16"):
        vp.freeze(model, dtype=torch.float64)
    with pytest.raises(ValueError, match="unknown task 'hands'; heads: coco, aic"):
        vp.freeze(model, "hands")
    frozen = vp.freeze(model, dtype=torch.float32)
    with pytest.raises(ValueError, match="got a FrozenViTPose, expected a ViTPose"):
        vp.freeze(frozen)
    with pytest.raises(ValueError, match="heads for coco, aic; choose one with task="):
        frozen(draw(1))
    with pytest.raises(ValueError, match=r"images have shape \[1, 3, 32, 48\], expected \[B, 3, 64, 48\]"):
        frozen(draw(1, (32, 48)), "coco")
    for buckets in ((), (4, 2), (0, 1), (2, 2)):
        with pytest.raises(ValueError, match="expected ascending batch sizes"):
            Graphs(buckets)


def test_the_default_dtype_depends_on_the_processor(make, monkeypatch):
    if DEVICE == "cuda":
        pytest.skip("tests the default of CPUs")
    for has, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(runtime, "_processor_has_bfloat16", lambda has=has: has)
        assert vp.freeze(make()).dtype == dtype
    assert "emulates it" in str(vp.freeze(make(), dtype=torch.bfloat16).freeze_report)


@torch.no_grad()
def test_large_batches_on_a_cpu_are_split(make, monkeypatch):
    model = make("vitpose++-tiny", ("coco", "ap10k"))
    frozen = vp.freeze(model, dtype=torch.float32, impl="reference")
    images, names = draw(7), ["coco", "ap10k"] * 3 + ["coco"]
    whole, mixed = frozen(images, "coco"), frozen(images, names)
    sizes = []
    monkeypatch.setattr(runtime, "_CPU_PIECE", 3 * 12 * 4 * 32 * 4)  # three samples of 12 tokens
    monkeypatch.setattr(
        frozen.backbone, "forward", lambda *a, f=frozen.backbone.forward: (sizes.append(len(a[0])), f(*a))[1]
    )
    check_close(frozen(images, "coco"), whole, 1e-6)
    for name, (index, heatmaps) in frozen(images, names).items():
        assert torch.equal(index, mixed[name][0])
        check_close(heatmaps, mixed[name][1], 1e-6)
    assert DEVICE == "cuda" or sizes == [3, 3, 1] * 2


@pytest.mark.cuda
@torch.no_grad()
def test_threads_on_their_own_streams_share_one_frozen_model(make):
    """Graphs are captured while other threads replay and pin memory; every result equals the eager model."""
    model = make()
    frozen, eager = vp.freeze(model, dtype=torch.float32), vp.freeze(model, dtype=torch.float32, buckets=None)
    expected = {n: eager(graphs.padded(draw(n, seed=n), frozen.graphs.bucket(n)))[:n] for n in range(1, 9)}
    torch.cuda.synchronize()
    wrong = []

    def serve(start):
        with torch.cuda.stream(torch.cuda.Stream()), torch.no_grad():
            for step in range(24):
                n = (start + step) % 8 + 1
                torch.empty(1000 + 100 * step, pin_memory=True)
                if not torch.equal(frozen(draw(n, seed=n)), expected[n]):
                    wrong.append((start, step))

    threads = [threading.Thread(target=serve, args=(2 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@torch.no_grad()
def test_mixed_tasks_pass_tokens_to_heads_without_a_transposing_copy(make, recorder):
    """The input of the graph of a head is the tokens of its samples [n, N, C], not features [n, C, h, w]."""
    model = make("vitpose++-tiny", ("coco", "ap10k"))
    frozen = vp.freeze(model, dtype=torch.float32, impl="reference")
    frozen.graphs = Graphs((2,))
    frozen(draw(2), ["ap10k", "coco"])
    tokens, width = model.config.grid[0] * model.config.grid[1], model.config.width
    shapes = {key[0].split(",")[0]: key[2][0] for key in frozen.graphs._recorded}
    assert shapes["head of coco"] == shapes["head of ap10k"] == (tokens, width)
    head = frozen._head("coco")
    features = torch.randn(2, tokens, width, device=DEVICE).transpose(1, 2).unflatten(2, model.config.grid)
    seen = []
    hook = frozen.heads["coco"].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    head(features.flatten(2).transpose(1, 2))
    hook.remove()
    assert seen[0].shape == features.shape and seen[0].stride() == features.stride()


@torch.no_grad()
def test_frozen_models_replay_single_tasks_and_mixed_batches(make, recorder):
    model = make("vitpose++-tiny", ("coco", "ap10k"))
    frozen = vp.freeze(model, dtype=torch.float32, impl="reference")
    frozen.graphs = Graphs((2, 4))
    images, names = draw(3), ["ap10k", "coco", "ap10k"]
    check_close(frozen(images, "coco"), model(images, "coco"), 1e-5)
    for name, (index, heatmaps) in model(images, names).items():
        check_close(frozen(images, names)[name][1], heatmaps, 1e-5)
        assert torch.equal(frozen(images, names)[name][0], index)
    assert recorder == [4, 4, 2, 2]  # whole model; backbone, one head, the other head
    again = copy.deepcopy(frozen)
    check_close(again(images, "coco"), model(images, "coco"), 1e-5)


@torch.no_grad()
def test_warm_up_captures_the_graphs_of_later_calls(make, recorder):
    frozen = vp.freeze(make(), dtype=torch.float32, impl="reference")
    frozen.graphs = Graphs((1, 2, 4, 8))
    predictor = vp.PosePredictor(frozen, batch_size=3)
    predictor.warm_up([2])
    assert recorder == [2]
    predictor.warm_up()
    assert recorder == [2, 1, 4]  # 8 exceeds the bucket of a full batch
    image = torch.randint(0, 255, (50, 70, 3), dtype=torch.uint8)
    for people in (1, 2, 3, 5):
        predictor(image, [[1, 2, 30, 40]] * people)
    assert recorder == [2, 1, 4]
    with pytest.raises(ValueError, match="warm_up: got 0 people, expected at least 1"):
        predictor.warm_up([0])
    vp.PosePredictor(make()).warm_up()  # no graphs: one full batch


@torch.no_grad()
def test_moving_the_weights_discards_the_graphs(make, recorder):
    """Graphs contain addresses: after `.to(...)` the old graphs would read weights that no longer exist."""
    model = make()
    frozen = vp.freeze(model, dtype=torch.float32, impl="reference")
    frozen.graphs = Graphs((2,))
    before = frozen(draw(2))
    moved = frozen.to(torch.float64)
    assert recorder == [2] and not moved.graphs._recorded
    assert moved(draw(2).double()).dtype == torch.float64 and recorder == [2, 2]
    check_close(moved(draw(2).double()), before, 1e-5)
    assert frozen.to("meta").graphs is None  # on another kind of device there are none


@pytest.mark.cuda
@torch.no_grad()
def test_a_replayed_graph_equals_the_eager_model_bit_for_bit(make):
    model = make()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        graphed, eager = vp.freeze(model, dtype=dtype), vp.freeze(model, dtype=dtype, buckets=None)
        for batch in (1, 3, 8, 3, 130):
            images = draw(batch, seed=batch)
            size = graphed.graphs.bucket(batch)
            whole = torch.cat([eager(graphs.padded(part, size)) for part in images.split(size)])
            parts = [part.shape[0] for part in images.split(size)]
            index = torch.cat([torch.arange(n) + i * size for i, n in enumerate(parts)])
            if all(graphed.graphs.bucket(n) == size for n in parts):
                assert torch.equal(graphed(images), whole[index.to(DEVICE)])
            else:
                check_close(graphed(images), whole[index.to(DEVICE)], 1e-2)


@torch.no_grad()
def test_a_model_frozen_for_kernels_is_right_on_a_cpu_without_them(make):
    """Its LayerNorms are folded, which the packed layers of a CPU do not compute."""
    model, images = make(), draw(2)
    frozen = runtime.FrozenViTPose(model, torch.float32, True, True)
    check_close(frozen(images), model(images), 1e-5)


@torch.no_grad()
@pytest.mark.skipif(DEVICE != "cpu", reason="weights are packed on CPUs")
def test_packed_weights_follow_the_weights_and_are_not_copied(make, tmp_path):
    model, images = make(), draw(2)
    frozen = vp.freeze(model, dtype=torch.float32)
    before = frozen(images)
    layer = frozen.backbone.blocks[0].fc1
    assert layer._packed
    alike = copy.deepcopy(frozen)
    assert not alike.backbone.blocks[0].fc1._packed and torch.equal(alike(images), before)
    torch.save(frozen, tmp_path / "frozen.pt")
    again = torch.load(tmp_path / "frozen.pt", weights_only=False)
    assert torch.equal(again(images), before)
    layer.weight.mul_(2)
    layer.bias.mul_(2)
    assert (frozen(images) - before).abs().max() > 1e-3
    reference = copy.deepcopy(frozen)
    for module in reference.modules():
        module.impl = "reference"
    check_close(frozen(images), reference(images), 1e-5)
    half = copy.deepcopy(frozen).to(torch.bfloat16)
    check_close(half(images.bfloat16()), frozen(images), 0.05)


@torch.no_grad()
@pytest.mark.skipif(DEVICE != "cpu", reason="weights are packed on CPUs")
def test_experts_on_a_cpu_refuse_unknown_tasks(make):
    frozen = vp.freeze(make("vitpose++-tiny", ("coco", "ap10k")), dtype=torch.float32)
    for bad in (2, -1):
        with pytest.raises(ValueError, match=r"split_ffn: task ids run from .*, expected 0..1 for 2 experts"):
            frozen.backbone(draw(2), torch.tensor([0, bad]))
    with pytest.raises(ValueError, match=r"split_ffn: task has shape \[3\], expected \[2\]"):
        frozen.backbone(draw(2), torch.tensor([0, 1, 0]))


@torch.no_grad()
@pytest.mark.skipif(DEVICE != "cpu", reason="int8 is for CPUs")
@pytest.mark.parametrize("name", ["vitpose-tiny", "vitpose++-tiny"])
def test_int8_is_an_option_with_its_error_reported(make, name):
    if not runtime.supports("int8", torch.float32):
        pytest.skip("this machine has no int8")
    model, images = make(name, ("coco", "ap10k") if "++" in name else ("coco",)), draw(2)
    frozen = vp.freeze(model, dtype=torch.float32, int8=True)
    assert "linear layers in int8" in str(frozen.freeze_report) and 1e-3 < frozen.freeze_report.heatmap_error < 0.2
    error = (frozen(images, "coco") - model(images, "coco")).square().mean().sqrt()
    assert 0 < error / model(images, "coco").square().mean().sqrt() < 0.2
    for bad in (dict(dtype=torch.float16), dict(dtype=torch.float32, impl="reference")):
        with pytest.raises(ValueError, match="freeze: got int8=True for torch.float"):
            vp.freeze(model, int8=True, **bad)
