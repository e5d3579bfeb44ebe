"""Malformed files and options, one damage each: none is silent, none ends in a traceback, nothing else is lost.

Damage to one entry is named with file, entry and field, and everybody else is read as before; damage to a whole file is
a ValueError or OSError of one line that names the file; damage to options is an exit code and a reason.
"""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any, NamedTuple

import pytest

from vitpose_fast.__main__ import main
from vitpose_fast.checkpoints import load_model
from vitpose_fast.coco import read_detections
from vitpose_fast.rows import read_json
from vitpose_training.data.catalog import data_set
from vitpose_training.data.read import read_labels
from vitpose_training.evaluation.scores import check_can_evaluate

NAN, INF, HUGE = float("nan"), float("inf"), 10**400
MISSING = object()
FILES = {  # layout -> data set and sample
    "coco": ("coco", "coco/test_coco.json"),
    "apt36k": ("apt36k", "apt-36k/apt36k_wolf_reconstructed.json"),
    "wholebody": ("wholebody", "coco-wholebody/test_coco_wholebody.json"),
    "aic": ("aic", "aic/test_aic.json"),
    "aic original": ("aic", "aic/aic_keypoint_annotations_example.json"),
    "mpii": ("mpii", "mpii/test_mpii.json"),
    "crowdpose": ("crowdpose", "crowdpose/test_crowdpose.json"),
    "interhand": ("interhand", "interhand2.6m/test_interhand2.6m_data.json"),
}
COMPANIONS = ("camera", "joint_3d")
HUMAN = "human1"  # of the first image of the original AIC sample


class Damage(NamedTuple):
    layout: str
    path: tuple[Any, ...]
    value: Any
    words: tuple[str, ...]
    """What the message must hold beside the file: entry and field."""
    kind: str = "data"
    """Or one of InterHand's companions."""


