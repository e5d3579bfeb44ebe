"""The Triton kernels of attention against the float64 reference: values, gradients, invariants, and memory safety."""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from vitpose_fast import functional as F
from vitpose_kernels import attention as module
from vitpose_kernels.checks import check_reach
from vitpose_kernels.windows import Windows

CASES = {
    "whole map": dict(grid=(4, 3)),
    "whole map of several tiles": dict(grid=(12, 11)),  # 132 tokens: three tiles, the last one partial
    "windows": dict(grid=(4, 6), window=(2, 3)),
    "windows that do not divide": dict(grid=(5, 7), window=(2, 3)),
    "shift over padding": dict(grid=(5, 7), window=(3, 4), shift=(1, 2)),
    "shifted single window": dict(grid=(3, 4), window=(3, 4), shift=(1, 2)),
    "pool over padding": dict(grid=(5, 4), window=(3, 3), pool=True),
    "shift, pool, position, padding": dict(grid=(5, 7), window=(3, 4), shift=(1, 2), pool=True, rel=True),
    "everything, several tiles": dict(grid=(9, 10), window=(9, 8), shift=(4, 3), pool=True, rel=True),
    "one token per window": dict(grid=(3, 3), window=(1, 1), rel=True),
    "explicit pooled keys": dict(grid=(4, 5), window=(2, 2), shift=(1, 1), given=3),
}


def make(case, dtype=torch.float32, batch=2, heads=2, width=16, seed=0):
    """Return ([qkv, rel_h, rel_w, pooled], options) of a case; tensors that the case does not use are None."""
    g = torch.Generator().manual_seed(seed)
    case = dict(case)
    case.setdefault("window", case["grid"])

    def draw(*shape):
        return torch.randn(*shape, generator=g).to(dtype)

    qkv = draw(batch, case["grid"][0] * case["grid"][1], 3, heads, width)
    # Tables as small as trained ones: the error of a probability recomputed from the log-sum-exp grows with the logit.
    tables = [draw(2 * s - 1, width) * 0.25 for s in case["window"]] if case.pop("rel", False) else [None, None]
    given = case.pop("given", 0)
    return [qkv, *tables, draw(batch, given, 2, heads, width) if given else None], case


def attend(tensors, options, impl):
    """Run attention. impl "autograd" runs the plain ops with gradients by autograd, the baseline of the error rule."""
    qkv, rel_h, rel_w, pooled = tensors
    if impl == "autograd":
        windows = Windows(options["grid"], options["window"], options.get("shift", (0, 0)))
        scale = qkv.shape[-1] ** -0.5
        return module.attention_reference(qkv, windows, options.get("pool", False), rel_h, rel_w, scale, pooled)
    return F.attention(qkv, rel_pos=None if rel_h is None else (rel_h, rel_w), pooled=pooled, impl=impl, **options)


def run(tensors, options, impl, device="cpu", dtype=None, weight=None):
    """Return (out, gradients of all tensors that are not None)."""
    tensors = [None if t is None else t.to(device, dtype).detach().requires_grad_() for t in tensors]
    out = attend(tensors, options, impl)
    wanted = [t for t in tensors if t is not None]
    unused = impl == "autograd" and not out.numel()  # with an empty batch the plain ops do not use the tables
    grads = torch.autograd.grad(out, wanted, weight.to(out), allow_unused=unused)
    return out, [torch.zeros_like(t) if g is None else g for g, t in zip(grads, wanted)]


def compare(tensors, options, device, check):
    b, n, _, heads, width = tensors[0].shape
    weight = torch.randn(b, n, heads * width, generator=torch.Generator().manual_seed(0)).to(tensors[0].dtype)
    truth, truths = run(tensors, options, "reference", dtype=torch.float64, weight=weight)
    plain, plains = run(tensors, options, "autograd", device=device, weight=weight)
    ours, grads = run(tensors, options, "triton", device=device, weight=weight)
    step = torch.finfo(ours.dtype).eps

    def agree(mine, other, right, factor):
        if right.numel() >= 256 and right.any():
            check(mine, other, right, factor)
        else:  # too few numbers: the error of the plain ops is chance, or 0 if a query sees one key
            atol = 32 * step * max(1.0, right.abs().max().item() if right.numel() else 0.0)
            torch.testing.assert_close(mine.cpu().double(), right, rtol=0, atol=atol)

    agree(ours, plain, truth, 2.0)
    for part in (slice(0, 2), slice(2, 3)):  # q and k; v
        agree(grads[0][:, :, part], plains[0][:, :, part], truths[0][:, :, part], 3.0)
    if len(grads) > 1:  # both tables, or the pooled keys
        agree(*(torch.cat([g.flatten() for g in found[1:]]) for found in (grads, plains, truths)), 3.0)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_values_and_gradients(case, dtype, device, check_error_rule):
    big = "grid" in case and case["grid"][0] * case["grid"][1] > 64  # slow in the interpreter
    compare(*make(case, dtype, batch=1 if big else 2, heads=1 if big else 2), device, check_error_rule)


