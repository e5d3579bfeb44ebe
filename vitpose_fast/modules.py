"""The fast ops as nn.Modules, with the parameter names of the official code.

A module that calls an op of `functional` (a `FastModule`) has an attribute `impl`. Its default, None, selects the
implementation of the op by device; `use_impl(model, "triton")` and `use_impl(model, "reference")` set it throughout a
model, and the names of attention libraries, such as `use_impl(model, "sdpa:flash")`, in `WindowAttention` alone.
Letters: B batch, N tokens in row-major order over their grid, C channels of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vitpose_fast import functional as F
from vitpose_kernels.autocast import is_autocast
from vitpose_kernels.libraries import LIBRARIES

Model = TypeVar("Model", bound=nn.Module)


def use_impl(model: Model, impl: str | None) -> Model:
    """Set `impl` of the fast ops in a model, and return the model.

    Args:
        model: any module; itself and the modules in it are set.
        impl: None, "triton" or "reference" for every fast op; or the name of an attention library, such as "sdpa:flash"
            or "flash_attn" (see `functional.attention`), for attention over whole maps. Everything else, such as
            attention in windows, then stays as it is.

    Raises:
        ValueError: no module of the model takes `impl`.
    """
    fast = [module for module in model.modules() if isinstance(module, FastModule)]
    taking = [module for module in fast if module.takes(impl)]
    if fast and not taking:
        names = ", ".join(repr(name) for name in ("triton", "reference", *LIBRARIES))
        raise ValueError(
            f"use_impl: got impl={impl!r}, which no module of {type(model).__name__} takes; expected None or one of "
            f"{names}, the latter {len(LIBRARIES)} only for attention over a whole map without relative position"
        )
    for module in taking:
        module.impl = impl
    return model


class FastModule(nn.Module):
    """Base class of the modules that call an op of `functional`; `impl` is passed on to the op."""

    impl: str | None = None

    def takes(self, impl: str | None) -> bool:
        """Return whether `impl` names an implementation of this module's op."""
        return impl in (None, "triton", "reference")


class PatchEmbed(FastModule):
    """Embed image patches as tokens: a 16x16 convolution with the official zero padding.

    Args:
        width: number of channels C.
        stride, padding: in pixels; 16 and 2 in the official models, or 8 and 4.
    """

    def __init__(self, width: int, stride: int = 16, padding: int = 2) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, 16, stride, padding)

    def forward(self, images: Tensor, position: Tensor | None = None) -> Tensor:
        """Map images [B, 3, H, W] to tokens [B, N, C], and add `position` [N, C] if given.

        The fused op runs only with a position, with gradients disabled, and outside autocast. Otherwise PyTorch's
        convolution runs. Under autocast the addition of a float32 position gives float32 tokens.
        """
        if position is None or torch.is_grad_enabled() or is_autocast(images):
            tokens = self.proj(images).flatten(2).transpose(1, 2)
            return tokens if position is None else tokens + position
        proj = self.proj
        stride, padding = int(proj.stride[0]), int(proj.padding[0])
        assert proj.bias is not None
        return F.patch_embed(images, proj.weight, proj.bias, position, stride, padding, impl=self.impl)


class LayerNorm(nn.LayerNorm, FastModule):
    """LayerNorm over the channels, optionally fused with the residual addition that precedes it."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        """Return the normalized x [..., C]; with a residual [..., C], return (x + residual, the normalized sum)."""
        return F.layer_norm(x, self.weight, self.bias, self.eps, residual, impl=self.impl)


class WindowAttention(FastModule):
    """Multi-head attention over a grid of tokens, whole or in (shifted, pooled) windows (docs/numerics.md 10).

    Parameters are named as in the official code: `qkv` and `proj`. With relative position there are also `rel_pos_h`
    [2h - 1, D] and `rel_pos_w` [2w - 1, D] for windows of h rows and w columns, initialized to zero and shared by the
    attention heads.

    Args:
        width: number of channels C.
        num_heads: number of attention heads H; C = H * D.
        grid: (rows, columns) of tokens.
        window: (rows, columns) of a window; None means the whole grid.
        shift, pool: see `functional.attention`.
        rel_pos: learn a decomposed relative position within the window.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        grid: tuple[int, int],
        window: tuple[int, int] | None = None,
        shift: tuple[int, int] = (0, 0),
        pool: bool = False,
        rel_pos: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads, self.grid, self.window, self.shift, self.pool = num_heads, grid, window, shift, pool
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = self.rel_pos_w = None
        if rel_pos:
            h, w = window or grid
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * h - 1, width // num_heads))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * w - 1, width // num_heads))

    def takes(self, impl: str | None) -> bool:
        """Return whether `impl` names an implementation; attention libraries take whole maps without position only."""
        whole = self.window in (None, self.grid) and not any(self.shift) and not self.pool and self.rel_pos_h is None
        return super().takes(impl) or (whole and impl in LIBRARIES)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, N, C] to [B, N, C], where N are the tokens of the grid in row-major order."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        rel_pos = None if self.rel_pos_h is None or self.rel_pos_w is None else (self.rel_pos_h, self.rel_pos_w)
        return self.proj(F.attention(qkv, self.grid, self.window, self.shift, self.pool, rel_pos, impl=self.impl))


