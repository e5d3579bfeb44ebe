"""Keypoint sets: which keypoint each heatmap channel is, the published sets, and sets from users' JSON files.

The tables of the published sets are in `vitpose_fast.keypoint_tables`.
"""

from __future__ import annotations

import itertools
import json
import numbers
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vitpose_fast.keypoint_tables import TABLES

DEFAULT_SIGMA = 0.05  # for keypoints without a measured sigma: between an eye (0.025) and a shoulder (0.079) of COCO

_FIELDS = ("name", "names", "flip_pairs", "skeleton", "sigmas", "upper_body", "codec")


def _show(value: object) -> str:
    """Return the repr of any value on one line, cut to 4000 characters, for an error message."""
    return " ".join(repr(value)[:4000].splitlines())


def _repeated(values: Sequence[Any]) -> list[Any]:
    """Return the values of a sequence that equal an earlier one."""
    return [value for i, value in enumerate(values) if value in values[:i]]


@dataclass(frozen=True)
class KeypointSet:
    """The keypoints of one data set, in channel order. The constructor checks that the fields are consistent.

    Channels are indices into `names`. Source of the published sets: docs/numerics.md 7.2.

    Attributes:
        name: name of the set.
        names: names of the keypoints, at least one and all different.
        flip_pairs: pairs of channels that swap when the image is mirrored, such as the left and the right eye.
        skeleton: limbs as pairs of channels, for drawing.
        sigmas: OKS sigma of each keypoint, or None if the data set has none; then OKS cannot be computed.
        upper_body: channels that the half-body augmentation counts as upper body; all others are lower body.
        codec: how crops are cut and heatmaps are encoded: "udp" (unbiased data processing) or "msra" (plain affine
            crops, quarter-pixel decoding). Source: docs/numerics.md 6.3.

    Raises:
        ValueError: If a field is invalid; one line that names the field or the keypoint.
    """

    name: str
    names: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...]
    skeleton: tuple[tuple[int, int], ...]
    sigmas: tuple[float, ...] | None
    upper_body: tuple[int, ...]
    codec: str = "udp"

    def __post_init__(self) -> None:
        self._check_names()
        self._check_channels()
        if self.codec not in ("udp", "msra"):
            raise ValueError(
                f"codec is {_show(self.codec)}, expected 'udp' or 'msra' (docs/numerics.md 6.3); choose one"
            )
        if self.sigmas is not None:
            self._check_sigmas(self.sigmas)
            object.__setattr__(self, "sigmas", tuple(map(float, self.sigmas)))  # JSON may contain 1 for 1.0

    def _check_names(self) -> None:
        if not self.names:
            raise ValueError("names is empty, expected at least one keypoint; list them in channel order")
        for text in (self.name, *self.names):
            if not isinstance(text, str) or not text:
                raise ValueError(f"{_show(text)} is used as a name, expected a non-empty string; write one")
        if twice := _repeated(self.names):
            raise ValueError(f"names contains {_show(twice[0])} twice, expected different names; rename one of the two")

    def _check_channels(self) -> None:
        count = len(self.names)
        flipped = [i for pair in self.flip_pairs for i in pair]
        for i in itertools.chain(flipped, *self.skeleton, self.upper_body):
            if not 0 <= i < count:
                raise ValueError(f"got channel {_show(i)}, expected 0 to {count - 1}; use the index of a keypoint")
        for a, b in (*self.flip_pairs, *self.skeleton):
            if a == b:
                raise ValueError(f"{_show(self.names[a])} is paired with itself, expected two keypoints; remove it")
        for field, channels in (("flip_pairs", flipped), ("upper_body", self.upper_body)):
            if twice := _repeated(channels):
                given = _show(self.names[twice[0]])
                raise ValueError(f"{field} contains {given} twice, expected at most once; remove one of the two")

    def _check_sigmas(self, sigmas: tuple[float, ...]) -> None:
        count = len(self.names)
        if len(sigmas) != count:
            todo = f"complete the list, or leave sigmas out for {DEFAULT_SIGMA} each"
            raise ValueError(f"sigmas has {len(sigmas)} numbers, expected {count}, one per keypoint; {todo}")
        for name, sigma in zip(self.names, sigmas, strict=True):
            # The comparison is False for NaN, infinity, and integers that are too large for a float.
            if isinstance(sigma, bool) or not (isinstance(sigma, numbers.Real) and 0 < sigma < 1e300):
                given = f"the sigma of {_show(name)} is {_show(sigma)}"
                raise ValueError(f"{given}, expected a positive finite number; use for instance {DEFAULT_SIGMA}")

    @property
    def num_keypoints(self) -> int:
        return len(self.names)

    @property
    def flip_permutation(self) -> tuple[int, ...]:
        """For each channel, the channel that it swaps with in a mirrored image, or itself. It is its own inverse."""
        swap = dict(self.flip_pairs) | {b: a for a, b in self.flip_pairs}
        return tuple(swap.get(i, i) for i in range(self.num_keypoints))

    def index(self, name: str) -> int:
        """Return the channel of the keypoint called `name`.

        Raises:
            ValueError: If there is no such keypoint; lists the valid names.
        """
        if name not in self.names:
            raise ValueError(f"{_show(self.name)} has no keypoint {_show(name)}, expected one of {_show(self.names)}")
        return self.names.index(name)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of the set as a dict that JSON can hold. `from_dict` builds an equal set from it.

        `flip_pairs`, `skeleton` and `upper_body` contain names of keypoints instead of channels.
        """
        named = {field: list(value) if isinstance(value, tuple) else value for field, value in vars(self).items()}
        for field in ("flip_pairs", "skeleton"):
            named[field] = [[self.names[a], self.names[b]] for a, b in named[field]]
        return {**named, "upper_body": [self.names[i] for i in self.upper_body]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> KeypointSet:
        """Build a set from a dict in the form that `to_dict` returns.

        Only `name` and `names` are required. By default `flip_pairs`, `skeleton` and `upper_body` are empty, `codec` is
        "udp" and every sigma is `DEFAULT_SIGMA`; None for `sigmas` means that the set has no sigmas.

        Raises:
            ValueError: If `data` is not a dict, a field is unknown or invalid, or `name` or `names` is missing; one
                line.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"got {_show(data)}, expected an object with name and names; put it in {{ }}")
        if unknown := [field for field in data if field not in _FIELDS]:
            raise ValueError(f"unknown field {_show(unknown[0])}, expected only {', '.join(_FIELDS)}; correct it")
        if missing := [field for field in ("name", "names") if field not in data]:
            raise ValueError(f"the field {missing[0]!r} is missing, expected at least name and names; add it")
        count = len(data["names"]) if isinstance(data["names"], (list, tuple)) else 0
        fields = {
            "flip_pairs": [],
            "skeleton": [],
            "upper_body": [],
            "sigmas": [DEFAULT_SIGMA] * count,
            **data,
        }
        for field in ("names", "flip_pairs", "skeleton", "upper_body", "sigmas"):
            if isinstance(fields[field], (list, tuple)):
                fields[field] = tuple(fields[field])
            elif field != "sigmas" or fields[field] is not None:
                raise ValueError(f"{field} is {_show(fields[field])}, expected a list; put it in [ ]")
        names = fields["names"]

        def resolve(field: str, given: Iterable[Any]) -> tuple[int, ...]:
            if unknown := [name for name in given if name not in names]:
                todo = f"expected one of {_show(names)}; correct it, or add it to names"
                raise ValueError(f"{field} contains {_show(unknown[0])}, {todo}")
            return tuple(names.index(name) for name in given)

        for field in ("flip_pairs", "skeleton"):
            for pair in fields[field]:
                if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                    raise ValueError(f"{field} contains {_show(pair)}, expected pairs of names; write [name, name]")
            fields[field] = tuple(resolve(field, pair) for pair in fields[field])
        fields["upper_body"] = resolve("upper_body", fields["upper_body"])
        return cls(**fields)


