"""Child processes that are killed at their time limit, and on Linux also when the process that started them ends."""

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
    """Have this process killed when its parent ends for whatever reason (on Linux; elsewhere this does nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def start(
    command: Sequence[str], log: IO[bytes], environment: Mapping[str, str], folder: Path, group: bool = False
) -> subprocess.Popen:
    """Start a command in `folder`, with `environment` as its only variables and both outputs in `log`.

    On Linux the command is killed when this process ends. With `group`, it gets its own process group, so that `kill`
    reaches everything that it starts.
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
    """Return the exit code of a process, or kill it and return None if it still runs after `seconds` (at least 0.1).

    With `group`, the process group that it leads is killed in both cases, including what a finished process left
    running.
    """
    try:
        return process.wait(max(seconds, 0.1))
    except subprocess.TimeoutExpired:
        return None
    finally:
        kill(process, group)


def kill(process: subprocess.Popen, group: bool = False) -> None:
    """Kill a process, or with `group` the whole process group that it leads, and wait up to 5 s until it has ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL) if group else process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)


class Clock:
    """Countdown of a time budget in seconds, of which `spent` have passed already. `left` may become negative."""

    def __init__(self, budget: float, spent: float = 0.0) -> None:
        self.budget, self._started = budget, time.monotonic() - spent

    @property
    def used(self) -> float:
        return time.monotonic() - self._started

    @property
    def left(self) -> float:
        return self.budget - self.used
