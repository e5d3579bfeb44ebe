"""Tables of damage to annotation files: each changes one place, and lists words that the message must hold.

The module also has values that are invalid in every layout, and the contents of unusable files.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.training.data.sample_files import MISSING

NAN, INF, HUGE = float("nan"), float("inf"), 10**400
HUMAN = "human1"  # a person on the first image of the original AIC sample


class Damage(NamedTuple):
    """One change to the sample file of a layout: the value at `path` becomes `value`, or is removed if MISSING."""

    layout: str
    path: tuple[Any, ...]
    value: Any
    words: tuple[str, ...]
    """Words that the message must hold besides the file name: the entry and the field."""
    kind: str = "data"
    """Which file to change: "data", or one of InterHand's companions."""


def fields(layout, path, entry, table, kind="data"):
    """Return a damage for each value of each field in `table`, which maps fields of the object at `path` to bad values.

    The message must hold the words `entry` and the name of the field. A key (field, word) means that it holds `word`
    instead of the name.
    """
    out = []
    for field, values in table.items():
        field, word = field if isinstance(field, tuple) else (field, field)
        out += [Damage(layout, (*path, field), value, (*entry, word), kind) for value in values]
    return out


NO_ID = [MISSING, None, 1.5, True, [], {}, "", NAN]
NO_NAME = [MISSING, None, "", " ", 3, [], "a\nb", "\ud800"]
NO_SIZE = [MISSING, None, "640", 0, -1, 1.5, NAN, INF, 1e7, True, [640]]
NO_BOX = [MISSING, None, "1,2,3,4", {}, [], [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, NAN, 4], [1, INF, 3, 4], [1, 2, -3, 4]]
NO_BOX += [[1, 2, "3", 4], [1, 2, 1e7, 4], [1, 2, True, 4], [1, 2, HUGE, 4], [[1, 2], [3, 4]]]
EMPTY_BOX = [[10, 10, 0, 0], [9000, 10, 20, 20], [10, 10, 1, 50]]
NO_LIST = [None, "1 2 2", {}, 3]


def no_keypoints(count):
    """Return invalid values for a flat list x, y, v, x, y, v, ... of `count` keypoints, the last with an invalid v."""
    flat = [5, 6, 2] * count
    bad = [NAN, -INF, "3", None, True, 1e7, HUGE, [1]]
    return [
        *NO_LIST,
        [],
        flat[:-1],
        [*flat, 0],
        flat[: 3 * count - 3],
        [flat[i : i + 3] for i in range(0, len(flat), 3)],
        *([value, *flat[1:]] for value in bad),
        [5, 6, -1, *flat[3:]],
    ]


