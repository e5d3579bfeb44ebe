"""AP of CrowdPose and of the parts of COCO-WholeBody: published numbers, and numbers of xtcocotools."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.evaluation.results import PARTS, STATS, WHOLE_BODY_KEYS, merged, perfect
from vitpose_fast.rows import read_json
from vitpose_training.evaluation.coco_ap import evaluate_coco, evaluate_crowdpose, evaluate_wholebody

CROWDPOSE_STATS = ("AP", "AP50", "AP75", "AR", "AR50", "AR75", "APE", "APM", "APH")


def test_ground_truth_is_perfect_on_crowds_and_whole_bodies(samples):
    truth = read_json(samples / "crowdpose/test_crowdpose.json")
    assert evaluate_crowdpose(truth, perfect(truth)) == {
        k: -1.0 if k in ("APE", "APH") else 1.0 for k in CROWDPOSE_STATS
    }
    file = samples / "coco-wholebody/test_keypoint_partition_metric.json"
    found = evaluate_wholebody(file, perfect(read_json(file)))
    parts = [f"{part} {what}" for part in PARTS for what in ("AP", "AR")]
    assert found == dict.fromkeys([*STATS, *parts], 1.0) and list(found) == [*STATS, *parts]


@pytest.mark.parametrize("file", ["test_coco_wholebody", "example_gt"])
def test_ground_truth_is_perfect_on_whole_bodies_in_the_original_layout(samples, file):
    truth = merged(read_json(samples / f"coco-wholebody/{file}.json"))
    assert set(evaluate_wholebody(truth, perfect(truth)).values()) == {1.0}


def test_published_numbers_of_crowdpose(samples):
    found = evaluate_crowdpose(*(samples / f"crowdpose/example_crowdpose_{k}.json" for k in ("val", "preds")))
    exact = [0.7877215935879303, 0.9881188118811886, 0.7314356435643564, 0.8222222222222223, 1.0, 0.7777777777777778]
    assert list(found) == list(CROWDPOSE_STATS)
    assert list(found.values())[:6] == pytest.approx(exact, abs=1e-12)
    assert [round(found[k], 4) for k in ("APE", "APM", "APH")] == [1.0, 0.9802, 0.4116]


def test_crowd_levels_select_images(samples):
    truth, results = (read_json(samples / f"crowdpose/example_crowdpose_{k}.json") for k in ("val", "preds"))
    for crowd, level in ((0, "APE"), (0.19, "APE"), (0.2, "APM"), (0.79, "APM"), (0.8, "APH"), (1, "APH")):
        for image in truth["images"]:
            image["crowdIndex"] = crowd
        found = evaluate_crowdpose(truth, results)
        others = {"APE", "APM", "APH"} - {level}
        assert found[level] == found["AP"] and all(found[k] == -1 for k in others)
    for image in truth["images"][:2]:
        image["crowdIndex"] = 0.1
    own = {image["id"] for image in truth["images"][:2]}
    some = {k: [r for r in truth[k] if r.get("image_id", r.get("id")) in own] for k in ("images", "annotations")}
    mine = [r for r in results if r["image_id"] in own]
    assert evaluate_crowdpose(truth, results)["APE"] == evaluate_coco(some, mine, "crowdpose", use_area=False)["AP"]


PART_NUMBERS = {
    "body": (0.749, 0.800), "foot": (0.840, 0.850), "face": (0.051, 0.050),
    "lefthand": (0.283, 0.300), "righthand": (0.383, 0.380), "whole": (0.284, 0.450),
}  # fmt: skip


def test_published_numbers_of_whole_body_parts(samples):
    """Results that have no keypoint with a score above 0 in a part are left out of that part's evaluation.

    Every person of this file has fractional coordinates, so no array of them has an integer dtype and nothing is
    rounded.
    """
    truth = read_json(samples / "coco-wholebody/test_keypoint_partition_metric.json")
    results = []
    for row in truth["annotations"]:
        keypoints = (np.array(row["keypoints"], float).reshape(-1, 3) * [0.99, 1.02, 0.8]).flatten().tolist()
        results.append({"image_id": row["image_id"], "category_id": 1, "score": 1.0, "keypoints": keypoints})
    found = evaluate_wholebody(truth, results)
    names = {part: (f"{part} AP", f"{part} AR") for part in PARTS}
    assert {part: (round(found[ap], 3), round(found[ar], 3)) for part, (ap, ar) in names.items()} == PART_NUMBERS
    assert (found["whole AP"], found["whole AR"]) == (found["AP"], found["AR"])
    for row in results:  # now every person has all parts, most of them at (0, 0) but with the same score as the others
        row["keypoints"][2::3] = [0.8] * 133
    everybody = evaluate_wholebody(truth, results)
    assert all(everybody[ap] < found[ap] and everybody[ar] == found[ar] for ap, ar in (names["body"], names["foot"]))


WITNESS = {  # numbers of xtcocotools d74033f, which contains the official whole-body code
    "AP": 0.6420759218779022, "AP50": 1.0, "AP75": 0.8410891089108912, "APM": 0.6764504307573613,
    "APL": 0.6303173394262502, "AR": 0.7041666666666666, "AR50": 1.0, "AR75": 0.875, "ARM": 0.7454545454545454,
    "ARL": 0.6692307692307693, "body AP": 0.5311208923090113, "body AR": 0.5541666666666667,
    "foot AP": 0.6604389010329603, "foot AR": 0.66875, "face AP": 0.5271098538425272, "face AR": 0.5461538461538462,
    "lefthand AP": 0.38778877887788776, "lefthand AR": 0.39166666666666666, "righthand AP": 0.4031117397454031,
    "righthand AR": 0.45384615384615384,
}  # fmt: skip


def test_equal_to_xtcocotools_on_whole_bodies(samples):
    """Real results with one score for all parts. In every third part no keypoint has a score above 0."""
    truth, found = (read_json(samples / f"coco-wholebody/example_{k}.json") for k in ("gt", "pred"))
    for i, row in enumerate(found):
        for part, key in enumerate(WHOLE_BODY_KEYS):
            if (i + part) % 3 == 0:
                row[key][2::3] = [0] * (len(row[key]) // 3)
    found = merged({"annotations": found})["annotations"]
    expected = WITNESS | {"whole AP": WITNESS["AP"], "whole AR": WITNESS["AR"]}
    assert evaluate_wholebody(merged(truth), found) == pytest.approx(expected, abs=1e-12)


def test_each_part_begins_and_ends_where_its_list_does(samples):
    """17 keypoints of the body, 6 of the feet, 68 of the face, 21 of either hand; only one keypoint is labeled."""
    truth = merged(read_json(samples / "coco-wholebody/test_coco_wholebody.json"))
    ends = {"body": (0, 16), "foot": (17, 22), "face": (23, 90), "lefthand": (91, 111), "righthand": (112, 132)}
    for part, keypoint in [(part, k) for part, both in ends.items() for k in both]:
        for row in truth["annotations"]:
            row["keypoints"][2::3] = [2 * (k == keypoint) for k in range(133)]
            row["num_keypoints"] = 1
        found = evaluate_wholebody(truth, perfect(truth))
        by_part = {name: found[f"{name} AP"] for name in PARTS}  # -1 if no person has a labeled keypoint
        assert by_part == dict.fromkeys(PARTS, -1) | {part: 1, "whole": 1}
