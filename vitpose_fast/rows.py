"""JSON files read row by row: a row that a check refuses is named and left out, the others are kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vitpose_fast.problems import shown

Row = dict[str, Any]
LIMIT = 1e6  # pixels: larger numbers are damage, long before they are infinite in float32


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: missing, not readable, or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file, expected a JSON file") from None
    except RecursionError:
        raise ValueError(f"{path}: not readable as JSON (nested too deeply)") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not readable as JSON ({str(error).splitlines()[0]})") from None


def check_rows(
    rows: Sequence[Any], kind: str, name: str, check: Callable[[Row], Row], unique: bool = False, key: str = "id"
) -> tuple[list[Row], list[str]]:
    """(rows as `check` gives them, problems: those for which it raised ValueError, or whose id came before).

    Args:
        kind, name: what a row is called and the file it is from, for messages.
        unique: rows have an `id` of their own; else they get their `index`.
        key: what a row is known by in messages.
    """
    kept, problems = [], []
    seen: dict[Any, int] = {}
    for index, row in enumerate(rows):
        try:
            if not isinstance(row, dict):
                raise ValueError(f"is {shown(row)}, expected a JSON object")
            good = check(row)
            if unique and seen.setdefault(good["id"], index) != index:
                raise ValueError(f"the id is that of {kind} {seen[good['id']]}, expected another")
        except ValueError as error:
            own = f" ({key} {shown(row[key])})" if isinstance(row, dict) and key in row else ""
            problems.append(f"{name}: {kind} {index}{own}: {error}")
            continue
        kept.append(good if unique else {**good, "index": index})
    return kept, problems


def is_number(value: Any, limit: float = LIMIT) -> bool:
    """A number, no bool, whose absolute value is at most `limit`: not NaN, not infinite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= limit


def field_of(row: Row, key: str) -> Any:
    """A field that must be there; ValueError: it is not."""
    if key not in row:
        raise ValueError(f"no {key}")
    return row[key]


def id_of(row: Row, key: str) -> int | str:
    """An id: a whole number or a text; ValueError: it is neither."""
    value = field_of(row, key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        raise ValueError(f"{key} is {shown(value)}, expected a whole number or a text")
    return value


def file_name_of(row: Row, key: str = "file_name") -> str:
    """The name of an image file; ValueError: there is none, or it is no text that a file could have."""
    value = field_of(row, key)
    if not isinstance(value, str) or not value.strip() or any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in value):
        raise ValueError(f"{key} is {shown(value)}, expected the name of an image file")
    return value
