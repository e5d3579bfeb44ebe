"""Tile shapes of the products of `linear` and `split_ffn`, and the choice between them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from vitpose_kernels.chips import usual_chip
from vitpose_kernels.launch import cdiv


class Tiles(NamedTuple):
    """How a product is cut into programs, as a tuple of plain integers.

    Attributes:
        BLOCK_M, TAIL, BLOCK_N: a tile of the result has BLOCK_M + TAIL rows and BLOCK_N columns.
        BLOCK_K: inputs that are multiplied at a time.
        num_warps, num_stages: launch options of Triton.
        split: number of slices of the inputs. Each is multiplied by a program of its own, and a second kernel adds the
            products up.
        residents: programs on one multiprocessor at a time, of the kernel that loads through descriptors.
        descriptors: 0 to load through pointers even where descriptors can be used.
    """

    BLOCK_M: int
    TAIL: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int
    split: int = 1
    residents: int = 1
    descriptors: int = 1

    @property
    def shape(self) -> dict[str, int]:
        """The compile-time arguments of a kernel by name: BLOCK_M, TAIL, BLOCK_N and BLOCK_K."""
        return dict(BLOCK_M=self.BLOCK_M, TAIL=self.TAIL, BLOCK_N=self.BLOCK_N, BLOCK_K=self.BLOCK_K)


def choose_tiles(sections: int, rows: int, columns: int, dtype: torch.dtype, arch: int, processors: int) -> Tiles:
    """Choose tiles by a cost model, for `sections` products with a result of `rows` x `columns` each.

    Sections are samples or experts; a tile belongs to one of them. `processors` is the number of multiprocessors.

    The cost is the number of waves of tiles over the multiprocessors, times the cost of a tile: its multiply-adds plus
    its loads from L2, where one element costs as much as about 64 multiply-adds. Large tiles therefore win, unless they
    leave few tiles for the last wave. The model is not fitted to measurements.
    """
    shapes = [(128, 64, 128), (128, 0, 128), (128, 0, 64), (64, 0, 64)]  # BLOCK_M, TAIL, BLOCK_N
    if dtype == torch.float32:  # tf32x3 keeps the remainders of both operands in registers: use smaller tiles
        shapes = shapes[2:]

    def cost(shape: tuple[int, int, int]) -> int:
        m, n = shape[0] + shape[1], shape[2]
        return cdiv(sections * cdiv(rows, m) * cdiv(columns, n), processors) * (m * n + 64 * (m + n))

    m, tail, n = min(shapes, key=cost)
    num_warps = 4 if (m, n) == (64, 64) else 8
    if dtype == torch.float32:
        return Tiles(m, tail, n, 32, num_warps, 3)
    chip = usual_chip(arch)
    stages = 3 if chip.tensor_cores == "tcgen05" and (m, n) == (64, 64) else 4  # 4 stages spill there
    return Tiles(m, tail, n, 64 if chip.has_large_shared_memory else 32, num_warps, stages)


_SPLITS = (2, 3, 4, 6, 8, 12, 16)
_MOST = 8


def candidates(
    rows: int,
    columns: int,
    inputs: int,
    dtype: torch.dtype,
    arch: int,
    gelu: bool = False,
    processors: int | None = None,
) -> list[Tiles]:
    """Return tiles that may be the fastest for a `linear` with a result of rows x columns, `choose_tiles`'s first.

    At most eight, all different. On no architecture does one of them spill registers at the shapes of the models.

    Args:
        rows, columns, inputs: M, F and C.
        dtype: of x and the weight.
        arch: compute capability times ten.
        gelu: whether a GELU follows, which needs registers.
        processors: number of multiprocessors. Default: that of `usual_chip`.
    """
    chip = usual_chip(arch)
    processors = processors or chip.multiprocessors
    chosen = choose_tiles(1, rows, columns, dtype, arch, processors)

    def programs(tiles: Tiles) -> int:
        return cdiv(rows, tiles.BLOCK_M + tiles.TAIL) * cdiv(columns, tiles.BLOCK_N) * tiles.split

    def cost(tiles: Tiles) -> float:
        """Model the time, in multiply-adds of one multiprocessor; see `choose_tiles`."""
        m, n = tiles.BLOCK_M + tiles.TAIL, tiles.BLOCK_N
        time = cdiv(programs(tiles), processors) * (m * n + 64 * (m + n)) * inputs / tiles.split
        if tiles.split > 1:  # a second launch (2 us), which reads again what the first has written in float32
            time += 7e6 + 256 * tiles.split * rows * columns / processors
        return time

    whole, split = _shapes(dtype, arch, gelu), []
    for tiles in () if chip.needs_more_registers else whole:  # there a split of 64 x 64 spills
        steps = cdiv(inputs, tiles.BLOCK_K)
        most = min(steps // 2, 2 * processors // max(programs(tiles), 1)) if programs(tiles) <= processors else 1
        fits = [tiles._replace(split=s) for s in _SPLITS if s <= most and steps % s == 0]
        if fits:
            split.append(min(fits, key=cost))
    found = [chosen]
    if chip.has_descriptors and dtype != torch.float32:
        found.append(chosen._replace(descriptors=0))
    slowest = 1.5 * min(map(cost, [chosen, *whole, *split]))  # the model is not exact
    for kind, most in ((split, 3), (whole, _MOST)):
        likely = [t if programs(t) > processors else t._replace(residents=1) for t in kind if cost(t) <= slowest]
        found += sorted((t for t in likely if t not in found), key=cost)[:most]
    return found[:_MOST]


def _shapes(dtype: torch.dtype, arch: int, gelu: bool) -> list[Tiles]:
    """Return tiles without a split whose kernels spill no registers."""
    chip = usual_chip(arch)
    if dtype == torch.float32:
        return [Tiles(128, 0, 64, 32, 8, 3), Tiles(64, 0, 64, 32, 4, 3)]
    cores, large = chip.tensor_cores, chip.has_large_shared_memory
    k = 64 if large else 32
    shapes = [Tiles(128, 64, 128, k, 8, 4), Tiles(128, 0, 128, k, 8, 4), Tiles(128, 0, 64, k, 8, 4)]
    # Hopper copies both operands to shared memory and multiplies them from there, at 128 bytes per cycle. For 64 inputs
    # a tile of 128 x 256 needs 1024 cycles for that, and 1024 for the products; one of 128 x 128 needs 640 and 512.
    if large and (cores == "wgmma" or not gelu):
        shapes.append(Tiles(128, 0, 256, 32, 8, 4) if cores == "mma" else Tiles(128, 0, 256, 64, 8, 3))
    # Small enough for two programs on a multiprocessor: one multiplies during the epilogue of the other.
    stages = 3 if cores == "tcgen05" else 4
    if cores == "mma":
        shapes.append(Tiles(128, 0, 128, 32, 4, 4))
    elif cores == "tcgen05" or not gelu:
        shapes.append(Tiles(128, 0, 128, 64, 4, 3, residents=2))
    two = 2 if chip.has_descriptors else 1
    return [*shapes, Tiles(64, 0, 128, k, 4, 3, residents=two), Tiles(64, 0, 64, k, 4, stages, residents=two)]


def in_halves(tiles: Tiles, arch: int) -> bool:
    """Return whether the epilogue handles the columns of a tile in two halves, because as a whole it would spill."""
    return tiles.BLOCK_N > 128 or (
        64 * 32 * tiles.num_warps < tiles.BLOCK_M * tiles.BLOCK_N and usual_chip(arch).tensor_cores != "mma"
    )
