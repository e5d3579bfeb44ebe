"""The calls that the kernels ship for: every op at the shapes of ViTPose++-S, B, L and H, and at odd ones.

One table for all that need it: `gpu/aot.py` makes the calls on the meta device and compiles what they would launch,
`benchmarks/smoke.py` makes them on a GPU and holds the results against the references in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitpose_kernels.attention import attention
from vitpose_kernels.crop import crop
from vitpose_kernels.deconv import deconv
from vitpose_kernels.heatmap_decode import heatmap_decode
from vitpose_kernels.heatmap_loss import heatmap_loss
from vitpose_kernels.heatmap_target import heatmap_target
from vitpose_kernels.layer_norm import layer_norm, layer_norm_statistics
from vitpose_kernels.linear import linear
from vitpose_kernels.patch_embed import patch_embed
from vitpose_kernels.sizes import Model
from vitpose_kernels.split_ffn import split_ffn


class Call(NamedTuple):
    """function(*arguments, **options, impl=...) with the public op, or the op and its gradients, as `function`."""

    label: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any] | None = None

    def __call__(self, impl: str | None = None) -> Any:
        return self.function(*self.arguments, **(self.options or {}), impl=impl)


class Draw:
    """Makes the tensors of calls: random ones, or on the meta device ones without data.

    Args:
        dtype: of the network's tensors.
    """

    def __init__(self, device: str | torch.device, dtype: torch.dtype, seed: int = 0) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self._noise = None if self.device.type == "meta" else torch.Generator(self.device).manual_seed(seed)
        self._boxes = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        x = torch.randn(shape, generator=self._noise, device=self.device)
        return (x * scale).to(dtype or self.dtype)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(shape, generator=self._noise, device=self.device) * (high - low) + low

    def integers(self, *shape: int, high: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.randint(high, shape, generator=self._noise, device=self.device, dtype=dtype)

    def heatmaps(self, batch: int, keypoints: int, rows: int, columns: int) -> Tensor:
        """Maps with one peak each, in every part of the map, and noise too small to move it."""
        x = self.uniform(batch, keypoints, 1, 1, high=columns - 1.0)
        y = self.uniform(batch, keypoints, 1, 1, high=rows - 1.0)
        across, down = (torch.arange(float(size), device=self.device) for size in (columns, rows))
        maps = torch.exp(-((across - x) ** 2 + (down[:, None] - y) ** 2) / 8)
        return (maps + self.uniform(batch, keypoints, rows, columns, high=0.003)).to(self.dtype)

    def boxes(self, count: int, height: int, width: int) -> Tensor:
        """xywh boxes float64 [count, 4] on the CPU, where `crop` wants them; some reach over the edge of the frame."""
        draws = torch.rand(count, 4, generator=self._boxes, dtype=torch.float64)
        sizes = torch.tensor([width, height], dtype=torch.float64)
        extent = sizes * (0.05 + 0.3 * draws[:, 2:])
        return torch.cat([draws[:, :2] * sizes - extent / 2, extent], 1)


def _with_gradients(op: Callable[..., Any], *names: str) -> Callable[..., Any]:
    """The op, as a function that also gives the gradients of its first arguments, one for each name.

    The function takes the incoming gradient as `grad`; of an op with several outputs it is that of the last one.
    """

    def both(*arguments: Any, grad: Tensor, impl: str | None = None, **options: Any) -> tuple[Tensor, ...]:
        wanted = [x.detach().requires_grad_() for x in arguments[: len(names)]]
        with torch.enable_grad():
            out = op(*wanted, *arguments[len(names) :], impl=impl, **options)
        out = out[-1] if isinstance(out, tuple) else out
        return out.detach(), *torch.autograd.grad(out, wanted, grad.to(out.dtype))

    return both


def _attention_with_tables(
    qkv: Tensor, rel_h: Tensor, rel_w: Tensor, *arguments: Any, impl: str | None = None
) -> Tensor:
    grid, window, shift, pool = arguments
    return attention(qkv, grid, window, shift, pool, (rel_h, rel_w), impl=impl)


def _attention(model: Model, draw: Draw) -> Iterator[Call]:
    small, large, (h, w) = model.grid, (2 * model.grid[0], 2 * model.grid[1]), model.window
    variants = [("whole", small, small, False), ("window+shift+pool", large, (h, w), True)]
    if model.variants:  # 16x12 is the window at which a map at 1/8 has as many as 8x8 at 1/16
        variants += [
            ("window", large, (h, w), False),
            ("window+shift+pool", large, small, True),
            ("whole", large, large, False),
        ]
    for name, grid, window, everything in variants:
        tokens, width = grid[0] * grid[1], model.width // model.num_heads
        qkv = draw.normal(model.batch, tokens, 3, model.num_heads, width)
        grad = draw.normal(model.batch, tokens, model.width)
        label = f"{name} {window[0]}x{window[1]}"
        if everything:
            tables = [draw.normal(2 * size - 1, width, scale=0.1) for size in window]
            arguments = (qkv, *tables, grid, window, (window[0] // 2, window[1] // 2), True)
            yield Call(label, _attention_with_tables, arguments)
            function = _with_gradients(_attention_with_tables, "qkv", "rel_h", "rel_w")
            yield Call(f"{label} training", function, arguments, dict(grad=grad))
        else:
            yield Call(label, attention, (qkv, grid, window))
            function = _with_gradients(attention, "qkv")
            yield Call(f"{label} training", function, (qkv, grid, window), dict(grad=grad))


def _tokens(model: Model) -> tuple[int, ...]:
    """Numbers of tokens: at 1/16, and where the model has variants at 1/8."""
    tokens = model.grid[0] * model.grid[1]
    return (tokens, 4 * tokens) if model.variants else (tokens,)


def _linear(model: Model, draw: Draw) -> Iterator[Call]:
    b, c = model.batch, model.width
    for n in _tokens(model):
        for label, columns, inputs, norm, gelu in (
            ("qkv", 3 * c, c, True, False),
            ("proj", c, c, False, False),
            ("fc1", 4 * c, c, True, True),
            ("fc2", c, 4 * c, False, False),
        ):
            x, weight = draw.normal(b, n, inputs), draw.normal(columns, inputs, scale=inputs**-0.5)
            options: dict[str, Any] = dict(gelu=gelu)
            if norm:
                mean, rstd = draw.uniform(b, n, low=-0.2, high=0.2), draw.uniform(b, n, low=0.5, high=2.0)
                options["norm"] = (mean, rstd, weight.float().sum(1))
            else:
                options["residual"] = draw.normal(b, n, columns)
            yield Call(f"{label} {n}", linear, (x, weight, draw.normal(columns)), options)


def _layer_norm(model: Model, draw: Draw) -> Iterator[Call]:
    c = model.width
    x, residual, grad = (draw.normal(model.batch, model.grid[0] * model.grid[1], c) for _ in range(3))
    weight, bias = draw.normal(c), draw.normal(c)
    exact = draw.normal(c, dtype=torch.float32), draw.normal(c, dtype=torch.float32)  # as under autocast

    def with_residual(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, impl: str | None = None) -> Any:
        return layer_norm(x, weight, bias, residual=residual, impl=impl)

    names = ("x", "weight", "bias", "residual")
    yield Call("forward", layer_norm, (x, weight, bias))
    yield Call("forward+residual", with_residual, (x, *exact, residual))
    yield Call("statistics", layer_norm_statistics, (x,))
    yield Call("training", _with_gradients(layer_norm, *names[:3]), (x, *exact), dict(grad=grad))
    function = _with_gradients(with_residual, *names)
    yield Call("training+residual", function, (x, *exact, residual), dict(grad=grad))
    frozen = _with_gradients(with_residual, "x")
    yield Call("training+residual, frozen weights", frozen, (x, *exact, residual), dict(grad=grad))


def _split_ffn(model: Model, draw: Draw) -> Iterator[Call]:
    b, c, p, t = model.batch, model.width, model.part_features, model.tasks
    f = 4 * c
    weights = [(f, c), (f,), (c - p, f), (c - p,), (t, p, f), (t, p)]
    tensors = [draw.normal(*shape, scale=shape[-1] ** -0.5 if len(shape) > 1 else 0.1) for shape in weights]
    tensors[-1] = draw.normal(t, p, scale=0.1)
    task = draw.integers(b, high=t)
    for n in _tokens(model):
        x, residual, grad = (draw.normal(b, n, c) for _ in range(3))
        yield Call(f"inference {n}", split_ffn, (x, *tensors, task))
        yield Call(f"inference+residual {n}", split_ffn, (x, *tensors, task, residual))
        function = _with_gradients(split_ffn, "x", *(f"weight {i}" for i in range(len(tensors))))
        yield Call(f"training {n}", function, (x, *tensors, task, residual), dict(grad=grad))


def _patch_embed(model: Model, draw: Draw) -> Iterator[Call]:
    c, (rows, columns) = model.width, model.grid
    weight, bias = draw.normal(c, 3, 16, 16, scale=768**-0.5), draw.normal(c)
    for stride, padding, n in zip((16, 8), (2, 4), _tokens(model)):
        position = draw.normal(n, c)
        for pixels in dict.fromkeys((torch.float32, draw.dtype)):
            images = draw.normal(model.batch, 3, 16 * rows, 16 * columns, dtype=pixels)
            label = f"stride {stride}, {str(pixels).removeprefix('torch.')} images"
            yield Call(label, patch_embed, (images, weight, bias, position, stride, padding))


def _deconv(model: Model, draw: Draw) -> Iterator[Call]:
    (h, w), d = model.grid, model.decoder_width
    for label, grid, channels, keypoints in (
        ("first", (h, w), model.width, 0),
        ("last", (2 * h, 2 * w), d, model.num_keypoints),
        ("last, whole body", (2 * h, 2 * w), d, model.whole_body),
    ):
        x = draw.normal(model.batch, grid[0] * grid[1], channels)
        weight, bias = draw.normal(4, 4, channels, d, scale=(4 * channels) ** -0.5), draw.normal(d, scale=0.1)
        predictor = (draw.normal(keypoints, d, scale=d**-0.5), draw.normal(keypoints)) if keypoints else None
        yield Call(label, deconv, (x, weight, bias, grid, predictor))


def _crop(model: Model, draw: Draw) -> Iterator[Call]:
    height, width = (1080, 1920) if model.batch > 3 else (301, 403)
    frames = [draw.integers(height - 7 * i, width, 3, high=256, dtype=torch.uint8) for i in range(2)]
    b, size = model.batch, (16 * model.grid[0], 16 * model.grid[1])
    boxes, rotation = draw.boxes(b, height, width), torch.linspace(-40, 40, b)
    flip, index = draw.integers(b, high=2) > 0, draw.integers(b, high=2)
    one, many = (frames[0], boxes, size), (frames, boxes, size)
    turned = dict(rotation=rotation, flip=flip, image_index=index, dtype=draw.dtype)
    yield Call("float", crop, one, dict(dtype=draw.dtype))
    yield Call("float+twin", crop, one, dict(dtype=draw.dtype, twin=True))
    yield Call("exact-cv4+twin", crop, one, dict(dtype=draw.dtype, twin=True, sampling="exact-cv4"))
    yield Call("float+rotation+flip, many images", crop, many, turned)
    yield Call("exact-cv4+rotation+flip, many images", crop, many, dict(sampling="exact-cv4", **turned))


def _keypoints(model: Model, draw: Draw, height: int, width: int, *people: int) -> tuple[Tensor, Tensor]:
    """Keypoints [..., K, 2] in crop pixels, some beyond the edge, and visibility [..., K], a fifth of it 0."""
    shape = (*people, model.num_keypoints)
    points = draw.uniform(*shape, 2) * torch.tensor([width + 16.0, height + 16.0]).to(draw.device) - 8
    return points, (draw.uniform(*shape) > 0.2).float()


def _heatmap_target(model: Model, draw: Draw) -> Iterator[Call]:
    rows, columns = (4 * side for side in model.grid)
    for codec in ("udp", "msra"):
        points = _keypoints(model, draw, 4 * rows, 4 * columns, model.batch)
        yield Call(codec, heatmap_target, (*points, (rows, columns), codec))


def _heatmap_loss(model: Model, draw: Draw) -> Iterator[Call]:
    function = _with_gradients(heatmap_loss, "heatmaps")
    grad = draw.uniform(1, low=0.5)[0]
    for scale in (4, 6):  # 256x192 and 384x288
        rows, columns = (scale * side for side in model.grid)
        for codec in ("udp", "msra"):
            points = _keypoints(model, draw, 4 * rows, 4 * columns, model.batch)
            maps = draw.heatmaps(model.batch, model.num_keypoints, rows, columns)
            yield Call(f"{codec} {rows}x{columns} training", function, (maps, *points, codec), dict(grad=grad))
    b, side = min(model.batch, 8), 8 * model.grid[0]  # 512x512 at 1/4
    people = 30 if b > 3 else 3
    crowd = _keypoints(model, draw, 4 * side, 4 * side, b, people)
    maps, mask = draw.heatmaps(b, model.num_keypoints, side, side), draw.uniform(b, side, side)
    yield Call("bottom-up training", function, (maps, *crowd), dict(grad=grad, mask=mask))


def _heatmap_decode(model: Model, draw: Draw) -> Iterator[Call]:
    small, large = (tuple(scale * side for side in model.grid) for scale in (4, 6))
    k, b = model.num_keypoints, model.batch
    centers, scales = draw.uniform(b, 2, high=500.0), draw.uniform(b, 2, low=50.0, high=300.0)
    for keypoints, size, codec, blur_kernel, flip, covariance in (
        (k, small, "udp", 11, False, False),
        (k, small, "udp", 11, True, False),
        (k, small, "udp", 11, False, True),
        (k, large, "udp", 17, True, False),
        (model.whole_body, small, "udp", 11, True, False),
        (k, small, "msra", 11, False, False),
        (k, small, "msra", 11, True, False),
        (k, small, "argmax", 11, False, False),
    ):
        maps, flipped, pairs = draw.heatmaps(b, keypoints, *size), None, None
        if flip:
            pairs = [(i, i + 1) for i in range(1, keypoints - 1, 2)]
            swap = list(range(keypoints))
            for i, j in pairs:
                swap[i], swap[j] = j, i
            flipped = maps.flip(-1)[:, swap].contiguous()
        label = f"{codec} {blur_kernel} {keypoints}x{size[0]}x{size[1]}{' flip' * flip}{' covariance' * covariance}"
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
    """Every call of an op for the shapes of a model, one after the other: the tensors of one are made when it comes."""
    return _CALLS[op](model, draw)
