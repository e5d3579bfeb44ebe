"""ViTPose and ViTPose++ in plain eager PyTorch, written in the style of the official repository.

They have the parameter names and outputs of `vitpose_fast.models.vitpose.ViTPose` but none of its kernels, and serve as
the baseline to beat.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitpose_fast.models.config import ModelConfig

MASKED = -1e4  # finite: a row of padding that sees nothing must not become NaN, and its output is dropped anyway
Size = tuple[int, int]


def window_partition(x: Tensor, window: Size) -> Tensor:
    """Cut a map, whose size is a multiple of the window, into windows: [B, rows, columns, C] -> [B, M, h * w, C]."""
    b, rows, columns, c = x.shape
    h, w = window
    x = x.view(b, rows // h, h, columns // w, w, c).permute(0, 1, 3, 2, 4, 5)
    return x.contiguous().view(b, -1, h * w, c)


def window_reverse(x: Tensor, window: Size, padded: Size) -> Tensor:
    """Invert `window_partition`: [B, M, h * w, C] -> [B, rows, columns, C]."""
    h, w = window
    rows, columns = padded
    x = x.view(x.shape[0], rows // h, columns // w, h, w, x.shape[-1]).permute(0, 1, 3, 2, 4, 5)
    return x.contiguous().view(x.shape[0], rows, columns, x.shape[-1])


def window_mask(grid: Size, padded: Size, window: Size, shift: Size) -> Tensor:
    """Return the mask, 0 or `MASKED`, to add to the logits of every window: [M, h * w, h * w].

    As in Swin, a token sees only tokens from the same side of the map's edge after the roll. Padding is never seen.
    """
    regions = torch.zeros(1, *padded, 1)
    count = 0
    for ys in (slice(0, padded[0] - shift[0]), slice(padded[0] - shift[0], padded[0])):
        for xs in (slice(0, padded[1] - shift[1]), slice(padded[1] - shift[1], padded[1])):
            regions[:, ys, xs] = count
            count += 1
    padding = torch.ones(1, *padded, 1)
    padding[:, : grid[0], : grid[1]] = 0
    padding = torch.roll(padding, (-shift[0], -shift[1]), (1, 2))
    regions, padding = (window_partition(x, window)[0, :, :, 0] for x in (regions, padding))
    hidden = (regions[:, :, None] != regions[:, None, :]) | (padding[:, None, :] > 0)
    return hidden.float() * MASKED


class Attention(nn.Module):
    """Multi-head attention over the whole grid or its windows: [B, N, C] -> [B, N, C]."""

    def __init__(self, config: ModelConfig, index: int, sdpa: bool) -> None:
        super().__init__()
        options = config.block_attention(index)
        self.heads, self.grid, self.sdpa = config.num_heads, config.grid, sdpa
        self.window: Size = options["window"] or config.grid
        self.shift: Size = options["shift"]
        self.pool: bool = options["pool"]
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        (h, w), (rows, columns) = self.window, self.grid
        self.padded: Size = (rows + -rows % h, columns + -columns % w)
        self.whole = self.window == self.grid and not any(self.shift)
        self.rel_pos_h = self.rel_pos_w = None
        if config.has_rel_pos:
            head = config.width // config.num_heads
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * h - 1, head))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * w - 1, head))
        masked = self.padded != self.grid or any(self.shift)
        mask = window_mask(self.grid, self.padded, self.window, self.shift) if masked else None
        self.register_buffer("mask", mask, persistent=False)
        tokens = F.pad(torch.ones(1, *self.grid, 1), (0, 0, 0, self.padded[1] - columns, 0, self.padded[0] - rows))
        shares = window_partition(tokens, self.window)[0]  # [M, h * w, 1]
        self.register_buffer("shares", shares / shares.sum(1, keepdim=True) if self.pool else None, persistent=False)

    def _relative(self, q: Tensor) -> Tensor:
        """Compute the decomposed relative position bias: q [B, M, H, L, D] -> [B, M, H, L, L]."""
        h, w = self.window
        offsets_y, offsets_x = (
            torch.arange(n, device=q.device)[:, None] - torch.arange(n, device=q.device) for n in (h, w)
        )
        table_h, table_w = self.rel_pos_h[offsets_y + h - 1], self.rel_pos_w[offsets_x + w - 1]  # [h, h, D], [w, w, D]
        q_map = q.unflatten(-2, (h, w))
        bias_h = torch.einsum("bmnyxd,ykd->bmnyxk", q_map, table_h)
        bias_w = torch.einsum("bmnyxd,xkd->bmnyxk", q_map, table_w)
        return (bias_h[..., :, None] + bias_w[..., None, :]).flatten(-2).flatten(-3, -2)

    def _windows(self, x: Tensor, shift: Size) -> Tensor:
        """Pad, roll and cut tokens into windows: [B, N, C] -> [B, M, L, C]."""
        (rows, columns), (padded_rows, padded_columns) = self.grid, self.padded
        x = x.view(x.shape[0], rows, columns, x.shape[-1])
        x = F.pad(x, (0, 0, 0, padded_columns - columns, 0, padded_rows - rows))
        if any(shift):
            x = torch.roll(x, (-shift[0], -shift[1]), (1, 2))
        return window_partition(x, self.window)

    def _tokens(self, x: Tensor) -> Tensor:
        """Invert `_windows`: [B, M, L, C] -> [B, N, C]."""
        x = window_reverse(x, self.window, self.padded)
        if any(self.shift):
            x = torch.roll(x, self.shift, (1, 2))
        return x[:, : self.grid[0], : self.grid[1]].reshape(x.shape[0], -1, x.shape[-1])

    def _pooled(self, qkv: Tensor) -> Tensor:
        """Return mean key and value of all unshifted windows, for every window: [B, N, 3C] -> [2, B, M, H, M, D]."""
        windows = self._windows(qkv[..., qkv.shape[-1] // 3 :], (0, 0))
        pooled = (windows * self.shares).sum(2).unflatten(-1, (2, self.heads, -1))  # [B, M, 2, H, D]
        pooled = pooled.permute(2, 0, 3, 1, 4).unsqueeze(2)
        return pooled.expand(-1, -1, pooled.shape[-2], -1, -1, -1)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        windows = qkv[:, None] if self.whole else self._windows(qkv, self.shift)
        q, k, v = windows.unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5).unbind(0)  # [B, M, H, L, D]
        bias = None if self.rel_pos_h is None else self._relative(q)
        if self.mask is not None:
            mask = self.mask[:, None]
            bias = mask.expand(q.shape[0], -1, self.heads, -1, -1) if bias is None else bias + mask
        if self.pool:
            pooled_k, pooled_v = self._pooled(qkv).unbind(0)
            k, v = torch.cat([k, pooled_k], -2), torch.cat([v, pooled_v], -2)
            bias = None if bias is None else F.pad(bias, (0, pooled_k.shape[-2]))
        out = self._attend(q, k, v, bias).transpose(2, 3).flatten(-2)
        return self.proj(out[:, 0] if self.whole else self._tokens(out))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """Attend: q [B, M, H, L, D], k and v [B, M, H, S, D], bias [B, M, H, L, S] -> [B, M, H, L, D]."""
        scale = q.shape[-1] ** -0.5
        if not self.sdpa:
            logits = (q * scale) @ k.transpose(-2, -1)
            return (logits if bias is None else logits + bias).softmax(-1).to(v.dtype) @ v
        count = q.shape[1]
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        bias = None if bias is None else bias.flatten(0, 1).to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, bias, scale=scale).unflatten(0, (-1, count))


class Mlp(nn.Module):
    """Dense feed-forward network: [B, N, C] -> [B, N, C]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class MoEMlp(nn.Module):
    """ViTPose++ FFN: every expert runs on every token, and a mask keeps the output of the sample's expert."""

    def __init__(self, width: int, part: int, experts: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width - part)
        self.experts = nn.ModuleList(nn.Linear(4 * width, part) for _ in range(experts))

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        x = self.act(self.fc1(x))
        shared = self.fc2(x)
        task = task.view(-1, 1, 1)
        own: Tensor | float = 0.0
        for i, expert in enumerate(self.experts):
            own = own + expert(x) * (task == i)
        return torch.cat([shared, own], -1)


