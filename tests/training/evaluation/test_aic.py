"""AI Challenger's score: it gives the published number, equals a plain loop, and refuses bad files in one line."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest

from tests.training.evaluation.results import AIC_SIGMAS
from vitpose_fast.rows import read_json
from vitpose_training.evaluation.aic import aic_score

NAN, INF = float("nan"), float("inf")
AIC_FILES = [f"aic/aic_keypoint_{k}_example.json" for k in ("annotations", "predictions")]


def test_published_number_of_aic(samples):
    assert aic_score(*(samples / f for f in AIC_FILES)) == pytest.approx(0.99674031, abs=1e-8)
    truth = read_json(samples / AIC_FILES[0])
    assert aic_score(truth, truth) == 1 and aic_score(truth, []) == 0


def aic_loop(truth, found):
    """Compute AI Challenger's score by its definition in docs/numerics.md 7.3, as a plain loop."""
    sigmas, by_image = AIC_SIGMAS, {row["image_id"]: row["keypoint_annotations"] for row in found}
    thresholds = [0.5 + 0.05 * i for i in range(10)]
    hits, total = [0] * 10, 0
    for row in truth:
        people, predicted = row["keypoint_annotations"], by_image.get(row["image_id"], {})
        total += max(len(people), len(predicted))
        for one in predicted.values():
            best = 0.0
            for name, own in people.items():
                x1, y1, x2, y2 = row["human_annotations"][name]
                area, terms = (x2 - x1) * (y2 - y1) + 1, []
                for k in range(14):
                    if own[3 * k + 2] == 1:
                        squared = (own[3 * k] - one[3 * k]) ** 2 + (own[3 * k + 1] - one[3 * k + 1]) ** 2
                        terms.append(math.exp(-squared / (2 * (2 * sigmas[k]) ** 2) / area))
                best = max(best, sum(terms) / len(terms) if terms else 0.0)
            hits = [h + (best > t) for h, t in zip(hits, thresholds)]
    return sum(hits) / 10 / total


def test_aic_score_equals_a_loop(samples):
    truth = read_json(samples / AIC_FILES[0])[:60]
    rng = np.random.default_rng(0)
    found = copy.deepcopy(truth[5:])
    for row in found:
        for name, flat in list(row["keypoint_annotations"].items()):
            row["keypoint_annotations"][name] = (np.array(flat) + rng.normal(0, rng.choice([1, 4]), 42)).tolist()
        row["keypoint_annotations"] |= {"one more": [0.0] * 42} if rng.random() < 0.3 else {}
        del row["human_annotations"]
    expected = aic_loop(truth, found)
    assert 0.2 < expected < 0.8 and aic_score(truth, found) == pytest.approx(expected, abs=1e-12)


def test_aic_adds_one_to_the_area_of_the_box():
    """A person without a box has an area of one square pixel. An OKS of 0.77 is above six of the ten thresholds."""
    sigma = AIC_SIGMAS[0]
    away = math.sqrt(-math.log(0.77) * 2 * (2 * sigma) ** 2)
    truth = [{"image_id": "a", "keypoint_annotations": {"h": [0, 0, 1, *[0, 0, 2] * 13]}}]
    found = [{"image_id": "a", "keypoint_annotations": {"p": [away, 0, 1, *[99, 99, 1] * 13]}}]
    assert aic_score(truth, found) == pytest.approx(0.6)


GOOD = {"image_id": "a", "human_annotations": {"h": [0, 0, 9, 9]}, "keypoint_annotations": {"h": [1] * 42}}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({}, "expected a list of images"),
        (None, "expected a list of images"),
        ([GOOD, 3], "entry 1: expected image_id"),
        ([GOOD, None], "entry 1: expected image_id"),
        ([{k: v for k, v in GOOD.items() if k != "image_id"}], "entry 0: expected image_id"),
        ([{"image_id": "a"}], "entry 0: expected image_id and keypoint_annotations of 14 x, y, v each"),
        ([GOOD | {"keypoint_annotations": []}], "entry 0: "),
        ([GOOD | {"keypoint_annotations": [[1] * 42]}], "entry 0: "),
        ([GOOD | {"keypoint_annotations": {"h": [1] * 41}}], "entry 0: "),
        ([GOOD | {"keypoint_annotations": {"h": [1] * 42, "i": [1] * 40}}], "entry 0: "),
        ([GOOD | {"keypoint_annotations": {"h": [1] * 84}}], "entry 0: "),
        ([GOOD | {"keypoint_annotations": {"h": [1] * 41 + ["x"]}}], "entry 0: "),
        ([GOOD | {"keypoint_annotations": {"h": [1] * 41 + [NAN]}}], "entry 0: "),
        ([GOOD | {"keypoint_annotations": {"h": [1] * 41 + [10**400]}}], "entry 0: "),
        ([GOOD | {"human_annotations": {"h": [0, 0, 9]}}], "entry 0: "),
        ([GOOD | {"human_annotations": {"h": [0, 0, 9, INF]}}], "entry 0: "),
        ([GOOD | {"human_annotations": [1]}], "entry 0: "),
        ([GOOD, GOOD], "entry 1: "),
    ],
)
def test_files_in_another_format_are_refused(bad, message):
    assert aic_score([GOOD], [GOOD]) == 1
    for call in (lambda: aic_score(bad, [GOOD]), lambda: aic_score([GOOD], bad)):
        with pytest.raises(ValueError) as error:
            call()
        text = str(error.value)
        assert message in text and "\n" not in text and text.startswith(("annotations: ", "predictions: "))