@pytest.mark.parametrize("width", [8, 32, 64, 80, 96, 128])
def test_head_widths(width, dtype, device, check_error_rule):
    compare(
        *make(CASES["shift, pool, position, padding"], dtype, batch=1, heads=1, width=width), device, check_error_rule
    )


@settings(max_examples=12, phases=[Phase.generate])  # shrinking takes minutes in the interpreter
@given(
    grid=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    window=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    shift=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    pool=st.booleans(),
    rel=st.booleans(),
    batch=st.integers(0, 2),
    width=st.sampled_from([4, 16, 24]),
    half=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_shape(device, check_error_rule, grid, window, shift, pool, rel, batch, width, half, seed):
    window = tuple(min(w, g) for w, g in zip(window, grid))
    shift = tuple(s % w for s, w in zip(shift, window))
    case = dict(grid=grid, window=window, shift=shift, pool=pool, rel=rel)
    dtype = torch.float16 if half else torch.float32
    compare(*make(case, dtype, batch=batch, heads=1, width=width, seed=seed), device, check_error_rule)


def test_extreme_logits(device, dtype):
    """Logits of 1e4 do not overflow, because the largest logit is subtracted before the exponential."""
    tensors, options = make(CASES["shift, pool, position, padding"], torch.float32)
    tensors[0][:, :, :2] *= 50
    tensors = [None if t is None else t.to(dtype) for t in tensors]
    out, grads = run(tensors, options, "triton", device=device, weight=torch.ones(2, 35, 32))
    assert out.isfinite().all() and all(g.isfinite().all() for g in grads)
    if dtype == torch.float32:  # 16-bit inputs are too coarse to compare
        truth, _ = run(tensors, options, "reference", dtype=torch.float64, weight=out)
        step = torch.finfo(dtype).eps * 1e4  # of a logit; the relative error of a probability is as large
        torch.testing.assert_close(out.cpu().double(), truth, rtol=0, atol=4 * step)


def test_permuting_windows_permutes_outputs(device):
    tensors, options = make(CASES["windows"])
    swapped = torch.cat([tensors[0][:, 12:], tensors[0][:, :12]], 1)  # swap the two rows of windows
    out = attend([tensors[0].to(device), None, None, None], options, "triton")
    other = attend([swapped.to(device), None, None, None], options, "triton")
    assert torch.equal(other, torch.cat([out[:, 12:], out[:, :12]], 1))


def test_without_shift_each_window_is_independent(device):
    qkv = make(CASES["windows"])[0][0].to(device)
    out = F.attention(qkv, (4, 6), (2, 3), shift=(0, 0), impl="triton").reshape(2, 4, 6, 32)
    corner = qkv.reshape(2, 4, 6, 3, 2, 16)[:, 2:, 3:].reshape(2, 6, 3, 2, 16)  # the last window as a separate map
    alone = F.attention(corner, (2, 3), impl="triton").reshape(2, 2, 3, 32)
    torch.testing.assert_close(out[:, 2:, 3:], alone, rtol=1e-6, atol=1e-6)


def test_one_window_is_full_attention_as_torch_computes_it(device, check_error_rule):
    tensors, options = make(CASES["whole map of several tiles"])
    q, k, v = tensors[0].to(device).permute(2, 0, 3, 1, 4)
    sdpa = [
        torch.nn.functional.scaled_dot_product_attention(*(x.to(d) for x in (q, k, v)))
        for d in (q.dtype, torch.float64)
    ]
    plain, truth = (x.transpose(1, 2).flatten(2) for x in sdpa)
    check_error_rule(attend([tensors[0].to(device), None, None, None], options, "triton"), plain, truth)


def test_explicit_pooled_keys_equal_pool(device):
    qkv = make(CASES["windows"])[0][0].to(device)
    windows = qkv.reshape(2, 2, 2, 2, 3, 3, 2, 16).transpose(2, 3).reshape(2, 4, 6, 3, 2, 16)
    a = F.attention(qkv, (4, 6), (2, 3), (1, 1), pool=True, impl="triton")
    b = F.attention(qkv, (4, 6), (2, 3), (1, 1), pooled=windows[:, :, :, 1:].mean(2), impl="triton")
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_nan_token_touches_only_its_window(device, poisoned):
    tensors, options = make(CASES["windows that do not divide"])
    qkv = tensors[0].to(device)
    clean = attend([qkv, None, None, None], options, "triton")
    qkv[0, 0] = float("nan")
    dirty = attend([qkv, None, None, None], options, "triton")
    hit = dirty.isnan().any(-1)[0].reshape(5, 7)
    assert hit[:2, :3].all() and hit.sum() == 6
    assert torch.equal(dirty[~dirty.isnan()], clean[~dirty.isnan()])


@pytest.mark.parametrize("case", ["windows that do not divide", "everything, several tiles", "explicit pooled keys"])
def test_nothing_outside_is_read_or_written(case, device, poisoned):
    """Inputs that are views into buffers of NaN, and outputs that start as NaN, give the same bits."""
    tensors, options = make(CASES[case], width=24)
    weight = torch.randn(2, options["grid"][0] * options["grid"][1], 48, generator=torch.Generator().manual_seed(1))
    expected = run(tensors, options, "triton", device=device, weight=weight)

    def surround_with_nan(x):
        if x is None:
            return None
        inner = tuple(slice(1, 1 + s) for s in x.shape)
        buffer = torch.full([s + 2 for s in x.shape], float("nan"), device=device)
        buffer[inner] = x.to(device)
        return buffer[inner].requires_grad_()

    views = [surround_with_nan(t) for t in tensors]
    out = attend(views, options, "triton")
    grads = torch.autograd.grad(out, [t for t in views if t is not None], weight.to(device))
    for a, b in zip((out, *grads), (expected[0], *expected[1])):
        assert a.isfinite().all() and torch.equal(a, b)


def test_unneeded_gradients_are_not_computed(device, monkeypatch):
    """The backward op is told that a table is frozen and returns no gradient for it."""
    from vitpose_kernels.gpu import attention_backward as gpu

    seen = []
    original = gpu.backward
    monkeypatch.setattr(gpu, "backward", lambda *a: seen.append(a[-3:-1]) or original(*a))
    tensors, options = make(CASES["shift, pool, position, padding"])
    tensors = [None if t is None else t.to(device) for t in tensors]
    tensors[0].requires_grad_()
    attend(tensors, options, "triton").sum().backward()
    frozen = tensors[0].grad
    tensors[0].grad = None
    attend([tensors[0], tensors[1].requires_grad_(), tensors[2], None], options, "triton").sum().backward()
    assert seen == [(False, False), (True, False)]
    assert tensors[1].grad is not None and tensors[2].grad is None and torch.equal(tensors[0].grad, frozen)


@pytest.mark.parametrize(("window", "kernels"), [((8, 8), ["window"]), ((16, 12), ["key", "query"])])
def test_backward_launches_declare_their_work(window, kernels):
    """5 products of queries and keys, or 7 if two kernels compute the logits; operands and results are moved once."""
    from vitpose_kernels.gpu import attention_backward as gpu

    b, n, heads, width, keys = 2, 32 * 24, 3, 64, window[0] * window[1]
    windows = Windows((32, 24), window, (0, 0))
    qkv = torch.empty(b, n, 3, heads, width, device="meta", dtype=torch.bfloat16)
    out, lse = (
        torch.empty(b, n, heads * width, device="meta", dtype=torch.bfloat16),
        torch.empty(b, heads, n).to("meta"),
    )
    tables = [torch.empty(2 * size - 1, width, device="meta", dtype=torch.bfloat16) for size in window]
    arguments = (out, out, lse, qkv, windows, False, *tables, 0.125, None, True, False, 90)
    grads, launches = gpu.backward(*arguments)
    main = [launch for launch in launches if launch.kernel.__name__ != "pooled_backward"]
    assert [launch.kernel.__name__ for launch in main] == [f"{name}_backward" for name in kernels]
    products = 5 if len(main) == 1 else 7
    assert sum(launch.flops for launch in main) == products * 2 * b * n * heads * width * keys
    size = sum(t.numel() * t.element_size() for t in (qkv, out, lse, *tables))
    deltas = 0 if len(main) == 1 else lse.numel() * 4  # sum of out times its gradient: stored once, read by both
    written = sum(t.numel() * t.element_size() for t in (grads.qkv, grads.rel_h, grads.rel_w))
    assert sum(launch.bytes for launch in main) == len(main) * (size + deltas) + written


def test_reruns_are_equal_bit_for_bit(device):
    tensors, options = make(CASES["shift, pool, position, padding"], batch=2)
    weight = torch.randn(2, 35, 32, generator=torch.Generator().manual_seed(1))
    first = run(tensors, options, "triton", device=device, weight=weight)
    for _ in range(100 if device == "cuda" else 1):
        again = run(tensors, options, "triton", device=device, weight=weight)
        assert torch.equal(first[0], again[0]) and all(map(torch.equal, first[1], again[1]))


@pytest.mark.cuda
@pytest.mark.parametrize("case", ["whole map", "shift, pool, position, padding", "explicit pooled keys"])
def test_opcheck_and_one_graph(case):
    (qkv, rel_h, rel_w, pooled), o = make(CASES[case])
    tensors = [None if t is None else t.cuda().requires_grad_() for t in (qkv, rel_h, rel_w, pooled)]
    shape = (list(o["grid"]), list(o["window"]), list(o.get("shift", (0, 0))), o.get("pool", False))
    arguments = (tensors[0], *shape, tensors[1], tensors[2], 0.25, tensors[3], True)
    assert set(torch.library.opcheck(torch.ops.vitpose_fast.attention, arguments).values()) == {"SUCCESS"}
    compiled = torch.compile(lambda *t: attend(t, o, None).square().sum(), fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), attend(tensors, o, None).square().sum())


