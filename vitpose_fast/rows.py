"""Read JSON files and check the rows (objects) of their lists one by one.

Rows that fail a check are skipped and reported; the others are kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vitpose_fast.problems import shown

Row = dict[str, Any]
LIMIT = 1e6  # in pixels; a row with a larger number is treated as damaged


def read_json(path: Path) -> Any:
    """Return the contents of a JSON file.

    Raises:
        ValueError: If the file is missing, not readable, or not JSON.
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
    """Check the rows of a list in a file one by one, and skip those that fail.

    Args:
        rows: the items of the list. An item that is not a dict fails.
        kind: what a row is called in messages, e.g. "annotation".
        name: the file name in messages.
        check: returns the checked row, or raises ValueError with the reason for which the row fails.
        unique: `check` returns rows with an `id`, and a row whose id an earlier kept row has fails. If False, each kept
            row gets the field `index` instead, its position in `rows` (from 0).
        key: the field that identifies a row in messages.

    Returns:
        (kept rows as returned by `check`, one message per skipped row). Both are in the order of `rows`.
    """
    kept, problems = [], []
    seen: dict[Any, int] = {}
    for index, row in enumerate(rows):
        try:
            if not isinstance(row, dict):
                raise ValueError(f"is {shown(row)}, expected a JSON object")
            good = check(row)
            if unique and seen.setdefault(good["id"], index) != index:
                raise ValueError(f"the id is already used by {kind} {seen[good['id']]}, expected a unique one")
        except ValueError as error:
            known_as = f" ({key} {shown(row[key])})" if isinstance(row, dict) and key in row else ""
            problems.append(f"{name}: {kind} {index}{known_as}: {error}")
            continue
        kept.append(good if unique else {**good, "index": index})
    return kept, problems


def is_number(value: Any, limit: float = LIMIT) -> bool:
    """Return whether a value is an int or float (not a bool, not NaN) of absolute value at most `limit`."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= limit


def field_of(row: Row, key: str) -> Any:
    """Return the field `key` of a row, or raise ValueError if it is missing."""
    if key not in row:
        raise ValueError(f"no {key}")
    return row[key]


def id_of(row: Row, key: str) -> int | str:
    """Return the id in the field `key` of a row: an int, or a string that is not empty. A whole float becomes an int.

    Raises:
        ValueError: If the field is missing or holds anything else (also a bool).
    """
    value = field_of(row, key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        raise ValueError(f"{key} is {shown(value)}, expected a whole number or a string")
    return value


def file_name_of(row: Row, key: str = "file_name") -> str:
    """Return the file name in the field `key` of a row. It may contain folders, and the file need not exist.

    Raises:
        ValueError: If the field is missing, is not a string, is blank, or contains control characters or surrogates.
    """
    value = field_of(row, key)
    if not isinstance(value, str) or not value.strip() or any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in value):
        raise ValueError(f"{key} is {shown(value)}, expected the name of an image file")
    return value
