"""The fast ops as nn.Modules, with the parameter names of the official code.

Every module here has an attribute `impl`, None at first: the op is chosen by device. `use_impl(model, "triton")` or
`use_impl(model, "reference")` sets it in a whole model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vitpose_fast import functional as F
from vitpose_kernels.autocast import is_autocast

Model = TypeVar("Model", bound=nn.Module)


def use_impl(model: Model, impl: str | None) -> Model:
    """Make every fast op of a model run as `impl`: None (by device), "triton" or "reference". Returns the model."""
    for module in model.modules():
        if isinstance(module, FastModule):
            module.impl = impl
    return model


class FastModule(nn.Module):
    """A module around an op of `functional`."""

    impl: str | None = None


class PatchEmbed(FastModule):
    """16x16 convolution with the official zero padding: patches to tokens.

    Args:
        width: channels C. stride, padding: pixels; 16 and 2, or 8 and 4, in the official models.
    """

    def __init__(self, width: int, stride: int = 16, padding: int = 2) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, 16, stride, padding)

    def forward(self, images: Tensor, position: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] -> [B, N, C], plus position [N, C].

        PyTorch's convolution where gradients are recorded, and under autocast, which adds the position in float32.
        """
        if position is None or torch.is_grad_enabled() or is_autocast(images):
            tokens = self.proj(images).flatten(2).transpose(1, 2)
            return tokens if position is None else tokens + position
        proj = self.proj
        stride, padding = int(proj.stride[0]), int(proj.padding[0])
        assert proj.bias is not None
        return F.patch_embed(images, proj.weight, proj.bias, position, stride, padding, impl=self.impl)


class LayerNorm(nn.LayerNorm, FastModule):
    """LayerNorm over the channels, alone or together with the residual addition before it."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        """x [..., C] -> its norm; with a residual (x + residual, the norm of that)."""
        return F.layer_norm(x, self.weight, self.bias, self.eps, residual, impl=self.impl)


class WindowAttention(FastModule):
    """Multi-head attention over a grid of tokens: whole map, windows, shifted and pooled windows (SPEC 10).

    Parameters are named as in the official code: `qkv`, `proj`; with relative position `rel_pos_h` [2h - 1, D] and
    `rel_pos_w` [2w - 1, D] (zeros at first), shared by the heads.

    Args:
        width: channels C; num_heads: H, with C = H * D.
        grid: (rows, columns) of tokens.
        window: (rows, columns) of a window, None: the whole map. shift, pool: as in `functional.attention`.
        rel_pos: learn a decomposed relative position of the window.
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

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C], N the tokens of the grid, row-major."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        rel_pos = None if self.rel_pos_h is None or self.rel_pos_w is None else (self.rel_pos_h, self.rel_pos_w)
        return self.proj(F.attention(qkv, self.grid, self.window, self.shift, self.pool, rel_pos, impl=self.impl))


class FFN(nn.Module):
    """Dense feed-forward network with exact GELU: `fc1` C -> ratio * C, `fc2` back to C."""

    def __init__(self, width: int, ratio: int = 4) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, ratio * width)
        self.fc2 = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor, task: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """[B, N, C] -> [B, N, C], plus `residual`. `task` is unused: dense and split FFN are called alike."""
        out = self.fc2(nn.functional.gelu(self.fc1(x)))
        return out if residual is None else residual + out


class SplitFFN(FastModule):
    """ViTPose++ FFN: `fc2` gives the first C - P channels for every task, one of T experts the last P (SPEC 1.4).

    The experts are stacked in `expert_weight` [T, P, 4C] and `expert_bias` [T, P]; state dicts carry the official
    names `experts.<i>.weight`, `experts.<i>.bias`.
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
        """[B, N, C], task int64 [B] -> [B, N, C], plus `residual`."""
        fc1, fc2 = self.fc1, self.fc2
        experts = self.expert_weight, self.expert_bias
        return F.split_ffn(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias, *experts, task, residual, impl=self.impl)

    def merged(self, task: int) -> FFN:
        """The dense FFN that gives the same outputs for one task."""
        dense = FFN(self.fc1.in_features).to(self.fc1.weight)
        with torch.no_grad():
            dense.fc1.load_state_dict(self.fc1.state_dict())
            dense.fc2.weight.copy_(torch.cat([self.fc2.weight, self.expert_weight[task]]))
            dense.fc2.bias.copy_(torch.cat([self.fc2.bias, self.expert_bias[task]]))
        return dense


def _unstack_experts(module: SplitFFN, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    for kind in ("weight", "bias"):
        for i, value in enumerate(state.pop(f"{prefix}expert_{kind}").unbind(0)):
            state[f"{prefix}experts.{i}.{kind}"] = value


def _stack_experts(module: SplitFFN, state: dict[str, Any], prefix: str, *_: Any) -> None:
    count = module.expert_weight.shape[0]
    for kind in ("weight", "bias"):
        names = [f"{prefix}experts.{i}.{kind}" for i in range(count)]
        if all(name in state for name in names):
            state[f"{prefix}expert_{kind}"] = torch.stack([state.pop(name) for name in names])


class TaskFFN(nn.Module):
    """A whole FFN per task, of Table 11: instead of the shared one (I-FFN), or added to it (IS-FFN).

    For ablations: each sample's weights are gathered, which costs B * 8 * C² numbers of memory a layer.

    Args:
        width: channels C. num_tasks: T. shared: add a dense FFN for all tasks; the experts then start at 0.
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
        """[B, N, C], task int64 [B] -> [B, N, C], plus `residual`."""
        hidden = nn.functional.gelu(_per_sample(x, self.fc1_weight, self.fc1_bias, task))
        out = _per_sample(hidden, self.fc2_weight, self.fc2_bias, task)
        if self.shared is not None:
            out = out + self.shared(x)
        return out if residual is None else residual + out

    def merged(self, task: int) -> FFN:
        """The dense FFN that gives the same outputs for one task; with a shared one of twice the hidden channels."""
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
    """x [B, N, I] times the weight [T, O, I] of each sample's task: [B, N, O]. Every task gets a gradient."""
    out = torch.bmm(x, weight.index_select(0, task).transpose(1, 2))
    return out + bias.index_select(0, task)[:, None].to(out.dtype)  # autocast leaves additions alone


class HeatmapLoss(FastModule):
    """Weighted mean squared error between heatmaps and the target of keypoints, which is never stored.

    Args:
        codec: "udp" or "msra". sigma: heatmap pixels. image_size: (H, W) of the crop; None: four times the heatmap.
    """

    def __init__(self, codec: str = "udp", sigma: float = 2.0, image_size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.codec, self.sigma, self.image_size = codec, sigma, image_size

    def forward(self, heatmaps: Tensor, keypoints: Tensor, visible: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, K, h, w], keypoints [B, K, 2] in crop pixels, visible [B, K] -> scalar; see `functional.heatmap_loss`."""
        return F.heatmap_loss(
            heatmaps, keypoints, visible, self.codec, self.sigma, mask, self.image_size, impl=self.impl
        )


class HeatmapDecoder(FastModule):
    """Heatmaps to keypoints.

    Args:
        codec: "udp", "msra" or "argmax". blur_kernel: odd size of the blur of "udp".
        flip_pairs: channels that swap in a mirrored image.
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
        """[B, K, h, w] -> keypoints [B, K, 2], scores [B, K]; see `functional.heatmap_decode`."""
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
