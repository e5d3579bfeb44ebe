"""Files that survive a crash: everything is written beside its place and moved there when complete."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def make_folder(path: str | os.PathLike) -> Path:
    """The folder, made if needed.

    Raises:
        OSError: it cannot be made or written to, in one line.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"cannot write to folder {folder}: {reason}; choose another") from None
    return folder


def write_atomic(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)`, flush it to disk and move it to `path`: readers see the old file or the new one."""
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
    """Like `write_atomic`, with 16 digits of the sha256 between start and end of the file's name.

    Returns:
        The file, which can be checked by its own name.
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
    """Remove what a process that was killed while writing into `folder` has left there."""
    for path in Path(folder).glob("partial-*"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def write_folder_atomic(path: str | os.PathLike, write: Callable[[Path], object], overwrite: bool = False) -> None:
    """Call `write(temporary folder)` and move the folder to `path`.

    Raises:
        FileExistsError: `path` exists and `overwrite` is False, or it holds files that the new folder does not replace.
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
            if not _exchange(temporary, path):  # two moves: a crash between them leaves both under clear names
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
    """Swap two names in one step, where the system can (Linux); False, and nothing done, where it cannot."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        return libc.renameat2(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0
    except (AttributeError, OSError, TypeError):
        return False


def _check_replaces(old: Path, new: Path) -> None:
    """Overwriting a folder must not delete what somebody else put there."""
    ours = {p.name for p in new.iterdir()}
    foreign = sorted(p.name for p in old.iterdir() if p.name not in ours) if old.is_dir() else []
    if foreign:
        raise FileExistsError(f"{old} also holds {', '.join(foreign[:4])}, which would be lost; choose another folder")


def _write(write: Callable[[Path], object], temporary: Path, path: Path) -> None:
    """Full disks and the like: torch and safetensors report them under types of their own."""
    try:
        write(temporary)
    except Exception as error:
        raise OSError(f"cannot write {path}: {' '.join(str(error).split()) or type(error).__name__}") from error


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
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
