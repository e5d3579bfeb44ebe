"""Crash-safe writes: files and folders are written under a temporary name and renamed once they are complete."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def make_folder(path: str | os.PathLike) -> Path:
    """Create a folder (and its parents) if needed, check that it is writable, and return its path.

    Raises:
        OSError: the folder cannot be created or written to; the message is one line.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"cannot write to folder {folder}: {reason}; choose another folder") from None
    return folder


def write_atomic(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Write a file atomically: readers see either the old file or the complete new one.

    Calls `write(temporary path)`, flushes the result to disk and renames it to `path`. The temporary path is in the
    same folder, which is created if needed, and has the same suffix.

    Raises:
        OSError: `write` raised any exception, or the file system refuses a step; the message names the path.
    """
    path = Path(path)
    make_folder(path.parent)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix="partial-", suffix=path.suffix)
    os.close(descriptor)
    temporary = Path(name)
    try:
        _write(write, temporary, path)
        _sync(temporary)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_named_by_digest(folder: str | os.PathLike, start: str, end: str, write: Callable[[Path], object]) -> Path:
    """Write a file atomically, and name it after its content: `start`, 16 hex digits of its SHA-256, `end`.

    `write` and the errors are as in `write_atomic`.

    Returns:
        The path of the file. Its name allows checking the content later.
    """
    folder = make_folder(folder)
    temporary = folder / f"partial-{os.getpid()}{end}"
    try:
        _write(write, temporary, folder / f"{start}...{end}")
        _sync(temporary)
        path = folder / f"{start}{sha256(temporary)[:16]}{end}"
        os.replace(temporary, path)
        _sync(folder)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Remove the temporary files and folders that a process left in `folder` when it was killed while writing.

    They are all paths named `partial-*`, so no process may be writing in `folder` at this time.
    """
    for path in Path(folder).glob("partial-*"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def write_folder_atomic(path: str | os.PathLike, write: Callable[[Path], object], overwrite: bool = False) -> None:
    """Write a folder atomically: call `write(temporary folder)`, flush the result to disk and rename it to `path`.

    `write` puts files directly into the temporary folder, without subfolders. With `overwrite` an existing folder is
    exchanged for the new one, also atomically on Linux. On other systems this takes two renames, and a crash between
    them leaves both folders under other names.

    Raises:
        FileExistsError: `path` exists and `overwrite` is False, or it holds files that the new folder does not replace.
        OSError: `write` raised any exception, or the file system refuses a step.
    """
    path = Path(path).resolve()
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already; choose another name or allow overwriting")
    make_folder(path.parent)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"partial-{path.name}-"))
    try:
        os.chmod(temporary, 0o777 & ~_umask())
        _write(write, temporary, path)
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
        if path.exists():
            _check_replaces(path, temporary)
            if not _exchange(temporary, path):  # two renames instead
                old = path.with_name(f"old-{temporary.name.removeprefix('partial-')}")
                os.replace(path, old)
                try:
                    os.replace(temporary, path)
                except OSError:
                    os.replace(old, path)
                    raise
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        else:
            os.replace(temporary, path)
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True) if temporary.is_dir() else temporary.unlink(missing_ok=True)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two paths atomically and return True; do nothing and return False if the system cannot do this.

    Only Linux can, and not on every file system.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        at_fdcwd, rename_exchange = -100, 2
        return libc.renameat2(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), rename_exchange) == 0
    except (AttributeError, OSError, TypeError):
        return False


def _check_replaces(old: Path, new: Path) -> None:
    """Raise FileExistsError if the folder `old` holds files or folders with names that `new` does not contain."""
    ours = {p.name for p in new.iterdir()}
    foreign = sorted(p.name for p in old.iterdir() if p.name not in ours) if old.is_dir() else []
    if foreign:
        raise FileExistsError(f"{old} also holds {', '.join(foreign[:4])}, which would be lost; choose another folder")


def _write(write: Callable[[Path], object], temporary: Path, path: Path) -> None:
    """Call `write(temporary)` and turn any failure into an OSError that names `path`.

    torch and safetensors raise their own exception types for failures such as a full disk.
    """
    try:
        write(temporary)
    except Exception as error:
        raise OSError(f"cannot write {path}: {' '.join(str(error).split()) or type(error).__name__}") from error


def sha256(path: Path) -> str:
    """Return the SHA-256 hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Flush a file or folder to disk. On Windows, where folders cannot be flushed, do nothing for a folder."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
