"""Report damaged input: format bad values, and list what was skipped. A problem is a message of one line."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Sequence
from typing import Any


def shown(value: Any) -> str:
    """Format any value as one line of at most 303 characters, however long or deeply nested it is."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    text = short.repr(value)
    return text if len(text) <= 300 else f"{text[:300]}..."


def first_of(problems: list[str], name: str) -> str:
    """Return the end of the error message about an unusable file: the number of its problems and the first of them.

    `name` is the name of the file, which is removed from the problem. Returns "" if there are no problems.
    """
    return f"; the first of {len(problems)} problems: {problems[0].removeprefix(f'{name}: ')}" if problems else ""


def shortened(problems: Sequence[str], most: int = 20) -> list[str]:
    """Return the problems without duplicates.

    If more than `most` are left, return the first `most` and a line with the number of the others.
    """
    lines = list(dict.fromkeys(problems))
    return lines if len(lines) <= most else [*lines[:most], f"{len(lines) - most} more problems"]


def print_problems(problems: Sequence[str]) -> int:
    """Print the problems to stderr, at most 20 of them, and return the exit code: 1 if there is any problem, else 0."""
    for line in shortened(problems):
        print(f"skipped: {line}", file=sys.stderr)
    return 1 if problems else 0
