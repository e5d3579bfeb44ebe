"""The published keypoint tables (docs/numerics.md 7.2), properties of every keypoint set, and users' JSON files."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitpose_fast.keypoints import (
    KEYPOINT_SETS,
    KeypointSet,
    custom_keypoint_set,
    keypoint_set,
    load_keypoint_set,
)

# The tables of docs/numerics.md 7.2 by index, as written there; the module under test writes them by name.
TABLES: dict[str, dict[str, str]] = {
    "coco": {
        "names": """
            nose, left_eye, right_eye, left_ear, right_ear, left_shoulder, right_shoulder, left_elbow, right_elbow,
            left_wrist, right_wrist, left_hip, right_hip, left_knee, right_knee, left_ankle, right_ankle""",
        "flip_pairs": """
            1-2 3-4 5-6 7-8 9-10 11-12 13-14 15-16""",
        "skeleton": """
            15-13 13-11 16-14 14-12 11-12 5-11 6-12 5-6 5-7 6-8 7-9 8-10 1-2 0-1 0-2 1-3 2-4 3-5 4-6""",
        "upper_body": "0 1 2 3 4 5 6 7 8 9 10",
        "sigmas": """
            0.026 0.025 0.025 0.035 0.035 0.079 0.079 0.072 0.072 0.062 0.062 0.107 0.107 0.087 0.087 0.089 0.089""",
    },
    "aic": {
        "names": """
            right_shoulder, right_elbow, right_wrist, left_shoulder, left_elbow, left_wrist, right_hip, right_knee,
            right_ankle, left_hip, left_knee, left_ankle, head_top, neck""",
        "flip_pairs": """
            0-3 1-4 2-5 6-9 7-10 8-11""",
        "skeleton": """
            2-1 1-0 0-13 13-3 3-4 4-5 8-7 7-6 6-9 9-10 10-11 12-13 0-6 3-9""",
        "upper_body": "0 1 2 3 4 5 12 13",
        "sigmas": """
            0.01388152 0.01515228 0.01057665 0.01417709 0.01497891 0.01402144 0.03909642 0.03686941 0.01981803
            0.03843971 0.03412318 0.02415081 0.01291456 0.01236173""",
    },
    "mpii": {
        "names": """
            right_ankle, right_knee, right_hip, left_hip, left_knee, left_ankle, pelvis, thorax, upper_neck, head_top,
            right_wrist, right_elbow, right_shoulder, left_shoulder, left_elbow, left_wrist""",
        "flip_pairs": """
            0-5 1-4 2-3 10-15 11-14 12-13""",
        "skeleton": """
            0-1 1-2 2-6 6-3 3-4 4-5 6-7 7-8 8-9 8-12 12-11 11-10 8-13 13-14 14-15""",
        "upper_body": "7 8 9 10 11 12 13 14 15",
        "sigmas": """
            0.089 0.083 0.107 0.107 0.083 0.089 0.026 0.026 0.026 0.026 0.062 0.072 0.179 0.179 0.072 0.062""",
    },
    "ap10k": {
        "names": """
            L_Eye, R_Eye, Nose, Neck, Root of tail, L_Shoulder, L_Elbow, L_F_Paw, R_Shoulder, R_Elbow, R_F_Paw, L_Hip,
            L_Knee, L_B_Paw, R_Hip, R_Knee, R_B_Paw""",
        "flip_pairs": """
            0-1 5-8 6-9 7-10 11-14 12-15 13-16""",
        "skeleton": """
            0-1 0-2 1-2 2-3 3-4 3-5 5-6 6-7 3-8 8-9 9-10 4-11 11-12 12-13 4-14 14-15 15-16""",
        "upper_body": "0 1 2 3 5 6 7 8 9",
        "sigmas": """
            0.025 0.025 0.026 0.035 0.035 0.079 0.072 0.062 0.079 0.072 0.062 0.107 0.087 0.089 0.107 0.087 0.089""",
    },
    "crowdpose": {
        "names": """
            left_shoulder, right_shoulder, left_elbow, right_elbow, left_wrist, right_wrist, left_hip, right_hip,
            left_knee, right_knee, left_ankle, right_ankle, top_head, neck""",
        "flip_pairs": """
            0-1 2-3 4-5 6-7 8-9 10-11""",
        "skeleton": """
            10-8 8-6 11-9 9-7 6-7 0-6 1-7 0-1 0-2 1-3 2-4 3-5 12-13 1-13 0-13""",
        "upper_body": "0 1 2 3 4 5 12 13",
        "sigmas": """
            0.079 0.079 0.072 0.072 0.062 0.062 0.107 0.107 0.087 0.087 0.089 0.089 0.079 0.079""",
    },
    "interhand": {
        "names": """
            thumb4, thumb3, thumb2, thumb1, forefinger4, forefinger3, forefinger2, forefinger1, middle_finger4,
            middle_finger3, middle_finger2, middle_finger1, ring_finger4, ring_finger3, ring_finger2, ring_finger1,
            pinky_finger4, pinky_finger3, pinky_finger2, pinky_finger1, wrist""",
        "flip_pairs": """
        """,
        "skeleton": """
            20-3 3-2 2-1 1-0 20-7 7-6 6-5 5-4 20-11 11-10 10-9 9-8 20-15 15-14 14-13 13-12 20-19 19-18 18-17 17-16""",
        "upper_body": "",
        "sigmas": """
