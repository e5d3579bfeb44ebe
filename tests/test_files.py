"""Atomic writes: after failures and kills a file or folder is the old version or the new one, never a part."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
import time

import pytest

from vitpose_fast.files import (
    _exchange,
    make_folder,
    remove_leftovers,
    sha256,
    write_atomic,
    write_folder_atomic,
    write_named_by_digest,
)


def names(folder) -> list[str]:
    """Return the sorted names of what is in a folder."""
    return sorted(p.name for p in folder.iterdir())


def half(path) -> None:
    """Write half of a file or folder, then raise RuntimeError."""
    (path / "a" if path.is_dir() else path).write_text("half")
    raise RuntimeError("power cut")


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "new" / "x.json"
    for text in ("old", "new"):
        write_atomic(path, lambda p, t=text: p.write_text(t))
        assert path.read_text() == text and names(path.parent) == ["x.json"]


def test_the_writer_gets_another_path_with_the_same_ending(tmp_path):
    seen = []
    write_atomic(tmp_path / "x.safetensors", seen.append)
    assert seen[0].parent == tmp_path and seen[0].suffix == ".safetensors" and seen[0].name != "x.safetensors"


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x"
    with pytest.raises(OSError, match="cannot write .*power cut"):
        write_atomic(path, half)
    assert names(tmp_path) == []
    path.write_text("old")
    with pytest.raises(OSError, match="cannot write .*power cut"):
        write_atomic(path, half)
    assert path.read_text() == "old" and names(tmp_path) == ["x"]


def test_permissions_follow_the_umask(tmp_path):
    """Temporary files are private, but the finished file and folder have the usual permissions."""
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "x", lambda p: p.write_text("x"))
        write_folder_atomic(tmp_path / "d", lambda p: (p / "x").write_text("x"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o750


def test_a_folder_is_overwritten_only_on_request(tmp_path):
    path = tmp_path / "deep" / "d"
    write_folder_atomic(path, lambda p: (p / "a").write_text("old"))
    with pytest.raises(FileExistsError, match="exists already"):
        write_folder_atomic(path, lambda p: (p / "a").write_text("new"))
    assert (path / "a").read_text() == "old"
    write_folder_atomic(path, lambda p: (p / "a").write_text("new"), overwrite=True)
    assert (path / "a").read_text() == "new" and names(path.parent) == ["d"]


def test_overwriting_does_not_delete_foreign_files(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"also holds thesis\.tex"):
        write_folder_atomic(tmp_path / "d", lambda p: (p / "a").write_text("new"), overwrite=True)
    assert names(tmp_path) == ["d"] and names(tmp_path / "d") == ["thesis.tex"]


def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path):
    path = tmp_path / "d"
    with pytest.raises(OSError, match="power cut"):
        write_folder_atomic(path, half)
    assert names(tmp_path) == []
    write_folder_atomic(path, lambda p: (p / "a").write_text("old"))
    with pytest.raises(OSError, match="power cut"):
        write_folder_atomic(path, half, overwrite=True)
    assert (path / "a").read_text() == "old" and names(tmp_path) == ["d"]


def test_a_failing_last_move_puts_the_old_folder_back(tmp_path, monkeypatch):
    path, move = tmp_path / "d", os.replace
    write_folder_atomic(path, lambda p: (p / "a").write_text("old"))

    def replace(a, b):
        if "partial-" in str(a):
            raise OSError("disk gone")
        move(a, b)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr("vitpose_fast.files._exchange", lambda a, b: False)  # the system cannot swap paths
    with pytest.raises(OSError, match="disk gone"):
        write_folder_atomic(path, lambda p: (p / "a").write_text("new"), overwrite=True)
    assert (path / "a").read_text() == "old" and names(tmp_path) == ["d"]


def test_a_folder_that_cannot_be_created_is_reported_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as error:
        make_folder(tmp_path / "file" / "d")
    assert str(tmp_path / "file" / "d") in str(error.value) and "\n" not in str(error.value)
    assert make_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert names(tmp_path / "a" / "b") == []


def test_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_name_with_the_digest_can_be_checked(tmp_path):
    path = write_named_by_digest(tmp_path, "state-", ".bin", lambda p: p.write_bytes(b"abc"))
    assert path.name == "state-ba7816bf8f01cfea.bin" and names(tmp_path) == [path.name]
    with pytest.raises(OSError, match=r"cannot write .*state-\.\.\.\.bin: power cut"):
        write_named_by_digest(tmp_path, "state-", ".bin", lambda p: (_ for _ in ()).throw(OSError("power cut")))
    assert names(tmp_path) == [path.name]


def test_leftovers_of_a_killed_process_are_removed_and_nothing_else(tmp_path):
    (tmp_path / "partial-1.pt").write_text("half")
    (tmp_path / "partial-model-x").mkdir()
    (tmp_path / "partial-model-x" / "a").write_text("half")
    (tmp_path / "impartial.txt").write_text("mine")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["impartial.txt"]


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2")
def test_two_folders_are_swapped_atomically(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    assert _exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "content").read_text() == "b" and (tmp_path / "b" / "content").read_text() == "a"
    assert not _exchange(tmp_path / "a", tmp_path / "gone") and names(tmp_path) == ["a", "b"]


CHILD = """
import sys
from pathlib import Path
from vitpose_fast.files import write_atomic

def write(path, letter):
    with open(path, "w") as file:
        for _ in range(50):
            file.write(letter * 4000)
            file.flush()

print("ready", flush=True)
while True:
    for letter in "abc":
        write_atomic(sys.argv[1], lambda p: write(p, letter))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="SIGKILL")
def test_a_killed_writer_leaves_a_complete_file(tmp_path):
    path, seen = tmp_path / "x", set()
    path.write_text("z" * 200_000)
    for i in range(10):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        time.sleep(random.Random(i).uniform(0.005, 0.15))
        child.kill()
        child.wait()
        child.stdout.close()
        text = path.read_text()
        assert len(text) == 200_000 and len(set(text)) == 1
        seen.add(text[0])
    assert seen != {"z"}  # at least one child did write
