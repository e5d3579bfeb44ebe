"""Keypoint sets: what each channel of a heatmap means, and the one registry of the sets ViTPose was trained on.

The tables are those of SPEC 7.2, written with names and resolved to channel numbers once, in the tables' own order.
A `;` separates chains of limbs, a `,` the keypoints along a chain: "a, b, c; a, d" is (a, b), (b, c), (a, d).
Mirror pairs follow from the names (left_x / right_x, L_x / R_x); only the face needs its geometry written down.
"""

from __future__ import annotations

import itertools
import json
import numbers
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

DEFAULT_SIGMA = 0.05  # between an eye (0.025) and a shoulder (0.079) of COCO, for keypoints that nobody measured

_FIELDS = ("name", "names", "flip_pairs", "skeleton", "sigmas", "upper_body", "codec")


def _show(value: object) -> str:
    """`value` for an error message: on one line and of bearable length, whatever it is."""
    return " ".join(repr(value)[:4000].splitlines())


def _repeated(values: Sequence[Any]) -> list[Any]:
    return [value for i, value in enumerate(values) if value in values[:i]]


@dataclass(frozen=True)
class KeypointSet:
    """The keypoints of one data set, in channel order (SPEC 7.2). Always consistent: the constructor checks it.

    flip_pairs: channels that change places in a mirrored image.  skeleton: limbs, for drawing.
    sigmas: OKS sigmas; None where the data set has none, and then OKS cannot be computed.
    upper_body: the half-body augmentation's upper set; every other keypoint counts as lower.
    codec: how heatmaps are encoded and crops are cut (SPEC 6.3): "udp" or "msra" (plain affine, quarter pixel).
    """

    name: str
    names: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...]
    skeleton: tuple[tuple[int, int], ...]
    sigmas: tuple[float, ...] | None
    upper_body: tuple[int, ...]
    codec: str = "udp"

    def __post_init__(self) -> None:
        count = len(self.names)
        if not count:
            raise ValueError("names is empty, expected at least one keypoint: list them in channel order")
        for text in (self.name, *self.names):
            if not isinstance(text, str) or not text:
                raise ValueError(f"{_show(text)} is used as a name, expected a non-empty string: write one")
        if twice := _repeated(self.names):
            raise ValueError(f"names holds {_show(twice[0])} twice, expected different names: rename one of the two")
        flipped = [i for pair in self.flip_pairs for i in pair]
        for i in itertools.chain(flipped, *self.skeleton, self.upper_body):
            if not 0 <= i < count:
                raise ValueError(f"channel {_show(i)} is given, expected 0 to {count - 1}: use the index of a keypoint")
        for a, b in (*self.flip_pairs, *self.skeleton):
            if a == b:
                raise ValueError(f"{_show(self.names[a])} is paired with itself, expected two keypoints: remove it")
        for field, channels in (("flip_pairs", flipped), ("upper_body", self.upper_body)):
            if twice := _repeated(channels):
                given = _show(self.names[twice[0]])
                raise ValueError(f"{field} holds {given} twice, expected at most once: remove one of the two")
        if self.codec not in ("udp", "msra"):
            raise ValueError(f"codec is {_show(self.codec)}, expected 'udp' or 'msra': choose one (SPEC 6.3)")
        if self.sigmas is None:
            return
        if len(self.sigmas) != count:
            todo = f"complete the list, or leave sigmas out for {DEFAULT_SIGMA} each"
            raise ValueError(f"sigmas holds {len(self.sigmas)} numbers, expected {count}, one per keypoint: {todo}")
        for name, sigma in zip(self.names, self.sigmas, strict=True):
            # NaN fails every comparison; an integer that no float can hold fails the last one
            if isinstance(sigma, bool) or not (isinstance(sigma, numbers.Real) and 0 < sigma < 1e300):
                given = f"the sigma of {_show(name)} is {_show(sigma)}"
                raise ValueError(f"{given}, expected a positive finite number: use for instance {DEFAULT_SIGMA}")
        object.__setattr__(self, "sigmas", tuple(map(float, self.sigmas)))  # a file may say 1 for 1.0

    @property
    def num_keypoints(self) -> int:
        return len(self.names)

    @property
    def flip_permutation(self) -> tuple[int, ...]:
        """Index i -> the channel that holds keypoint i in the mirrored image; its own inverse."""
        swap = dict(self.flip_pairs) | {b: a for a, b in self.flip_pairs}
        return tuple(swap.get(i, i) for i in range(self.num_keypoints))

    def index(self, name: str) -> int:
        """The channel of the keypoint called `name`."""
        if name not in self.names:
            raise ValueError(f"{_show(self.name)} has no keypoint {_show(name)}, expected one of {_show(self.names)}")
        return self.names.index(name)

    def to_dict(self) -> dict[str, Any]:
        """Everything by name, ready for JSON; `from_dict` gives back an equal set."""
        named = {field: list(value) if isinstance(value, tuple) else value for field, value in vars(self).items()}
        for field in ("flip_pairs", "skeleton"):
            named[field] = [[self.names[a], self.names[b]] for a, b in named[field]]
        return {**named, "upper_body": [self.names[i] for i in self.upper_body]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> KeypointSet:
        """A set from `to_dict`'s form. Only `name` and `names` are required; left out, `flip_pairs`, `skeleton` and
        `upper_body` are empty, `codec` is "udp" and every sigma is 0.05. `sigmas: None` means that there are none."""
        if not isinstance(data, Mapping):
            raise ValueError(f"{_show(data)} is given, expected an object with name and names: put it in {{ }}")
        if unknown := [field for field in data if field not in _FIELDS]:
            raise ValueError(f"unknown field {_show(unknown[0])}, expected only {', '.join(_FIELDS)}: correct it")
        if missing := [field for field in ("name", "names") if field not in data]:
            raise ValueError(f"the field {missing[0]!r} is missing, expected at least name and names: add it")
        count = len(data["names"]) if isinstance(data["names"], (list, tuple)) else 0
        fields = {"flip_pairs": [], "skeleton": [], "upper_body": [], "sigmas": [DEFAULT_SIGMA] * count, **data}
        for field in ("names", "flip_pairs", "skeleton", "upper_body", "sigmas"):
            if isinstance(fields[field], (list, tuple)):
                fields[field] = tuple(fields[field])
            elif field != "sigmas" or fields[field] is not None:
                raise ValueError(f"{field} is {_show(fields[field])}, expected a list: put it in [ ]")
        names = fields["names"]

        def resolve(field: str, given: Iterable[Any]) -> tuple[int, ...]:
            if unknown := [name for name in given if name not in names]:
                todo = f"expected one of {_show(names)}: correct it, or add it to names"
                raise ValueError(f"{field} holds {_show(unknown[0])}, {todo}")
            return tuple(names.index(name) for name in given)

        for field in ("flip_pairs", "skeleton"):
            for pair in fields[field]:
                if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                    raise ValueError(f"{field} holds {_show(pair)}, expected pairs of names: write [name, name]")
            fields[field] = tuple(resolve(field, pair) for pair in fields[field])
        fields["upper_body"] = resolve("upper_body", fields["upper_body"])
        return cls(**fields)


def load_keypoint_set(path: str | os.PathLike[str]) -> KeypointSet:
    """A user's own keypoints from a small JSON file: {"name": "pen", "names": ["tip", "cap"], "codec": "udp"}.

    Optional: flip_pairs and skeleton (pairs of names, [["a", "b"]]), upper_body (names), codec (default: "udp"), sigmas
    (default: 0.05 for every keypoint; null: there are none and OKS cannot be computed). One keypoint is enough.
    A missing file raises FileNotFoundError, any other failure ValueError, in one line.
    """
    file = _show(os.fspath(path))
    try:
        keypoints = KeypointSet.from_dict(json.loads(Path(path).read_text("utf-8-sig")))
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: no such file, expected a keypoint set in JSON: check the path") from None
    except (OSError, ValueError, RecursionError) as error:  # a plain ValueError is ours and says what to do
        todo = "" if type(error) is ValueError else ", expected a keypoint set in JSON: correct the file"
        raise ValueError(f"{file}: {error}{todo}") from error
    if keypoints != KEYPOINT_SETS.get(keypoints.name, keypoints):
        clash = f"{keypoints.name!r} is a built-in keypoint set with other content"
        raise ValueError(f"{file}: {clash}, expected a name of its own: rename it, or use the built-in set by its name")
    return keypoints


def keypoint_set(spec: str | os.PathLike[str] | KeypointSet) -> KeypointSet:
    """The set that `spec` means: a key of `KEYPOINT_SETS`, the path of a .json file, or a set itself."""
    if isinstance(spec, KeypointSet):
        return spec
    if isinstance(spec, str) and spec in KEYPOINT_SETS:
        return KEYPOINT_SETS[spec]
    if isinstance(spec, (str, os.PathLike)) and os.fspath(spec).lower().endswith(".json"):
        return load_keypoint_set(spec)
    raise ValueError(f"unknown keypoint set {_show(spec)}, expected {', '.join(KEYPOINT_SETS)}, or a .json file's path")


def custom_keypoint_set(num_keypoints: int, name: str = "custom") -> KeypointSet:
    """keypoint_0, keypoint_1, … without pairs or limbs: for checkpoints with a keypoint count that nobody knows."""
    if not isinstance(num_keypoints, int) or num_keypoints < 1:
        raise ValueError(f"num_keypoints is {_show(num_keypoints)}, expected an integer >= 1: count the heatmaps")
    if name in KEYPOINT_SETS:
        raise ValueError(f"{name!r} is a built-in keypoint set, expected another name: use keypoint_set({name!r})")
    return KeypointSet.from_dict({"name": name, "names": [f"keypoint_{i}" for i in range(num_keypoints)]})


def _chains(text: str) -> list[list[str]]:
    return [[name.strip() for name in chain.split(",")] for chain in text.split(";")]


def _fingers(hand: str, joints: Iterable[int] = (1, 2, 3, 4)) -> list[str]:
    """Each finger as a chain of its joints; 1 is the nearest to the wrist."""
    fingers = ("thumb", "forefinger", "middle_finger", "ring_finger", "pinky_finger")
    return [", ".join(f"{hand}{finger}{joint}" for joint in joints) for finger in fingers]


def _table(
    name: str, names: str, skeleton: str, sigmas: str = "", upper_body: str = "", mirror: Iterable[list[str]] = ()
) -> KeypointSet:
    """A set from text. `mirror`: rows of keypoints from one side of the face to the other, mirrored onto themselves."""
    index = {keypoint: i for i, keypoint in enumerate(_chains(names)[0])}
    flips = [pair for row in mirror for pair in zip(row, reversed(row), strict=True)]
    for left, right in (("left_", "right_"), ("L_", "R_")):
        flips += [(keypoint, right + keypoint.removeprefix(left)) for keypoint in index if keypoint.startswith(left)]
    pairs = {(min(index[a], index[b]), max(index[a], index[b])) for a, b in flips if a != b}
    return KeypointSet(
        name=name,
        names=tuple(index),
        flip_pairs=tuple(sorted(pairs)),
        skeleton=tuple((index[a], index[b]) for chain in _chains(skeleton) for a, b in itertools.pairwise(chain)),
        sigmas=tuple(map(float, sigmas.split())) or None,
        upper_body=tuple(index[keypoint] for keypoint in _chains(upper_body)[0] if keypoint),
        codec="udp" if name in ("coco", "mpii") else "msra",  # SPEC 6.3
    )


_COCO_UPPER = """nose, left_eye, right_eye, left_ear, right_ear, left_shoulder, right_shoulder, left_elbow, right_elbow,
    left_wrist, right_wrist"""
_COCO_NAMES = f"{_COCO_UPPER}, left_hip, right_hip, left_knee, right_knee, left_ankle, right_ankle"
_BODY_LIMBS = """left_ankle, left_knee, left_hip; right_ankle, right_knee, right_hip; left_hip, right_hip;
    left_shoulder, left_hip; right_shoulder, right_hip; left_shoulder, right_shoulder; left_shoulder, left_elbow;
    right_shoulder, right_elbow; left_elbow, left_wrist; right_elbow, right_wrist"""
_COCO_LIMBS = f"""{_BODY_LIMBS}; left_eye, right_eye; nose, left_eye; nose, right_eye; left_eye, left_ear;
    right_eye, right_ear; left_ear, left_shoulder; right_ear, right_shoulder"""
_COCO_SIGMAS = ".026 .025 .025 .035 .035 .079 .079 .072 .072 .062 .062 .107 .107 .087 .087 .089 .089"
_FOOT_AND_FACE_SIGMAS = """.068 .066 .066 .092 .094 .094
    .042 .043 .044 .043 .04 .035 .031 .025 .02 .023 .029 .032 .037 .038 .043 .041 .045
    .013 .012 .011 .011 .012 .012 .011 .011 .013 .015 .009 .007 .007 .007 .012 .009 .008 .016 .01
    .017 .011 .009 .011 .009 .007 .013 .008 .011 .012 .01 .034
    .008 .008 .009 .008 .008 .007 .01 .008 .009 .009 .009 .007 .007 .008 .011 .008 .008 .008 .01 .008"""
_HAND_SIGMAS = ".029 .022 .035 .037 .047 .026 .025 .024 .035 .018 .024 .022 .026 .017 .021 .021 .032 .02 .019 .022 .031"
_FACE = [f"face_{i}" for i in range(68)]
_FACE_ROWS = (  # iBUG-68, in the image from left to right; left out is the nose bridge, 27..30, on the midline
    _FACE[0:17],  # jaw
    _FACE[17:27],  # brows
    _FACE[31:36],  # nostrils
    _FACE[36:40] + _FACE[42:46],  # eyes, upper lids
    _FACE[41:39:-1] + _FACE[47:45:-1],  # eyes, lower lids
    _FACE[48:55],  # outer lip, above
    _FACE[59:54:-1],  # outer lip, below
    _FACE[60:65],  # inner lip, above
    _FACE[67:64:-1],  # inner lip, below
)
_SIDES = ("left_", "right_")
_COCO = _table("coco", _COCO_NAMES, _COCO_LIMBS, _COCO_SIGMAS, _COCO_UPPER)
_AIC = _table(
    "aic",
    """right_shoulder, right_elbow, right_wrist, left_shoulder, left_elbow, left_wrist, right_hip, right_knee,
    right_ankle, left_hip, left_knee, left_ankle, head_top, neck""",
    """right_wrist, right_elbow, right_shoulder, neck, left_shoulder, left_elbow, left_wrist; right_ankle, right_knee,
    right_hip, left_hip, left_knee, left_ankle; head_top, neck; right_shoulder, right_hip; left_shoulder, left_hip""",
    """.01388152 .01515228 .01057665 .01417709 .01497891 .01402144 .03909642 .03686941 .01981803 .03843971 .03412318
    .02415081 .01291456 .01236173""",
    "right_shoulder, right_elbow, right_wrist, left_shoulder, left_elbow, left_wrist, head_top, neck",
)
_MPII = _table(
    "mpii",
    """right_ankle, right_knee, right_hip, left_hip, left_knee, left_ankle, pelvis, thorax, upper_neck, head_top,
    right_wrist, right_elbow, right_shoulder, left_shoulder, left_elbow, left_wrist""",
    """right_ankle, right_knee, right_hip, pelvis, left_hip, left_knee, left_ankle; pelvis, thorax, upper_neck,
    head_top; upper_neck, right_shoulder, right_elbow, right_wrist;
    upper_neck, left_shoulder, left_elbow, left_wrist""",
    ".089 .083 .107 .107 .083 .089 .026 .026 .026 .026 .062 .072 .179 .179 .072 .062",
    "thorax, upper_neck, head_top, right_wrist, right_elbow, right_shoulder, left_shoulder, left_elbow, left_wrist",
)
_AP10K = _table(
    "ap10k",
    """L_Eye, R_Eye, Nose, Neck, Root of tail, L_Shoulder, L_Elbow, L_F_Paw, R_Shoulder, R_Elbow, R_F_Paw, L_Hip,
    L_Knee, L_B_Paw, R_Hip, R_Knee, R_B_Paw""",
    """L_Eye, R_Eye; L_Eye, Nose; R_Eye, Nose, Neck, Root of tail; Neck, L_Shoulder, L_Elbow, L_F_Paw;
    Neck, R_Shoulder, R_Elbow, R_F_Paw; Root of tail, L_Hip, L_Knee, L_B_Paw; Root of tail, R_Hip, R_Knee, R_B_Paw""",
    ".025 .025 .026 .035 .035 .079 .072 .062 .079 .072 .062 .107 .087 .089 .107 .087 .089",
    "L_Eye, R_Eye, Nose, Neck, L_Shoulder, L_Elbow, L_F_Paw, R_Shoulder, R_Elbow",  # no R_F_Paw: SPEC 7.2, quirks
)
_CROWDPOSE = _table(
    "crowdpose",
    """left_shoulder, right_shoulder, left_elbow, right_elbow, left_wrist, right_wrist, left_hip, right_hip, left_knee,
    right_knee, left_ankle, right_ankle, top_head, neck""",
    f"{_BODY_LIMBS}; top_head, neck; right_shoulder, neck; left_shoulder, neck",
    ".079 .079 .072 .072 .062 .062 .107 .107 .087 .087 .089 .089 .079 .079",
    "left_shoulder, right_shoulder, left_elbow, right_elbow, left_wrist, right_wrist, top_head, neck",
)
_FEET = [f"{side}{part}" for side in _SIDES for part in ("big_toe", "small_toe", "heel")]
_HANDS = [", ".join([f"{side}hand_root", *_fingers(side)]) for side in _SIDES]
_WHOLEBODY_LIMBS = [f"{foot.split('_')[0]}_ankle, {foot}" for foot in _FEET]
_WHOLEBODY_LIMBS += [f"{side}hand_root, {finger}" for side in _SIDES for finger in _fingers(side)]
_WHOLEBODY = _table(
    "wholebody",
    ", ".join([_COCO_NAMES, *_FEET, *_FACE, *_HANDS]),
    "; ".join([_COCO_LIMBS, *_WHOLEBODY_LIMBS]),
    " ".join([_COCO_SIGMAS, _FOOT_AND_FACE_SIGMAS, _HAND_SIGMAS, _HAND_SIGMAS]),
    _COCO_UPPER,
    _FACE_ROWS,
)
_INTERHAND = _table(  # without sigmas: scored by PCK, AUC and EPE only
    "interhand",
    ", ".join([*_fingers("", (4, 3, 2, 1)), "wrist"]),
    "; ".join(f"wrist, {finger}" for finger in _fingers("")),
)
_APT36K, _OCHUMAN = replace(_AP10K, name="apt36k"), replace(_COCO, name="ochuman", codec="msra")
_ALL = (_COCO, _AIC, _MPII, _AP10K, _APT36K, _WHOLEBODY, _CROWDPOSE, _OCHUMAN, _INTERHAND)
KEYPOINT_SETS: Mapping[str, KeypointSet] = MappingProxyType({table.name: table for table in _ALL})
