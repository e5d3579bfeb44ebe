"""Backbone and classic decoder for inference, with constants folded into the weights. Built by `runtime.freeze`.

There are two layouts of the same arithmetic: one for the Triton kernels (deconvolutions split into phases, LayerNorm
optionally folded into the following linear layer) and one for PyTorch's own operators (channels-last convolutions).

Letters: B batch, N tokens in row-major order, C channels of a token, F output channels of a linear layer, K keypoints,
(h, w) heatmap; `rows` and `columns` are the grid of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from vitpose_fast import functional as F
from vitpose_fast.models.backbone import Backbone, Block
from vitpose_fast.models.config import ModelConfig
from vitpose_fast.models.heads import ClassicHead
from vitpose_fast.modules import FastModule, SplitFFN
from vitpose_kernels.attention import attention_call
from vitpose_kernels.autocast import is_autocast
from vitpose_kernels.choices import Call, find, in_effect
from vitpose_kernels.deconv import pack_deconv, unpack_deconv
from vitpose_kernels.libraries import LIBRARIES, library_attention
from vitpose_kernels.linear import linear_call
from vitpose_kernels.packed import LIBRARIES as PACKING_LIBRARIES
from vitpose_kernels.packed import PackedWeight, default_library, supports
from vitpose_kernels.split_ffn import check_tasks, runs_of


def constant(value: Tensor, dtype: torch.dtype) -> nn.Parameter:
    """Return a contiguous copy of `value` as a parameter without gradient, rounded to `dtype`.

    Values that were folded arrive in float64, so this is their only rounding.
    """
    copy = value.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
    return nn.Parameter(copy, requires_grad=False)


class Packing(FastModule):
    """A module that keeps packed copies of its weights for products on a CPU (see `packed.py`).

    They are made when they are first needed, and belong to no other module: a copy or a loaded module makes its own.
    """

    int8 = False  # whether packed weights are 8-bit integers

    def __init__(self) -> None:
        super().__init__()
        self._packed: dict[Any, PackedWeight] = {}
        self._chosen: dict[Any, tuple[Any, PackedWeight]] = {}  # the copy for a call, and the choices that it follows

    def packs(self, x: Tensor, dtype: torch.dtype) -> bool:
        """Return whether products with `x` may use packed weights: eager inference on a CPU, with `impl` left open."""
        if self.impl is not None or type(x) is not Tensor or x.device.type != "cpu" or torch.compiler.is_compiling():
            return False
        gradient = x.requires_grad and torch.is_grad_enabled()
        return x.dtype == dtype and x.numel() > 0 and not gradient and not is_autocast(x)

    def packed(self, key: Any, weight: Tensor, library: str, rows: int) -> PackedWeight:
        """Return the copy of `weight` for products with `rows` rows; `key` names the copy within the module."""
        found = self._packed.get(key)
        if found is None or not found.is_of(weight):
            found = self._packed[key] = PackedWeight(weight, library, rows)
        return found

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        self._packed, self._chosen = {}, {}
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": {}, "_chosen": {}}


class FrozenLinear(Packing):
    """Linear layer, optionally with the preceding LayerNorm folded in.

    Args:
        weight, bias: [F, C] and [F], float64.
        dtype: the dtype of the stored weights.
        norm: LayerNorm whose weight and bias are folded into `weight` and `bias`, so that `forward` only has to
            subtract the mean of its input and divide by the standard deviation. None means no LayerNorm.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, norm: nn.LayerNorm | None = None) -> None:
        super().__init__()
        self.eps = None if norm is None else norm.eps
        if norm is not None:
            bias = bias + weight @ norm.bias.double()
            weight = weight * norm.weight.double()
        self.weight, self.bias = constant(weight, dtype), constant(bias, dtype)
        # Sums of the rounded weight: the mean must be subtracted with the same weights that multiplied it.
        self.weight_sums = None if norm is None else constant(self.weight.double().sum(1), torch.float32)

    def forward(self, x: Tensor, gelu: bool = False, residual: Tensor | None = None) -> Tensor:
        """Map [B, N, C] to [B, N, F]: the LayerNorm if one is folded in, the linear layer, GELU if `gelu` is True.

        `residual` [B, N, F], if given, is added last.
        """
        if self.eps is None and self.packs(x, self.weight.dtype):
            return self.by_library(x, gelu, residual)
        norm = None
        if self.eps is not None and self.weight_sums is not None:
            if self.impl is None:
                call = linear_call(x, self.weight, gelu, residual is not None, True)
                choice = find(call, x.numel() // x.shape[-1], x)
                if choice is not None and choice.impl == "library":
                    normed = F.layer_norm(x, None, None, self.eps)
                    assert isinstance(normed, Tensor)
                    return F.linear(normed, self.weight, self.bias, gelu, residual, impl="library")
            norm = (*F.layer_norm_statistics(x, self.eps, impl=self.impl), self.weight_sums)
        return F.linear(x, self.weight, self.bias, gelu, residual, norm, impl=self.impl)

    def by_library(self, x: Tensor, gelu: bool = False, residual: Tensor | None = None) -> Tensor:
        """Compute `forward` with a packed weight, for inputs that the layer `packs` and without a folded LayerNorm."""
        rows, table = x.shape[:-1].numel(), in_effect()
        if (known := self._chosen.get((rows, gelu))) is not None and known[0] is table and known[1].is_of(self.weight):
            return known[1].linear(x, self.bias, gelu, residual)
        choice = find(linear_call(x, self.weight, gelu, residual is not None, False), rows, x)
        library = default_library(x.dtype, x.shape[0]) if choice is None else choice.impl
        library = "int8" if self.int8 else library
        if library == "mkl" and (made := self._packed.get("mkl")) is not None and made.rows != rows:
            library = "onednn"  # MKL's copy serves one number of rows, and one copy is enough
        if library not in (*PACKING_LIBRARIES, "int8") or not supports(library, x.dtype):
            return F.linear(x, self.weight, self.bias, gelu, residual)
        packed = self.packed(library, self.weight, library, rows)
        self._chosen[rows, gelu] = table, packed
        return packed.linear(x, self.bias, gelu, residual)


class FrozenNorm(FastModule):
    """LayerNorm with constant weights, for a norm that is not folded into a linear layer."""

    def __init__(self, norm: nn.LayerNorm, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = constant(norm.weight, dtype), constant(norm.bias, dtype), norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize [..., C] over its channels."""
        if self.impl is None and x.device.type == "cpu":  # the same, without the cost of a registered op
            return nn.functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        out = F.layer_norm(x, self.weight, self.bias, self.eps, impl=self.impl)
        assert isinstance(out, Tensor)
        return out


class FrozenBlock(Packing):
    """Transformer block with folded weights. Each residual addition is fused into the linear layer before it.

    The scale of q is folded into the qkv weights, unless relative position needs the unscaled q.

    Args:
        block: the block to freeze, with a dense or a split FFN.
        dtype: the dtype of the stored weights.
        fold_norm: fold the first LayerNorm into the qkv layer and, with a dense FFN, the second one into fc1.
    """

    def __init__(self, block: Block, dtype: torch.dtype, fold_norm: bool) -> None:
        super().__init__()
        attn = block.attn
        self.num_heads = attn.num_heads
        self.attention: dict[str, Any] = dict(window=attn.window, shift=attn.shift, pool=attn.pool)
        self.grid = attn.grid
        plain = attn.window is None and attn.rel_pos_h is None and not attn.pool
        self.whole_map = plain and not fold_norm  # the case that `_on_cpu` computes
        qkv_weight, qkv_bias = attn.qkv.weight.detach().double(), attn.qkv.bias.detach().double()
        self.rel_pos = nn.ParameterList()
        width = qkv_weight.shape[1]
        self.scale = (width // attn.num_heads) ** -0.5
        if attn.rel_pos_h is not None and attn.rel_pos_w is not None:
            self.rel_pos.extend([constant(attn.rel_pos_h, dtype), constant(attn.rel_pos_w, dtype)])
        else:
            qkv_weight, qkv_bias = qkv_weight.clone(), qkv_bias.clone()
            qkv_weight[:width] *= self.scale
            qkv_bias[:width] *= self.scale
            self.scale = 1.0
        self.norm1 = nn.Identity() if fold_norm else FrozenNorm(block.norm1, dtype)
        self.qkv = FrozenLinear(qkv_weight, qkv_bias, dtype, block.norm1 if fold_norm else None)
        self.proj = _plain(attn.proj, dtype)
        mlp: Any = block.mlp
        self.split = isinstance(mlp, SplitFFN)
        fold_norm = fold_norm and not self.split
        self.norm2 = nn.Identity() if fold_norm else FrozenNorm(block.norm2, dtype)
        fc1 = mlp.fc1.weight.detach().double(), mlp.fc1.bias.detach().double()
        self.fc1 = FrozenLinear(*fc1, dtype, block.norm2 if fold_norm else None)
        self.fc2 = _plain(mlp.fc2, dtype)
        self.expert_weight = constant(mlp.expert_weight, dtype) if isinstance(mlp, SplitFFN) else None
        self.expert_bias = constant(mlp.expert_bias, dtype) if isinstance(mlp, SplitFFN) else None

    def forward(self, x: Tensor, task: Tensor | None) -> Tensor:
        """Map [B, N, C] to [B, N, C].

        `task` int64 [B] holds the task id of each sample, which selects its expert. A split FFN requires it; a dense
        FFN ignores it.
        """
        if self.whole_map and not self.split and self.packs(x, self.fc1.weight.dtype):
            return self._on_cpu(x)
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1))
        rel_pos = (self.rel_pos[0], self.rel_pos[1]) if len(self.rel_pos) else None
        out = F.attention(qkv, self.grid, rel_pos=rel_pos, scale=self.scale, impl=self.impl, **self.attention)
        x = self.proj(out, residual=x)
        normed = self.norm2(x)
        if not self.split:
            return self.fc2(self.fc1(normed, gelu=True), residual=x)
        assert task is not None and self.expert_weight is not None and self.expert_bias is not None
        fc1, fc2 = self.fc1, self.fc2
        experts = self.expert_weight, self.expert_bias
        if self.packs(normed, fc1.weight.dtype) and supports("onednn", normed.dtype):
            check_tasks("split_ffn", task, normed.shape[0], len(experts[0]))
            hidden, outputs = fc1(normed, gelu=True), []
            for expert, samples in runs_of(task):
                part = hidden[samples]
                library = "int8" if self.int8 else "onednn"
                weight = self.packed(expert, experts[0][expert], library, part.shape[:2].numel())
                outputs.append(weight.linear(part, experts[1][expert]))
            return torch.cat([fc2(hidden), torch.cat(outputs)], -1).add_(x)
        return F.split_ffn(normed, fc1.weight, fc1.bias, fc2.weight, fc2.bias, *experts, task, x, impl=self.impl)

    def _on_cpu(self, x: Tensor) -> Tensor:
        """Compute `forward` for inputs that the block `packs`, without the checks and dispatch of ops in between."""
        qkv = self.qkv.by_library(self.norm1(x)).view(*x.shape[:2], 3, self.num_heads, -1)
        choice = find(attention_call(qkv, False), len(x), x)
        impl = "sdpa" if choice is None or choice.impl not in LIBRARIES else choice.impl
        x = self.proj.by_library(library_attention(qkv, self.scale, impl).contiguous(), residual=x)
        return self.fc2.by_library(self.fc1.by_library(self.norm2(x), gelu=True), residual=x)


def _plain(linear: nn.Linear, dtype: torch.dtype) -> FrozenLinear:
    """Freeze a linear layer without folding anything into it."""
    return FrozenLinear(linear.weight.detach().double(), linear.bias.detach().double(), dtype)


class FrozenBackbone(FastModule):
    """Backbone that maps images to features: patch and position embedding in one op, then the blocks and a LayerNorm.

    Args:
        backbone: the backbone to freeze.
        dtype: the dtype of the stored weights.
        fold_norm: fold the LayerNorms of the blocks, see `FrozenBlock`. The last LayerNorm is never folded.
    """

    def __init__(self, backbone: Backbone, dtype: torch.dtype, fold_norm: bool) -> None:
        super().__init__()
        self.config = backbone.config
        proj: Any = backbone.patch_embed.proj
        position = backbone.pos_embed[0].double()
        self.weight, self.bias = constant(proj.weight, dtype), constant(proj.bias, dtype)
        self.position = constant(position[1:] + position[:1], dtype)
        blocks = [b for b in backbone.blocks if isinstance(b, Block)]
        self.blocks = nn.ModuleList(FrozenBlock(b, dtype, fold_norm) for b in blocks)
        self.last_norm = FrozenNorm(backbone.last_norm, dtype)

    def forward(self, images: Tensor, task: Tensor | None = None) -> Tensor:
        """Map normalized images [B, 3, H, W] to features [B, C, rows, columns].

        `task` int64 [B] holds the task id of each image; it may be None only if the model has dense FFNs.
        """
        config = self.config
        x = F.patch_embed(
            images, self.weight, self.bias, self.position, config.patch_stride, config.patch_padding, impl=self.impl
        )
        for block in self.blocks:
            x = block(x, task)
        return self.last_norm(x).transpose(1, 2).unflatten(2, config.grid)


class FrozenDecoder(FastModule):
    """Classic decoder with BatchNorm folded into the deconvolutions.

    Measured choices may replace the Triton kernels by PyTorch's convolutions. For these the decoder then makes a second
    copy of the weights, in channels-last layout.

    Args:
        head: the decoder to freeze.
        dtype: the dtype of the stored weights.
        kernels: whether to lay the weights out for the Triton kernels instead of PyTorch's convolutions.
    """

    def __init__(self, head: ClassicHead, dtype: torch.dtype, kernels: bool) -> None:
        super().__init__()
        self.kernels = kernels
        layers: list[Any] = list(head.deconv_layers)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for deconv, norm in zip(layers[0::3], layers[1::3], strict=True):
            weight = deconv.weight.detach().double()
            norm = deepcopy(norm).double().requires_grad_(False)
            if kernels:
                weight, bias = pack_deconv(
                    weight, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps
                )
                weight = weight.to(dtype)
            else:
                weight, bias = fuse_conv_bn_weights(
                    weight, None, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias, transpose=True
                )
                weight = weight.to(dtype, memory_format=torch.channels_last)
            self.weights.append(nn.Parameter(weight, requires_grad=False))
            self.biases.append(constant(bias, dtype))
        final: Any = head.final_layer
        self.predictor_weight, self.predictor_bias = constant(final.weight, dtype), constant(final.bias, dtype)
        self.fused = self.predictor_weight.shape[1] <= 256  # the fused kernel holds at most 256 channels per pixel
        self._channels_last: list[Tensor] = []

    def forward(self, features: Tensor) -> Tensor:
        """Map features [B, C, rows, columns] to heatmaps [B, K, h, w]."""
        x, (rows, columns) = features, features.shape[2:]
        if not self.kernels:
            return self._by_convolutions(x, self.weights)
        if self.impl is None:
            choice = find(decoder_call(x), x.shape[0], x)
            if choice is not None and choice.impl == "library":
                if not self._channels_last:
                    kernels = [unpack_deconv(weight.detach()) for weight in self.weights]
                    self._channels_last = [k.contiguous(memory_format=torch.channels_last) for k in kernels]
                return self._by_convolutions(x, self._channels_last)
        predictor = self.predictor_weight.flatten(1), self.predictor_bias
        tokens, last = x.flatten(2).transpose(1, 2), len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            final = predictor if self.fused and i == last else None
            tokens = F.deconv(tokens, weight, bias, (rows << i, columns << i), final, impl=self.impl)
        if self.fused:
            return tokens
        tokens = F.linear(tokens, *predictor, impl=self.impl)
        return tokens.transpose(1, 2).unflatten(2, (rows << last + 1, columns << last + 1))

    def _by_convolutions(self, x: Tensor, weights: Iterable[Tensor]) -> Tensor:
        """Compute the heatmaps by PyTorch's convolutions, with `weights` [Ci, Co, 4, 4]."""
        for weight, bias in zip(weights, self.biases, strict=True):
            x = nn.functional.conv_transpose2d(x, weight, bias, stride=2, padding=1).relu_()
        return nn.functional.conv2d(x, self.predictor_weight, self.predictor_bias)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> FrozenDecoder:
        self._channels_last = []
        return super()._apply(fn, recurse)


def decoder_call(features: Tensor) -> Call:
    """Return the key of measured choices for a decoder: shape (C, rows, columns) of its input; its rows are B."""
    return Call.of("decoder", features.shape[1:], features.dtype)


def pieces_call(config: ModelConfig, dtype: torch.dtype) -> Call:
    """Return the key of measured choices for how a CPU splits a batch: shape (C, N); its rows are B."""
    return Call.of("pieces", (config.width, config.grid[0] * config.grid[1]), dtype)
