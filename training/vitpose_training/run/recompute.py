"""Activation recomputation: which results of a block the backward pass recomputes instead of keeping them in memory.

Each level recomputes more than the level before it:
    none: nothing.
    norm: the results of LayerNorm, GELU and drop path, which need no matrix product.
    ffn:  also the hidden activations of the FFN, which repeats its first matrix product.
    most: also the qkv projection, which repeats its matrix product. What is kept is the input of the block, the output
          and the log-sum-exp of attention, and the output of its projection. Attention itself is never repeated.

This holds for a dense FFN. The split FFN of ViTPose++ is one op, which ffn and most repeat as a whole. With a whole FFN
per task, every level but none also repeats the second product of the experts and, in IS-FFN, the first product of the
shared FFN.
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
    """Decide for every operator in one call of a block whether its result is kept or recomputed.

    Matrix products are identified by their order: qkv, attention projection, then the FFN. They are counted separately
    in the forward pass and in the recomputation.

    Args:
        level: one of `LEVELS` except "none".
    """

    def __init__(self, level: str) -> None:
        self.level, self.products = level, {False: 0, True: 0}

    def __call__(self, context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        name = op.name() if hasattr(op, "name") else str(op)
        keep = name.startswith(_ATTENTION)
        if op in _PRODUCTS:
            recomputing = bool(context.is_recompute)
            self.products[recomputing] += 1
            number = self.products[recomputing]
            keep = number == 2 or (number == 1 and self.level != "most") or (number == 3 and self.level == "norm")
        if name.startswith(_SPLIT_FFN):
            keep = self.level == "norm"
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def _call_with_recompute(level: str, block: nn.Module, *args: Any) -> Tensor:
    """Call a block so that its backward pass recomputes activations. Without gradients, just call it."""
    if not torch.is_grad_enabled():
        return block(*args)
    contexts = partial(create_selective_checkpoint_contexts, _Policy(level))
    # The random numbers of drop path are arguments, so there is no random state to restore.
    return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def set_recompute(backbone: Backbone, level: str) -> None:
    """Make the blocks of a backbone recompute activations in the backward pass, as `level` says.

    Args:
        level: one of `LEVELS`, see the module docstring. "none" leaves the backbone unchanged.

    Raises:
        ValueError: an unknown level (the message lists the valid ones).
    """
    if level not in LEVELS:
        raise ValueError(f"got recompute={level!r}, expected one of {', '.join(LEVELS)}")
    if level != "none":
        backbone.call_block = partial(_call_with_recompute, level)
