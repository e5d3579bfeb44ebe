"""Calls of every op, for compiling and checking the kernels, at the shapes of a given model.

The models are in `sizes.py`: ViTPose++-S, B, L and H, and one with odd sizes. `gpu/aot.py` makes the calls on the meta
device and compiles the kernels that they would launch. `benchmarks/smoke.py` makes them on a GPU and compares their
results with those of the references in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitpose_kernels.attention import attention
from vitpose_kernels.crop import crop
from vitpose_kernels.deconv import deconv
from vitpose_kernels.draw import Draw
from vitpose_kernels.heatmap_decode import heatmap_decode
from vitpose_kernels.heatmap_loss import heatmap_loss
from vitpose_kernels.heatmap_target import heatmap_target
from vitpose_kernels.layer_norm import layer_norm, layer_norm_statistics
from vitpose_kernels.linear import linear
from vitpose_kernels.patch_embed import patch_embed
from vitpose_kernels.sizes import Model
from vitpose_kernels.split_ffn import split_ffn


class Call(NamedTuple):
    """One call of a public op, or of an op with its gradients. Calling the object makes the call.

    Attributes:
        label: describes the variant, and is unique among the calls of an op at one model.
        function: the op, or a wrapper of it that also computes gradients.
        arguments, options: positional and keyword arguments of `function`, without `impl`.
    """

    label: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any] | None = None

    def __call__(self, impl: str | None = None) -> Any:
        return self.function(*self.arguments, **(self.options or {}), impl=impl)


def _with_gradients(op: Callable[..., Any], *names: str) -> Callable[..., Any]:
    """Wrap an op so that it also returns the gradients of its first `len(names)` arguments. `names` is only counted.

    The wrapper takes the arguments of the op and `grad`, the gradient of its output. It returns the output, then the
    gradients in the order of the arguments. If the op has several outputs, only the last one is used and returned.
    """

    def op_and_gradients(*arguments: Any, grad: Tensor, impl: str | None = None, **options: Any) -> tuple[Tensor, ...]:
        wanted = [x.detach().requires_grad_() for x in arguments[: len(names)]]
        with torch.enable_grad():
            out = op(*wanted, *arguments[len(names) :], impl=impl, **options)
        out = out[-1] if isinstance(out, tuple) else out
        return out.detach(), *torch.autograd.grad(out, wanted, grad.to(out.dtype))

    return op_and_gradients


def _num_tokens(model: Model) -> tuple[int, ...]:
    """Return the number of tokens of a crop at 1/16 of its size, and with `model.variants` also at 1/8."""
    tokens = model.grid[0] * model.grid[1]
    return (tokens, 4 * tokens) if model.variants else (tokens,)


def _attention_with_tables(
    qkv: Tensor, rel_h: Tensor, rel_w: Tensor, *arguments: Any, impl: str | None = None
) -> Tensor:
    """Call `attention` with the tables of relative position as leading arguments, as `_with_gradients` needs them.

    The other arguments are grid, window, shift and pool.
    """
    grid, window, shift, pool = arguments
    return attention(qkv, grid, window, shift, pool, (rel_h, rel_w), impl=impl)


def _attention(model: Model, draw: Draw) -> Iterator[Call]:
    small = model.grid
    large = (2 * model.grid[0], 2 * model.grid[1])
    variants = [  # label, grid, window, whether to add a shift, pooled keys and relative position
        ("whole", small, small, False),
        ("window+shift+pool", large, model.window, True),
    ]
    if model.variants:  # features at 1/8 have as many windows of 16x12 tokens as features at 1/16 have of 8x8
        variants += [
            ("window", large, model.window, False),
            ("window+shift+pool", large, small, True),
            ("whole", large, large, False),
        ]
    for name, grid, window, everything in variants:
        tokens = grid[0] * grid[1]
        width = model.width // model.num_heads
        qkv = draw.normal(model.batch, tokens, 3, model.num_heads, width)
        grad = draw.normal(model.batch, tokens, model.width)
        label = f"{name} {window[0]}x{window[1]}"
        if everything:
            tables = [draw.normal(2 * size - 1, width, scale=0.1) for size in window]
            shift = (window[0] // 2, window[1] // 2)
            arguments = (qkv, *tables, grid, window, shift, True)
            yield Call(label, _attention_with_tables, arguments)
            function = _with_gradients(_attention_with_tables, "qkv", "rel_h", "rel_w")
            yield Call(f"{label} training", function, arguments, dict(grad=grad))
        else:
            yield Call(label, attention, (qkv, grid, window))
            function = _with_gradients(attention, "qkv")
            yield Call(f"{label} training", function, (qkv, grid, window), dict(grad=grad))


def _linear(model: Model, draw: Draw) -> Iterator[Call]:
    b, c = model.batch, model.width
    layers = (  # label, output channels, input channels, whether a LayerNorm is folded in, whether a GELU follows
        ("qkv", 3 * c, c, True, False),
        ("proj", c, c, False, False),
        ("fc1", 4 * c, c, True, True),
        ("fc2", c, 4 * c, False, False),
    )
    for n in _num_tokens(model):
        for label, outputs, inputs, norm, gelu in layers:
            x = draw.normal(b, n, inputs)
            weight = draw.normal(outputs, inputs, scale=inputs**-0.5)
            options: dict[str, Any] = dict(gelu=gelu)
            if norm:
                mean = draw.uniform(b, n, low=-0.2, high=0.2)
                rstd = draw.uniform(b, n, low=0.5, high=2.0)
                options["norm"] = (mean, rstd, weight.float().sum(1))
            else:
                options["residual"] = draw.normal(b, n, outputs)
            yield Call(f"{label} {n}", linear, (x, weight, draw.normal(outputs)), options)


def _layer_norm(model: Model, draw: Draw) -> Iterator[Call]:
    c = model.width
    x, residual, grad = (draw.normal(model.batch, model.grid[0] * model.grid[1], c) for _ in range(3))
    weight, bias = draw.normal(c), draw.normal(c)
    float32_parameters = tuple(draw.normal(c, dtype=torch.float32) for _ in range(2))  # as in training with autocast

    def with_residual(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, impl: str | None = None) -> Any:
        return layer_norm(x, weight, bias, residual=residual, impl=impl)

    yield Call("forward", layer_norm, (x, weight, bias))
    yield Call("forward+residual", with_residual, (x, *float32_parameters, residual))
    yield Call("statistics", layer_norm_statistics, (x,))
    function = _with_gradients(layer_norm, "x", "weight", "bias")
    yield Call("training", function, (x, *float32_parameters), dict(grad=grad))
    arguments = (x, *float32_parameters, residual)
    function = _with_gradients(with_residual, "x", "weight", "bias", "residual")
    yield Call("training+residual", function, arguments, dict(grad=grad))
    function = _with_gradients(with_residual, "x")
    yield Call("training+residual, frozen weights", function, arguments, dict(grad=grad))


def _split_ffn(model: Model, draw: Draw) -> Iterator[Call]:
    b, c, p, t = model.batch, model.width, model.part_features, model.tasks
    f = 4 * c
    tensors = {
        "fc1_weight": draw.normal(f, c, scale=c**-0.5),
        "fc1_bias": draw.normal(f, scale=0.1),
        "shared_weight": draw.normal(c - p, f, scale=f**-0.5),
        "shared_bias": draw.normal(c - p, scale=0.1),
        "expert_weight": draw.normal(t, p, f, scale=f**-0.5),
        "expert_bias": draw.normal(t, p, scale=0.1),
    }
    task = draw.integers(b, high=t)
    for n in _num_tokens(model):
        x, residual, grad = (draw.normal(b, n, c) for _ in range(3))
        arguments = (x, *tensors.values(), task)
        yield Call(f"inference {n}", split_ffn, arguments)
        yield Call(f"inference+residual {n}", split_ffn, (*arguments, residual))
        function = _with_gradients(split_ffn, "x", *tensors)
        yield Call(f"training {n}", function, (*arguments, residual), dict(grad=grad))


def _patch_embed(model: Model, draw: Draw) -> Iterator[Call]:
    c, (rows, columns) = model.width, model.grid
    weight, bias = draw.normal(c, 3, 16, 16, scale=768**-0.5), draw.normal(c)
    for stride, padding, n in zip((16, 8), (2, 4), _num_tokens(model)):
        position = draw.normal(n, c)
        for pixels in dict.fromkeys((torch.float32, draw.dtype)):
            images = draw.normal(model.batch, 3, 16 * rows, 16 * columns, dtype=pixels)
            label = f"stride {stride}, {str(pixels).removeprefix('torch.')} images"
            yield Call(label, patch_embed, (images, weight, bias, position, stride, padding))


def _deconv(model: Model, draw: Draw) -> Iterator[Call]:
    (h, w), d = model.grid, model.decoder_width
    layers = (  # label, grid, input channels, keypoints of the predictor (0 means no predictor)
        ("first", (h, w), model.width, 0),
        ("last", (2 * h, 2 * w), d, model.num_keypoints),
        ("last, whole body", (2 * h, 2 * w), d, model.whole_body),
    )
    for label, grid, channels, keypoints in layers:
        x = draw.normal(model.batch, grid[0] * grid[1], channels)
        weight = draw.normal(4, 4, channels, d, scale=(4 * channels) ** -0.5)
        bias = draw.normal(d, scale=0.1)
        predictor = None
        if keypoints:
            predictor = (draw.normal(keypoints, d, scale=d**-0.5), draw.normal(keypoints))
        yield Call(label, deconv, (x, weight, bias, grid, predictor))


def _crop(model: Model, draw: Draw) -> Iterator[Call]:
    height, width = (1080, 1920) if model.batch > 3 else (301, 403)
    frames = [draw.integers(height - 7 * i, width, 3, high=256, dtype=torch.uint8) for i in range(2)]
    b, size = model.batch, (16 * model.grid[0], 16 * model.grid[1])
    boxes = draw.boxes(b, height, width)
    one, many = (frames[0], boxes, size), (frames, boxes, size)
    plain = dict(dtype=draw.dtype)
    turned = dict(
        rotation=torch.linspace(-40, 40, b),
        flip=draw.integers(b, high=2) > 0,
        image_index=draw.integers(b, high=2),
        dtype=draw.dtype,
    )
    yield Call("float", crop, one, plain)
    yield Call("float+twin", crop, one, dict(twin=True, **plain))
    yield Call("exact-cv4+twin", crop, one, dict(twin=True, sampling="exact-cv4", **plain))
    yield Call("float+rotation+flip, many images", crop, many, turned)
    yield Call("exact-cv4+rotation+flip, many images", crop, many, dict(sampling="exact-cv4", **turned))


def _heatmap_target(model: Model, draw: Draw) -> Iterator[Call]:
    rows, columns = (4 * side for side in model.grid)
    for codec in ("udp", "msra"):
        keypoints, visible = draw.keypoints(model.num_keypoints, 4 * rows, 4 * columns, model.batch)
        yield Call(codec, heatmap_target, (keypoints, visible, (rows, columns), codec))


def _heatmap_loss(model: Model, draw: Draw) -> Iterator[Call]:
    function = _with_gradients(heatmap_loss, "heatmaps")
    grad = draw.uniform(1, low=0.5)[0]
    for scale in (4, 6):  # heatmaps of 256x192 and 384x288 crops
        rows, columns = (scale * side for side in model.grid)
        for codec in ("udp", "msra"):
            keypoints, visible = draw.keypoints(model.num_keypoints, 4 * rows, 4 * columns, model.batch)
            maps = draw.heatmaps(model.batch, model.num_keypoints, rows, columns)
            label = f"{codec} {rows}x{columns} training"
            yield Call(label, function, (maps, keypoints, visible, codec), dict(grad=grad))
    b, side = min(model.batch, 8), 8 * model.grid[0]  # bottom-up: 512x512 images, heatmaps at 1/4
    people = 30 if b > 3 else 3
    keypoints, visible = draw.keypoints(model.num_keypoints, 4 * side, 4 * side, b, people)
    maps = draw.heatmaps(b, model.num_keypoints, side, side)
    mask = draw.uniform(b, side, side)
    yield Call("bottom-up training", function, (maps, keypoints, visible), dict(grad=grad, mask=mask))


def _heatmap_decode(model: Model, draw: Draw) -> Iterator[Call]:
    small, large = (tuple(scale * side for side in model.grid) for scale in (4, 6))
    k, b = model.num_keypoints, model.batch
    centers = draw.uniform(b, 2, high=500.0)
    scales = draw.uniform(b, 2, low=50.0, high=300.0)
    variants = (  # keypoints, size of the maps, codec, blur kernel, flip test, covariance
        (k, small, "udp", 11, False, False),
        (k, small, "udp", 11, True, False),
        (k, small, "udp", 11, False, True),
        (k, large, "udp", 17, True, False),
        (model.whole_body, small, "udp", 11, True, False),
        (k, small, "msra", 11, False, False),
        (k, small, "msra", 11, True, False),
        (k, small, "argmax", 11, False, False),
    )
    for keypoints, size, codec, blur_kernel, flip, covariance in variants:
        maps, flipped, pairs = draw.heatmaps(b, keypoints, *size), None, None
        if flip:
            pairs = [(i, i + 1) for i in range(1, keypoints - 1, 2)]
            swap = list(range(keypoints))
            for i, j in pairs:
                swap[i], swap[j] = j, i
            flipped = maps.flip(-1)[:, swap].contiguous()
        label = f"{codec} {blur_kernel} {keypoints}x{size[0]}x{size[1]}"
        label += " flip" * flip + " covariance" * covariance
        yield Call(label, heatmap_decode, (maps, codec, blur_kernel, flipped, pairs, centers, scales, covariance))
    side = 8 * model.grid[0]
    yield Call("bottom-up", heatmap_decode, (draw.heatmaps(min(b, 8), k, side, side),))


_CALLS: dict[str, Callable[[Model, Draw], Iterator[Call]]] = {
    "attention": _attention,
    "split_ffn": _split_ffn,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "patch_embed": _patch_embed,
    "deconv": _deconv,
    "crop": _crop,
    "heatmap_target": _heatmap_target,
    "heatmap_loss": _heatmap_loss,
    "heatmap_decode": _heatmap_decode,
}
OPS = tuple(_CALLS)


def calls(op: str, model: Model, draw: Draw) -> Iterator[Call]:
    """Yield every call of `op` (one of `OPS`) at the shapes of a model.

    The tensors of a call are drawn just before it is yielded, or belong to an earlier call too.
    """
    return _CALLS[op](model, draw)
