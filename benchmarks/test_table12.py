"""Table 12 of the ViTPose++ paper: build, count and run every row, with its speed and memory next to the paper's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import vitpose_fast as vp
from benchmarks.harness import Case, Contender, close
from benchmarks.models import crops, frozen_contender, official_twin, randn, random_model
from benchmarks.rivals.count import macs, parameters
from benchmarks.rivals.table import RIVALS, VITPOSE

DTYPES = [torch.bfloat16, torch.float32]  # today's precision, and the paper's likely one (TF32 products on a GPU)


@pytest.fixture(params=DTYPES, ids=["bfloat16", "float32"])
def dtype(request, machine, quick):
    if not machine.cuda and request.param == torch.bfloat16:
        pytest.skip("on a CPU the eager rows run in float32")
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = True
    yield request.param
    matmul.allow_tf32, cudnn.allow_tf32 = before


@pytest.fixture
def batch(machine, quick) -> int:
    return 64 if machine.cuda else 1 if quick else 4


@torch.no_grad()
def calibrate(model: nn.Module, images: Tensor) -> nn.Module:
    """Set the statistics of every BatchNorm from one batch, and return the model in evaluation mode.

    With the initial statistics, activations would explode or vanish.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(images)
    return model.eval()


def paper_cells(cells) -> dict[str, float | None]:
    return {f"paper_{key}": cells.get(key) for key in ("params_m", "fps", "gflops", "memory_m", "ap")}


@pytest.mark.parametrize("rival", RIVALS, ids=lambda r: r.name.replace(" ", "-"))
def test_rival(compare, machine, quick, rival, dtype, batch):
    torch.manual_seed(0)
    model = rival.build()
    count, products = parameters(model), macs(model, rival.image_size)
    assert abs(count / 1e6 / rival.published_params_m - 1) <= 0.02, f"{rival.name}: {count / 1e6:.2f} M parameters"
    counted = rival.counting(model, rival.image_size)
    assert abs(counted / rival.published_gmacs - 1) <= rival.tolerance, f"{rival.name}: {counted:.2f} G"

    def make(seed):
        return (randn(seed, batch, 3, *rival.image_size, device=machine.device, dtype=dtype),)

    model = calibrate(model.to(machine.device), make(1)[0].float()[:8]).to(dtype)
    eager = Contender("eager", torch.inference_mode()(model), graph=False, module=model)
    extra = {"params_m": count / 1e6, "gmacs": products / 1e9, **paper_cells(rival.paper)}
    case = Case("table12", rival.name, dtype, batch, make, [eager], close(0.1), 2 * batch * products, None, extra)
    compare(case, fewest=1 if quick else 3)


@pytest.mark.parametrize("name", VITPOSE, ids=lambda name: name.replace(" ", "-"))
def test_vitpose(compare, machine, quick, name, dtype, batch):
    """The eager row is official-style PyTorch with merged experts, as the paper counts ViTPose++."""
    size = name.split(" ")[0].lower()
    model = random_model(size, machine.device)
    official = official_twin(model.for_task("coco") if model.config.part_features else model, dtype)
    count, products = parameters(official), macs(official, (256, 192))
    contenders = [Contender("eager", torch.inference_mode()(official), graph=False, module=official)]
    if quick and size not in ("vitpose-s", "vitpose-b", "vitpose++-b"):
        contenders.append(Contender("vitpose_fast frozen", None, "S and B only in a quick run"))
    else:
        frozen = vp.freeze(model, "coco", dtype)
        contenders.append(frozen_contender("vitpose_fast frozen", frozen, frozen))

    def make(seed):
        return (crops(seed, batch, model, dtype),)

    extra = {"params_m": count / 1e6, "gmacs": products / 1e9, **paper_cells(VITPOSE[name])}
    case = Case("table12", name, dtype, batch, make, contenders, close(0.1), 2 * batch * products, None, extra)
    compare(case, fewest=1 if quick else 3)
