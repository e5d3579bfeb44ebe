"""Measured choices: which implementation of an op, with which tiles, runs on calls of a given shape.

An op whose caller leaves `impl` open asks `find`. The answer comes from the choices in effect (the context manager
`using`, by which a tuned model runs), or else, on a GPU, from the table that this package ships, `gpu/tuned.json`. If
neither knows the call, the op decides by its own rule, which is the same on every machine of a kind.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitpose_kernels.chips import chip_named

DEFAULT = "default"  # the choice to do what would be done without choices
_SHIPPED = Path(__file__).parent / "gpu" / "tuned.json"


class Call(NamedTuple):
    """What a choice is for: calls of an op that differ only in their number of rows.

    Attributes:
        op: name of the op.
        shape: sizes other than the rows, as the op defines them.
        detail: what else distinguishes the call, such as the epilogue of a product.
        dtype: name of the dtype, such as "bfloat16".
    """

    op: str
    shape: tuple[int, ...]
    detail: str
    dtype: str

    @classmethod
    def of(cls, op: str, shape: Iterable[int], dtype: torch.dtype, detail: str = "") -> Call:
        """Return the key of calls in a dtype of PyTorch."""
        return cls(op, tuple(shape), detail, str(dtype).removeprefix("torch."))


class Choice(NamedTuple):
    """How to compute a call.

    Attributes:
        impl: implementation, as the argument `impl` of the op, or `DEFAULT`.
        tiles: tile sizes of the Triton kernel. Empty means those that the kernel's own rule gives.
    """

    impl: str
    tiles: tuple[int, ...] = ()

    def __str__(self) -> str:
        return " ".join([self.impl, "x".join(map(str, self.tiles))]).strip()


Table = Mapping[Call, Mapping[int, Choice]]  # for each call: number of rows -> choice

_in_effect: ContextVar[Table | None] = ContextVar("choices in effect", default=None)


@contextmanager
def using(choices: Table | None) -> Iterator[None]:
    """Let the ops of this thread follow `choices`. None means the shipped table only. A context manager."""
    token = _in_effect.set(choices)
    try:
        yield
    finally:
        _in_effect.reset(token)


def in_effect() -> Table | None:
    """Return the choices that `using` put into effect."""
    return _in_effect.get()


def find(call: Call, rows: int, x: Tensor) -> Choice | None:
    """Return the choice for a call with `rows` rows on the device of `x`, or None if there is none.

    If the call was measured with other numbers of rows, the choice for the nearest one (by ratio) is returned. While
    torch.compile or torch.export traces, when sizes may be unknown, the result is None.
    """
    if torch.compiler.is_compiling():
        return None
    for choices in (_in_effect.get(), _shipped(torch.cuda.get_device_name(x.device)) if x.is_cuda else None):
        by_rows = choices.get(call) if choices else None
        if by_rows:
            choice = by_rows[min(by_rows, key=lambda measured: abs(math.log(measured / max(rows, 1))))]
            if choice.impl != DEFAULT:
                return choice
    return None


@lru_cache(None)
def _shipped(device: str) -> Table:
    """Return the shipped choices for a GPU by its device name; empty if there are none."""
    chip = chip_named(device)
    table = json.loads(_SHIPPED.read_text(encoding="utf-8"))["chips"]
    return from_rows(table.get(chip.name, ())) if chip else {}


def to_rows(choices: Table) -> list[dict[str, Any]]:
    """Return choices as a list of JSON objects, for `from_rows`."""
    return [
        {**call._asdict(), "shape": [*call.shape], "rows": rows, "impl": choice.impl, "tiles": [*choice.tiles]}
        for call, by_rows in choices.items()
        for rows, choice in by_rows.items()
    ]


def from_rows(rows: Iterable[Mapping[str, Any]]) -> dict[Call, dict[int, Choice]]:
    """Return the choices that `to_rows` wrote.

    Raises:
        ValueError: an entry lacks a field, a field has the wrong type, or the op would not run with the tiles.
    """
    out: dict[Call, dict[int, Choice]] = {}
    for row in rows:
        try:
            texts = [row[name] for name in ("op", "detail", "dtype", "impl")]
            shape, tiles = tuple(row["shape"]), tuple(row["tiles"])
            numbers = [*shape, *tiles, row["rows"]]
        except (KeyError, TypeError) as error:
            raise ValueError(f"choices: {dict(row)} lacks {error}, or is no object of a choice") from None
        fits = all(isinstance(t, str) for t in texts) and all(type(n) is int and n >= 0 for n in numbers)
        if not (fits and row["rows"] >= 1):
            raise ValueError(f"choices: {dict(row)}: expected texts, and whole numbers from 0 on (rows from 1 on)")
        op, detail, dtype, impl = texts
        if problem := _problem_of_tiles(op, impl, tiles):
            raise ValueError(f"choices: {dict(row)}: {problem}")
        out.setdefault(Call(op, shape, detail, dtype), {})[row["rows"]] = Choice(impl, tiles)
    return out


def _problem_of_tiles(op: str, impl: str, tiles: tuple[int, ...]) -> str:
    """Return why an op would not run with the tiles of an entry, or ""."""
    if (op, impl) == ("pieces", "of"):
        return "" if len(tiles) == 1 and tiles[0] >= 1 else "expected one number from 1 on as tiles"
    if (op, impl) != ("linear", "triton") or not tiles:
        return ""
    from vitpose_kernels.gpu.tiles import Tiles

    if len(tiles) != len(Tiles._fields):
        return f"got {len(tiles)} tiles, expected {len(Tiles._fields)}: {', '.join(Tiles._fields)}"
    t = Tiles(*tiles)
    blocks = all(16 <= n <= 512 and n & (n - 1) == 0 for n in (t.BLOCK_M, t.TAIL or 16, t.BLOCK_N, t.BLOCK_K))
    if not blocks or t.num_warps not in (1, 2, 4, 8, 16) or min(t.num_stages, t.split, t.residents) < 1:
        return "expected tiles that are powers of two from 16 to 512, 1 to 16 warps, and the other numbers from 1 on"
    return ""
