"""Malformed annotation and detection files: every damage is reported, and nothing else is lost.

Damage to one entry is reported with file, entry and field, and all other people are read as before. Damage to a whole
file raises a one-line ValueError or OSError that names the file. Each test case has one damage.
"""

from __future__ import annotations

import json

import pytest

from tests.training.data.damages import (
    CAMERA,
    CAPTURE,
    ENTRIES,
    FRAME,
    HUGE,
    INF,
    NAN,
    NO_BOX,
    NO_ID,
    NO_NAME,
    TEXTS,
)
from tests.training.data.sample_files import COMPANIONS, FILES, MISSING, changed
from vitpose_fast.coco import read_detections
from vitpose_training.data.read import read_labels
from vitpose_training.evaluation.scores import check_can_evaluate


def lost(damage, data):
    """Return the ids of the annotations that become unusable through a damage."""
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
    """Return {annotation id: everything that was read about the person}."""
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
def test_damaged_entries_are_reported_and_the_rest_is_read(original, reread, tmp_path, damage):
    before, data = reread(damage.layout, original(damage.layout)), original(damage.layout)
    damaged = changed(original(damage.layout, damage.kind), damage.path, damage.value)
    after = reread(damage.layout, **{"data": data, damage.kind: damaged})
    assert not before.problems and after.problems
    assert all(p.startswith(f"{tmp_path / 'x_data.json'}: ") and "\n" not in p for p in after.problems)
    named = [p for p in after.problems if all(word in p for word in damage.words)]
    assert named, after.problems
    gone = lost(damage, data)
    assert known(after) == {key: value for key, value in known(before).items() if key not in gone}
    assert set(damage.path[:1]) == {"categories"} or gone & known(before).keys()
    if damage.path[0] == "annotations":  # every entry counts once
        hands = 2 if damage.layout == "interhand" else 1
        assert 1 <= len(after.problems) <= hands and before.entries - hands < after.entries <= before.entries
    if before.truth is not None:
        rest = [row for row in before.truth["annotations"] if row["id"] not in gone]
        assert after.truth["annotations"] == rest


WHOLE = [(layout, text) for layout in FILES for text in TEXTS]


@pytest.mark.parametrize(("layout", "text"), WHOLE)
def test_unusable_files_are_refused(original, reread, tmp_path, layout, text):
    """Each file of a layout in turn; InterHand has three."""
    for kind in ("data", *(COMPANIONS if layout == "interhand" else ())):
        if text == "an object of nothing" and kind != "data":
            continue  # not an unusable file: every annotation is reported instead, because its camera is missing
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
    """But they can be trained on."""
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
def test_damaged_detections_are_reported(tmp_path, path, value, word):
    rows = [{"image_id": i, "category_id": 1, "bbox": [10, 20, 60, 50.5], "score": 0.9} for i in (1, 2, 3)]
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps(rows))
    before, problems = read_detections(file)
    assert len(before) == 3 and not problems
    file.write_text(json.dumps(changed(rows, (1, *path), value)))
    after, (problem,) = read_detections(file)
    assert after == [before[0], before[2]]
    assert problem.startswith(f"{file}: detection 1") and word in problem and "\n" not in problem


def test_there_are_at_least_200_different_cases():
    tables = {"entries": ENTRIES, "whole": WHOLE, "lists": LISTS, "crowds": CROWDS, "detections": DETECTIONS}
    every = [f"{name}: {one!r}" for name, table in tables.items() for one in table]
    assert len(set(every)) == len(every) >= 200
