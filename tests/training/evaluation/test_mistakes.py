"""Mistakes are classified as jitter, inversion, swap or miss, poses are paired with people, the worst are drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.training.evaluation.results import COCO_SIGMAS, MPII_SIGMAS
from vitpose_fast.keypoints import KEYPOINT_SETS
from vitpose_training.data.catalog import data_set
from vitpose_training.data.people import Labels, Person
from vitpose_training.evaluation.mistakes import breakdown, classify, count, pair, similarity
from vitpose_training.evaluation.worst import draw_worst

COCO = data_set("coco").keypoint_set
KINDS = ("good", "jitter", "inversion", "swap", "miss")
SIGMAS = {"coco": COCO_SIGMAS, "mpii": MPII_SIGMAS, "interhand": [0.05] * 21}
MIRROR = {  # the channel of each keypoint in a mirrored image
    "coco": (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15),
    "mpii": (5, 4, 3, 2, 1, 0, 6, 7, 8, 9, 15, 14, 13, 12, 11, 10),
    "interhand": tuple(range(21)),
}
AREA = 10_000.0


def person(number, at, image=1, path=None, **changes):
    rng = np.random.default_rng(number)
    points = (np.array(at) + rng.permutation(np.arange(17))[:, None] * np.array([40.0, 12.0])).astype(np.float32)
    values = dict(keypoints=points, visible=np.ones(17, np.float32), **changes)
    return Person(path, image, number, 1, (*map(float, at), 680.0, 204.0), values["keypoints"], values["visible"])


def result(points, score=1.0, image=1, **more):
    triples = np.concatenate([points, np.ones((17, 1))], 1)
    return {"image_id": image, "category_id": 1, "keypoints": triples.flatten().tolist(), "score": score, **more}


def labels(*people):
    rows = [{"id": p.annotation_id, "area": AREA} for p in people]
    return Labels(data_set("coco"), list(people), {"annotations": rows})


def distance_for(similar, keypoint):
    """Return the distance in pixels from its true position at which a keypoint (a COCO index) has this similarity.

    The similarity is the keypoint's term of OKS, for a person of area `AREA`.
    """
    return 2 * COCO_SIGMAS[keypoint] * np.sqrt(-2 * AREA * np.log(similar))


def test_similarity_is_the_term_of_oks():
    left_hip = COCO.index("left_hip")
    moved = np.zeros((17, 2))
    moved[left_hip, 0] = distance_for(0.7, left_hip)
    assert similarity(moved, np.zeros((17, 2)), AREA, np.array(COCO_SIGMAS))[left_hip] == pytest.approx(0.7)


def test_each_kind_of_mistake_is_recognized():
    me, other = person(0, (0, 0)), person(1, (0, 2000))
    nose, left_eye, right_eye, left_knee, left_hip, right_hip, left_ear = (
        COCO.index(n) for n in ("nose", "left_eye", "right_eye", "left_knee", "left_hip", "right_hip", "left_ear")
    )
    found = me.keypoints.astype(float).copy()
    found[nose, 0] += distance_for(0.86, nose)
    found[left_eye, 0] += distance_for(0.6, left_eye)
    found[left_hip] = me.keypoints[right_hip]
    found[left_knee] = other.keypoints[left_knee]
    found[right_eye] = other.keypoints[left_eye]  # the mirror keypoint of another person
    found[left_ear] = (-5000, -5000)
    kinds = classify(found, [other.keypoints, me.keypoints], [other.visible, me.visible], [AREA, AREA], 1, COCO)
    expected = np.zeros(17, int)
    for keypoint, kind in {
        left_eye: "jitter", left_hip: "inversion", left_knee: "swap", right_eye: "swap", left_ear: "miss",
    }.items():  # fmt: skip
        expected[keypoint] = KINDS.index(kind)
    assert kinds.tolist() == expected.tolist()
    hidden = me.visible.copy()
    hidden[[nose, right_hip]] = 0
    kinds = classify(found, [me.keypoints], [hidden], [AREA], 0, COCO)
    assert kinds[nose] == -1 and kinds[left_hip] == kinds[left_knee] == KINDS.index("miss")


@given(seed=st.integers(0, 2**32 - 1), people=st.integers(1, 4), name=st.sampled_from(["coco", "mpii", "interhand"]))
def test_kinds_equal_a_loop(seed, people, name):
    """The loop follows the definition keypoint by keypoint. InterHand has neither sigmas nor mirror keypoints."""
    keypoints = KEYPOINT_SETS[name]
    count_of = len(SIGMAS[name])
    sigmas = SIGMAS[name]
    rng = np.random.default_rng(seed)
    truth, seen = rng.uniform(0, 60, (people, count_of, 2)), (rng.random((people, count_of)) < 0.7).astype(float)
    areas, own = rng.uniform(500, 4000, people), int(rng.integers(people))
    mirrored = truth[own][list(MIRROR[name])]
    found = np.where(rng.random((count_of, 1)) < 0.3, mirrored, truth[own])
    found = found + rng.normal(0, rng.choice([1, 8, 20]), (count_of, 2))

    def near(k, person, at, limit):
        squared = math.dist(found[k], truth[person, at]) ** 2
        return seen[person, at] > 0 and math.exp(-squared / (2 * areas[person] * (2 * sigmas[k]) ** 2)) >= limit

    expected = []
    for k, mirror in enumerate(MIRROR[name]):
        others = [(p, at) for p in range(people) if p != own for at in (k, mirror)]
        if not seen[own, k]:
            expected.append(-1)
        elif near(k, own, k, 0.5):
            expected.append(0 if near(k, own, k, 0.85) else 1)
        elif mirror != k and near(k, own, mirror, 0.5):
            expected.append(2)
        else:
            expected.append(3 if any(near(k, p, at, 0.5) for p, at in others) else 4)
    assert classify(found, list(truth), list(seen), areas.tolist(), own, keypoints).tolist() == expected


def test_poses_with_nan_are_misses():
    me = person(0, (0, 0))
    found = np.full((17, 2), np.nan)
    assert set(classify(found, [me.keypoints], [me.visible], [AREA], 0, COCO)) == {KINDS.index("miss")}
    assert pair(labels(me), [result(found)]) == []


def test_poses_are_paired_with_people_by_id_or_by_oks():
    a, b, c = person(0, (0, 0)), person(1, (0, 2000)), person(2, (0, 0), image=2)
    data = labels(a, b, c)
    found = [
        result(b.keypoints, 0.9),
        result(a.keypoints, 0.3),
        result(a.keypoints + 1, 0.8),
        result(c.keypoints + 900, 0.7),
    ]
    pairs = pair(data, found)
    assert [(p.person.annotation_id, p.result["score"]) for p in pairs] == [(1, 0.9), (0, 0.8)]
    assert pairs[0].oks == 1 and 0.9 < pairs[1].oks < 1
    by_id = pair(data, [result(b.keypoints, annotation_id=0), result(a.keypoints, annotation_id=1)])
    assert sorted((p.person.annotation_id, p.oks < 0.1) for p in by_id) == [(0, True), (1, True)]
    counts = count(data, by_id)
    assert counts.sum() == 3 * 17  # all labeled keypoints of all three people
    assert counts[:, KINDS.index("swap")].sum() == 2 * 17 and counts[:, KINDS.index("miss")].sum() == 17
    text, by_name = breakdown(counts, COCO)
    assert by_name["nose"] == {"good": 0, "jitter": 0, "inversion": 0, "swap": 2, "miss": 1}
    assert text.splitlines()[1].split() == ["all", "keypoints", "0.0%", "0.0%", "0.0%", "66.7%", "33.3%", "51"]
    assert len(text.splitlines()) == 19
    whole = data_set("wholebody").keypoint_set
    assert len(breakdown(np.zeros((133, 5), int), whole)[0].splitlines()) == 2


def test_the_worst_are_drawn_first(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.full((300, 800, 3), 90, np.uint8)).save(path)
    people = [person(i, (10, 10), path=path) for i in range(3)]
    gone = person(3, (10, 10), path=tmp_path / "gone.png")
    found = [result(p.keypoints + 30 * i, annotation_id=p.annotation_id) for i, p in enumerate((*people, gone))]
    pairs = pair(labels(*people, gone), found)
    assert draw_worst(pairs, COCO, tmp_path / "worst.png", most=2) == 2
    with Image.open(tmp_path / "worst.png") as picture:
        pixels = np.array(picture).astype(int)
    assert (np.ptp(pixels, axis=2) > 60).sum() > 200  # colored skeletons on gray
    half = pixels.shape[1] // 2
    assert draw_worst(pairs[::-1], COCO, tmp_path / "again.png", most=1) == 1
    with Image.open(tmp_path / "again.png") as picture:
        assert (np.array(picture).astype(int) == pixels[:, : half - 3]).mean() > 0.99  # the worst is drawn first
    assert draw_worst([], COCO, tmp_path / "none.png") == 0 and not (tmp_path / "none.png").exists()


def test_without_annotated_areas_a_person_is_as_large_as_53_per_cent_of_the_box():
    me = person(0, (0, 0))  # the box is 680x204
    (found,) = pair(Labels(data_set("coco"), [me], None), [result(me.keypoints + (10, 0), annotation_id=0)])
    expected = np.exp(-100 / (2 * 0.53 * 680 * 204 * (2 * np.array(COCO_SIGMAS)) ** 2)).mean()
    assert found.oks == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("exact", "pairs"), [(1, 0), (2, 1)])
def test_poses_and_people_are_paired_from_an_oks_of_a_tenth(exact, pairs):
    """Exact are 1 or 2 of 17 keypoints, the others are far away: an OKS of 0.059 or 0.118."""
    me = person(0, (0, 0))
    points = me.keypoints + 1e5
    points[:exact] = me.keypoints[:exact]
    assert len(pair(labels(me), [result(points)])) == pairs
