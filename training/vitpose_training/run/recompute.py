"""Activations that the backward pass computes again instead of keeping (the memory table of the kernels' design).

Per token, channel and block in 16 bit, roughly: "none" keeps everything; "norm" not what LayerNorm, GELU and drop path
give (they cost no matrix product); "ffn" neither the hidden activations (one product of the FFN again); "most" only a
block's input, the attention's output and its log-sum-exp (the qkv product again too; never attention itself).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from vitpose_fast.models.backbone import Backbone

LEVELS = ("none", "norm", "ffn", "most")
_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)
_ATTENTION = ("vitpose_fast::_attention", "vitpose_fast::attention", "aten::_scaled_dot_product")
_SPLIT_FFN = "vitpose_fast::split_ffn"


class _Policy:
    """Which results of a block's operators are kept; matrix products are told apart by their order."""

    def __init__(self, level: str) -> None:
        self.level, self.products = level, {False: 0, True: 0}

    def __call__(self, context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        name = op.name() if hasattr(op, "name") else str(op)
        keep = name.startswith(_ATTENTION)
        if op in _PRODUCTS:  # qkv, projection, then those of the FFN
            again = bool(context.is_recompute)
            self.products[again] += 1
            number = self.products[again]
            keep = number == 2 or (number == 1 and self.level != "most") or (number == 3 and self.level == "norm")
        if name.startswith(_SPLIT_FFN):
            keep = self.level == "norm"
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def _again(level: str, block: nn.Module, *args: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return block(*args)
    contexts = partial(create_selective_checkpoint_contexts, _Policy(level))
    # Drop path comes by argument, so there is no random state to restore.
    return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def set_recompute(backbone: Backbone, level: str) -> None:
    """Make the blocks of a backbone keep only what `level` says.

    Raises:
        ValueError: no such level (lists them).
    """
    if level not in LEVELS:
        raise ValueError(f"got recompute={level!r}, expected one of {', '.join(LEVELS)}")
    if level != "none":
        backbone.call_block = partial(_again, level)