@pytest.mark.cuda
def test_more_than_two_billion_elements():
    batch = 2**31 // (192 * 3 * 768) + 2
    qkv = torch.randn(batch, 192, 3, 12, 64, device="cuda", dtype=torch.bfloat16)
    out = F.attention(qkv, (16, 12))
    assert torch.equal(out[-2:], F.attention(qkv[-2:].clone(), (16, 12)))


@pytest.mark.parametrize("impl", ["flash_attn", "xformers"])
def test_other_backends_say_what_is_missing(impl):
    if torch.cuda.is_available():
        pytest.skip("may be installed here")
    with pytest.raises(ValueError, match=f"{impl} is not installed|needs CUDA tensors"):
        F.attention(torch.zeros(1, 4, 3, 1, 8), (2, 2), impl=impl)


def test_sdpa_is_the_reference_over_the_whole_map(device):
    (qkv, *_), options = make(CASES["whole map"])
    torch.testing.assert_close(
        attend([qkv.to(device), None, None, None], options, "sdpa").cpu(), F.attention(qkv, **options)
    )


@pytest.mark.parametrize(
    ("qkv", "message"),
    [
        (torch.zeros(1, 4, 3, 1, 136), "qkv has head width 136, the Triton kernel takes at most 128"),
        (torch.zeros(1, 4, 3, 1, 8, dtype=torch.float64), "got torch.float64"),
    ],
)
def test_refuses_before_any_launch(qkv, message, device, monkeypatch):
    monkeypatch.setattr(module, "run", lambda launches: pytest.fail("launched"))
    with pytest.raises(ValueError, match=message) as error:
        F.attention(qkv.to(device), (2, 2), impl="triton")
    assert "\n" not in str(error.value)


def test_expanded_qkv_is_read_through_its_strides(device):
    qkv = torch.randn(1, 1, 3, 1, 8, generator=torch.Generator().manual_seed(0)).to(device).expand(2, 4, -1, -1, -1)
    out = F.attention(qkv, (2, 2), impl="triton")
    torch.testing.assert_close(out, qkv[:, :, 2, 0], rtol=1e-5, atol=1e-6)  # equal tokens: the output is their value


def test_strides_that_cannot_be_addressed_are_refused():
    far = torch.empty(1, device="meta").as_strided((1, 4, 3, 1, 8), (1, 2**30, 8, 8, 1))
    with pytest.raises(
        ValueError, match=r"qkv has strides \(1, 1073741824, .*, so one sample spans 2\^31 elements or more"
    ):
        check_reach("attention", qkv=far)
