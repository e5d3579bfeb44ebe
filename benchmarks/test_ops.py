"""The ops of the network, forward and backward, at the shapes of the models, against the usual alternatives."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torch.nn.functional as nnF

from benchmarks.contenders import TOLERANCE, compiled, on_gpus_only, with_gradients
from benchmarks.harness import Case, Contender, close, declared
from benchmarks.models import randn
from benchmarks.rivals.masked_experts import masked_experts
from benchmarks.tiles import LAYERS, choice, library
from vitpose_fast import functional as F
from vitpose_fast.frozen import decoder_call
from vitpose_kernels.attention import attention_call
from vitpose_kernels.choices import DEFAULT
from vitpose_kernels.deconv import pack_deconv
from vitpose_kernels.launch import HAS_TRITON
from vitpose_kernels.layer_norm import layer_norm_reference
from vitpose_kernels.sizes import MODELS, Model
from vitpose_kernels.windows import Windows


@pytest.fixture(params=MODELS.values(), ids=lambda m: m.name)
def size(request, machine, quick) -> Model:
    """The shapes of S, B, L or H at batch 64, as in Table 12; on a CPU of B at batch 8, or 2 in a quick run."""
    if request.param.name != "B" and not machine.cuda:
        pytest.skip("on a CPU only the shapes of B are measured")
    return request.param._replace(batch=64 if machine.cuda else 2 if quick else 8)


@pytest.fixture
def small_batch(request, machine, size) -> int | None:
    """A batch size at which the choices of a model may differ from those at batch 64, or None for the usual one."""
    if request.param is not None and (size.name != "B" or not machine.cuda):
        pytest.skip("other batch sizes are measured for B on GPUs, to choose between implementations")
    return request.param


OTHER_BATCHES = pytest.mark.parametrize("small_batch", [None, 8, 1], ids=["default", "8", "1"], indirect=True)


# name -> grid and window (rows, columns) in tokens (None: the whole grid), whether with shift, pooled keys and values,
# and relative position
VARIANTS = {
    "whole map 1/16": ((16, 12), None, False, False, False),
    "8x8 1/8": ((32, 24), (8, 8), False, False, False),
    "8x8 shift 1/8": ((32, 24), (8, 8), True, False, False),
    "8x8 shift+pool+position 1/8": ((32, 24), (8, 8), True, True, True),
    "16x12 shift+pool+position 1/8": ((32, 24), (16, 12), True, True, True),
    "whole map 1/8": ((32, 24), None, False, False, False),
    "8x8 pool 512": ((64, 64), (8, 8), False, True, False),
}


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("variant", VARIANTS)
@OTHER_BATCHES
def test_attention(compare, machine, quick, size, dtype, on, variant, backward, small_batch):
    """The records of what a model may choose for the whole map have the choice in `extra`, see `tiles.choice`."""
    grid, window, shifted, pool, position = VARIANTS[variant]
    if size.name != "B" and variant != "whole map 1/16":
        pytest.skip("1/8 and 512 are measured for B only")
    if quick and (backward or variant not in ("whole map 1/16", "8x8 shift+pool+position 1/8")):
        pytest.skip("not in a quick run")
    if small_batch is not None and (backward or window is not None):
        pytest.skip("other batch sizes are measured for inference over the whole map")
    batch = small_batch or (size.batch if "512" not in variant else max(1, size.batch // 8))
    heads, width = size.num_heads, size.width // size.num_heads
    h, w = window or grid
    shift = (h // 2, w // 2) if shifted else (0, 0)
    tokens = grid[0] * grid[1]

    def make(seed):
        qkv = randn(seed, batch, tokens, 3, heads, width, device=on, dtype=dtype).requires_grad_(backward)
        tables = [randn(seed + i, 2 * s - 1, width, device=on, dtype=dtype) * 0.1 for i, s in enumerate((h, w))]
        grad = randn(seed + 7, batch, tokens, size.width, device=on, dtype=dtype)
        return (qkv, *(tables if position else ()), *((grad,) if backward else ()))

    def attention(impl=None):
        def run(qkv, *tables):
            rel_pos = tables if position else None
            return F.attention(qkv, grid, window, shift, pool, rel_pos, impl=impl)

        return with_gradients(run) if backward else torch.no_grad()(run)

    def softmax(qkv):  # as in the official code
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = ((q * width**-0.5) @ k.transpose(-2, -1)).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)

    def chosen(impl: str) -> dict[str, Any]:
        return choice(attention_call(make(0)[0], backward), batch, impl)

    if window is None and machine.cuda and HAS_TRITON:  # "ours" follows the choices that this package ships
        contenders = [Contender("ours", attention())]
        contenders.append(Contender("ours, Triton", attention("triton"), extra=chosen(DEFAULT)))
    else:
        contenders = [Contender("ours", attention(), extra={} if window else chosen(DEFAULT))]
    contenders.append(Contender("partition + SDPA", **on_gpus_only(attention("reference"), machine)))
    contenders.append(
        Contender("torch.compile of it", **compiled(attention("reference"), quick or backward, machine), graph=True)
    )
    if window is None:
        contenders.append(Contender("softmax", with_gradients(softmax) if backward else torch.no_grad()(softmax)))
        for label, impl in (("SDPA", "sdpa"), ("matrix products", "products")):
            contenders.append(Contender(label, attention(impl), extra=chosen(impl)))
        for name in ("flash", "cudnn", "efficient"):
            missing, impl = None if machine.cuda else "back ends are compared on GPUs", f"sdpa:{name}"
            function = attention(impl) if machine.cuda else None
            contenders.append(Contender(f"SDPA, {name}", function, missing, extra=chosen(impl)))
        for package in ("flash_attn", "xformers"):
            there = machine.cuda and find_spec(package) is not None and dtype != torch.float32
            missing = None if there else f"{package} is not installed here, or needs a GPU and 16 bit"
            contenders.append(Contender(package, attention(package) if there else None, missing))
    if window is not None and not pool and not position:
        contenders.append(flex_attention(Windows(grid, window, shift), machine, quick or backward, batch, heads))
    flops, moved = declared(attention(), make(0))
    name = f"attention {size.name} {variant}{' forward+backward' if backward else ''}"
    extra = dict(model=size.name, layer="attention", calls=size.depth) if variant == "whole map 1/16" else {}
    extra = {} if backward or small_batch else extra
    agree = close(TOLERANCE[dtype] * (2 if backward else 1))
    compare(Case("ops", name, dtype, batch, make, contenders, agree, flops, moved, extra))


def flex_attention(windows: Windows, machine: Any, skip: bool, batch: int, heads: int) -> Contender:
    """Return a contender for FlexAttention over tokens in raster order, with the windows as a block mask.

    It takes qkv [B, N, 3, H, D] and returns [B, N, H * D]. It is missing on a CPU and if `skip`.
    """
    if skip or not machine.cuda:
        return Contender("FlexAttention", None, "compared on GPUs, forward", compiled=True)
    from torch.nn.attention.flex_attention import create_block_mask
    from torch.nn.attention.flex_attention import flex_attention as flex

    (rows, columns), (h, w), (sy, sx) = windows.grid, windows.window, windows.shift

    def window_of(token):
        y, x = (token // columns - sy) % rows, (token % columns - sx) % columns
        return y // h, x // w, y >= rows - sy, x >= columns - sx  # the last two: whether the token wraps around

    def visible(_b, _h, q, k):
        same = [a == b for a, b in zip(window_of(q), window_of(k), strict=True)]
        return same[0] & same[1] & same[2] & same[3]

    n = rows * columns
    mask = create_block_mask(visible, None, None, n, n, device="cuda")
    run = torch.compile(lambda q, k, v: flex(q, k, v, block_mask=mask))

    @torch.no_grad()
    def attention(qkv):
        return run(*(x.transpose(1, 2) for x in qkv.unbind(2))).transpose(1, 2).flatten(2)

    return Contender("FlexAttention", attention, compiled=True)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("mixed", [True, False], ids=["mixed tasks", "one task"])
def test_split_ffn(compare, machine, quick, size, dtype, on, mixed, backward):
    if quick and backward:
        pytest.skip("not in a quick run")
    c, p, t, b, n = size.width, size.part_features, size.tasks, size.batch, 192
    f = 4 * c

    def make(seed):
        shapes = [(b, n, c), (f, c), (f,), (c - p, f), (c - p,), (t, p, f), (t, p)]
        scales = [1, c**-0.5, 0.1, f**-0.5, 0.1, f**-0.5, 0.1]
        tensors = [randn(seed + i, *s, device=on, dtype=dtype) * k for i, (s, k) in enumerate(zip(shapes, scales))]
        tensors = [x.detach().requires_grad_(backward) for x in tensors]
        task = torch.arange(b, device=on) % t if mixed else torch.full((b,), 3, device=on)
        return (*tensors, task, *((randn(seed + 9, b, n, c, device=on, dtype=dtype),) if backward else ()))

    def wrap(function):
        return with_gradients(function) if backward else torch.no_grad()(function)

    def dense(x, fc1_w, fc1_b, fc2_w, fc2_b, expert_w, expert_b, task):
        weight, bias = torch.cat([fc2_w, expert_w[3]]), torch.cat([fc2_b, expert_b[3]])
        return nnF.linear(nnF.gelu(nnF.linear(x, fc1_w, fc1_b)), weight, bias)

    def impl(*inputs):
        return F.split_ffn(*inputs, impl="reference")

    contenders = [
        Contender("ours", wrap(F.split_ffn)),
        Contender("selected experts (reference)", **on_gpus_only(wrap(impl), machine)),
        Contender("torch.compile of it", **compiled(wrap(impl), quick or backward, machine)),
        Contender("masked experts (official, Hugging Face)", wrap(masked_experts)),
    ]
    if not mixed:
        contenders.append(Contender("dense, merged by hand", wrap(dense)))
    flops, moved = declared(wrap(F.split_ffn), make(0))
    name = f"split_ffn {size.name} {'mixed tasks' if mixed else 'one task'}{' forward+backward' if backward else ''}"
    compare(Case("ops", name, dtype, b, make, contenders, close(TOLERANCE[dtype] * 2), flops, moved))


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_layer_norm(compare, machine, quick, size, dtype, on, backward):
    b, n, c = size.batch, 192, size.width

    def make(seed):
        x, residual, grad = (randn(seed + i, b, n, c, device=on, dtype=dtype) for i in range(3))
        weight, bias = (randn(seed + 5 + i, c, device=on, dtype=dtype) for i in range(2))
        tensors = [t.requires_grad_(backward) for t in (x, weight, bias, residual)]
        return (*tensors, *((grad,) if backward else ()))

    def wrap(function):
        return with_gradients(function) if backward else torch.no_grad()(function)

    def ours(x, weight, bias, residual):
        return F.layer_norm(x, weight, bias, residual=residual)[1]

    def torch_native(x, weight, bias, residual):
        return nnF.layer_norm(x + residual, (c,), weight, bias, 1e-6)

    def reference(x, weight, bias, residual):
        return layer_norm_reference(x.flatten(0, 1), residual.flatten(0, 1), weight, bias, 1e-6)[1].view(x.shape)

    contenders = [
        Contender("ours", wrap(ours)),
        Contender("torch", wrap(torch_native)),
        Contender("torch.compile of it", **compiled(wrap(torch_native), quick or backward, machine)),
        Contender("reference", **on_gpus_only(wrap(reference), machine)),
    ]
    _, moved = declared(wrap(ours), make(0))
    name = f"layer_norm {size.name} with residual{' forward+backward' if backward else ''}"
    agree = close(TOLERANCE[dtype] * (2 if backward else 1))
    compare(Case("ops", name, dtype, b, make, contenders, agree, None, moved))


@pytest.mark.parametrize("layer", LAYERS)
def test_linear(compare, machine, quick, size, dtype, on, layer):
    """The four linear layers of a block, each with the LayerNorm before it and the GELU or residual after it.

    LayerNorm precedes qkv and fc1, and on a GPU our op has it folded into the layer. GELU follows fc1, and the residual
    is added after proj and fc2.
    """
    c = size.width
    more_out, more_in, norm, gelu = LAYERS[layer]
    inputs, outputs, folded = more_in * c, more_out * c, norm and machine.cuda
    b, n = size.batch, 192

    def make(seed):
        x = randn(seed, b, n, inputs, device=on, dtype=dtype)
        weight = randn(seed + 1, outputs, inputs, device=on, dtype=dtype) * inputs**-0.5
        bias = randn(seed + 2, outputs, device=on, dtype=dtype)
        return x, weight, bias, randn(seed + 3, b, n, outputs, device=on, dtype=dtype)

    sums: dict[int, Any] = {}

    def ours(x, weight, bias, residual):
        if folded:
            if weight.data_ptr() not in sums:  # done once, when a model is frozen
                sums[weight.data_ptr()] = weight.float().sum(1)
            statistics = (*F.layer_norm_statistics(x), sums[weight.data_ptr()])
            return F.linear(x, weight, bias, gelu, None, statistics)
        x = F.layer_norm(x, torch.ones_like(x[0, 0]), torch.zeros_like(x[0, 0])) if norm else x
        return F.linear(x, weight, bias, gelu, None if norm else residual)

    def plain(x, weight, bias, residual):
        return library(x, weight, bias, residual, None, norm, gelu)

    contenders = [
        Contender("ours", torch.no_grad()(ours)),
        Contender("torch", torch.no_grad()(plain)),
        Contender("torch.compile of it", **compiled(torch.no_grad()(plain), quick, machine)),
    ]
    flops, moved = declared(torch.no_grad()(ours), make(0))
    extra = dict(model=size.name, layer=layer, calls=size.depth)
    name = f"linear {size.name} {layer}"
    compare(Case("ops", name, dtype, b, make, contenders, close(TOLERANCE[dtype]), flops, moved, extra))


def test_patch_embed(compare, machine, quick, size, dtype, on):
    b, c = size.batch, size.width

    def make(seed):
        shapes = [(b, 3, 256, 192), (c, 3, 16, 16), (c,), (192, c)]
        scales = [1, 768**-0.5, 1, 0.1]
        return tuple(randn(seed + i, *s, device=on, dtype=dtype) * k for i, (s, k) in enumerate(zip(shapes, scales)))

    def convolution(images, weight, bias, position):
        return nnF.conv2d(images, weight, bias, 16, 2).flatten(2).transpose(1, 2) + position

    contenders = [
        Contender("ours", torch.no_grad()(F.patch_embed)),
        Contender("convolution + position", torch.no_grad()(convolution)),
        Contender("torch.compile of it", **compiled(torch.no_grad()(convolution), quick, machine)),
    ]
    flops, moved = declared(torch.no_grad()(F.patch_embed), make(0))
    extra = dict(model=size.name, layer="patch_embed", calls=1)
    agree = close(TOLERANCE[dtype])
    compare(Case("ops", f"patch_embed {size.name}", dtype, b, make, contenders, agree, flops, moved, extra))


@OTHER_BATCHES
def test_deconv(compare, machine, quick, size, dtype, on, small_batch):
    """The whole classic decoder: two deconvolutions with BatchNorm and ReLU, and the predictor.

    The records of what a model may choose have the choice in `extra`, see `tiles.choice`.
    """
    b, c, d, k = small_batch or size.batch, size.width, size.decoder_width, size.num_keypoints

    def make(seed):
        shapes = [(b, 192, c), (c, d, 4, 4), (d, d, 4, 4), (k, d), (k,), *[(d,)] * 8]
        scales = [1, (4 * c) ** -0.5, (4 * d) ** -0.5, d**-0.5, 1, *[0.1] * 8]
        return tuple(randn(seed + i, *s, device=on, dtype=dtype) * x for i, (s, x) in enumerate(zip(shapes, scales)))

    def norms(values):
        gain, bias, mean, spread = values
        return 1 + gain, bias, mean, 1 + spread.abs()

    packed: dict[Any, Any] = {}

    @torch.no_grad()
    def ours(x, first, second, weight, bias, *values):
        key = first.data_ptr()
        if key not in packed:  # done once, when a model is frozen
            packed[key] = [pack_deconv(first, *norms(values[:4])), pack_deconv(second, *norms(values[4:]))]
        (w1, b1), (w2, b2) = packed[key]
        x = F.deconv(x, w1, b1, (16, 12))
        return F.deconv(x, w2, b2, (32, 24), (weight, bias))

    @torch.no_grad()
    def cudnn(x, first, second, weight, bias, *values, channels_last=False):
        x = x.transpose(1, 2).unflatten(2, (16, 12))
        x = x if channels_last else x.contiguous()
        for kernel, part in ((first, values[:4]), (second, values[4:])):
            gain, shift, mean, variance = norms(part)
            x = nnF.conv_transpose2d(x, kernel, None, 2, 1)
            x = nnF.batch_norm(x, mean, variance, gain, shift).relu()
        return nnF.conv2d(x, weight[:, :, None, None], bias)

    @torch.no_grad()
    def folded(x, first, second, weight, bias, *values):
        """PyTorch's library at its best: BatchNorm folded into the weights, all of it in channels-last layout."""
        key = f"folded {first.data_ptr()}"
        if key not in packed:
            packed[key] = [
                fold(first, *norms(values[:4])),
                fold(second, *norms(values[4:])),
            ]
        x = x.transpose(1, 2).unflatten(2, (16, 12))
        for kernel, shift in packed[key]:
            x = nnF.conv_transpose2d(x, kernel, shift, 2, 1).relu_()
        return nnF.conv2d(x, weight[:, :, None, None], bias)

    def fold(kernel, gain, shift, mean, variance):
        wide = [t.double() for t in (kernel, mean, variance, gain, shift)]
        kernel, mean, variance, gain, shift = wide
        factor = gain * (variance + 1e-5).rsqrt()
        kernel = (kernel * factor[None, :, None, None]).to(dtype, memory_format=torch.channels_last)
        return kernel, (shift - mean * factor).to(dtype)

    call = decoder_call(torch.empty(b, c, 16, 12, device="meta", dtype=dtype))
    contenders = [
        Contender("ours", ours, extra=choice(call, b, DEFAULT)),
        Contender("convolutions channels-last, folded", folded, extra=choice(call, b, "library")),
        Contender("convolutions NCHW", cudnn),
        Contender("convolutions channels-last", lambda *inputs: cudnn(*inputs, channels_last=True)),
        Contender("torch.compile of it", **compiled(lambda *i: cudnn(*i, channels_last=True), quick, machine)),
    ]
    flops, moved = declared(ours, make(0))
    extra = {} if small_batch else dict(model=size.name, layer="decoder", calls=1)
    agree = close(TOLERANCE[dtype] * 2)
    compare(Case("ops", f"deconv {size.name} decoder", dtype, b, make, contenders, agree, flops, moved, extra))
