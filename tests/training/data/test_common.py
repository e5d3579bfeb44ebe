"""Image files are found by the names in annotation files, even if those were written on another machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.data.sample_files import changed
from vitpose_training.data.common import image_paths

WINDOWS = r"D:\Animal_pose\AP-36k-patr1\29wolf\clip1\13.jpg"


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_plain_names_are_used_unchanged(tmp_path):
    assert image_paths(tmp_path, ["a.jpg", "b/c.jpg", "../d.jpg"]) == [
        tmp_path / "a.jpg", tmp_path / "b" / "c.jpg", tmp_path / ".." / "d.jpg",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("existing", "found"),
    [
        (["29wolf/clip1/13.jpg"], "29wolf/clip1/13.jpg"),
        (["AP-36k-patr1/29wolf/clip1/13.jpg", "clip1/13.jpg", "13.jpg"], "AP-36k-patr1/29wolf/clip1/13.jpg"),
        (["clip1/14.jpg", "13.jpg"], "13.jpg"),
        ([], "Animal_pose/AP-36k-patr1/29wolf/clip1/13.jpg"),
    ],
)
def test_windows_paths_match_the_longest_tail_that_exists(tmp_path, existing, found):
    touch(tmp_path, *existing)
    assert image_paths(tmp_path, [WINDOWS]) == [tmp_path / found]
    assert image_paths(tmp_path, [WINDOWS.replace("\\", "/")]) == [tmp_path / found]
    assert image_paths(tmp_path, [WINDOWS[2:].replace("\\", "/")]) == [tmp_path / found]  # a root, but no drive


def test_missing_windows_paths_are_expected_beside_their_siblings(tmp_path):
    touch(tmp_path, "29wolf/clip1/13.jpg")
    found, missing = image_paths(tmp_path, [WINDOWS, WINDOWS.replace("13", "14")])
    assert found == tmp_path / "29wolf/clip1/13.jpg" and missing == tmp_path / "29wolf/clip1/14.jpg"


def test_two_images_never_get_the_same_file(tmp_path):
    """Two clips have a 13.jpg, but the only file called so is in no clip folder: it could belong to either clip."""
    touch(tmp_path, "13.jpg", "clip3/13.jpg")
    names = [WINDOWS, WINDOWS.replace("clip1", "clip2"), WINDOWS.replace("clip1", "clip3")]
    first, second, third = image_paths(tmp_path, names)
    assert not first.exists() and not second.exists() and "clip2" in str(second)
    assert third == tmp_path / "clip3/13.jpg"
    same = image_paths(tmp_path, [WINDOWS.replace("clip1", "clip3")] * 2)  # the same image under two ids
    assert same == [tmp_path / "clip3/13.jpg"] * 2


def test_absolute_paths_that_exist_are_used(tmp_path):
    touch(tmp_path, "elsewhere/a.jpg", "images/a.jpg")
    assert image_paths(tmp_path / "images", [str(tmp_path / "elsewhere/a.jpg")]) == [tmp_path / "elsewhere/a.jpg"]


def test_apt36k_images_are_found_by_their_windows_paths(samples, original, reread, tmp_path):
    touch(tmp_path, *(f"29wolf/video9_clip5_1m45s-1m47s_frame/{i}.jpg" for i in (13, 14, 15)))
    labels = reread("apt36k", original("apt36k"))
    assert len(labels.people) == 5 and all(p.image.is_file() for p in labels.people)
    crowd = reread("apt36k", changed(original("apt36k"), ["annotations", 0, "is_crowd"], 1))
    assert (len(crowd.people), crowd.crowd, crowd.unlabelled) == (4, 1, 0)
    both = changed(original("apt36k"), ["annotations", 0, "is_crowd"], 1)
    assert reread("apt36k", changed(both, ["annotations", 0, "iscrowd"], 0)).crowd == 0
