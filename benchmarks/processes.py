"""Child processes that end when they should: at their limit, or with the process that started them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


def die_with_parent() -> None:
    """From now on this process is killed when its parent ends, however that ends (Linux; elsewhere nothing happens)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def start(
    command: Sequence[str], log: IO[bytes], environment: Mapping[str, str], folder: Path, group: bool = False
) -> subprocess.Popen:
    """Start a command with its output in `log`; it ends when this process does.

    `group`: in a process group of its own, so that `kill` reaches all that it starts.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        cwd=folder,
        process_group=0 if group else None,
        preexec_fn=die_with_parent,
    )


def wait(process: subprocess.Popen, seconds: float, group: bool = False) -> int | None:
    """The exit code of a process, or None where it was still running after that long and was killed.

    `group`: with its group, and what a process leaves behind there is killed too.
    """
    try:
        return process.wait(max(seconds, 0.1))
    except subprocess.TimeoutExpired:
        return None
    finally:
        kill(process, group)


def kill(process: subprocess.Popen, group: bool = False) -> None:
    """Kill a process, or the whole group that it was started in."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL) if group else process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)


class Clock:
    """Counts down from a budget of seconds, some of which may be spent already."""

    def __init__(self, budget: float, spent: float = 0.0) -> None:
        self.budget, self._started = budget, time.monotonic() - spent

    @property
    def used(self) -> float:
        return time.monotonic() - self._started

    @property
    def left(self) -> float:
        return self.budget - self.used
