"""Helpers that read annotation files: check arrays of numbers, and find the paths of image files."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np

from vitpose_fast.problems import shown
from vitpose_fast.rows import LIMIT, Row, field_of

_DRIVE = re.compile(r"[A-Za-z]:")


def numbers(row: Row, key: str, shape: tuple[int, ...], bools: bool = False) -> np.ndarray:
    """Return the numbers of a field as a float64 array of `shape`.

    Args:
        row: A row of an annotation file.
        key: The name of the field. Its value is a list, or a list of lists if `shape` has two axes.
        shape: The expected shape, with one or two axes.
        bools: If True, true and false are read as 1 and 0. If False, they are an error.

    Raises:
        ValueError: If the field is missing, is not a list of this shape, or holds anything but numbers of absolute
            value at most 1e6. NaN and infinity are refused too.
    """
    value = field_of(row, key)
    flat = value
    kinds = {int, float, bool} if bools else {int, float}
    good = isinstance(value, list) and len(value) == shape[0]
    if good and len(shape) == 2:
        good = set(map(type, value)) == {list} and set(map(len, value)) == {shape[1]}
        flat = list(chain.from_iterable(value)) if good else []
    if good and set(map(type, flat)) <= kinds:
        try:
            array = np.array(flat, dtype=np.float64)
        except OverflowError:  # an integer that no float can hold
            array = np.array([np.inf])
        if (np.abs(array) <= LIMIT).all():  # False for NaN
            return array.reshape(shape)
    raise ValueError(f"{key} is {shown(value)}, expected {' x '.join(map(str, shape))} finite numbers")


def image_paths(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the path of each image, given the names that an annotation file gives the images.

    A relative name without backslashes and drive is joined to `folder` unchanged. So is any other name if the result is
    a file; in particular, an absolute path that exists is used. All remaining names were written on another machine
    (APT-36K: `D:\\data\\part1\\29wolf\\clip\\13.jpg`). Each is matched by its trailing components: the longest tail
    that is a file below `folder` wins.

    If the matches of two different names are the same file (13.jpg of two clips), both are ambiguous, and the path of
    each is `folder` with all components of the name. A name without a match gets a path that does not exist. It drops
    the number of leading components that is most frequent among the matched names (but never the last component), so
    that a message about the path shows where the file is expected.

    Args:
        folder: The folder of the images.
        names: The names of the images. The result has the same length and order.
    """
    is_folder = lru_cache(maxsize=None)(os.path.isdir)  # cached: 30,000 images share 2,400 folders
    paths = [folder / name for name in names]
    foreign = {i: _parts(name) for i, name in enumerate(names) if _is_foreign(name) and not os.path.isfile(paths[i])}
    cuts = {i: _cut(folder, parts, is_folder) for i, parts in foreign.items()}
    tails = {i: parts[cuts[i] :] for i, parts in foreign.items()}
    wanted = {(tails[i], parts) for i, parts in foreign.items() if cuts[i] is not None}
    claims = Counter(tail for tail, _ in wanted)
    found = Counter(cut for i, cut in cuts.items() if cut is not None and claims[tails[i]] == 1)
    usual = found.most_common(1)[0][0] if found else 0
    for i, parts in foreign.items():
        if cuts[i] is None:
            tails[i] = parts[min(usual, len(parts) - 1) :]
        elif claims[tails[i]] > 1:
            tails[i] = parts
        paths[i] = folder.joinpath(*tails[i])
    return paths


def _is_foreign(name: str) -> bool:
    """Return whether a name contains a backslash, or starts with a slash or a drive ("D:")."""
    return "\\" in name or name.startswith("/") or _DRIVE.match(name) is not None


def _parts(name: str) -> tuple[str, ...]:
    """Split a path of any operating system into its components, without drive, root, "." and "..".

    If no component is left, the result is the path itself as the only component.
    """
    return tuple(p for p in re.split(r"[\\/]+", _DRIVE.sub("", name, count=1)) if p not in ("", ".", "..")) or (name,)


def _cut(folder: Path, parts: tuple[str, ...], is_folder) -> int | None:
    """Return how many leading components to drop so that the rest is the longest tail that is a file below `folder`.

    Return None if no tail is a file. `is_folder` is `os.path.isdir`, possibly cached.
    """
    for cut in range(len(parts)):
        parent = os.path.join(folder, *parts[cut:-1])
        if is_folder(parent) and os.path.isfile(os.path.join(parent, parts[-1])):
            return cut
    return None
