"""PCKh: it equals a plain loop on real predictions, includes the threshold, and refuses bad input in one line."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from vitpose_training.evaluation.pckh import pckh, pckh_mpii

NAN = float("nan")
TOMPSON = "mpii/mpii_gt_val_with_tompson_preds.mat"
GROUPS = {
    "Head": [9], "Shoulder": [12, 13], "Elbow": [11, 14], "Wrist": [10, 15], "Hip": [2, 3], "Knee": [1, 4],
    "Ankle": [0, 5],
}  # fmt: skip
NAMES = (
    "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "pelvis", "thorax", "upper_neck",
    "head_top", "right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist",
)  # fmt: skip


def test_exact_mpii_predictions_are_100(samples):
    truth = loadmat(samples / "mpii/mpii_gt_val.mat")["pos_gt_src"].transpose(2, 0, 1)
    found = pckh_mpii(truth, samples / "mpii/mpii_gt_val.mat")
    assert {k: v for k, v in found.items() if v != pytest.approx(100, abs=1e-12)} == {}
    assert {"PCKh", "PCKh@0.1", *GROUPS, *NAMES} == set(found)
    moved = pckh_mpii(truth - 1, samples / "mpii/mpii_gt_val.mat")  # 0-based by mistake
    assert moved["PCKh"] == 100 and moved["PCKh@0.1"] == 100


def test_pckh_equals_a_loop(samples):
    """On the predictions of Tompson et al. for all 2,958 people."""
    mat = loadmat(samples / TOMPSON)
    predicted, truth = (mat[k].transpose(2, 0, 1).tolist() for k in ("pos_pred_src", "pos_gt_src"))
    missing, boxes = mat["jnt_missing"].T.tolist(), mat["headboxes_src"].transpose(2, 0, 1).astype(float).tolist()
    hits, close, counts = [0] * 16, [0] * 16, [0] * 16
    for found, own, gone, ((x1, y1), (x2, y2)) in zip(predicted, truth, missing, boxes, strict=True):
        head = 0.6 * math.hypot(x2 - x1, y2 - y1)
        for joint in range(16):
            if not gone[joint]:
                error = math.dist(found[joint], own[joint]) / head
                counts[joint] += 1
                hits[joint] += error <= 0.5
                close[joint] += error <= 0.1
    seen = pckh_mpii(mat["pos_pred_src"].transpose(2, 0, 1), samples / TOMPSON)
    rest = [joint for joint in range(16) if joint not in (6, 7)]
    total = sum(counts[j] for j in rest)
    assert seen["PCKh"] == pytest.approx(100 * sum(hits[j] for j in rest) / total, abs=1e-9)
    assert seen["PCKh"] == pytest.approx(82.3367161072079, abs=1e-9)
    assert seen["PCKh@0.1"] == pytest.approx(100 * sum(close[j] for j in rest) / total, abs=1e-9)
    for group, joints in GROUPS.items():
        each = [100 * hits[j] / counts[j] for j in joints]
        assert seen[group] == pytest.approx(sum(each) / len(each), abs=1e-9)
        assert {round(v, 9) for v in each} == {round(seen[NAMES[j]], 9) for j in joints}


def test_pckh_includes_the_threshold_and_ignores_unlabeled_joints():
    truth = np.zeros((1, 16, 2))
    found = np.zeros((1, 16, 2))
    found[0, 0], found[0, 1], found[0, 2], found[0, 3] = (5, 0), (5.01, 0), (99, 0), (NAN, 0)
    visible = np.ones((1, 16), bool)
    visible[0, 2] = False
    seen = pckh(found, truth, visible, [10])
    assert [seen[NAMES[j]] for j in range(5)] == [100, 0, 0, 0, 100]
    assert seen["PCKh"] == pytest.approx(100 * 11 / 13) and seen["PCKh@0.1"] == pytest.approx(100 * 10 / 13)
    assert set(pckh(found, truth, ~visible & False, [10]).values()) == {0.0}
    for sizes in ([0], [-1], [NAN]):
        with pytest.raises(ValueError, match=r"the smallest head size is .*, expected more than 0 pixels"):
            pckh(found, truth, visible, sizes)
    bodies = found[:, :14], truth[:, :14], visible[:, :14], [1]
    for people in ((found, truth, visible, [1, 2]), (found, truth, visible[:, :1], [1]), bodies):
        with pytest.raises(
            ValueError, match=r"predicted, truth, visible, head_sizes have shapes .*, expected \[N, 16, 2\]"
        ):
            pckh(*people)


def test_files_in_another_format_are_refused(samples, tmp_path):
    zeros = np.zeros((5, 16, 2))
    (tmp_path / "text.mat").write_text("no\nmatlab file\n" * 20)
    (tmp_path / "empty.mat").write_bytes(b"")
    (tmp_path / "folder.mat").mkdir()
    savemat(tmp_path / "other.mat", {"x": np.zeros(3)})
    own = {k: v for k, v in loadmat(samples / "mpii/mpii_gt_val.mat").items() if not k.startswith("__")}
    savemat(tmp_path / "shape.mat", own | {"jnt_missing": np.zeros((16, 4))})
    whole = (samples / "mpii/mpii_gt_val.mat").read_bytes()
    (tmp_path / "cut.mat").write_bytes(whole[: len(whole) // 2])
    for name in ("text", "empty", "folder", "other", "cut", "shape", "none"):
        with pytest.raises(ValueError) as error:
            pckh_mpii(zeros, tmp_path / f"{name}.mat")
        text = str(error.value)
        assert text.startswith(f"{tmp_path / name}.mat: ") and "\n" not in text and "MPII" in text
    for shape in ((4, 16, 2), (5, 16, 3), (5, 14, 2)):
        with pytest.raises(ValueError, match=r"got predictions of shape .*, expected \(5, 16, 2\), one for each in "):
            pckh_mpii(np.zeros(shape), samples / "mpii/mpii_gt_val.mat")
