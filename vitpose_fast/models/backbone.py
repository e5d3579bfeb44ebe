"""The ViT backbone of ViTPose and ViTPose++, with the parameter names of the official code.

Letters: B batch, N tokens in row-major order, C channels of a token, (H, W) image. A task id is the index of a task in
`ModelConfig.tasks`. Source: docs/numerics.md 1.2, 1.4, 1.5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vitpose_fast.models.config import ModelConfig
from vitpose_fast.modules import FFN, LayerNorm, PatchEmbed, SplitFFN, TaskFFN, WindowAttention


class DropPath(nn.Module):
    """Stochastic depth: in training, zero a residual branch for each sample with probability `rate`.

    The branch of the other samples is scaled by 1 / (1 - rate).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, draws: Tensor | None = None) -> Tensor:
        """Apply drop path to a branch x [B, N, C]; in eval mode or with rate 0, return x itself.

        `draws` [B] holds one number per sample, uniform in [0, 1): a sample is kept if its number is at least the rate.
        By default the numbers are drawn here.
        """
        if not self.training or self.rate == 0:
            return x
        draws = torch.rand(x.shape[0], device=x.device) if draws is None else draws
        return x * ((draws >= self.rate).to(x.dtype) / (1 - self.rate)).view(-1, 1, 1)


class Block(nn.Module):
    """A pre-norm transformer block: x + attention(norm1(x)), then x + ffn(norm2(x)).

    `index` is the position of the block in the backbone, from 0. It decides the drop path rate and the kind of
    attention (see `ModelConfig.block_attention`).
    """

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        c = config.width
        rate = config.drop_path * index / max(config.depth - 1, 1)
        self.norm1 = LayerNorm(c, config.layer_norm_eps)
        self.attn = WindowAttention(
            c, config.num_heads, config.grid, **config.block_attention(index), rel_pos=config.has_rel_pos
        )
        self.norm2 = LayerNorm(c, config.layer_norm_eps)
        self.mlp = _ffn(config)
        self.drop_path = DropPath(rate)

    def forward(self, x: Tensor, task: Tensor | None, draws: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Map tokens [B, N, C] to [B, N, C].

        Args:
            x: [B, N, C].
            task: task ids int64 [B]; may be None for a dense FFN.
            draws: the numbers for `DropPath` of the attention and of the FFN, [B] each. Default: drawn there.
        """
        first, second = draws or (None, None)
        branch = self.drop_path(self.attn(self.norm1(x)), first)
        x, normed = self.norm2(branch.to(x.dtype), residual=x)
        if self.training and self.drop_path.rate > 0:
            return x + self.drop_path(self.mlp(normed, task), second)
        return self.mlp(normed, task, residual=x)


def _ffn(config: ModelConfig) -> nn.Module:
    tasks = len(config.tasks)
    if config.part_features:
        return SplitFFN(config.width, config.part_features, tasks)
    return (
        FFN(config.width, config.ffn_ratio)
        if config.experts == "none"
        else TaskFFN(config.width, tasks, config.experts == "added")
    )


def _call(block: nn.Module, *args: Any) -> Tensor:
    return block(*args)


class Backbone(nn.Module):
    """Vision transformer that maps images to features at 1/16 (or, with patch stride 8, 1/8) of their resolution."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.width, config.patch_stride, config.patch_padding)
        # Slot 0 belonged to the class token in pretraining. It is added to every token (docs/numerics.md 1.2).
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid[0] * config.grid[1], config.width))
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.depth))
        self.last_norm = LayerNorm(config.width, config.layer_norm_eps)
        self.call_block: Callable[..., Tensor] = _call  # replaced by training with activation checkpointing
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self._freeze()

    def forward(self, images: Tensor, task: Tensor | None = None, draws: Tensor | None = None) -> Tensor:
        """Compute the features of normalized images.

        Args:
            images: [B, 3, H, W], of the image size in the config.
            task: task ids int64 [B]. May be None if the model has no experts or only one task.
            draws: [depth, 2, B], uniform in [0, 1): the numbers that decide on drop path in training, for the
                attention and the FFN of each block (see `DropPath`). Default: drawn in each block.

        Returns:
            [B, C, rows, columns], with the rows and columns of `config.grid`.

        Raises:
            ValueError: If the images have another shape, or `task` is None in a model with experts and several tasks.
        """
        config = self.config
        if images.dim() != 4 or tuple(images.shape[1:]) != (3, *config.image_size):
            height, width = config.image_size
            raise ValueError(
                f"images have shape {list(images.shape)}, expected [B, 3, {height}, {width}], the size this model was "
                f"built for; use load_model(..., image_size=(H, W)) to build it for another size"
            )
        if config.has_experts and task is None:
            if len(config.tasks) > 1:
                names = ", ".join(f"{i} {t.name}" for i, t in enumerate(config.tasks))
                raise ValueError(f"this ViTPose++ backbone has {len(config.tasks)} experts: pass task ids ({names})")
            task = torch.zeros(images.shape[0], dtype=torch.int64, device=images.device)
        x = self.patch_embed(images, self.pos_embed[0, 1:] + self.pos_embed[0, :1])
        for i, block in enumerate(self.blocks):
            own = None if draws is None else (draws[i, 0], draws[i, 1])
            x = self.call_block(block, x, task, own)
        return self.last_norm(x).transpose(1, 2).unflatten(2, config.grid)

    def _freeze(self) -> None:
        """Freeze what `freeze_attn`, `freeze_ffn` and `frozen_stages` of the config select (docs/numerics.md 1.5).

        The parameters get no gradients, and the modules are in eval mode even in training.
        """
        frozen: list[nn.Module] = []
        blocks = [b for b in self.blocks if isinstance(b, Block)]
        if self.config.freeze_attn:
            frozen += [m for b in blocks for m in (b.attn, b.norm1)]
        if self.config.freeze_ffn:
            self.pos_embed.requires_grad_(False)
            frozen += [self.patch_embed, *(m for b in blocks for m in (b.mlp, b.norm2))]
        if self.config.frozen_stages >= 0:
            frozen += [self.patch_embed, *blocks[1 : self.config.frozen_stages + 1]]
        for module in frozen:
            module.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        self._freeze()
        return self
