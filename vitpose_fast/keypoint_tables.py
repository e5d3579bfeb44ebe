"""Tables of the published keypoint sets, from COCO to InterHand2.6M.

A table holds the arguments of a `KeypointSet`; `vitpose_fast.keypoints.KEYPOINT_SETS` is built from the tables. They
are written with names and resolved to channel numbers when this module is imported. In the text of a table

- a `,` separates the keypoints of a chain and a `;` separates chains: the limbs "a, b, c; a, d" are (a, b), (b, c) and
  (a, d);
- flip pairs are not written down, because they follow from the names: left_x and right_x, or L_x and R_x. Only the
  flip pairs of the face have no sides in their names; `_FACE_ROWS` lists its keypoints from one side to the other.

Source: docs/numerics.md 7.2; codecs: docs/numerics.md 6.3.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any


def _chains(text: str) -> list[list[str]]:
    """Split the text of a table into chains, each a list of keypoint names. An empty text gives [[""]]."""
    return [[name.strip() for name in chain.split(",")] for chain in text.split(";")]


def _fingers(hand: str, joints: Iterable[int] = (1, 2, 3, 4)) -> list[str]:
    """Return the text of one chain per finger, such as "left_thumb1, left_thumb2, ..." for `hand` "left_".

    `joints` are the numbers of the joints in the chain; joint 1 is the nearest to the wrist.
    """
    fingers = ("thumb", "forefinger", "middle_finger", "ring_finger", "pinky_finger")
    return [", ".join(f"{hand}{finger}{joint}" for joint in joints) for finger in fingers]


def _table(
    name: str,
    names: str,
    skeleton: str,
    sigmas: str = "",
    upper_body: str = "",
    mirror: Iterable[list[str]] = (),
) -> dict[str, Any]:
    """Return the arguments of a `KeypointSet`, from text in the format that the module docstring describes.

    Args:
        name: name of the set. "coco" and "mpii" get the codec "udp", all others "msra".
        names: one chain with the names of all keypoints, in channel order.
        skeleton: chains of limbs.
        sigmas: the OKS sigmas, separated by spaces. "" means that the set has none.
        upper_body: one chain with the keypoints of the upper body. "" means none.
        mirror: rows of keypoints from one side of the face to the other. Mirroring reverses a row, so keypoint i swaps
            with keypoint i from the end.
    """
    index = {keypoint: i for i, keypoint in enumerate(_chains(names)[0])}
    flips = [pair for row in mirror for pair in zip(row, reversed(row), strict=True)]
    for left, right in (("left_", "right_"), ("L_", "R_")):
        flips += [(keypoint, right + keypoint.removeprefix(left)) for keypoint in index if keypoint.startswith(left)]
    pairs = {(min(index[a], index[b]), max(index[a], index[b])) for a, b in flips if a != b}
    return dict(
        name=name,
        names=tuple(index),
        flip_pairs=tuple(sorted(pairs)),
        skeleton=tuple((index[a], index[b]) for chain in _chains(skeleton) for a, b in itertools.pairwise(chain)),
        sigmas=tuple(map(float, sigmas.split())) or None,
        upper_body=tuple(index[keypoint] for keypoint in _chains(upper_body)[0] if keypoint),
        codec="udp" if name in ("coco", "mpii") else "msra",
    )


# People: COCO, AIC, MPII, CrowdPose and OCHuman

_COCO_UPPER = """
    nose, left_eye, right_eye, left_ear, right_ear,
    left_shoulder, right_shoulder, left_elbow, right_elbow, left_wrist, right_wrist"""
_COCO_NAMES = f"{_COCO_UPPER}, left_hip, right_hip, left_knee, right_knee, left_ankle, right_ankle"
_BODY_LIMBS = """
    left_ankle, left_knee, left_hip; right_ankle, right_knee, right_hip; left_hip, right_hip;
    left_shoulder, left_hip; right_shoulder, right_hip; left_shoulder, right_shoulder;
    left_shoulder, left_elbow; right_shoulder, right_elbow; left_elbow, left_wrist; right_elbow, right_wrist"""
_COCO_LIMBS = f"""
    {_BODY_LIMBS};
    left_eye, right_eye; nose, left_eye; nose, right_eye; left_eye, left_ear; right_eye, right_ear;
    left_ear, left_shoulder; right_ear, right_shoulder"""
_COCO_SIGMAS = """
    .026 .025 .025 .035 .035
    .079 .079 .072 .072 .062 .062
    .107 .107 .087 .087 .089 .089"""
_COCO = _table("coco", _COCO_NAMES, _COCO_LIMBS, _COCO_SIGMAS, _COCO_UPPER)
_OCHUMAN = _COCO | {"name": "ochuman", "codec": "msra"}

_AIC = _table(
    "aic",
    names="""
        right_shoulder, right_elbow, right_wrist, left_shoulder, left_elbow, left_wrist,
        right_hip, right_knee, right_ankle, left_hip, left_knee, left_ankle, head_top, neck""",
    skeleton="""
        right_wrist, right_elbow, right_shoulder, neck, left_shoulder, left_elbow, left_wrist;
        right_ankle, right_knee, right_hip, left_hip, left_knee, left_ankle;
        head_top, neck; right_shoulder, right_hip; left_shoulder, left_hip""",
    sigmas="""
        .01388152 .01515228 .01057665 .01417709 .01497891 .01402144
        .03909642 .03686941 .01981803 .03843971 .03412318 .02415081 .01291456 .01236173""",
    upper_body="""
        right_shoulder, right_elbow, right_wrist, left_shoulder, left_elbow, left_wrist, head_top, neck""",
)

_MPII = _table(
    "mpii",
    names="""
        right_ankle, right_knee, right_hip, left_hip, left_knee, left_ankle, pelvis, thorax, upper_neck, head_top,
        right_wrist, right_elbow, right_shoulder, left_shoulder, left_elbow, left_wrist""",
    skeleton="""
        right_ankle, right_knee, right_hip, pelvis, left_hip, left_knee, left_ankle;
        pelvis, thorax, upper_neck, head_top;
        upper_neck, right_shoulder, right_elbow, right_wrist; upper_neck, left_shoulder, left_elbow, left_wrist""",
    sigmas="""
        .089 .083 .107 .107 .083 .089 .026 .026 .026 .026
        .062 .072 .179 .179 .072 .062""",
    upper_body="""
        thorax, upper_neck, head_top,
        right_wrist, right_elbow, right_shoulder, left_shoulder, left_elbow, left_wrist""",
)

_CROWDPOSE = _table(
    "crowdpose",
    names="""
        left_shoulder, right_shoulder, left_elbow, right_elbow, left_wrist, right_wrist,
        left_hip, right_hip, left_knee, right_knee, left_ankle, right_ankle, top_head, neck""",
    skeleton=f"""
        {_BODY_LIMBS};
        top_head, neck; right_shoulder, neck; left_shoulder, neck""",
    sigmas="""
        .079 .079 .072 .072 .062 .062
        .107 .107 .087 .087 .089 .089 .079 .079""",
    upper_body="""
        left_shoulder, right_shoulder, left_elbow, right_elbow, left_wrist, right_wrist, top_head, neck""",
)

# Animals: AP-10K and APT-36K

_AP10K = _table(
    "ap10k",
    names="""
        L_Eye, R_Eye, Nose, Neck, Root of tail,
        L_Shoulder, L_Elbow, L_F_Paw, R_Shoulder, R_Elbow, R_F_Paw,
        L_Hip, L_Knee, L_B_Paw, R_Hip, R_Knee, R_B_Paw""",
    skeleton="""
        L_Eye, R_Eye; L_Eye, Nose; R_Eye, Nose, Neck, Root of tail;
        Neck, L_Shoulder, L_Elbow, L_F_Paw; Neck, R_Shoulder, R_Elbow, R_F_Paw;
        Root of tail, L_Hip, L_Knee, L_B_Paw; Root of tail, R_Hip, R_Knee, R_B_Paw""",
    sigmas="""
        .025 .025 .026 .035 .035
        .079 .072 .062 .079 .072 .062
        .107 .087 .089 .107 .087 .089""",
    # R_F_Paw is missing on purpose: the official table counts it as lower body (docs/numerics.md 7.2, quirks).
    upper_body="""
        L_Eye, R_Eye, Nose, Neck, L_Shoulder, L_Elbow, L_F_Paw, R_Shoulder, R_Elbow""",
)
_APT36K = _AP10K | {"name": "apt36k"}

# COCO-WholeBody: COCO, feet, face and hands

_FOOT_SIGMAS = ".068 .066 .066 .092 .094 .094"
_FACE_SIGMAS = """
    .042 .043 .044 .043 .04 .035 .031 .025 .02 .023 .029 .032 .037 .038 .043 .041 .045
    .013 .012 .011 .011 .012 .012 .011 .011 .013 .015 .009 .007 .007 .007 .012 .009 .008 .016 .01
    .017 .011 .009 .011 .009 .007 .013 .008 .011 .012 .01 .034
    .008 .008 .009 .008 .008 .007 .01 .008 .009 .009 .009 .007 .007 .008 .011 .008 .008 .008 .01 .008"""
_HAND_SIGMAS = """
    .029 .022 .035 .037 .047 .026 .025 .024 .035 .018 .024
    .022 .026 .017 .021 .021 .032 .02 .019 .022 .031"""
_FACE = [f"face_{i}" for i in range(68)]  # in the order of iBUG-68
_FACE_ROWS = (  # each from left to right in an image of the face; no row has 27 to 30, the nose bridge on the midline
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
_FEET = [f"{side}{part}" for side in _SIDES for part in ("big_toe", "small_toe", "heel")]
_HANDS = [", ".join([f"{side}hand_root", *_fingers(side)]) for side in _SIDES]
_WHOLEBODY_LIMBS = [
    _COCO_LIMBS,
    *(f"{foot.split('_')[0]}_ankle, {foot}" for foot in _FEET),
    *(f"{side}hand_root, {finger}" for side in _SIDES for finger in _fingers(side)),
]
_WHOLEBODY = _table(
    "wholebody",
    names=", ".join([_COCO_NAMES, *_FEET, *_FACE, *_HANDS]),
    skeleton="; ".join(_WHOLEBODY_LIMBS),
    sigmas=" ".join([_COCO_SIGMAS, _FOOT_SIGMAS, _FACE_SIGMAS, _HAND_SIGMAS, _HAND_SIGMAS]),
    upper_body=_COCO_UPPER,
    mirror=_FACE_ROWS,
)

# One hand: InterHand2.6M, which has no sigmas because it is scored by PCK, AUC and EPE only

_INTERHAND = _table(
    "interhand",
    names=", ".join([*_fingers("", (4, 3, 2, 1)), "wrist"]),
    skeleton="; ".join(f"wrist, {finger}" for finger in _fingers("")),
)

TABLES = (_COCO, _AIC, _MPII, _AP10K, _APT36K, _WHOLEBODY, _CROWDPOSE, _OCHUMAN, _INTERHAND)
