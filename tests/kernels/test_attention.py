"""Tests of attention: the reference against a slow loop over queries, invariances, registration and errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitpose_fast import functional as F

OP = torch.ops.vitpose_fast.attention


def slow_attention(qkv, grid, window, shift=(0, 0), pool=False, rel_pos=None, scale=None, pooled=None):
    """Compute attention one query at a time in float64, directly from the documented semantics."""
    qkv = qkv.double()
    b, n, _, heads, width = qkv.shape
    scale = width**-0.5 if scale is None else scale
    count = [-(-g // w) for g, w in zip(grid, window)]
    padded = [c * w for c, w in zip(count, window)]

    def place(token, rolled):
        """Return (window, position in the window, wrapped) of a token for each axis, rows first.

        Windows are those of the map rolled by `shift` or, if not `rolled`, of the map itself. `wrapped` says whether
        the roll moved the token across the border.
        """
        out = []
        for axis, at in enumerate(divmod(token, grid[1])):
            s = shift[axis] if rolled else 0
            at = (at - s) % padded[axis]
            out.append((at // window[axis], at % window[axis], at + s >= padded[axis]))
        return out

    if pool:
        owners = [tuple(p[0] for p in place(t, rolled=False)) for t in range(n)]
        pooled = torch.stack(
            [
                qkv[:, [t for t in range(n) if owners[t] == (i, j)], 1:].mean(1)
                for i in range(count[0])
                for j in range(count[1])
            ],
            1,
        )
    out = torch.zeros(b, n, heads, width, dtype=torch.float64)
    spots = [place(t, rolled=True) for t in range(n)]
    for query in range(n):
        keys = [
            t
            for t in range(n)
            if all(spots[t][a][0] == spots[query][a][0] and spots[t][a][2] == spots[query][a][2] for a in (0, 1))
        ]
        q = qkv[:, query, 0]
        logits = scale * torch.einsum("bhd,bkhd->bhk", q, qkv[:, keys, 1])
        if rel_pos is not None:
            for axis, table in enumerate(rel_pos):
                offset = [spots[query][axis][1] - spots[t][axis][1] + window[axis] - 1 for t in keys]
                logits = logits + torch.einsum("bhd,kd->bhk", q, table.double()[offset])
        values = qkv[:, keys, 2]
        if pooled is not None:
            logits = torch.cat([logits, scale * torch.einsum("bhd,bkhd->bhk", q, pooled[:, :, 0].double())], -1)
            values = torch.cat([values, pooled[:, :, 1].double()], 1)
        out[:, query] = torch.einsum("bhk,bkhd->bhd", logits.softmax(-1), values)
    return out.flatten(2)


CASES = {
    "whole map": dict(grid=(4, 3), window=(4, 3)),
    "windows": dict(grid=(4, 6), window=(2, 3)),
    "windows that do not divide": dict(grid=(5, 7), window=(2, 3)),
    "shift": dict(grid=(4, 6), window=(2, 3), shift=(1, 1)),
    "shift over padding": dict(grid=(5, 7), window=(3, 4), shift=(1, 2)),
    "shift of one axis": dict(grid=(4, 4), window=(2, 2), shift=(0, 1)),
    "shifted single window": dict(grid=(3, 4), window=(3, 4), shift=(1, 2)),
    "pool": dict(grid=(4, 6), window=(2, 3), pool=True),
    "pool over padding": dict(grid=(5, 4), window=(3, 3), pool=True),
    "shift, pool, position, padding": dict(grid=(5, 7), window=(3, 4), shift=(1, 2), pool=True, rel=True),
    "position": dict(grid=(4, 6), window=(2, 3), rel=True),
    "one token per window": dict(grid=(3, 3), window=(1, 1), rel=True),
    "given pooled keys": dict(grid=(4, 4), window=(2, 2), given=3),
    "given pooled keys, shift": dict(grid=(4, 5), window=(2, 2), shift=(1, 1), given=1),
}


def make(case, dtype=torch.float64, batch=2, heads=2, width=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    case = dict(case)
    n = case["grid"][0] * case["grid"][1]

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    qkv = draw(batch, n, 3, heads, width)
    if case.pop("rel", False):
        case["rel_pos"] = tuple(draw(2 * s - 1, width) for s in case["window"])
    if "given" in case:
        case["pooled"] = draw(batch, case.pop("given"), 2, heads, width)
    return qkv, case


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_equals_the_slow_loop(case):
    qkv, options = make(case)
    torch.testing.assert_close(F.attention(qkv, **options), slow_attention(qkv, **options), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_gradcheck(case):
    qkv, options = make(case, batch=1, heads=1, width=3)
    qkv.requires_grad_()
    tensors = [qkv, *options.pop("rel_pos", (None, None)), options.pop("pooled", None)]
    wanted = [t.requires_grad_() for t in tensors if t is not None]

    def call(*_):
        rel_pos = None if tensors[1] is None else (tensors[1], tensors[2])
        return F.attention(tensors[0], rel_pos=rel_pos, pooled=tensors[3], **options)

    assert torch.autograd.gradcheck(call, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_error_is_a_few_roundings(dtype):
    qkv, options = make(CASES["shift, pool, position, padding"], dtype=dtype, width=16)
    truth = slow_attention(qkv, **options)
    error = (F.attention(qkv, **options).double() - truth).abs().max()
    assert error < 4 * torch.finfo(dtype).eps * truth.abs().max()


@settings(max_examples=30)
@given(
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    window=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    shift=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    pool=st.booleans(),
    rel=st.booleans(),
    batch=st.integers(0, 2),
    seed=st.integers(0, 2**16),
)
def test_any_shape_equals_the_slow_loop(grid, window, shift, pool, rel, batch, seed):
    window = tuple(min(w, g) for w, g in zip(window, grid))
    shift = tuple(s % w for s, w in zip(shift, window))
    case = dict(grid=grid, window=window, shift=shift, pool=pool, rel=rel)
    qkv, options = make(case, batch=batch, heads=1, width=2, seed=seed)
    torch.testing.assert_close(F.attention(qkv, **options), slow_attention(qkv, **options), rtol=1e-9, atol=1e-11)


def test_one_window_is_full_attention_as_torch_computes_it():
    qkv, _ = make(CASES["whole map"])
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(F.attention(qkv, grid=(4, 3)), expected)


def test_given_pooled_keys_equal_pool():
    qkv, _ = make(CASES["pool"])
    windows = qkv.reshape(2, 2, 2, 2, 3, 3, 2, 4).transpose(2, 3).reshape(2, 4, 6, 3, 2, 4)
    pooled = windows[:, :, :, 1:].mean(2)
    a = F.attention(qkv, grid=(4, 6), window=(2, 3), shift=(1, 1), pool=True)
    b = F.attention(qkv, grid=(4, 6), window=(2, 3), shift=(1, 1), pooled=pooled)
    torch.testing.assert_close(a, b)


def test_permuting_windows_permutes_outputs():
    qkv, options = make(CASES["windows"])
    swapped = torch.cat([qkv[:, 12:], qkv[:, :12]], 1)  # the lower row of windows first
    out = F.attention(qkv, **options)
    torch.testing.assert_close(F.attention(swapped, **options), torch.cat([out[:, 12:], out[:, :12]], 1))


def test_extreme_logits_stay_finite():
    qkv, options = make(CASES["shift, pool, position, padding"], dtype=torch.float32)
    qkv = (qkv * 100).requires_grad_()  # logits of about 1e4
    out = F.attention(qkv, **options)
    out.sum().backward()
    assert out.isfinite().all() and qkv.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gradients_are_as_accurate_as_torch(dtype):
    """The logits are large: q and k of norm 40 can overflow float16 before scaling."""
    g = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 64, 3, 2, 64, generator=g)
    qkv[:, :, :2] *= 40 / qkv[:, :, :2].norm(dim=-1, keepdim=True)
    weight = torch.randn(2, 64, 128, generator=g)

    def gradient(dtype, attend):
        x = qkv.to(dtype).requires_grad_()
        (attend(x).double() * weight).sum().backward()
        return x.grad.double()

    def plain(x):
        q, k, v = x.permute(2, 0, 3, 1, 4)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    truth = gradient(torch.float64, plain)
    ours, theirs = (gradient(dtype, f) - truth for f in (lambda x: F.attention(x, grid=(8, 8)), plain))
    assert ours.abs().max() <= 3 * theirs.abs().max()


def test_a_nan_token_touches_only_its_window():
    qkv, options = make(CASES["windows"])
    clean = F.attention(qkv, **options)
    qkv[0, 0] = float("nan")
    dirty = F.attention(qkv, **options)
    hit = dirty.isnan().any(-1)[0].reshape(4, 6)
    assert hit[:2, :3].all() and hit.sum() == 6
    assert torch.equal(dirty[~dirty.isnan()], clean[~dirty.isnan()])


def test_strided_qkv_gives_the_same():
    qkv, options = make(CASES["shift"])
    storage = torch.full((*qkv.shape[:2], 5, 2, 4), float("nan"), dtype=qkv.dtype)
    storage[:, :, 1:4] = qkv
    assert torch.equal(F.attention(storage[:, :, 1:4], **options), F.attention(qkv, **options))


@pytest.mark.parametrize("case", ["whole map", "shift, pool, position, padding", "given pooled keys"])
def test_opcheck(case):
    qkv, o = make(CASES[case], dtype=torch.float32)
    rel_h, rel_w = (t.requires_grad_() for t in o["rel_pos"]) if "rel_pos" in o else (None, None)
    pooled = o["pooled"].requires_grad_() if "pooled" in o else None
    args = (
        qkv.requires_grad_(),
        list(o["grid"]),
        list(o["window"]),
        list(o.get("shift", (0, 0))),
        o.get("pool", False),
    )
    assert set(torch.library.opcheck(OP, (*args, rel_h, rel_w, 0.5, pooled, False)).values()) == {"SUCCESS"}


def test_compiles_in_one_graph_with_gradients():
    qkv, o = make(CASES["shift, pool, position, padding"], dtype=torch.float32)
    a, b = qkv.clone().requires_grad_(), qkv.clone().requires_grad_()
    F.attention(a, **o).square().sum().backward()
    compiled = torch.compile(lambda x: F.attention(x, **o).square().sum(), fullgraph=True, backend="aot_eager")
    compiled(b).backward()
    torch.testing.assert_close(a.grad, b.grad)


def test_autocast_computes_in_its_dtype():
    qkv, o = make(CASES["position"], dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert F.attention(qkv, **o).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(grid=(3, 3)), "does not hold the 24 tokens"),
        (dict(window=(5, 3)), "need 1 <= window <= grid"),
        (dict(shift=(2, 0)), "need 0 <= shift < window"),
        (dict(rel_pos=(torch.zeros(4, 4), torch.zeros(5, 4))), r"rel_h has shape \[4, 4\], expected \[3, 4\]"),
        (dict(pool=True, pooled=torch.zeros(2, 1, 2, 2, 4)), "pass only one of them"),
        (dict(pooled=torch.zeros(2, 1, 2, 2, 5)), r"pooled has shape .* expected \[2, G, 2, 2, 4\]"),
        (dict(rel_pos=(torch.zeros(3, 4), None)), "rel_pos holds one table"),
        (dict(impl="cuda"), "got impl='cuda', expected None or 'triton' or 'reference' or 'sdpa'"),
        (dict(impl="sdpa"), "impl='sdpa' supports only the whole map"),
    ],
)
def test_refuses_in_one_line(change, message):
    qkv, o = make(CASES["windows"], dtype=torch.float32)
    with pytest.raises(ValueError, match=message) as error:
        F.attention(qkv, **{**o, **change})
    assert "\n" not in str(error.value)