def fields(layout, path, entry, table, kind="data"):
    """A damage for each value of each field; (field, word) where the message has another word than the field."""
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
    """Values of a flat list of count x, y, v that are damage."""
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
    Damage("coco", ("annotations", 1, "id"), 442619, ("annotation 1", "id is that of annotation 0")),
    *fields("coco", I, IMAGE, {"id": NO_ID, "file_name": NO_NAME, "width": NO_SIZE, "height": NO_SIZE}),
    *(Damage("coco", I, value, ("image 0", "expected a JSON object")) for value in (None, 3, [], "785.jpg")),
    Damage("coco", ("images", 1, "id"), 785, ("image 1", "id is that of image 0")),
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
FLAT = no_keypoints(14)[:-1]  # theirs have other visibilities
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
CAPTURE, CAMERA, FRAME = "3", "400026", "69148"  # of the first annotation
CAMERA_WORDS, FRAME_WORDS = ("annotation", "x_camera.json"), ("annotation", "x_joint_3d.json")
INTERHAND = [
    *(Damage("interhand", A, value, ("annotation 0", "expected a JSON object")) for value in (None, 3, [])),
    *fields("interhand", A, ANNOTATION, {"id": NO_ID, "image_id": [*NO_ID, 5]}),
    Damage("interhand", ("annotations", 1, "id"), 326750, ("annotation 1", "id is that of annotation 0")),
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


def changed(data, path, value):
    """A copy of `data` with the value at `path` replaced, or taken out where it is MISSING."""
    data = copy.deepcopy(data)
    *way, last = path
    place = data
    for key in way:
        place = place[key]
    if value is MISSING:
        del place[last]
    else:
        place[last] = copy.deepcopy(value)
    return data


@pytest.fixture(scope="module")
def original(samples):
    """original(layout, kind) -> the content of a sample file, of a list its first five entries."""

    @cache
    def read(layout, kind="data"):
        if kind != "data":
            return read_json(samples / f"interhand2.6m/test_interhand2.6m_{kind}.json")
        data = read_json(samples / FILES[layout][1])
        return data[:5] if isinstance(data, list) else data

    return read


@pytest.fixture
def reread(original, tmp_path):
    """reread(layout, data, kind) -> the labels of changed content; InterHand's companions beside it."""

    def read(layout, data, kind="data"):
        content = {"data": original(layout), kind: data}
        for name in ("data", *(COMPANIONS if layout == "interhand" else ())):
            text = json.dumps(content[name] if name in content else original(layout, name))
            (tmp_path / f"x_{name}.json").write_text(text)
        return read_labels(FILES[layout][0], tmp_path / "x_data.json", tmp_path)

    return read


def lost(damage, data):
    """Ids of the annotations that a damaged entry takes with it."""
    layout, path = damage.layout, damage.path
    if layout == "mpii":
        return {path[0]}
    if layout == "aic original":
        entry = data[path[0]]
        return {f"{entry['image_id']} {h}" for h in (path[2:3] or entry["human_annotations"])}
    if damage.kind != "data":
        key = "camera" if damage.kind == "camera" else "frame_idx"
        own = (CAMERA, FRAME)[damage.kind == "joint_3d"]
        whole = len(damage.path) == 1 or (len(damage.path) == 2 and damage.kind == "camera")
        images = {i["id"] for i in data["images"] if str(i["capture"]) == CAPTURE and (whole or str(i[key]) == own)}
    elif path[0] == "images":
        images = {data["images"][path[1]]["id"]}
    else:
        images = set()
    rows = [a for a in data["annotations"] if a["image_id"] in images]
    rows += [data["annotations"][path[1]]] if path[0] == "annotations" else []
    ids = {row["id"] for row in rows}
    return {f"{i} {side}" for i in ids for side in ("right", "left")} if layout == "interhand" else ids


def known(labels):
    """Everything that was read of every person."""
    return {
        p.annotation_id: (
            p.image,
            p.image_id,
            p.category_id,
            p.box,
            p.keypoints.tolist(),
            p.visible.tolist(),
            p.image_size,
        )
        for p in labels.people
    }


def name_of(damage):
    value = "missing" if damage.value is MISSING else repr(damage.value)[:24]
    return f"{damage.layout}-{damage.kind}-{'.'.join(map(str, damage.path))}={value}"


@pytest.mark.parametrize("damage", ENTRIES, ids=name_of)
def test_damaged_entries_are_named_and_the_rest_is_read(original, reread, tmp_path, damage):
    before, data = reread(damage.layout, original(damage.layout)), original(damage.layout)
    after = reread(damage.layout, changed(original(damage.layout, damage.kind), damage.path, damage.value), damage.kind)
    assert not before.problems and after.problems
    assert all(p.startswith(f"{tmp_path / 'x_data.json'}: ") and "\n" not in p for p in after.problems)
    named = [p for p in after.problems if all(word in p for word in damage.words)]
    assert named, after.problems
    gone = lost(damage, data)
    assert known(after) == {key: value for key, value in known(before).items() if key not in gone}
    assert set(damage.path[:1]) == {"categories"} or gone & known(before).keys()
    if damage.path[0] == "annotations":  # every entry is counted once
        hands = 2 if damage.layout == "interhand" else 1
        assert 1 <= len(after.problems) <= hands and before.entries - hands < after.entries <= before.entries
    if before.truth is not None:
        rest = [row for row in before.truth["annotations"] if row["id"] not in gone]
        assert after.truth["annotations"] == rest


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
WHOLE = [(layout, text) for layout in FILES for text in TEXTS]


@pytest.mark.parametrize(("layout", "text"), WHOLE)
def test_files_of_no_use_are_refused(original, reread, tmp_path, layout, text):
    """Each of a data set's files; InterHand has three."""
    for kind in ("data", *(COMPANIONS if layout == "interhand" else ())):
        if text == "an object of nothing" and kind != "data":
            continue  # then every annotation is named, as its camera is not there
        reread(layout, original(layout))
        file = tmp_path / f"x_{kind}.json"
        whole = file.read_bytes()
        file.unlink()
        if text == "a folder":
            file.mkdir()
        elif text != "no file":
            file.write_bytes(whole[: len(whole) // 2] if text == "half" else TEXTS[text])
        with pytest.raises((ValueError, OSError)) as error:
            read_labels(FILES[layout][0], tmp_path / "x_data.json", tmp_path)
        assert str(file) in str(error.value) and "\n" not in str(error.value)
        file.rmdir() if text == "a folder" else file.unlink(missing_ok=True)


LISTS = [
    (layout, key, value)
    for layout in FILES
    if layout not in ("mpii", "aic original")
    for key in ("images", "annotations")
    for value in (MISSING, None, {}, "x", 3, [], [None])
]


@pytest.mark.parametrize(("layout", "key", "value"), LISTS)
def test_files_without_their_lists_are_refused(original, reread, tmp_path, layout, key, value):
    with pytest.raises(ValueError) as error:
        reread(layout, changed(original(layout), (key,), value))
    text = str(error.value)
    assert text.startswith(f"{tmp_path / 'x_data.json'}: ") and "\n" not in text


CROWDS = [MISSING, None, "0.5", NAN, [0.5], True]


@pytest.mark.parametrize("value", CROWDS, ids=lambda v: "missing" if v is MISSING else repr(v))
def test_images_without_a_crowd_index_cannot_be_evaluated(original, reread, tmp_path, value):
    """They can be trained on."""
    labels = reread("crowdpose", changed(original("crowdpose"), ("images", 0, "crowdIndex"), value))
    assert known(labels) == known(reread("crowdpose", original("crowdpose"))) and not labels.problems
    with pytest.raises(ValueError) as error:
        check_can_evaluate([labels])
    text = str(error.value)
    assert text.startswith(f"{tmp_path / 'x_data.json'}: ") and "crowdIndex" in text and "\n" not in text


DETECTIONS = [
    *((("image_id",), value, "image_id") for value in NO_ID[1:]),
    (("image_id",), MISSING, "neither image_id nor file_name"),
    *((("category_id",), value, "category_id") for value in NO_ID[1:]),
    *((("bbox",), value, "bbox") for value in [*NO_BOX, [10, 10, 0, 5]]),
    *((("score",), value, "score") for value in (None, "0.9", NAN, INF, [], True, HUGE)),
    *((("file_name",), value, "file_name") for value in NO_NAME[1:]),
    *(((), value, "expected a JSON object") for value in (None, 3, [], "x")),
]


@pytest.mark.parametrize(("path", "value", "word"), DETECTIONS)
def test_damaged_detections_are_named(tmp_path, path, value, word):
    rows = [{"image_id": i, "category_id": 1, "bbox": [10, 20, 60, 50.5], "score": 0.9} for i in (1, 2, 3)]
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps(rows))
    before, problems = read_detections(file)
    assert len(before) == 3 and not problems
    file.write_text(json.dumps(changed(rows, (1, *path), value)))
    after, (problem,) = read_detections(file)
    assert after == [before[0], before[2]]
    assert problem.startswith(f"{file}: detection 1") and word in problem and "\n" not in problem


SETS = [
    *(("name", value) for value in (MISSING, None, "", 3, [])),
    *(
        ("names", value)
        for value in (MISSING, None, "tip", [], {}, ["tip", "tip", "cap"], ["tip", 3, "clip"], ["tip", ""])
    ),
    *(("sigmas", value) for value in (3, "x", [0.1], [0.1] * 4, [0.1, 0.1, 0], [0.1, 0.1, NAN], [0.1, 0.1, "1"])),
    *(
        ("sigmas", value)
        for value in ([0.1, 0.1, -1], [0.1, 0.1, INF], [0.1, 0.1, HUGE], [0.1, 0.1, True], [0.1, 0.1, None])
    ),
    *(
        ("flip_pairs", value)
        for value in (None, "x", 3, [3], [["tip"]], [["tip", "nib"]], [["tip", "tip"]], [["a", "b", "c"]])
    ),
    ("flip_pairs", [["tip", "cap"], ["cap", "clip"]]),
    *(("skeleton", value) for value in (None, {}, [None], ["tip"], [["tip", 0]], [["cap", "cap"]])),
    *(("upper_body", value) for value in (None, "tip", ["nib"], [0], ["tip", "tip"], [["tip"]])),
    *(("codec", value) for value in (None, "", "UDP", 3, ["udp"])),
    ("sigma", [0.1] * 3),  # unknown fields are mistakes
    ("name", "coco"),  # a built-in set with other content
]


@pytest.mark.parametrize(("field", "value"), SETS)
def test_damaged_keypoint_sets_are_refused(tmp_path, field, value):
    file = tmp_path / "pen.json"
    good = {"name": "pen", "names": ["tip", "cap", "clip"]}
    file.write_text(json.dumps(good))
    assert data_set(str(file)).keypoints.num_keypoints == 3
    file.write_text(json.dumps(changed(good | {field: 0}, (field,), value)))
    with pytest.raises(ValueError) as error:
        data_set(str(file))
    assert str(file) in str(error.value) and "\n" not in str(error.value)


SET_TEXTS = [text for text in TEXTS if text != "half"]


@pytest.mark.parametrize("text", SET_TEXTS)
def test_keypoint_sets_that_are_none_are_refused(tmp_path, text):
    file = tmp_path / "pen.json"
    if text == "a folder":
        file.mkdir()
    elif text != "no file":
        file.write_bytes(TEXTS[text])
    with pytest.raises((ValueError, OSError)) as error:
        data_set(str(file))
    assert str(file) in str(error.value) and "\n" not in str(error.value)


WEIGHTS = [
    (name, content)
    for name in ("w.pth", "w.safetensors")
    for content in (b"", b"hello world, this is no checkpoint", bytes(100), b"PK\x03\x04", b"{}", None)
]


@pytest.mark.parametrize(("name", "content"), WEIGHTS)
def test_weights_that_are_none_are_refused(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, OSError)) as error:
        load_model(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def bad(option, *values):
    return [(f"--{option} {value}", option) for value in values]


OPTIONS = [  # arguments, a word of the reason
    *bad("lr", "x", "nan", "inf", "-1", "0", ""),
    *bad("sigma", "0", "nan"),
    *bad("clip", "0", "-1"),
    *bad("layer-decay", "0", "nan"),
    *bad("max-seconds", "0", "nan", "-3"),
    *bad("weight-decay", "-1", "nan"),
    *bad("warmup", "-1", "1.5"),
    *bad("workers", "-1", "many"),
    *bad("seed", "-1", "4294967296"),
    *bad("eval-every", "-1"),
    *bad("epochs", "0", "-1", "1.5", "x"),
    *bad("batch-size", "0", "-4", "1.5"),
    *bad("micro-batch", "0", "9999"),
    *bad("keep", "0"),
    *bad("log-every", "0"),
    *bad("save-every", "0"),
    *bad("max-bad-images", "-1"),
    *bad("ema", "0", "1", "nan", "-0.5"),
    *bad("blur-kernel", "0", "2", "-1"),
    *bad("milestones", "0.9 0.1", "0", "1.5", "nan"),
    *((f"--{name} x", name) for name in ("precision", "schedule", "sampling", "codec", "batchnorm", "recompute")),
    *((f"--{name} x", name) for name in ("parallel", "experts", "track", "patch-stride", "image-size", "window")),
    ("--patch-stride 4", "patch-stride"),
    ("--image-size 64", "image-size"),
    ("--image-size 8 8", "image_size"),
    ("--image-size 0 48", "image_size"),
    ("--model vitpose-xxl", "vitpose-xxl"),
    ("--decoder x", "decoder"),
    ("--attention x", "attention"),
    ("--attention window --window 0 3", "window"),
    ("--attention window --window 99 99", "window"),
    ("--part-features -1", "part_features"),
    ("--part-features 9999", "part_features"),
    ("--experts added --part-features 48", "exclude each other"),
    *((f"--drop-path {v}", "drop_path") for v in ("1", "-0.1", "nan")),
    ("--augmentation.flip-probability 2", "flip_probability"),
    ("--augmentation.flip-probability nan", "flip_probability"),
    ("--augmentation.half-body-probability -1", "half_body_probability"),
    ("--augmentation.scale-factor 1", "scale_factor"),
    ("--augmentation.rotation-degrees 181", "rotation_degrees"),
    ("--augmentation.rotation-degrees nan", "rotation_degrees"),
    ("--tasks", "tasks"),
    ("--tasks coco coco", "tasks"),
    ("--tasks nobody", "nobody"),
    ("--tasks none.json", "none.json"),
    ("--tasks ochuman", "evaluation only"),
    ("--tasks coco aic", "tasks"),
    ("--tasks aic", "aic"),  # with files of COCO
    ("--val-tasks aic", "val_tasks"),
    ("--train-images a b", "folders"),
    ("--train none.json", "none.json"),
    ("--val none.json", "none.json"),
    ("--boxes none.json --val a.json b.json", "boxes"),
    ("--resume --overwrite", "--resume"),
    ("--parallel fsdp", "torchrun"),
    ("--device nowhere", "nowhere"),
    ("--init none.pth", "none.pth"),
    ("--nothing 3", "--nothing"),
    ("--no-such-flag", "--no-such-flag"),
    ("stray", "stray"),
    ("--lr", "lr"),
]


@pytest.mark.parametrize(("options", "word"), OPTIONS)
def test_options_that_make_no_sense_are_refused(samples, tmp_path, capsys, monkeypatch, options, word):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")
    file, folder = str(samples / "coco/test_coco.json"), str(samples / "coco")
    good = ["--train", file, "--train-images", folder, "--val", file, "--val-images", folder]
    good += ["--image-size", "64", "48", "--device", "cpu", "--epochs", "1", "--dry-run", "--out", "run"]
    with pytest.raises(SystemExit) as end:
        main(["train", "tiny", *good, *options.split(" ")])
    text = capsys.readouterr().err
    assert end.value.code in (1, 2) and "Traceback" not in text
    if end.value.code == 1:
        assert text.startswith("vitpose-fast: error: ") and text.count("\n") == 1
    assert word in text or word.replace("-", "_") in text
    assert list(tmp_path.iterdir()) == []


def test_there_are_more_than_200_and_all_differ():
    tables = {
        "entries": ENTRIES, "whole": WHOLE, "lists": LISTS, "crowds": CROWDS, "detections": DETECTIONS,
        "sets": SETS, "set texts": SET_TEXTS, "weights": WEIGHTS, "options": OPTIONS,
    }  # fmt: skip
    every = [f"{name}: {one!r}" for name, table in tables.items() for one in table]
    assert len(set(every)) == len(every)
    files = len(every) - len(OPTIONS) - len(WEIGHTS)
    assert files >= 200 and len(OPTIONS) >= 60