A, I, E = ("annotations", 0), ("images", 0), (0,)
ANNOTATION, IMAGE, ENTRY = ("annotation 0",), ("image 0",), ("entry 0",)
COCO = [
    *fields("coco", A, ANNOTATION, {"id": NO_ID, "image_id": [*NO_ID, 99999999, "785"], "category_id": NO_ID}),
    *fields("coco", A, ANNOTATION, {("bbox", "box"): NO_BOX + EMPTY_BOX}),
    *fields("coco", A, ANNOTATION, {"area": [None, "5", 0, -3, NAN, INF, 1e13, True, [5]]}),
    *fields("coco", A, ANNOTATION, {"iscrowd": [None, 2, -1, 0.5, "no", []]}),
    *fields("coco", A, ANNOTATION, {"num_keypoints": [None, "3", -1, NAN, [], True]}),
    *fields("coco", A, ANNOTATION, {("keypoints", "keypoint"): [MISSING, *no_keypoints(17)]}),
    *(Damage("coco", A, value, ("annotation 0", "expected a JSON object")) for value in (None, 3, "x", [], True)),
    Damage("coco", ("annotations", 1, "id"), 442619, ("annotation 1", "id is already used by annotation 0")),
    *fields("coco", I, IMAGE, {"id": NO_ID, "file_name": NO_NAME, "width": NO_SIZE, "height": NO_SIZE}),
    *(Damage("coco", I, value, ("image 0", "expected a JSON object")) for value in (None, 3, [], "785.jpg")),
    Damage("coco", ("images", 1, "id"), 785, ("image 1", "id is already used by image 0")),
    Damage("coco", ("categories",), "person", ("categories", "expected a list")),
    Damage("coco", ("categories", 0), "person", ("category 0", "expected a JSON object")),
    *fields("coco", ("categories", 0), ("category 0",), {"id": [MISSING, None, [], 0.5]}),
]
OTHERS = [
    *fields(
        "apt36k", A, ANNOTATION, {"is_crowd": [None, 2, "no", []], ("keypoints", "keypoint"): no_keypoints(17)[:3]}
    ),
    *fields("aic", A, ANNOTATION, {("keypoints", "keypoint"): no_keypoints(14)[:6], ("bbox", "box"): EMPTY_BOX}),
    *fields(
        "crowdpose", A, ANNOTATION, {("keypoints", "keypoint"): no_keypoints(14)[6:9], ("bbox", "box"): NO_BOX[:3]}
    ),
    *(
        damage
        for part, count in (("foot", 6), ("face", 68), ("lefthand", 21), ("righthand", 21))
        for damage in fields(
            "wholebody",
            A,
            ANNOTATION,
            {f"{part}_kpts": [MISSING, *no_keypoints(count)], f"{part}_valid": [None, 2, "yes", []]},
        )
    ),
    *fields("wholebody", A, ANNOTATION, {"keypoints": no_keypoints(17)}),
]
NO_POINT = [MISSING, None, [], [5], [5, 6, 7], "5 6", [5, NAN], [5, "6"], [5, 1e7], [5, HUGE]]
MPII = [
    *(Damage("mpii", E, value, ("entry 0", "expected a JSON object")) for value in (None, 3, [], "x")),
    *fields("mpii", E, ENTRY, {"image": NO_NAME, "center": [*NO_POINT, [-1, -1]]}),
    *fields("mpii", E, ENTRY, {"scale": [MISSING, None, 0, -2, NAN, INF, "4", True, [4], 1e7]}),
    *fields(
        "mpii", E, ENTRY, {"joints": [MISSING, None, [], [[1, 2]] * 15, [[1, 2]] * 17, [1, 2] * 16, [[1, 2, 3]] * 16]}
    ),
    *fields("mpii", (0, "joints"), ("entry 0", "joints"), {(3, ""): NO_POINT[1:]}),
    *fields("mpii", E, ENTRY, {"joints_vis": [MISSING, None, [1] * 15, [[1]] * 16, "1" * 16]}),
    *fields("mpii", (0, "joints_vis"), ("entry 0", "joints_vis"), {(3, ""): [2, -1, 0.5, NAN, None, True, "1"]}),
]
FLAT = no_keypoints(14)[:-1]  # without the invalid visibility: AIC has its own values, see below
AIC = [
    *(Damage("aic original", E, value, ("entry 0", "expected a JSON object")) for value in (None, 3, [], "x")),
    *fields("aic original", E, ENTRY, {"image_id": [*NO_ID, "a\nb"]}),
    Damage("aic original", (1, "image_id"), "d8eeddddcc042544a2570d4c452778b912726720", ("entry 1", "image_id")),
    *fields(
        "aic original", E, ENTRY, {k: [MISSING, None, [], 3] for k in ("human_annotations", "keypoint_annotations")}
    ),
    *(
        Damage("aic original", (0, "human_annotations", HUMAN), value, ("entry 0", HUMAN, "human_annotations"))
        for value in [*NO_BOX[:9], [9, 9, 5, 20], [9, 9, 20, 5], [9, 9, 9, 20], [1, 2, HUGE, 9]]
    ),
    *(
        Damage("aic original", (0, "keypoint_annotations", HUMAN), value, ("entry 0", HUMAN, "keypoint_annotations"))
        for value in [
            MISSING,
            *FLAT,
            [5, 6, 0, *[5, 6, 1] * 13],
            [5, 6, 4, *[5, 6, 1] * 13],
            [5, 6, 1.5, *[5, 6, 1] * 13],
        ]
    ),
]
CAPTURE, CAMERA, FRAME = "3", "400026", "69148"  # used by the first annotation
CAMERA_WORDS, FRAME_WORDS = ("annotation", "x_camera.json"), ("annotation", "x_joint_3d.json")
INTERHAND = [
    *(Damage("interhand", A, value, ("annotation 0", "expected a JSON object")) for value in (None, 3, [])),
    *fields("interhand", A, ANNOTATION, {"id": NO_ID, "image_id": [*NO_ID, 5]}),
    Damage("interhand", ("annotations", 1, "id"), 326750, ("annotation 1", "id is already used by annotation 0")),
    *fields(
        "interhand",
        A,
        ANNOTATION,
        {"joint_valid": [*NO_LIST, MISSING, [[1]] * 41, [[1]] * 43, [1] * 42, [[1, 1]] * 42]},
    ),
    *fields(
        "interhand",
        (*A, "joint_valid"),
        ("annotation 0", "joint_valid"),
        {(3, ""): [[2], [-1], [0.5], [NAN], ["1"], []]},
    ),
    *fields(
        "interhand", I, IMAGE, {"id": NO_ID, "file_name": NO_NAME[:4], "width": NO_SIZE[:5], "height": NO_SIZE[:5]}
    ),
    *fields("interhand", I, IMAGE, {k: [MISSING, None, [], 0.5] for k in ("capture", "camera", "frame_idx")}),
    *fields("interhand", I, ("annotation 0",), {("capture", "capture '99'"): [99], ("camera", "camera 'x'"): ["x"]}),
    *fields("interhand", I, ("annotation 0",), {("frame_idx", "frame '1'"): [1]}),
    *(Damage("interhand", (CAPTURE,), value, CAMERA_WORDS, "camera") for value in (MISSING, None, [], 3)),
    *(
        Damage("interhand", (CAPTURE, key, CAMERA), value, (*CAMERA_WORDS, key), "camera")
        for key in ("campos", "camrot", "focal", "princpt")
        for value in (MISSING, None, [], [1], "1", [[1, 2], [3, 4]], [1, NAN], [1, 2, 3, 4])
    ),
    *fields("interhand", (CAPTURE,), CAMERA_WORDS, {"campos": [MISSING, None, []], "camrot": [MISSING, 3]}, "camera"),
    Damage("interhand", (CAPTURE, "camrot", CAMERA, 0, 0), 5, (*CAMERA_WORDS, "camrot", "rotation"), "camera"),
    Damage("interhand", (CAPTURE, "focal", CAMERA, 0), 0, (*CAMERA_WORDS, "focal"), "camera"),
    Damage("interhand", (CAPTURE, "focal", CAMERA, 1), -1500, (*CAMERA_WORDS, "focal"), "camera"),
    *(Damage("interhand", (CAPTURE, FRAME), value, FRAME_WORDS, "joint_3d") for value in (MISSING, None, [], 3)),
    *(
        Damage("interhand", (CAPTURE, FRAME, "world_coord"), value, (*FRAME_WORDS, "world_coord"), "joint_3d")
        for value in (MISSING, None, [], [[1, 2, 3]] * 41, [[1, 2]] * 42, [1, 2, 3] * 42, "x")
    ),
    *(
        Damage("interhand", (CAPTURE, FRAME, "world_coord", 3), value, (*FRAME_WORDS, "world_coord"), "joint_3d")
        for value in (None, [], [1, 2], [1, 2, NAN], [1, 2, "3"], [1, 2, 1e9])
    ),
]
ENTRIES = [*COCO, *OTHERS, *MPII, *AIC, *INTERHAND]
TEXTS = {
    "nothing": b"",
    "a brace": b"{",
    "half": None,
    "bytes": bytes(range(128, 256)),
    "words": b"hello world\nthis is no JSON",
    "null": b"null",
    "a number": b"3",
    "a text": b'"x"',
    "a list of nothing": b"[]",
    "an object of nothing": b"{}",
    "depth": b"[" * 100_000,
    "a huge number": b"1" * 5000,
    "a folder": MISSING,
    "no file": MISSING,
}
