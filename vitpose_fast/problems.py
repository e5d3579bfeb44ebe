"""What is damaged, in words: values in one short line, and the list of what was left out."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Sequence
from typing import Any


def shown(value: Any) -> str:
    """A value in one short line, however long or deep it is."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    text = short.repr(value)
    return text if len(text) <= 300 else f"{text[:300]}..."


def first_of(problems: list[str], name: str) -> str:
    """The end of a message about a file of no use: its first problem, if there is one."""
    return f"; the first of {len(problems)} problems: {problems[0].removeprefix(f'{name}: ')}" if problems else ""


def shortened(problems: Sequence[str], most: int = 20) -> list[str]:
    """The problems, each once; from `most` on only how many more there are."""
    lines = list(dict.fromkeys(problems))
    return lines if len(lines) <= most else [*lines[:most], f"{len(lines) - most} more problems"]


def print_problems(problems: Sequence[str]) -> int:
    """Name on stderr what was left out; the exit code: 1 if there was anything."""
    for line in shortened(problems):
        print(f"skipped: {line}", file=sys.stderr)
    return 1 if problems else 0
