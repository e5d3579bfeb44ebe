"""The parts of a frozen model that can be computed in several ways, with their options: what tuning chooses from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch

from vitpose_fast.compile_kernels import compile_all
from vitpose_fast.frozen import FrozenDecoder, decoder_call, pieces_call
from vitpose_kernels.attention import attention_call
from vitpose_kernels.choices import Call, Choice, using
from vitpose_kernels.deconv import deconv_call
from vitpose_kernels.launch import HAS_TRITON, multiprocessors, recording
from vitpose_kernels.linear import linear_call
from vitpose_kernels.packed import LIBRARIES, default_library, supports


class Switch(NamedTuple):
    """A part of a model that can be computed in several ways.

    Attributes:
        name: as in the report, such as "fc1".
        calls: the calls (see `choices.Call`) that it decides, with their numbers of rows.
        options: ways to compute them, besides the default.
        library: the option in which PyTorch's or another library computes the part; None means its default does.
    """

    name: str
    calls: list[tuple[Call, int]]
    options: list[Choice]
    library: Choice | None


def switches(frozen: Any, batch: int, arch: int | None) -> list[Switch]:
    """Return the switches of a model with their options for a batch size, the most important first.

    Args:
        frozen: the model. It may also be on the meta device.
        batch: number of samples.
        arch: compute capability times ten of the GPU that the options are for; None means a CPU.
    """
    block: Any = frozen.backbone.blocks[0]
    (rows, columns), width = frozen.config.grid, frozen.config.width
    tokens, out = rows * columns, []
    probe = torch.empty(0, dtype=frozen.dtype)
    products: dict[str, tuple[Call, int]] = {}
    for name in ("fc1", "fc2", "qkv", "proj") if not block.split else ("qkv", "proj"):
        layer, added = getattr(block, name), name in ("fc2", "proj")
        call = linear_call(probe, layer.weight, name == "fc1", added, layer.eps is not None)
        products[name] = call, batch * tokens
    if arch is not None:
        for name, (call, m) in products.items():
            options = [Choice("library"), *_tiles(call, m, block.qkv.weight, arch)]
            out.append(Switch(name, [(call, m)], options, options[0]))
    else:
        usual = default_library(frozen.dtype, batch)
        options = [Choice(name) for name in LIBRARIES if name != usual and supports(name, frozen.dtype)]
        out.append(Switch("products", list(products.values()), [*options, Choice("reference")], Choice("reference")))
    plain = [b.attention for b in frozen.backbone.blocks if b.attention["window"] is None]
    if plain and not any(a["pool"] for a in plain) and not frozen.config.has_rel_pos:
        heads = block.num_heads
        call = attention_call(probe.new_empty(0, tokens, 3, heads, width // heads), False)
        names = ["sdpa", "products"]
        if arch is not None:
            names = ["sdpa:flash", "sdpa:cudnn", "sdpa:efficient"]
            names += [name for name in ("flash_attn", "xformers") if find_spec(name) is not None]
        out.append(Switch("attention", [(call, batch)], [Choice(n) for n in names], Choice("sdpa")))
    if arch is not None and any(isinstance(head, FrozenDecoder) for head in frozen.heads.values()):
        call = decoder_call(probe.new_empty(0, width, rows, columns))
        out.append(Switch("decoder", [(call, batch)], [Choice("library")], Choice("library")))
        out += _deconvolutions(frozen, batch, arch)
    if arch is None and batch > 1:
        call = pieces_call(frozen.config, frozen.dtype)
        sizes = [Choice("of", (n,)) for n in (1, 2, 4, 8, 16) if n <= batch]
        out.append(Switch("pieces", [(call, batch)], sizes, None))
    return out


def _tiles(call: Call, rows: int, weight: torch.Tensor, arch: int) -> list[Choice]:
    """Return the tiles, other than the default, that may be the fastest for a linear layer on the GPU of `weight`."""
    if not HAS_TRITON:
        return []
    from vitpose_kernels.gpu.tiles import candidates

    (columns, inputs), processors = call.shape, multiprocessors(weight, arch)
    found = candidates(rows, columns, inputs, weight.dtype, arch, "gelu" in call.detail, processors)
    return [Choice("triton", tuple(tiles)) for tiles in found[1:]]


def _deconvolutions(frozen: Any, batch: int, arch: int) -> list[Switch]:
    """Return a switch for each deconvolution of a classic head for which there are other tiles than the default."""
    head = next(iter(frozen.heads.values()))
    if not HAS_TRITON or not getattr(head, "kernels", False):
        return []
    from vitpose_kernels.gpu.deconv import candidates

    out = []
    (rows, columns), tokens = frozen.config.grid, torch.empty(0, dtype=frozen.dtype)
    for i, weight in enumerate(head.weights):
        grid, (_, _, inputs, channels) = (rows << i, columns << i), weight.shape
        predictor = head.fused and i == len(head.weights) - 1
        call = deconv_call(tokens.new_empty(0, inputs), grid, channels, predictor)
        places, processors = batch * grid[0] * grid[1], multiprocessors(weight, arch)
        tiles = candidates(places, channels, predictor, frozen.dtype, arch, processors)[1:]
        options = [Choice("triton", tuple(t)) for t in tiles]
        out += [Switch(f"deconv{i + 1}", [(call, batch)], options, None)] if options else []
    return out


def table_of(parts: Sequence[Switch], setting: Mapping[str, Choice]) -> dict[Call, dict[int, Choice]]:
    """Return the table that makes the ops follow a setting (switch -> option)."""
    table: dict[Call, dict[int, Choice]] = {}
    for part in parts:
        if part.name in setting:
            for call, rows in part.calls:
                table.setdefault(call, {})[rows] = setting[part.name]
    return table


def launches_of(
    frozen: Any, parts: Sequence[Switch], batch: int, arch: int
) -> dict[tuple[str, Choice] | None, list[Any]]:
    """Return the `Launch`es of a block and a head of the model under each option of our kernels, for an architecture.

    The keys are (name of the switch, option); under None are those of the block with everything left at its default.
    """
    block: Any = deepcopy(frozen.backbone.blocks[0]).to("meta")
    head: Any = deepcopy(next(iter(frozen.heads.values()))).to("meta")
    tokens = frozen.config.grid[0] * frozen.config.grid[1]
    x = torch.empty(batch, tokens, frozen.config.width, dtype=frozen.dtype, device="meta")
    task = torch.empty(batch, dtype=torch.int64, device="meta")
    ours = [p for p in parts if p.calls[0][0].op in ("linear", "deconv")]
    tables: dict[tuple[str, Choice] | None, Any] = {None: {}}
    tables |= {(part.name, o): table_of([part], {part.name: o}) for part in ours for o in part.options}
    out: dict[tuple[str, Choice] | None, list[Any]] = {}
    for key, table in tables.items():
        with recording(arch) as recorded, using(table), torch.no_grad():
            block(x, task)
            head(x.transpose(1, 2).unflatten(2, frozen.config.grid))
        out[key] = recorded.launches
    return out


def compiled_in_time(frozen: Any, parts: list[Switch], batch: int, arch: int, seconds: float) -> list[Switch]:
    """Compile the kernels of all options in parallel processes, and drop the tiles that are not ready in time.

    The binaries go to Triton's cache on disk, where the measurements find them. The kernels of the default, which are
    the first to be compiled, and those around a library's product do not count.
    """
    if not HAS_TRITON:
        return parts
    from vitpose_kernels.gpu.aot import source

    found = launches_of(frozen, parts, batch, arch)
    kernels = {key: [source(launch) for launch in launches] for key, launches in found.items()}
    usual = kernels.pop(None)
    every = dict.fromkeys([*usual, *(kernel for option in kernels.values() for kernel in option)])  # in order, once
    done = compile_all(list(every), arch, seconds).union(usual)

    def ready(part: Switch, option: Choice) -> bool:
        return option.impl != "triton" or done.issuperset(kernels[part.name, option])

    return [part._replace(options=[o for o in part.options if ready(part, o)]) for part in parts]
