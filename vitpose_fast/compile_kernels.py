"""Compile Triton kernels in parallel processes, within a time limit.

The processes run this file as a module and do not import the program that started them, so that a script without
`if __name__ == "__main__"` may compile.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any


def compile_all(sources: Sequence[Any], arch: int, seconds: float, jobs: int | None = None) -> set[Any]:
    """Compile kernels for a GPU architecture, in their order, and return those that were compiled within `seconds`.

    The binaries go to Triton's cache on disk. A kernel that does not compile, or kills its process, is left out.

    Args:
        sources: the kernels, each an `aot.Source`.
        arch: compute capability times ten.
        seconds: time limit. Compilations that still run then are killed.
        jobs: number of processes. Default: one less than the number of CPU cores.
    """
    end = time.monotonic() + seconds
    waiting: SimpleQueue[Any] = SimpleQueue()
    for source in sources:
        waiting.put(source)
    done: set[Any] = set()
    if seconds <= 0:
        return done
    processes = [_start() for _ in range(min(jobs or max(1, (os.cpu_count() or 1) - 1), len(sources)))]
    threads = [Thread(target=_feed, args=(process, arch, waiting, done), daemon=True) for process in processes]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(end - time.monotonic(), 0.0))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for thread in threads:  # its process has ended, so it ends too
        thread.join()
    return done


def _start() -> subprocess.Popen[bytes]:
    """Start a process that compiles what it is sent."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-W", "ignore", "-m", "vitpose_fast.compile_kernels"]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )


def _feed(process: subprocess.Popen[bytes], arch: int, waiting: SimpleQueue[Any], done: set[Any]) -> None:
    """Send waiting kernels to a process, one at a time, and add those that it has compiled to `done`."""
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(Empty, OSError):  # nothing waits any more, or the process has died
        while True:
            source = waiting.get_nowait()
            pickle.dump((source, arch), process.stdin)
            process.stdin.flush()
            answer = process.stdout.readline()
            if answer == b"compiled\n":
                done.add(source)
            elif not answer:
                break


def _compile_what_comes(incoming: Iterable[tuple[Any, int]]) -> None:
    """Compile kernels one after the other, and print after each whether it compiled."""
    from vitpose_kernels.gpu.aot import compile_source

    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # nothing that a compiler prints is taken for an answer
        for source, arch in incoming:
            try:
                compile_source(source, arch)
                answer = "compiled"
            except Exception:  # a compiler may raise anything, and the kernel is left out
                answer = "failed"
            print(answer, file=answers, flush=True)


def _received() -> Iterable[tuple[Any, int]]:
    with contextlib.suppress(EOFError):
        while True:
            yield pickle.load(sys.stdin.buffer)


if __name__ == "__main__":
    _compile_what_comes(_received())