KEYPOINT_SETS: Mapping[str, KeypointSet] = MappingProxyType({table["name"]: KeypointSet(**table) for table in TABLES})


def load_keypoint_set(path: str | os.PathLike[str]) -> KeypointSet:
    """Load a keypoint set from a JSON file, such as {"name": "pen", "names": ["tip", "cap"], "codec": "udp"}.

    `name` and `names` are required; one keypoint is enough. Optional are `flip_pairs` and `skeleton` (pairs of names,
    [["a", "b"]]), `upper_body` (names), `codec` (default "udp") and `sigmas` (default 0.05 for every keypoint; null
    means that the set has no sigmas and OKS cannot be computed).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, is not valid, or has the name of a built-in set with other contents.
    """
    file = _show(os.fspath(path))
    try:
        keypoints = KeypointSet.from_dict(json.loads(Path(path).read_text("utf-8-sig")))
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: no such file, expected a keypoint set in JSON; check the path") from None
    except (OSError, ValueError, RecursionError) as error:  # a plain ValueError comes from `from_dict`
        todo = "" if type(error) is ValueError else ", expected a keypoint set in JSON; correct the file"
        raise ValueError(f"{file}: {error}{todo}") from error
    if keypoints != KEYPOINT_SETS.get(keypoints.name, keypoints):
        clash = f"{keypoints.name!r} is a built-in keypoint set with different contents"
        raise ValueError(f"{file}: {clash}, expected another name; rename it, or use the built-in set by its name")
    return keypoints


def keypoint_set(spec: str | os.PathLike[str] | KeypointSet) -> KeypointSet:
    """Return the keypoint set that `spec` means: a key of `KEYPOINT_SETS`, or the path of a .json file.

    A `KeypointSet` is returned unchanged.

    Raises:
        FileNotFoundError: If the .json file does not exist.
        ValueError: If `spec` is anything else (the message lists the built-in sets), or the file is not valid (see
            `load_keypoint_set`).
    """
    if isinstance(spec, KeypointSet):
        return spec
    if isinstance(spec, str) and spec in KEYPOINT_SETS:
        return KEYPOINT_SETS[spec]
    if isinstance(spec, (str, os.PathLike)) and os.fspath(spec).lower().endswith(".json"):
        return load_keypoint_set(spec)
    raise ValueError(f"unknown keypoint set {_show(spec)}, expected {', '.join(KEYPOINT_SETS)}, or a .json file's path")


def custom_keypoint_set(num_keypoints: int, name: str = "custom") -> KeypointSet:
    """Build a set of keypoint_0, keypoint_1, … without pairs and limbs, for checkpoints with unknown keypoints.

    All other fields have the defaults of `KeypointSet.from_dict`.

    Raises:
        ValueError: If `num_keypoints` is not a positive integer, or `name` is a built-in set.
    """
    if not isinstance(num_keypoints, int) or num_keypoints < 1:
        raise ValueError(f"num_keypoints is {_show(num_keypoints)}, expected an integer >= 1; count the heatmaps")
    if name in KEYPOINT_SETS:
        raise ValueError(f"{name!r} is a built-in keypoint set, expected another name; use keypoint_set({name!r})")
    return KeypointSet.from_dict({"name": name, "names": [f"keypoint_{i}" for i in range(num_keypoints)]})