class DropPath(nn.Module):
    """Drop the residual branch of whole samples in training; the branches that are kept grow by 1 / (1 - rate)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        kept = (keep + torch.rand(x.shape[0], 1, 1, dtype=x.dtype, device=x.device)).floor()  # 1 or 0
        return x / keep * kept


class Block(nn.Module):
    """Transformer block, x + attention(norm1(x)), then x + mlp(norm2(x)): [B, N, C] -> [B, N, C]."""

    def __init__(self, config: ModelConfig, index: int, sdpa: bool) -> None:
        super().__init__()
        c, part = config.width, config.part_features
        self.norm1, self.norm2 = (nn.LayerNorm(c, eps=config.layer_norm_eps) for _ in range(2))
        self.attn = Attention(config, index, sdpa)
        self.mlp = MoEMlp(c, part, len(config.tasks)) if part else Mlp(c)
        self.drop_path = DropPath(config.drop_path * index / max(config.depth - 1, 1))

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x), task))


class PatchEmbed(nn.Module):
    """Patch embedding by a padded 16x16 convolution: [B, 3, H, W] -> [B, N, C]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, 16, config.patch_stride, config.patch_padding)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class Backbone(nn.Module):
    """ViT backbone, images [B, 3, H, W] and task ids [B] -> features [B, C, rows, columns]."""

    def __init__(self, config: ModelConfig, sdpa: bool) -> None:
        super().__init__()
        self.grid = config.grid
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid[0] * config.grid[1], config.width))
        self.blocks = nn.ModuleList(Block(config, i, sdpa) for i in range(config.depth))
        self.last_norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, task: Tensor) -> Tensor:
        x = self.patch_embed(images)
        x = x + self.pos_embed[:, 1:] + self.pos_embed[:, :1]
        for block in self.blocks:
            x = block(x, task)
        return self.last_norm(x).transpose(1, 2).unflatten(2, self.grid)


