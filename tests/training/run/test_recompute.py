"""Recomputing activations saves memory and changes no gradient."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vitpose_fast as vp
from vitpose_training.run.recompute import LEVELS, set_recompute


class Alive(TorchDispatchMode):
    """Records the storage of every tensor that an operator returns, to count the bytes that are still alive."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = StorageWeakRef(tensor.untyped_storage())
                self.seen[storage.cdata] = storage, tensor.untyped_storage().nbytes()
        return out

    def bytes(self):
        return sum(size for storage, size in self.seen.values() if not storage.expired())


@pytest.mark.parametrize("attention", ["full", "window+shift+pool"])
@pytest.mark.parametrize("name", ["vitpose-tiny", "vitpose++-tiny"])
def test_gradients_are_the_same_and_memory_falls(name, attention):
    """Bytes per token, channel and block in bf16: 4 residual stream, 6 qkv, 2 attention, 2 projection, 8 hidden."""
    torch.manual_seed(0)
    options = dict(depth=4, drop_path=0.3, attention=attention, window=(8, 8))
    model = vp.create_model(name, ("coco", "aic"), "simple", **options).train()
    images, ids, uniform = torch.randn(4, 3, 256, 192), torch.tensor([0, 1, 1, 0]), torch.rand(4, 2, 4)
    held, gradients = {}, {}
    for level in LEVELS:
        own = deepcopy(model)
        set_recompute(own.backbone, level)
        with Alive() as alive, torch.autocast("cpu", torch.bfloat16):
            features = own.backbone(images, ids, uniform)
        held[level] = alive.bytes() / (4 * 192 * 192 * 4)
        features.float().square().mean().backward()
        gradients[level] = [p.grad for p in own.backbone.parameters()]
    for level in LEVELS[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients["none"], gradients[level])), level
    casts = 2 * 12 * 192**2 / (4 * 192 * 192)  # bytes of the bf16 copies of the weights, in the same unit
    assert held["none"] > 34
    assert held["norm"] < 24 + casts and held["ffn"] < 16 + casts and held["most"] < 10 + casts
    assert held["none"] > held["norm"] > held["ffn"] > held["most"]


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match="got recompute='all', expected one of none, norm, ffn, most"):
        set_recompute(vp.create_model("vitpose-tiny", depth=1, image_size=(64, 48)).backbone, "all")
