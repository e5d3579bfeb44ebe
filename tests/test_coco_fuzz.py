"""Random damage to annotation and detection files gives one-line messages, and the remaining rows are usable."""

from __future__ import annotations

import json
import random

from vitpose_fast.coco import check_annotations, is_training_person, read_annotations, read_detections
from vitpose_fast.keypoints import KEYPOINT_SETS
from vitpose_training.data.read import read_labels
from vitpose_training.evaluation.metrics import evaluate_coco

COCO = KEYPOINT_SETS["coco"]


def annotations():
    def person(id, image_id):
        keypoints = [v for i in range(17) for v in (20 + 3 * i, 30 + 2 * i, 2)]
        row = {"id": id, "image_id": image_id, "category_id": 1, "bbox": [10, 20, 60.5, 50], "area": 900.0}
        return {**row, "iscrowd": 0, "num_keypoints": 17, "keypoints": keypoints}

    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 120, "height": 90} for i in (1, 2)],
        "annotations": [person(5, 1), person(6, 2)],
        "categories": [{"id": 1, "name": "person"}],
    }


def outcome(read, data, file):
    """Write damaged data to a file and read it; assert that every message is one line with the name of the file.

    Returns:
        (rows, "reported" or, without any message, "clean"), or (None, "refused") if `read` raises ValueError.
    """
    file.write_text(json.dumps(data))
    try:
        kept, problems = read(file)
    except ValueError as error:
        assert "\n" not in str(error) and "file.json: " in str(error), data
        return None, "refused"
    assert all("\n" not in p and p.startswith(f"{file}: ") for p in problems), data
    return kept, "reported" if problems else "clean"


def test_damaged_annotations(tmp_path, damage):
    rng = random.Random(0)
    seen = []
    for _ in range(300):
        data = damage(annotations(), rng)
        kept, what = outcome(lambda file: read_annotations(file, COCO), data, tmp_path / "file.json")
        seen.append(what)
        if kept is not None:
            assert check_annotations(kept, COCO) == (kept, []), data
            used = [a["id"] for a in kept["annotations"] if is_training_person(a)]
            try:
                assert [p.annotation_id for p in read_labels("coco", tmp_path / "file.json", tmp_path).people] == used
            except ValueError as error:
                assert "no person with labeled coco keypoints" in str(error) and not used, data
            perfect = [{**a, "score": 1.0} for a in kept["annotations"]]
            assert round(evaluate_coco(kept, perfect, COCO)["AP"], 9) == (1 if used else -1), data
    assert all(seen.count(what) >= 5 for what in ("clean", "reported", "refused"))


def test_damaged_detections(tmp_path, damage):
    rng = random.Random(0)
    rows = [{"image_id": i, "category_id": 1, "bbox": [10, 20, 60, 50.5], "score": 0.9} for i in (1, 2)]
    rows.append({"file_name": "1.png", "bbox": [1, 2, 3, 4]})
    seen = []
    for _ in range(300):
        data = damage(rows, rng)
        kept, what = outcome(read_detections, data, tmp_path / "file.json")
        seen.append(what)
        if kept is not None:
            assert read_detections([{k: v for k, v in row.items() if k != "index"} for row in kept])[1] == [], data
            assert {row["index"] for row in kept} <= set(range(3)) and len({row["index"] for row in kept}) == len(kept)
            assert all(len(row["bbox"]) == 4 and min(row["bbox"][2:]) > 0 and "score" in row for row in kept), data
    assert all(seen.count(what) >= 5 for what in ("clean", "reported", "refused"))
