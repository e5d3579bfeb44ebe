"""All metrics: every public name exists, and tensors and lists give the same numbers as arrays."""

from __future__ import annotations

import pytest
import torch

from vitpose_training.evaluation import metrics
from vitpose_training.evaluation.pck import auc, epe, pck
from vitpose_training.evaluation.pckh import pckh
from vitpose_training.evaluation.suppression import oks_nms, rescore


@pytest.mark.filterwarnings("error")
def test_tensors_and_lists_give_the_same_numbers_as_arrays():
    generator = torch.Generator().manual_seed(0)
    found, truth = torch.rand(2, 6, 16, 2, generator=generator)
    mask, scores = torch.rand(6, 16, generator=generator) > 0.3, torch.rand(6, 16, generator=generator)
    given = {
        "list": lambda t: t.tolist(),
        "tensor": lambda t: t,
        "double": lambda t: t.double(),
        "gradient": lambda t: t.clone().requires_grad_() if t.is_floating_point() else t,
    }

    def everything(of):
        people = torch.cat([found, scores[..., None]], -1)
        size, areas = torch.full((6, 2), 0.5), torch.full((6,), 0.5)
        yield oks_nms(of(people), of(scores[:, 0]), of(areas), of(torch.full((16,), 0.3)), 0.6, 0.2)
        yield pck(of(found), of(truth), of(mask), 0.5, of(size))
        yield auc(of(found), of(truth), of(mask), of(size))
        yield epe(of(found), of(truth), of(mask))
        yield pckh(of(found), of(truth), of(mask), of(areas))

    expected = list(everything(lambda t: t.numpy()))
    assert 1 < len(expected[0]) < 6 and 0.1 < expected[1] < 0.9
    for of in given.values():
        assert list(everything(of)) == expected
    for of in (given["tensor"], given["gradient"]):
        assert rescore(of(scores[:, 0]), of(scores)).tolist() == rescore(scores[:, 0].numpy(), scores.numpy()).tolist()
    half = found.bfloat16()
    assert epe(half, truth, mask) == epe(half.float(), truth, mask)


def test_every_public_name_exists():
    assert all(hasattr(metrics, name) for name in metrics.__all__)