class FFN(nn.Module):
    """Dense feed-forward network: `fc1` from C to ratio * C channels, exact GELU, `fc2` back to C."""

    def __init__(self, width: int, ratio: int = 4) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, ratio * width)
        self.fc2 = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor, task: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """Map [B, N, C] to [B, N, C] and add `residual` [B, N, C] if given.

        `task` is ignored; it is there because `SplitFFN` has it.
        """
        out = self.fc2(nn.functional.gelu(self.fc1(x)))
        return out if residual is None else residual + out


class SplitFFN(FastModule):
    """Feed-forward network of ViTPose++ with one expert per task (docs/numerics.md 1.4).

    `fc1` maps C to 4C channels, followed by exact GELU. `fc2` computes the first C - P output channels for every task,
    and the expert of the sample's task the last P. The experts are stacked in `expert_weight` [T, P, 4C] and
    `expert_bias` [T, P]; state dicts use the official names `experts.<i>.weight` [P, 4C] and `experts.<i>.bias` [P],
    with the task id i.

    Args:
        width: number of channels C.
        part_features: number of expert channels P.
        num_tasks: number of tasks T; task ids are 0 to T - 1.
    """

    def __init__(self, width: int, part_features: int, num_tasks: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width - part_features)
        self.expert_weight = nn.Parameter(torch.empty(num_tasks, part_features, 4 * width))
        self.expert_bias = nn.Parameter(torch.zeros(num_tasks, part_features))
        nn.init.trunc_normal_(self.expert_weight, std=0.02)
        self.register_state_dict_post_hook(_unstack_experts)
        self.register_load_state_dict_pre_hook(_stack_experts)

    def forward(self, x: Tensor, task: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map [B, N, C] to [B, N, C] with the experts of task ids `task` int64 [B], and add `residual` if given."""
        fc1, fc2 = self.fc1, self.fc2
        experts = self.expert_weight, self.expert_bias
        return F.split_ffn(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias, *experts, task, residual, impl=self.impl)

    def merged(self, task: int) -> FFN:
        """Return the dense FFN that has the same outputs as this one for the task id `task`."""
        dense = FFN(self.fc1.in_features).to(self.fc1.weight)
        with torch.no_grad():
            dense.fc1.load_state_dict(self.fc1.state_dict())
            dense.fc2.weight.copy_(torch.cat([self.fc2.weight, self.expert_weight[task]]))
            dense.fc2.bias.copy_(torch.cat([self.fc2.bias, self.expert_bias[task]]))
        return dense


def _unstack_experts(module: SplitFFN, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """Replace the stacked experts in a state dict by one entry per expert with the official name.

    A hook that runs after `state_dict`.
    """
    for kind in ("weight", "bias"):
        for i, value in enumerate(state.pop(f"{prefix}expert_{kind}").unbind(0)):
            state[f"{prefix}experts.{i}.{kind}"] = value


def _stack_experts(module: SplitFFN, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Stack the experts in a state dict, the inverse of `_unstack_experts`, unless one is missing.

    A hook that runs before `load_state_dict`.
    """
    count = module.expert_weight.shape[0]
    for kind in ("weight", "bias"):
        names = [f"{prefix}experts.{i}.{kind}" for i in range(count)]
        if all(name in state for name in names):
            state[f"{prefix}expert_{kind}"] = torch.stack([state.pop(name) for name in names])


class TaskFFN(nn.Module):
    """One whole FFN (expert) per task, instead of a shared FFN (I-FFN) or added to one (IS-FFN).

    These are variants in Table 11 of the ViTPose++ paper, meant for ablations only: the weights are gathered for every
    sample, which takes B * 8 * C² elements of memory per layer.

    Args:
        width: number of channels C; an FFN has 4C hidden channels.
        num_tasks: number of tasks T; task ids are 0 to T - 1.
        shared: add a dense FFN for all tasks; the outputs of the experts are then initialized to zero.
    """

    def __init__(self, width: int, num_tasks: int, shared: bool) -> None:
        super().__init__()
        self.shared = FFN(width) if shared else None
        self.fc1_weight = nn.Parameter(torch.empty(num_tasks, 4 * width, width))
        self.fc1_bias = nn.Parameter(torch.zeros(num_tasks, 4 * width))
        self.fc2_weight = nn.Parameter(torch.empty(num_tasks, width, 4 * width))
        self.fc2_bias = nn.Parameter(torch.zeros(num_tasks, width))
        nn.init.trunc_normal_(self.fc1_weight, std=0.02)
        nn.init.zeros_(self.fc2_weight) if shared else nn.init.trunc_normal_(self.fc2_weight, std=0.02)

    def forward(self, x: Tensor, task: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map [B, N, C] to [B, N, C] with the experts of task ids `task` int64 [B], and add `residual` if given."""
        hidden = nn.functional.gelu(_per_sample(x, self.fc1_weight, self.fc1_bias, task))
        out = _per_sample(hidden, self.fc2_weight, self.fc2_bias, task)
        if self.shared is not None:
            out = out + self.shared(x)
        return out if residual is None else residual + out

    def merged(self, task: int) -> FFN:
        """Return the dense FFN that has the same outputs as this module for the task id `task`.

        With a shared FFN it has 8C hidden channels (those of the expert, then those of the shared FFN), otherwise 4C.
        """
        parts = [(self.fc1_weight[task], self.fc1_bias[task], self.fc2_weight[task], self.fc2_bias[task])]
        if self.shared is not None:
            fc1, fc2 = self.shared.fc1, self.shared.fc2
            parts.append((fc1.weight, fc1.bias, fc2.weight, fc2.bias))
        fc1_weight, fc1_bias, fc2_weight, fc2_bias = zip(*parts)
        dense = FFN(self.fc1_weight.shape[2], 4 * len(parts)).to(self.fc1_weight)
        with torch.no_grad():
            dense.fc1.weight.copy_(torch.cat(fc1_weight))
            dense.fc1.bias.copy_(torch.cat(fc1_bias))
            dense.fc2.weight.copy_(torch.cat(fc2_weight, 1))
            dense.fc2.bias.copy_(sum(fc2_bias))
        return dense


def _per_sample(x: Tensor, weight: Tensor, bias: Tensor, task: Tensor) -> Tensor:
    """Apply to each sample the linear layer of its task: [B, N, I input channels] -> [B, N, O output channels].

    The layers of T tasks are stacked in `weight` [T, O, I] and `bias` [T, O]; `task` int64 [B] holds task ids. The
    weights of every task get a gradient, which is zero for tasks that are absent from the batch.
    """
    out = torch.bmm(x, weight.index_select(0, task).transpose(1, 2))
    return out + bias.index_select(0, task)[:, None].to(out.dtype)  # autocast does not cast additions


class HeatmapLoss(FastModule):
    """Weighted mean squared error between heatmaps and the Gaussian target of keypoints.

    The kernels compute the target on the fly and never store it.

    Args:
        codec: "udp" or "msra".
        sigma: standard deviation of the Gaussian in heatmap pixels.
        image_size: (H, W) of the crop; None means four times the heatmap size.
    """

    def __init__(self, codec: str = "udp", sigma: float = 2.0, image_size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.codec, self.sigma, self.image_size = codec, sigma, image_size

    def forward(self, heatmaps: Tensor, keypoints: Tensor, visible: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar; see `functional.heatmap_loss`.

        Args:
            heatmaps: [B, K, h, w] of K keypoints.
            keypoints: [B, K, 2] (x, y) in crop pixels.
            visible: [B, K], visibilities in [0, 1].
            mask: see `functional.heatmap_loss`.
        """
        return F.heatmap_loss(
            heatmaps, keypoints, visible, self.codec, self.sigma, mask, self.image_size, impl=self.impl
        )


class HeatmapDecoder(FastModule):
    """Decode heatmaps to keypoints.

    Args:
        codec: "udp", "msra" or "argmax".
        blur_kernel: odd kernel size of the blur that "udp" applies, in heatmap pixels.
        flip_pairs: pairs of channels that swap in a mirrored image, for `flipped` heatmaps. None means no pairs.
    """

    def __init__(
        self, codec: str = "udp", blur_kernel: int = 11, flip_pairs: Sequence[Sequence[int]] | None = None
    ) -> None:
        super().__init__()
        self.codec, self.blur_kernel, self.flip_pairs = codec, blur_kernel, flip_pairs

    def forward(
        self,
        heatmaps: Tensor,
        centers: Tensor | None = None,
        scales: Tensor | None = None,
        flipped: Tensor | None = None,
        covariance: bool = False,
    ) -> tuple[Tensor, ...]:
        """Return (keypoints [B, K, 2], scores [B, K]) of heatmaps [B, K, h, w], and with `covariance` [B, K, 2, 2] too.

        Keypoints are in image pixels if the `centers` and `scales` [B, 2] of the crops are given, otherwise in heatmap
        pixels. The arguments are those of `functional.heatmap_decode`.
        """
        return F.heatmap_decode(
            heatmaps,
            self.codec,
            self.blur_kernel,
            flipped,
            self.flip_pairs,
            centers,
            scales,
            covariance,
            impl=self.impl,
        )