def predictor(channels: int, keypoints: int, kernel: int) -> nn.Conv2d:
    """The convolution to heatmaps, which keeps the size of the map."""
    layer = nn.Conv2d(channels, keypoints, kernel, padding=kernel // 2)
    nn.init.normal_(layer.weight, std=0.001)
    nn.init.zeros_(layer.bias)
    return layer


class ClassicHead(nn.Module):
    """Deconvolution, BatchNorm and ReLU (twice for features at 1/16, once at 1/8), then a 1x1 convolution."""

    def __init__(self, config: ModelConfig, keypoints: int) -> None:
        super().__init__()
        inside, channels, layers = config.decoder_width, config.width, []
        for _ in range({16: 2, 8: 1}[config.patch_stride]):
            deconv = nn.ConvTranspose2d(channels, inside, kernel_size=4, stride=2, padding=1, bias=False)
            nn.init.normal_(deconv.weight, std=0.001)
            layers += [deconv, nn.BatchNorm2d(inside), nn.ReLU(inplace=True)]
            channels = inside
        self.deconv_layers = nn.Sequential(*layers)
        self.final_layer = predictor(inside, keypoints, 1)
        self.final_layer.requires_grad_(config.decoder != "classic-fp")

    def forward(self, x: Tensor) -> Tensor:
        return self.final_layer(self.deconv_layers(x))


class SimpleHead(nn.Module):
    """ReLU, bilinear resizing to 1/4 (by 4 for features at 1/16), then a 3x3 convolution."""

    def __init__(self, config: ModelConfig, keypoints: int) -> None:
        super().__init__()
        self.scale = {16: 4, 8: 2}[config.patch_stride]
        self.final_layer = predictor(config.width, keypoints, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(F.relu(x), scale_factor=self.scale, mode="bilinear", align_corners=False)
        return self.final_layer(x)


HEADS = {"classic": ClassicHead, "classic-fp": ClassicHead, "simple": SimpleHead}


class OfficialViTPose(nn.Module):
    """ViTPose or ViTPose++ with attention written out, or with PyTorch's fused attention if `sdpa` is True.

    Raises:
        ValueError: the config freezes parts of the backbone, which this model does not support, or asks for a decoder
            that the official code does not have.
    """

    def __init__(self, config: ModelConfig, sdpa: bool = False) -> None:
        super().__init__()
        if config.freeze_attn or config.freeze_ffn or config.frozen_stages >= 0:
            raise ValueError("OfficialViTPose trains everything: hand in a config without freezing")
        if config.decoder not in HEADS:
            raise ValueError(f"OfficialViTPose has no {config.decoder} decoder, expected one of {', '.join(HEADS)}")
        self.config = config
        self.tasks = tuple(t.name for t in config.tasks)
        self.backbone = Backbone(config, sdpa)
        head = HEADS[config.decoder]
        self.heads = nn.ModuleDict({t: head(config, config.task(t).num_keypoints) for t in config.head_tasks})

    def forward(
        self, images: Tensor, task: str | Sequence[str] | None = None
    ) -> Tensor | dict[str, tuple[Tensor, Tensor]]:
        """Compute heatmaps [B, K, h, w] of one task; with a single head, `task` may be None.

        For a list of tasks, one per sample, return a dict: task -> (sample indices [n], heatmaps [n, K, h, w]).
        """
        if task is None:
            (task,) = self.heads
        if isinstance(task, str):
            ids = torch.full((images.shape[0],), self.tasks.index(task), device=images.device)
            return self.heads[task](self.backbone(images, ids))
        features = self.backbone(images, torch.tensor([self.tasks.index(name) for name in task], device=images.device))
        out = {}
        for name, head in self.heads.items():
            if name in task:
                index = torch.tensor([i for i, n in enumerate(task) if n == name], device=images.device)
                out[name] = (index, head(features[index]))
        return out
