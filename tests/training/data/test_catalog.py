"""Data sets made from a user's keypoint set: a damaged .json file raises a one-line error that names the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.training.data.damages import HUGE, INF, NAN, TEXTS
from tests.training.data.sample_files import MISSING, changed
from vitpose_training.data.catalog import data_set

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
    ("sigma", [0.1] * 3),  # an unknown field
    ("name", "coco"),  # the name of a built-in set, with different keypoints
]


@pytest.mark.parametrize(("field", "value"), SETS)
def test_damaged_keypoint_sets_are_refused(tmp_path, field, value):
    file = tmp_path / "pen.json"
    good = {"name": "pen", "names": ["tip", "cap", "clip"]}
    file.write_text(json.dumps(good))
    assert data_set(str(file)).keypoint_set.num_keypoints == 3
    file.write_text(json.dumps(changed(good | {field: 0}, (field,), value)))
    with pytest.raises(ValueError) as error:
        data_set(str(file))
    assert str(file) in str(error.value) and "\n" not in str(error.value)


SET_TEXTS = [text for text in TEXTS if text != "half"]


@pytest.mark.parametrize("text", SET_TEXTS)
def test_files_that_hold_no_keypoint_set_are_refused(tmp_path, text):
    file = tmp_path / "pen.json"
    if text == "a folder":
        file.mkdir()
    elif text != "no file":
        file.write_bytes(TEXTS[text])
    with pytest.raises((ValueError, OSError)) as error:
        data_set(str(file))
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_the_tables_of_damage_hold_no_duplicates():
    assert len(set(map(repr, SETS))) == len(SETS) and len(set(SET_TEXTS)) == len(SET_TEXTS)


AIC = "ai_challenger_keypoint_{0}/keypoint_{1}_images_{2}"
FILES = {  # where the original downloads and the official configurations have them
    "coco": {
        "train": ("coco/annotations/person_keypoints_train2017.json", "coco/train2017"),
        "val": ("coco/annotations/person_keypoints_val2017.json", "coco/val2017"),
    },
    "aic": {
        "train": ("aic/annotations/aic_train.json", "aic/" + AIC.format("train_20170902", "train", "20170902")),
        "val": ("aic/annotations/aic_val.json", "aic/" + AIC.format("validation_20170911", "validation", "20170911")),
    },
    "mpii": {s: (f"mpii/annotations/mpii_{s}.json", "mpii/images") for s in ("train", "val", "trainval")},
    "ap10k": {s: (f"ap10k/annotations/ap10k-{s}-split1.json", "ap10k/data") for s in ("train", "val", "test")},
    "apt36k": {s: (f"apt36k/annotations/{s}_annotations_1.json", "apt36k") for s in ("train", "val")},
    "wholebody": {
        "train": ("coco/annotations/coco_wholebody_train_v1.0.json", "coco/train2017"),
        "val": ("coco/annotations/coco_wholebody_val_v1.0.json", "coco/val2017"),
    },
    "crowdpose": {
        s: (f"crowdpose/annotations/mmpose_crowdpose_{s}.json", "crowdpose/images")
        for s in ("train", "val", "trainval", "test")
    },
    "ochuman": {
        s: (f"ochuman/annotations/ochuman_coco_format_{s}_range_0.00_1.00.json", "ochuman/images")
        for s in ("val", "test")
    },
    "interhand": {
        "train": ("interhand2.6m/annotations/all/InterHand2.6M_train_data.json", "interhand2.6m/images/train"),
        "val": ("interhand2.6m/annotations/machine_annot/InterHand2.6M_val_data.json", "interhand2.6m/images/val"),
        "test": ("interhand2.6m/annotations/all/InterHand2.6M_test_data.json", "interhand2.6m/images/test"),
    },
}


@pytest.mark.parametrize("name", FILES)
def test_every_split_lies_where_its_download_has_it(name):
    own = data_set(name)
    found = {split: own.split(Path("d"), split) for split in own.splits}
    assert found == {split: (Path("d", file), Path("d", folder)) for split, (file, folder) in FILES[name].items()}
    assert own.evaluation_only == (name == "ochuman") and own.use_area == (name not in ("aic", "crowdpose"))
