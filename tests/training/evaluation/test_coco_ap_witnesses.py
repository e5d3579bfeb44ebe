"""AP equals the AP of pycocotools and faster-coco-eval, on random data sets and on 538 images."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.evaluation.results import COCO_SIGMAS, perfect
from vitpose_fast.keypoints import KEYPOINT_SETS
from vitpose_fast.rows import read_json
from vitpose_training.evaluation.coco_ap import evaluate_coco

COCO = KEYPOINT_SETS["coco"]


def by_pycocotools(truth, results, folder):
    """Return the ten numbers of COCO's keypoint evaluation, computed by pycocotools from files written to `folder`."""
    from pycocotools.coco import COCO as Truth
    from pycocotools.cocoeval import COCOeval

    files = folder / "truth.json", folder / "results.json"
    for file, content in zip(files, (truth, results)):
        file.write_text(json.dumps(content))
    with contextlib.redirect_stdout(io.StringIO()):
        own = Truth(str(files[0]))
        evaluation = COCOeval(own, own.loadRes(str(files[1])), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


def random_set(seed, images, categories, people, found):
    """Return (ground truth, results) of a random COCO data set whose ids count from 1.

    The data holds crowds, people without labeled keypoints, people whose `num_keypoints` is 0 although some are
    labeled, equal scores, and poses that match no person.
    """
    rng = np.random.default_rng(seed)
    truth = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in range(1, images + 1)],
        "annotations": [],
        "categories": [{"id": i, "name": str(i)} for i in range(1, categories + 1)],
    }
    for n in range(1, people + 1):
        x, y, w, h = rng.uniform(0, 300), rng.uniform(0, 200), rng.uniform(10, 300), rng.uniform(10, 250)
        kind = rng.choice(["seen", "seen", "seen", "crowd", "unlabeled", "uncounted"])
        points = np.stack([rng.uniform(x, x + w, 17), rng.uniform(y, y + h, 17), rng.integers(0, 3, 17)], 1).round(2)
        points[rng.integers(17), 2] = 2
        if kind == "unlabeled":
            points[:] = 0
        count = 0 if kind == "uncounted" else int((points[:, 2] > 0).sum())
        row = {"id": n, "image_id": int(rng.integers(1, images + 1)), "bbox": [x, y, w, h], "area": 0.6 * w * h}
        row |= {"category_id": int(rng.integers(1, categories + 1)), "iscrowd": int(kind == "crowd")}
        truth["annotations"].append(row | {"num_keypoints": count, "keypoints": points.flatten().tolist()})
    results = []
    for _ in range(found):
        like = truth["annotations"][rng.integers(people)]
        points = np.array(like["keypoints"]).reshape(17, 3)
        points[:, :2] += rng.normal(0, rng.choice([0, 3, 10, 200]), (17, 2))
        row = {"image_id": like["image_id"], "category_id": like["category_id"]}
        if rng.random() < 0.2:
            row = {"image_id": int(rng.integers(1, images + 1)), "category_id": int(rng.integers(1, categories + 1))}
        row |= {"keypoints": points.flatten().tolist(), "score": float(rng.choice([0.1, 0.5, 0.9, rng.random()]))}
        results.append(row)
    return truth, results


def test_random_sets_hold_the_difficult_cases():
    truth, results = random_set(0, 1, 2, 12, 60)
    rows = truth["annotations"]
    assert any(a["iscrowd"] for a in rows) and any(not any(a["keypoints"]) for a in rows)
    assert any(a["num_keypoints"] == 0 and any(a["keypoints"][2::3]) for a in rows)
    assert len({r["score"] for r in results}) < 40  # some are equal
    assert min(sum(r["category_id"] == c for r in results) for c in (1, 2)) > 20


@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 3),
    categories=st.integers(1, 3),
    people=st.integers(1, 12),
    found=st.sampled_from([1, 5, 30, 60]),
)
@settings(max_examples=60)
def test_equal_to_pycocotools_on_random_sets(tmp_path_factory, seed, images, categories, people, found):
    """Our ids start at 0, which pycocotools would take for no match, so it gets the same set with ids from 1."""
    truth, results = random_set(seed, images, categories, people, found)
    expected = by_pycocotools(truth, results, tmp_path_factory.mktemp("sets"))
    for row in (*truth["images"], *truth["annotations"], *truth["categories"], *results):
        row |= {key: row[key] - 1 for key in ("id", "image_id", "category_id") if key in row}
    seen = evaluate_coco(truth, results, COCO)
    assert list(seen.values()) == pytest.approx(expected, abs=1e-12)


def noisy(truth, rng):
    results = perfect(truth)
    for result in results:  # many scores are equal, and those rank in the order of the images
        result["keypoints"] = (np.array(result["keypoints"]) + rng.normal(0, 4, 51)).tolist()
        result["score"] = round(rng.random(), 1)
    return results


def test_equal_to_pycocotools_and_faster_coco_eval_on_538_images(samples, tmp_path):
    from faster_coco_eval import COCO as Truth
    from faster_coco_eval import COCOeval_faster

    file = samples / "coco/person_keypoints_val2017_538img.json"
    truth = read_json(file)
    results = noisy(truth, np.random.default_rng(0))
    seen = list(evaluate_coco(truth, results, COCO).values())
    assert seen == by_pycocotools(truth, results, tmp_path)
    assert 0.2 < seen[0] < 0.9
    with contextlib.redirect_stdout(io.StringIO()):
        own = Truth(str(file))
        evaluation = COCOeval_faster(own, own.loadRes(results), "keypoints", kpt_oks_sigmas=list(COCO_SIGMAS))
        evaluation.run()
    assert seen == pytest.approx(evaluation.stats[:10].tolist(), abs=1e-12)
