"""COCO files: every damaged row is reported and skipped, and an unusable file raises a ValueError of one line."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from vitpose_fast.coco import check_annotations, read_annotations, read_detections
from vitpose_fast.keypoints import KEYPOINT_SETS

COCO = KEYPOINT_SETS["coco"]
NAN, INF = float("nan"), float("inf")
MISSING = object()


def keypoints(visibility=2):
    return [v for i in range(17) for v in (20 + 3 * i, 30 + 2 * i, visibility)]


def annotation(**changes):
    row = {"id": 5, "image_id": 1, "category_id": 1, "bbox": [10.0, 20.0, 60.0, 50.0], "area": 900.0, "iscrowd": 0,
           "num_keypoints": 17, "keypoints": keypoints(), **changes}  # fmt: skip
    return {k: v for k, v in row.items() if v is not MISSING}


def image(**changes):
    row = {"id": 1, "file_name": "a.png", "width": 120, "height": 90, **changes}
    return {k: v for k, v in row.items() if v is not MISSING}


def detection(**changes):
    row = {"image_id": 1, "category_id": 1, "bbox": [10.0, 20.0, 60.0, 50.0], "score": 0.9, **changes}
    return {k: v for k, v in row.items() if v is not MISSING}


def valid():
    return {
        "images": [image(), image(id=2, file_name="b.png")],
        "annotations": [annotation(), annotation(id=6, image_id=2)],
        "categories": [{"id": 1, "name": "person"}],
    }


def write(folder: Path, data) -> Path:
    (folder / "file.json").write_text(json.dumps(data))
    return folder / "file.json"


DAMAGED_ANNOTATIONS = [
    (dict(id=MISSING), "no id"),
    (dict(id=None), "id is None, expected a whole number or a string"),
    (dict(id=[1]), "id is [1], expected"),
    (dict(id=True), "id is True, expected"),
    (dict(id=1.5), "id is 1.5, expected"),
    (dict(id=5), "the id is already used by annotation 0"),
    (dict(image_id=MISSING), "no image_id"),
    (dict(image_id=9), "image_id 9 is not in images"),
    (dict(image_id={}), "image_id is {}, expected"),
    (dict(category_id=MISSING), "no category_id"),
    (dict(category_id=[]), "category_id is [], expected"),
    (dict(bbox=MISSING), "no bbox"),
    (dict(bbox=None), "bbox is None, expected four finite numbers"),
    (dict(bbox=[1, 2, 3]), "bbox is [1, 2, 3], expected four"),
    (dict(bbox=[[1, 2, 30, 40]]), "expected four finite numbers"),
    (dict(bbox=[10, NAN, 30, 50]), "bbox is [10, nan, 30, 50], expected four finite"),
    (dict(bbox=[10, 20, INF, 50]), "expected four finite"),
    (dict(bbox=[10, 20, "30", 50]), "expected four finite"),
    (dict(bbox=[10, 20, True, 50]), "expected four finite"),
    (dict(bbox=[10, 20, -30, 50]), "expected four finite"),
    (dict(bbox=[10, 20, 1e308, 50]), "expected four finite"),
    (dict(bbox=[10, 20, 10**400, 50]), "expected four finite"),
    (dict(bbox=[10, 20, 0, 50]), "is empty inside the 120x90 image"),
    (dict(bbox=[500, 20, 30, 50]), "is empty inside the 120x90 image"),
    (dict(area=0), "area 0, is empty inside"),
    (dict(area=None), "area is None, expected a finite number"),
    (dict(area=NAN), "area is nan, expected a finite number"),
    (dict(area="9"), "area is '9', expected a finite number"),
    (dict(iscrowd="no"), "iscrowd is 'no', expected 0 or 1"),
    (dict(iscrowd=[]), "iscrowd is [], expected 0 or 1"),
    (dict(iscrowd=2), "iscrowd is 2, expected 0 or 1"),
    (dict(num_keypoints="17"), "num_keypoints is '17', expected"),
    (dict(num_keypoints=NAN), "num_keypoints is nan, expected"),
    (dict(keypoints=MISSING), "no keypoints"),
    (dict(keypoints=None), "keypoints is None, expected a flat list"),
    (dict(keypoints={}), "keypoints is {}, expected a flat list"),
    (dict(keypoints=[1, 1, 2]), "keypoints has 3 numbers, expected 51 for coco"),
    (dict(keypoints=[NAN, *keypoints()[1:]]), "expected a flat list of finite numbers"),
    (dict(keypoints=[[1, 1, 2]] * 17), "expected a flat list of finite numbers"),
    (dict(keypoints=keypoints(-1)), "visibility -1, expected 0, 1 or 2"),
]


@pytest.mark.parametrize(("change", "reason"), DAMAGED_ANNOTATIONS)
def test_damaged_annotations_are_reported_and_skipped(tmp_path, change, reason):
    row = annotation(**{"id": 6, **change})
    file = write(tmp_path, {"images": [image()], "annotations": [annotation(), row]})
    data, problems = read_annotations(file, COCO)
    assert [a["id"] for a in data["annotations"]] == [5] and len(problems) == 1
    own = f" (id {row['id']!r})" if "id" in row else ""
    assert problems[0].startswith(f"{file}: annotation 1{own}: ") and reason in problems[0] and "\n" not in problems[0]


@pytest.mark.parametrize("row", [None, 3, "x", [], [1], True])
def test_rows_that_are_no_objects(tmp_path, row):
    data = {key: [*rows, row] for key, rows in valid().items()}
    checked, problems = check_annotations(data, COCO, "f")
    assert {key: len(rows) for key, rows in checked.items()} == {"images": 2, "annotations": 2, "categories": 1}
    kinds = {"image": 2, "annotation": 2, "category": 1}
    assert problems == [f"f: {kind} {i}: is {row!r}, expected a JSON object" for kind, i in kinds.items()]
    found, problems = read_detections([detection(), row])
    assert len(found) == 1 and problems == [f"detections: detection 1: is {row!r}, expected a JSON object"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(id=MISSING), "no id"),
        (dict(id={}), "id is {}, expected a whole number or a string"),
        (dict(id=1), "the id is already used by image 0"),
        (dict(file_name=MISSING), "no file_name"),
        (dict(file_name=3), "file_name is 3, expected the name"),
        (dict(file_name=" "), "file_name is ' ', expected the name"),
        (dict(file_name="a\nb"), r"file_name is 'a\nb', expected the name"),
        (dict(file_name="\ud800"), "expected the name"),
        (dict(width=MISSING), "no width"),
        (dict(width="120"), "width is '120', expected a whole number"),
        (dict(height=0), "height is 0, expected a whole number"),
        (dict(height=NAN), "height is nan, expected a whole number"),
        (dict(height=True), "height is True, expected a whole number"),
        (dict(height=10.5), "height is 10.5, expected a whole number"),
    ],
)
def test_damaged_images_are_skipped_with_their_annotations(tmp_path, change, reason):
    data = valid()
    data["images"][1] = image(**{"id": 2, **change})
    checked, problems = read_annotations(write(tmp_path, data), COCO)
    assert [i["id"] for i in checked["images"]] == [1] and [a["id"] for a in checked["annotations"]] == [5]
    assert len(problems) == 2 and "image 1" in problems[0] and reason in problems[0]
    assert "annotation 1 (id 6): image_id 2 is not in images" in problems[1]


def test_missing_fields_are_filled_in_and_the_input_is_not_changed():
    bare = annotation(area=MISSING, iscrowd=MISSING, num_keypoints=MISSING, category_id=4, score=0.5)
    bare["keypoints"][2] = 0
    data = {"images": [image(width=120.0)], "annotations": [bare]}
    before = copy.deepcopy(data)
    checked, problems = check_annotations(data, COCO)
    (row,) = checked["annotations"]
    assert problems == [] and data == before
    assert row["area"] == pytest.approx(0.53 * 60 * 50)
    assert (row["iscrowd"], row["num_keypoints"], row["score"]) == (0, 16, 0.5)
    assert checked["categories"] == [{"id": 4, "name": "4"}]
    assert check_annotations(checked, COCO) == (checked, [])


def test_crowds_and_people_without_labels_are_kept():
    rows = [
        annotation(id=1),
        annotation(id=2, iscrowd=1, bbox=[0, 0, 0, 0], area=0),
        annotation(id=3, keypoints=keypoints(0), num_keypoints=9, bbox=[500, 0, 9, 9]),
        annotation(id=4, keypoints=MISSING, num_keypoints=MISSING),
        annotation(id=5, keypoints=MISSING, num_keypoints=0, iscrowd=True),
    ]
    checked, problems = check_annotations({"images": [image()], "annotations": rows}, COCO)
    assert problems == [] and [a["num_keypoints"] for a in checked["annotations"]] == [17, 17, 0, 0, 0]
    assert all(len(a["keypoints"]) == 51 for a in checked["annotations"])
    assert [a["iscrowd"] for a in checked["annotations"]] == [0, 1, 0, 0, 1]


@pytest.mark.parametrize("categories", [None, 3, "x", {}])
def test_damaged_categories_are_reported_and_replaced(categories):
    checked, problems = check_annotations({**valid(), "categories": categories}, COCO, "f")
    assert problems == [f"f: categories is {categories!r}, expected a list"]
    assert [c["id"] for c in checked["categories"]] == [1]
    checked, problems = check_annotations({**valid(), "categories": [{"id": 1}, {"id": 1}, {"name": "x"}]}, COCO)
    assert len(checked["categories"]) == 1 and len(problems) == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "no such file"),
        ("{", "not readable as JSON"),
        ("[" * 100_000, "nested too deeply"),
        (b"\xff\xfe", "not readable as JSON"),
        ("[]", "no list 'images'"),
        ("3", "no list 'images'"),
        ('{"images": {}, "annotations": []}', "no list 'images'"),
        ('{"images": []}', "no list 'annotations'"),
        ('{"images": [], "annotations": []}', "no usable image among 0"),
        ('{"images": [{"id": 1}], "annotations": []}', "no usable image among 1; the first of 1 problems: image 0"),
        (
            json.dumps({**valid(), "annotations": [annotation(bbox=None), 3]}),
            "no usable annotation among 2; the first of 2 problems: annotation 0 (id 5): bbox is None",
        ),
    ],
)
def test_unusable_annotation_files_give_one_line(tmp_path, text, reason):
    file = tmp_path / "file.json"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match="file.json: ") as error:
        read_annotations(file, COCO)
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_a_folder_is_no_annotation_file(tmp_path):
    with pytest.raises(ValueError, match="not readable as JSON"):
        read_annotations(tmp_path, COCO)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(bbox=MISSING), "no bbox"),
        (dict(bbox="left"), "bbox is 'left', expected four finite numbers"),
        (dict(bbox=[1, 2, 3]), "expected four finite numbers"),
        (dict(bbox=[[1, 2, 3, 4]]), "expected four finite numbers"),
        (dict(bbox=[1, 2, [3], 4]), "expected four finite numbers"),
        (dict(bbox=[1, 2, NAN, 4]), "expected four finite numbers"),
        (dict(bbox=[1, 2, 1e308, 4]), "expected four finite numbers"),
        (dict(bbox=[1, 2, 3, None]), "expected four finite numbers"),
        (dict(bbox=[1, 2, 3, -4]), "expected four finite numbers"),
        (dict(bbox=[1, 2, 0, 4]), "expected width and height > 0"),
        (dict(score=None), "score is None, expected a finite number"),
        (dict(score="0.9"), "score is '0.9', expected a finite number"),
        (dict(score=NAN), "score is nan, expected a finite number"),
        (dict(score=INF), "score is inf, expected a finite number"),
        (dict(score=True), "score is True, expected a finite number"),
        (dict(score=[0.5]), "score is [0.5], expected a finite number"),
        (dict(image_id=MISSING), "neither image_id nor file_name"),
        (dict(image_id=[1]), "image_id is [1], expected a whole number"),
        (dict(image_id=None), "image_id is None, expected a whole number"),
        (dict(file_name=3), "file_name is 3, expected the name"),
        (dict(category_id={}), "category_id is {}, expected a whole number"),
    ],
)
def test_damaged_detections_are_reported_and_skipped(tmp_path, change, reason):
    file = write(tmp_path, [detection(), detection(**change)])
    rows, problems = read_detections(file)
    assert rows == [{**detection(), "index": 0}] and len(problems) == 1
    assert problems[0].startswith(f"{file}: detection 1: ") and reason in problems[0]
    with pytest.raises(
        ValueError, match="no usable detection among 1; the first of 1 problems: detection 0: "
    ) as error:
        read_detections([detection(**change)])
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_optional_fields_of_detections(tmp_path):
    file = write(tmp_path, [{"file_name": "b/1.png", "bbox": [1, 2, 3, 4]}, {"image_id": 7.0, "bbox": [1, 2, 3, 4]}])
    (first, second), problems = read_detections(file)
    assert problems == [] and first == {"bbox": [1, 2, 3, 4], "score": 1.0, "file_name": "b/1.png", "index": 0}
    assert second["image_id"] == 7 and isinstance(second["image_id"], int)
    assert read_detections([]) == ([], [])


def test_an_annotation_file_is_accepted_as_detections(tmp_path):
    rows, problems = read_detections(write(tmp_path, {**valid(), "images": [image(), 3, image(id=2, file_name=3)]}))
    assert [r["image_id"] for r in rows] == [1, 2] and {r["score"] for r in rows} == {1.0}
    assert rows[0]["file_name"] == "a.png" and "file_name" not in rows[1] and len(problems) == 2
    rows, problems = read_detections(write(tmp_path, {"annotations": [annotation()]}))
    assert len(rows) == 1 and problems == []


@pytest.mark.parametrize("data", [None, 3, "x", {}, {"annotations": 3}, {"annotations": {}, "images": 3}])
def test_unusable_detection_files_give_one_line(tmp_path, data):
    with pytest.raises(ValueError, match=r"file\.json: expected a JSON list of detections"):
        read_detections(write(tmp_path, data))


def test_messages_about_huge_values_are_short():
    _, problems = check_annotations({**valid(), "categories": [list(range(10**6)), "x" * 10**6]}, COCO)
    assert len(problems) == 2 and max(map(len, problems)) < 200
