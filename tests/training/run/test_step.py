"""One optimizer step: the loss of docs/numerics.md 4.6, gradient accumulation, and skipped non-finite steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vitpose_fast as vp
from vitpose_fast import functional as F
from vitpose_fast.codec import HeatmapCodec
from vitpose_training.data.batches import Batch, Part
from vitpose_training.data.people import Person
from vitpose_training.distributed import World
from vitpose_training.run.config import TrainConfig
from vitpose_training.run.optim import Ema, OptimizerConfig, make_optimizer
from vitpose_training.run.step import PoseLoss, Updater

SIZE = (64, 48)
CPU = World(torch.device("cpu"))
TASKS = {"coco": 3, "aic": 2, "mpii": 1}  # task -> number of samples
CONFIG = TrainConfig(
    tasks=("coco", "aic", "mpii"), image_size=SIZE, batch_size=6, optimizer=OptimizerConfig(lr=1e-3), device="cpu"
)


def make_model(decoder="simple", **options):
    torch.manual_seed(0)
    return vp.create_model("vitpose++-tiny", tuple(TASKS), decoder, SIZE, depth=2, **options).train()


def codecs_of(model):
    return {t.name: HeatmapCodec(t, SIZE, model.config.heatmap_size) for t in model.config.tasks}


def person(i):
    return Person(
        Path(f"{i}.jpg"), i, i, 1, (0.0, 0.0, 9.0, 9.0), torch.zeros(1, 2).numpy(), torch.ones(1).numpy(), "f"
    )


def make_batch(seed=0, tasks=TASKS):
    rng = torch.Generator().manual_seed(seed)
    parts, start = {}, 0
    for name, n in tasks.items():
        count = vp.KEYPOINT_SETS[name].num_keypoints
        points = torch.rand(n, count, 2, generator=rng) * 48
        visible = (torch.rand(n, count, generator=rng) > 0.3).float()
        parts[name] = Part(slice(start, start + n), points, visible)
        start += n
    crops = torch.randn(start, 3, *SIZE, generator=rng)
    return Batch(crops, parts, [person(i) for i in range(start)], list(range(start)))


def cut(batch, size):
    """Return the micro-batches of at most `size` samples, in order, that make up a batch."""
    out = []
    for a in range(0, len(batch.crops), size):
        b, parts, start = min(a + size, len(batch.crops)), {}, 0
        for name, part in batch.parts.items():
            own = slice(max(part.rows.start, a), min(part.rows.stop, b))
            if own.start < own.stop:
                n, at = own.stop - own.start, own.start - part.rows.start
                rows = slice(start, start + n)
                parts[name] = Part(rows, part.keypoints[at : at + n], part.visible[at : at + n])
                start += n
        out.append(Batch(batch.crops[a:b], parts, batch.people[a:b], batch.positions[a:b]))
    return out


class FakeFeeder:
    """Stand-in for a `Feeder`: `take` returns the given batches in order, each with the list `bad`."""

    def __init__(self, *batches, bad=()):
        self.batches, self.bad = list(batches), list(bad)

    def take(self):
        return self.batches.pop(0), self.bad

    def prepare(self):
        pass


def updater_of(model, config=CONFIG):
    loss = PoseLoss(model, codecs_of(model), config.batchnorm, config.precision == "bf16")
    return Updater(loss, loss, make_optimizer(model, config.optimizer), config, CPU)


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def test_the_loss_equals_the_padded_and_masked_loss_of_the_official_code():
    """It pads the targets of all tasks to 133 channels, masks them by task, and applies every head to every sample."""
    model, batch = make_model(), make_batch()
    losses, finite = PoseLoss(model, codecs_of(model), "all", False)(batch, None, 6)
    ids = torch.tensor([0, 0, 0, 1, 1, 2])
    features = model.backbone(batch.crops, ids)
    height, width = model.config.heatmap_size
    for i, (name, head) in enumerate(model.heads.items()):
        part, keypoints = batch.parts[name], vp.KEYPOINT_SETS[name]
        target, weight = torch.zeros(6, 133, height, width), torch.zeros(6, 133)
        own, visible = F.heatmap_target(part.keypoints, part.visible, (height, width), keypoints.codec, image_size=SIZE)
        target[part.rows, : keypoints.num_keypoints], weight[part.rows, : keypoints.num_keypoints] = own, visible
        target, weight = (t * (ids == i).view(-1, *[1] * (t.dim() - 1)) for t in (target, weight))
        k = keypoints.num_keypoints
        maps, w = head(features), weight[:, :k, None, None]
        expected = ((w * maps - w * target[:, :k]) ** 2).mean()
        torch.testing.assert_close(losses[i], expected)
    assert finite.shape == (2, 6) and finite.all()


@pytest.mark.parametrize("batchnorm", ["all", "own"])
def test_batchnorm_sees_all_samples_or_those_of_its_task(batchnorm):
    model, batch = make_model("classic"), make_batch()
    bn = model.heads["mpii"].deconv_layers[1]
    with torch.no_grad():
        features = model.backbone(batch.crops, torch.tensor([0, 0, 0, 1, 1, 2]))
        seen = model.heads["mpii"].deconv_layers[0](features if batchnorm == "all" else features[5:])
    PoseLoss(model, codecs_of(model), batchnorm, False)(batch, None, 6)
    torch.testing.assert_close(bn.running_mean, 0.1 * seen.mean((0, 2, 3)))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_add_up_to_the_same_update(size):
    results = []
    for batches in ([make_batch()], cut(make_batch(), size)):
        model = make_model(drop_path=0.4)
        update, _ = updater_of(model)(3, FakeFeeder(*batches), len(batches))
        results.append((update, state(model)))
    (a, before), (b, after) = results
    assert a.loss == pytest.approx(b.loss, rel=1e-5) and a.norm == pytest.approx(b.norm, rel=1e-4)
    assert a.taken and b.taken and a.losses.keys() == TASKS.keys()
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=2e-4)  # Adam's first step is lr * sign


def test_drop_path_depends_on_seed_step_and_position():
    def loss(config, step, batches):
        model = make_model(drop_path=0.5)
        return updater_of(model, config)(step, FakeFeeder(*batches), len(batches))[0].loss

    first = loss(CONFIG, 1, [make_batch()])
    torch.manual_seed(99)
    assert first == loss(CONFIG, 1, [make_batch()])
    assert first == pytest.approx(loss(CONFIG, 1, cut(make_batch(), 2)), rel=1e-5)
    others = loss(CONFIG, 2, [make_batch()]), loss(replace(CONFIG, seed=1), 1, [make_batch()])
    assert all(abs(first / other - 1) > 1e-4 for other in others)


@pytest.mark.parametrize("where", ["crop", "keypoint", "gradient"])
def test_a_non_finite_step_changes_nothing(where):
    model, batch = make_model("classic"), make_batch()
    updater = updater_of(model, replace(CONFIG, ema=0.9))
    updater(0, FakeFeeder(make_batch(5)), 1)
    before, moments = state(model), {p: s["exp_avg"].clone() for p, s in updater.optimizer.state.items()}
    average = [a.clone() for a in updater.ema.average]
    if where == "crop":
        batch.crops[4, 0, 3, 3] = float("nan")
    elif where == "keypoint":
        batch.parts["aic"].keypoints[1, 0, 0] = float("nan")
    else:
        handle = model.backbone.pos_embed.register_hook(lambda grad: grad * float("inf"))
    update, _ = updater(1, FakeFeeder(batch), 1)
    assert not update.taken and same(before, state(model))
    named = [p.annotation_id for p in update.bad]
    # BatchNorm spreads a NaN to every heatmap; only the sample that caused it is named
    assert named == (list(range(6)) if where == "gradient" else [4])
    assert all(torch.equal(moments[p], s["exp_avg"]) for p, s in updater.optimizer.state.items())
    assert all(torch.equal(a, b) for a, b in zip(average, updater.ema.average))
    if where == "gradient":
        handle.remove()
    update, _ = updater(2, FakeFeeder(make_batch(6)), 1)
    assert update.taken and update.bad == [] and not same(before, state(model))


def test_a_head_without_samples_gets_zero_gradients():
    model = make_model()
    updater_of(model)(0, FakeFeeder(make_batch(tasks={"coco": 6})), 1)
    unused = list(model.heads["mpii"].parameters()) + [model.backbone.blocks[0].mlp.expert_weight]
    assert all(p.grad is not None for p in unused)
    assert not unused[0].grad.any() and not unused[-1].grad[2].any() and unused[-1].grad[0].any()


def test_bf16_computes_the_losses_in_float32():
    model = make_model()
    losses, _ = PoseLoss(model, codecs_of(model), "all", True)(make_batch(), None, 6)
    exact, _ = PoseLoss(model, codecs_of(model), "all", False)(make_batch(), None, 6)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, exact, rtol=0.02, atol=1e-6)
    assert not torch.equal(losses, exact)


def test_ema_follows_the_weights_and_swaps_with_them():
    weight = torch.nn.Parameter(torch.zeros(3))
    ema = Ema([weight], 0.5)
    expected = torch.zeros(3)
    for i in range(1, 30):
        with torch.no_grad():
            weight.add_(1)
        ema.update()
        decay = min(0.5, (1 + i) / (10 + i))
        expected = decay * expected + (1 - decay) * weight.detach()
    torch.testing.assert_close(ema.average[0], expected)
    now = weight.detach().clone()
    ema.swap()
    assert torch.allclose(weight, expected) and torch.equal(ema.average[0], now)
    ema.swap()
    assert torch.equal(weight, now)


@pytest.mark.parametrize(("norm", "clipped"), [(10.0, 1.0), (0.5, 0.5)])
def test_a_gradient_is_clipped_to_norm_1(norm, clipped):
    """After the first update AdamW's first moments are a tenth of the gradient that it was given."""
    first, _ = updater_of(make_model())(0, FakeFeeder(make_batch()), 1)
    model = make_model()
    for p in model.parameters():
        p.register_hook(lambda grad: grad * (norm / first.norm))
    updater = updater_of(model)
    update, _ = updater(0, FakeFeeder(make_batch()), 1)
    moments = [s["exp_avg"].flatten() for s in updater.optimizer.state.values()]
    assert update.taken and update.norm == pytest.approx(norm, rel=1e-3)  # what it was before
    assert torch.cat(moments).norm().item() == pytest.approx(0.1 * clipped, rel=1e-3)


def test_gradients_are_zeroed_between_optimizer_steps():
    updater = updater_of(make_model(), replace(CONFIG, optimizer=OptimizerConfig(lr=1e-9)))
    norms = [updater(step, FakeFeeder(make_batch()), 1)[0].norm for step in range(3)]
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-3)