""",
    },
    "wholebody": {
        "flip_pairs": """
            1-2 3-4 5-6 7-8 9-10 11-12 13-14 15-16 17-20 18-21 19-22 23-39 24-38 25-37 26-36 27-35 28-34 29-33 30-32
            40-49 41-48 42-47 43-46 44-45 54-58 55-57 59-68 60-67 61-66 62-65 63-70 64-69 71-77 72-76 73-75 78-82
            79-81 83-87 84-86 88-90 91-112 92-113 93-114 94-115 95-116 96-117 97-118 98-119 99-120 100-121 101-122
            102-123 103-124 104-125 105-126 106-127 107-128 108-129 109-130 110-131 111-132""",
        "skeleton": """
            15-13 13-11 16-14 14-12 11-12 5-11 6-12 5-6 5-7 6-8 7-9 8-10 1-2 0-1 0-2 1-3 2-4 3-5 4-6 15-17 15-18 15-19
            16-20 16-21 16-22 91-92 92-93 93-94 94-95 91-96 96-97 97-98 98-99 91-100 100-101 101-102 102-103 91-104
            104-105 105-106 106-107 91-108 108-109 109-110 110-111 112-113 113-114 114-115 115-116 112-117 117-118
            118-119 119-120 112-121 121-122 122-123 123-124 112-125 125-126 126-127 127-128 112-129 129-130 130-131
            131-132""",
        "upper_body": "0 1 2 3 4 5 6 7 8 9 10",
        "sigmas": """
            0.026 0.025 0.025 0.035 0.035 0.079 0.079 0.072 0.072 0.062 0.062 0.107 0.107 0.087 0.087 0.089 0.089
            0.068 0.066 0.066 0.092 0.094 0.094 0.042 0.043 0.044 0.043 0.04 0.035 0.031 0.025 0.02 0.023 0.029 0.032
            0.037 0.038 0.043 0.041 0.045 0.013 0.012 0.011 0.011 0.012 0.012 0.011 0.011 0.013 0.015 0.009 0.007
            0.007 0.007 0.012 0.009 0.008 0.016 0.01 0.017 0.011 0.009 0.011 0.009 0.007 0.013 0.008 0.011 0.012 0.01
            0.034 0.008 0.008 0.009 0.008 0.008 0.007 0.01 0.008 0.009 0.009 0.009 0.007 0.007 0.008 0.011 0.008 0.008
            0.008 0.01 0.008 0.029 0.022 0.035 0.037 0.047 0.026 0.025 0.024 0.035 0.018 0.024 0.022 0.026 0.017 0.021
            0.021 0.032 0.02 0.019 0.022 0.031 0.029 0.022 0.035 0.037 0.047 0.026 0.025 0.024 0.035 0.018 0.024 0.022
            0.026 0.017 0.021 0.021 0.032 0.02 0.019 0.022 0.031""",
    },
}
TABLES["ochuman"], TABLES["apt36k"] = TABLES["coco"], TABLES["ap10k"]
ALL = ("coco", "aic", "mpii", "ap10k", "apt36k", "wholebody", "crowdpose", "ochuman", "interhand")
COUNTS = {"coco": 17, "aic": 14, "mpii": 16, "ap10k": 17, "apt36k": 17, "wholebody": 133, "crowdpose": 14}
COUNTS |= {"ochuman": 17, "interhand": 21}


def pairs(text: str) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(i) for i in pair.split("-")) for pair in text.split())


def one_line(error: pytest.ExceptionInfo[BaseException]) -> bool:
    return len(str(error.value).splitlines()) == 1


# --- the registry ---------------------------------------------------------------------------------------------------


def test_the_registry_holds_the_nine_sets_and_is_read_only() -> None:
    assert set(KEYPOINT_SETS) == set(ALL)
    assert all(KEYPOINT_SETS[name].name == name for name in ALL)
    with pytest.raises(TypeError):
        KEYPOINT_SETS["coco"] = KEYPOINT_SETS["aic"]  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        KEYPOINT_SETS["coco"].codec = "msra"  # type: ignore[misc]


@pytest.mark.parametrize("name", ALL)
def test_sets_equal_the_published_tables(name: str) -> None:
    keypoints, table = KEYPOINT_SETS[name], TABLES[name]
    assert keypoints.num_keypoints == len(keypoints.names) == COUNTS[name]
    assert keypoints.flip_pairs == pairs(table["flip_pairs"])
    assert keypoints.skeleton == pairs(table["skeleton"])
    assert keypoints.upper_body == tuple(int(i) for i in table["upper_body"].split())
    assert keypoints.sigmas == (tuple(float(sigma) for sigma in table["sigmas"].split()) or None)
    if "names" in table:  # whole-body names are published as ranges, which the next test checks
        assert keypoints.names == tuple(" ".join(part.split()) for part in table["names"].split(","))


def test_whole_body_channels_follow_the_published_ranges() -> None:
    names = KEYPOINT_SETS["wholebody"].names
    assert names[:17] == KEYPOINT_SETS["coco"].names
    assert names[17:20] == ("left_big_toe", "left_small_toe", "left_heel")
    assert names[20:23] == ("right_big_toe", "right_small_toe", "right_heel")
    assert names[23:91] == tuple(f"face_{i}" for i in range(68))
    fingers = ("thumb", "forefinger", "middle_finger", "ring_finger", "pinky_finger")
    for start, side in ((91, "left"), (112, "right")):
        joints = [f"{side}_{finger}{joint}" for finger in fingers for joint in (1, 2, 3, 4)]
        assert names[start : start + 21] == (f"{side}_hand_root", *joints)


def test_codecs_follow_the_data_sets() -> None:
    udp = {name for name in ALL if KEYPOINT_SETS[name].codec == "udp"}
    assert udp == {"coco", "mpii"}  # docs/numerics.md 6.3
    assert all(KEYPOINT_SETS[name].codec == "msra" for name in set(ALL) - udp)


@pytest.mark.parametrize(("alias", "original"), [("ochuman", "coco"), ("apt36k", "ap10k")])
def test_aliases_differ_in_name_and_codec_only(alias: str, original: str) -> None:
    ours, theirs = KEYPOINT_SETS[alias], KEYPOINT_SETS[original]
    assert dataclasses.replace(ours, name=theirs.name, codec=theirs.codec) == theirs


def test_mirroring_swaps_sides_by_name() -> None:
    """The mirrored left_x is right_x in every set with sides in its names; this does not depend on the tables above."""
    sides = {"left_": "right_", "right_": "left_", "L_": "R_", "R_": "L_"}
    for keypoints in KEYPOINT_SETS.values():
        for i, name in enumerate(keypoints.names):
            if name.startswith("face_"):
                continue
            side = next((side for side in sides if name.startswith(side)), "")
            expected = sides.get(side, "") + name.removeprefix(side)
            assert keypoints.names[keypoints.flip_permutation[i]] == expected


# --- properties of every set ----------------------------------------------------------------------------------------


@st.composite
def keypoint_sets(draw: st.DrawFn) -> KeypointSet:
    names = draw(st.lists(st.text(min_size=1), min_size=1, max_size=9, unique=True))
    channels = range(len(names))
    shuffled = draw(st.permutations(channels))
    paired = draw(st.integers(0, len(names) // 2))
    limb = st.tuples(st.sampled_from(channels), st.sampled_from(channels)).filter(lambda pair: pair[0] != pair[1])
    sigma = st.floats(1e-3, 1.0)
    return KeypointSet(
        name=draw(st.text(min_size=1).filter(lambda name: name not in KEYPOINT_SETS)),
        names=tuple(names),
        flip_pairs=tuple(zip(shuffled[:paired], shuffled[paired : 2 * paired])),
        skeleton=tuple(draw(st.lists(limb, max_size=5))) if len(names) > 1 else (),
        sigmas=draw(st.none() | st.tuples(*[sigma] * len(names))),
        upper_body=tuple(draw(st.lists(st.sampled_from(channels), unique=True))),
        codec=draw(st.sampled_from(["udp", "msra"])),
    )


any_set = st.sampled_from(sorted(KEYPOINT_SETS)).map(KEYPOINT_SETS.__getitem__) | keypoint_sets()


@given(any_set)
def test_mirroring_twice_changes_nothing(keypoints: KeypointSet) -> None:
    flip = keypoints.flip_permutation
    assert sorted(flip) == list(range(keypoints.num_keypoints))
    assert all(flip[flip[i]] == i for i in range(keypoints.num_keypoints))
    moved = {i for i, j in enumerate(flip) if i != j}
    assert moved == {i for pair in keypoints.flip_pairs for i in pair}


@given(any_set)
def test_index_inverts_names(keypoints: KeypointSet) -> None:
    assert [keypoints.index(name) for name in keypoints.names] == list(range(keypoints.num_keypoints))


@given(any_set)
def test_the_dict_is_json_by_name_and_comes_back_equal(keypoints: KeypointSet) -> None:
    data = json.loads(json.dumps(keypoints.to_dict()))
    assert data == keypoints.to_dict()
    assert all(isinstance(name, str) for pair in data["skeleton"] + data["flip_pairs"] for name in pair)
    back = KeypointSet.from_dict(data)
    assert back == keypoints
    assert hash(back) == hash(keypoints)


def test_the_round_trip_holds_for_every_built_in_set() -> None:
    for keypoints in KEYPOINT_SETS.values():
        assert KeypointSet.from_dict(keypoints.to_dict()) == keypoints


def test_index_lists_the_valid_names() -> None:
    with pytest.raises(
        ValueError, match=r"'mpii' has no keypoint 'tail', expected one of .*'pelvis', 'thorax'"
    ) as error:
        KEYPOINT_SETS["mpii"].index("tail")
    assert one_line(error)


@pytest.mark.parametrize("field", ["flip_pairs", "skeleton", "upper_body"])
@pytest.mark.parametrize("channel", [-1, 2])  # -1 would be a valid tuple index, so it must be checked
def test_the_constructor_refuses_channels_that_do_not_exist(field: str, channel: int) -> None:
    keypoints = custom_keypoint_set(2)
    value = (channel,) if field == "upper_body" else ((0, channel),)
    with pytest.raises(ValueError, match=rf"got channel {channel}, expected 0 to 1") as error:
        dataclasses.replace(keypoints, **{field: value})  # type: ignore[arg-type]
    assert one_line(error)


# --- users' JSON files ----------------------------------------------------------------------------------------------

PEN: dict[str, Any] = {"name": "pen", "names": ["tip", "cap", "clip"]}


def written(folder: Path, content: object) -> Path:
    path = folder / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_one_keypoint_is_enough(tmp_path: Path) -> None:
    keypoints = load_keypoint_set(written(tmp_path, {"name": "ball", "names": ["center"]}))
    assert keypoints == KeypointSet("ball", ("center",), (), (), (0.05,), (), "udp")
    assert keypoints.flip_permutation == (0,)


def test_every_field_is_read(tmp_path: Path) -> None:
    fields = {"flip_pairs": [["cap", "tip"]], "skeleton": [["clip", "tip"], ["tip", "cap"]], "upper_body": ["clip"]}
    path = written(tmp_path, PEN | fields | {"sigmas": [0.1, 1, 0.2], "codec": "msra"})
    expected = KeypointSet("pen", ("tip", "cap", "clip"), ((1, 0),), ((2, 0), (0, 1)), (0.1, 1.0, 0.2), (2,), "msra")
    assert load_keypoint_set(path) == expected
    assert [type(sigma) for sigma in load_keypoint_set(path).sigmas or ()] == [float] * 3  # 1 == 1.0
    assert load_keypoint_set(str(path)) == expected
    assert expected.flip_permutation == (1, 0, 2)


def test_sigmas_null_means_none_and_sigmas_left_out_means_the_default(tmp_path: Path) -> None:
    assert load_keypoint_set(written(tmp_path, PEN | {"sigmas": None})).sigmas is None
    assert load_keypoint_set(written(tmp_path, PEN)).sigmas == (0.05, 0.05, 0.05)


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "windows.json"
    path.write_text(json.dumps(PEN), encoding="utf-8-sig")
    assert load_keypoint_set(path).names == ("tip", "cap", "clip")


@pytest.mark.parametrize("name", ALL)
def test_a_built_in_set_written_to_a_file_is_no_clash(tmp_path: Path, name: str) -> None:
    assert load_keypoint_set(written(tmp_path, KEYPOINT_SETS[name].to_dict())) == KEYPOINT_SETS[name]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"Expecting value: line 1 .*, expected a keypoint set in JSON; correct the file"),
        ("{'name': 'pen'}", r"Expecting property name .*, expected a keypoint set in JSON; correct the file"),
        ("[" * 200_000, r"recursion.*, expected a keypoint set in JSON; correct the file"),
        (["tip", "cap"], r"got \['tip', 'cap'\], expected an object with name and names"),
        ({"name": "pen"}, r"the field 'names' is missing, expected at least name and names; add it"),
        ({"names": ["tip"]}, r"the field 'name' is missing, expected at least name and names; add it"),
        (PEN | {"names": []}, r"names is empty, expected at least one keypoint; list them"),
        (PEN | {"names": "tip"}, r"names is 'tip', expected a list; put it in \[ \]"),
        (PEN | {"names": ["tip", 3]}, r"3 is used as a name, expected a non-empty string"),
        (PEN | {"names": ["tip", ["cap"]]}, r"\['cap'\] is used as a name, expected a non-empty string"),
        (PEN | {"name": ""}, r"'' is used as a name, expected a non-empty string"),
        (PEN | {"names": ["tip", "cap", "tip"]}, r"names contains 'tip' twice, expected different names; rename"),
        (PEN | {"names": ["a\nb", "a\nb"]}, r"names contains 'a\\nb' twice"),
        (
            PEN | {"skeleton": [["tip", "nib"]]},
            r"skeleton contains 'nib', expected one of \('tip', 'cap', 'clip'\); corr",
        ),
        (
            PEN | {"flip_pairs": [["nib", "tip"]]},
            r"flip_pairs contains 'nib', expected one of \('tip', 'cap', 'clip'\)",
        ),
        (PEN | {"upper_body": ["nib"]}, r"upper_body contains 'nib', expected one of \('tip', 'cap', 'clip'\)"),
        (PEN | {"skeleton": [[0, 1]]}, r"skeleton contains 0, expected one of \('tip', 'cap', 'clip'\)"),
        (PEN | {"skeleton": [["tip"]]}, r"skeleton contains \['tip'\], expected pairs of names; write \[name, name\]"),
        (PEN | {"skeleton": ["tip cap"]}, r"skeleton contains 'tip cap', expected pairs of names"),
        (PEN | {"skeleton": None}, r"skeleton is None, expected a list"),
        (PEN | {"flip_pairs": [["tip", "tip"]]}, r"'tip' is paired with itself, expected two keypoints; remove it"),
        (PEN | {"skeleton": [["cap", "cap"]]}, r"'cap' is paired with itself, expected two keypoints; remove it"),
        (
            PEN | {"flip_pairs": [["tip", "cap"], ["clip", "tip"]]},
            r"flip_pairs contains 'tip' twice, expected at most once",
        ),
        (PEN | {"upper_body": ["cap", "cap"]}, r"upper_body contains 'cap' twice, expected at most once; remove"),
        (PEN | {"sigmas": [0.1, 0.1]}, r"sigmas has 2 numbers, expected 3, one per keypoint; complete the list"),
        (PEN | {"sigmas": []}, r"sigmas has 0 numbers, expected 3, one per keypoint; complete the list"),
        (PEN | {"sigmas": 0.1}, r"sigmas is 0\.1, expected a list; put it in \[ \]"),
        (PEN | {"sigmas": [0.1, 0, 0.1]}, r"the sigma of 'cap' is 0, expected a positive finite number; use"),
        (PEN | {"sigmas": [0.1, 0.1, -1.0]}, r"the sigma of 'clip' is -1\.0, expected a positive finite number"),
        (PEN | {"sigmas": [float("nan"), 0.1, 0.1]}, r"the sigma of 'tip' is nan, expected a positive finite number"),
        (PEN | {"sigmas": [float("inf"), 0.1, 0.1]}, r"the sigma of 'tip' is inf, expected a positive finite number"),
        (PEN | {"sigmas": [10**400, 0.1, 0.1]}, r"the sigma of 'tip' is 10+, expected a positive finite number"),
        (PEN | {"sigmas": [True, 0.1, 0.1]}, r"the sigma of 'tip' is True, expected a positive finite number"),
        (PEN | {"sigmas": ["0.1", 0.1, 0.1]}, r"the sigma of 'tip' is '0\.1', expected a positive finite number"),
        (PEN | {"codec": "dark"}, r"codec is 'dark', expected 'udp' or 'msra' \(docs/numerics.md 6.3\); choose one"),
        (PEN | {"codec": None}, r"codec is None, expected 'udp' or 'msra'"),
        (PEN | {"color": "red"}, r"unknown field 'color', expected only name, names, flip_pairs, skeleton, sigmas, "),
        (PEN | {"name": "coco"}, r"'coco' is a built-in keypoint set with different contents, expected another name"),
    ],
)
def test_a_bad_file_is_refused_in_one_line_that_names_it(tmp_path: Path, content: object, message: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(ValueError, match=re.escape(repr(str(path))) + ": .*" + message) as error:
        load_keypoint_set(path)
    assert one_line(error)


@pytest.mark.parametrize("name", ["missing.json", "two\nlines.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(
        FileNotFoundError, match="no such file, expected a keypoint set in JSON; check the path"
    ) as error:
        load_keypoint_set(path)
    assert str(error.value).startswith(repr(str(path)))
    assert one_line(error)


def test_a_folder_and_a_binary_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00\x80")
    for path in (tmp_path, tmp_path / "bytes.json"):
        with pytest.raises(ValueError, match="expected a keypoint set in JSON; correct the file") as error:
            load_keypoint_set(path)
        assert one_line(error)


# --- what callers may pass ------------------------------------------------------------------------------------------


def test_keypoint_set_takes_a_name_a_path_or_a_set(tmp_path: Path) -> None:
    path = written(tmp_path, PEN)
    pen = load_keypoint_set(path)
    assert keypoint_set("aic") is KEYPOINT_SETS["aic"]
    assert keypoint_set(str(path)) == keypoint_set(path) == pen
    assert keypoint_set(pen) is pen
    with pytest.raises(FileNotFoundError):
        keypoint_set("no_such_file.json")


@pytest.mark.parametrize("spec", ["", "COCO", "pen", "two\nlines", 17, None])
def test_an_unknown_name_raises_an_error_that_lists_the_valid_ones(spec: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"unknown keypoint set {re.escape(repr(spec))}, expected coco, aic, "
    ) as error:
        keypoint_set(spec)
    assert one_line(error)
    assert all(name in str(error.value) for name in ALL)


def test_the_message_is_one_line_for_any_argument() -> None:
    class Tensor:
        def __repr__(self) -> str:
            return "tensor([1,\n        2])"

    with pytest.raises(ValueError, match=r"unknown keypoint set tensor\(\[1, +2\]\), expected coco") as error:
        keypoint_set(Tensor())  # type: ignore[arg-type]
    assert one_line(error)


@given(st.integers(1, 200))
def test_a_custom_set_has_the_given_number_of_keypoints(count: int) -> None:
    keypoints = custom_keypoint_set(count)
    assert (keypoints.name, keypoints.codec) == ("custom", "udp")
    assert keypoints.names == tuple(f"keypoint_{i}" for i in range(count))
    assert not keypoints.flip_pairs + keypoints.skeleton and not keypoints.upper_body
    assert keypoints.sigmas == (0.05,) * count
    assert keypoints.flip_permutation == tuple(range(count))


@pytest.mark.parametrize("count", [0, -1, 2.0, "3"])
def test_a_custom_set_needs_a_count(count: Any) -> None:
    with pytest.raises(ValueError, match=rf"num_keypoints is {count!r}, expected an integer >= 1") as error:
        custom_keypoint_set(count)
    assert one_line(error)


def test_a_custom_set_takes_no_built_in_name() -> None:
    assert custom_keypoint_set(3, "hand").name == "hand"
    with pytest.raises(ValueError, match="'coco' is a built-in keypoint set, expected another name") as error:
        custom_keypoint_set(17, "coco")
    assert one_line(error)
