"""Write docs/api.md, the API reference, from the docstrings.

With --check nothing is written: the script says whether the page is up to date, and the exit code is 1 if it is not.

Run `python docs/make_api.py` in a checkout after changing a public docstring or signature.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "training")]

FILE = ROOT / "docs" / "api.md"
SECTIONS = {  # title -> (module, names to document; None means all names in its __all__)
    "vitpose_fast": ("vitpose_fast", None),
    "vitpose_fast.functional": ("vitpose_fast.functional", None),
    "vitpose_fast.checkpoints": ("vitpose_fast.checkpoints", ("save_official", "save_hf")),
    "vitpose_training.evaluation.metrics": ("vitpose_training.evaluation.metrics", None),
}
HEADINGS = ("Args", "Returns", "Raises", "Yields", "Attributes")


def signature(name: str, value: Any) -> str:
    """Return `name(parameters) -> result` for a function or a class, whose result is left out.

    Above 100 characters, there is one parameter per line.
    """
    found = inspect.signature(value)
    result = found.return_annotation
    end = f" -> {_written(result)}" if result is not inspect.Signature.empty and not inspect.isclass(value) else ""
    parts, star = [], False
    for parameter in found.parameters.values():
        text = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "") + parameter.name
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            parts.append("*")
        star = star or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        annotated = parameter.annotation is not parameter.empty
        if annotated:
            text += f": {_written(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            text += f"{' = ' if annotated else '='}{_default(parameter.default)}"
        if parameter.name != "self":
            parts.append(text)
    line = f"{name}({', '.join(parts)}){end}"
    return line if len(line) <= 100 else f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){end}"


def _written(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _default(value: Any) -> str:
    return "..." if " object at 0x" in repr(value) or repr(value).startswith("<") else repr(value)


def markdown(docstring: str) -> str:
    """Return a docstring as Markdown: its sections, such as Args, Returns and Raises, become bold titles and lists."""
    out: list[str] = []
    inside = False
    for line in inspect.cleandoc(docstring).splitlines():
        if line.rstrip(":") in HEADINGS and line.endswith(":"):
            inside = True
            out += [f"**{line[:-1]}**", ""]
        elif inside and line.startswith("    ") and not line.startswith("     "):
            item = re.match(r"    ([\w, *]+): (.*)", line)
            out.append(f"- `{item[1]}`: {item[2]}" if item else f"- {line.strip()}")
        elif inside and line.startswith("     "):
            out.append(f"  {line.strip()}")
        else:
            inside = inside and not line
            out.append(line)
    return "\n".join(out).strip()


def entry(name: str, value: Any, level: int = 3) -> list[str]:
    """Return the lines of a function, or of a class with its public methods and `__call__` if they have docstrings.

    `level` is the level of the heading.
    """
    lines = [f"{'#' * level} `{name}`", "", "```text", signature(name, value), "```", ""]
    lines += [markdown(value.__doc__ or ""), ""]
    if inspect.isclass(value):
        for method, function in vars(value).items():
            function = function.__func__ if isinstance(function, classmethod | staticmethod) else function
            shown = not method.startswith("_") or method == "__call__"
            if shown and inspect.isfunction(function) and function.__doc__:
                lines += entry(f"{name}.{method}", function, level + 1)
    return lines


def reference() -> str:
    """Return the text of docs/api.md."""
    lines = ["# API reference", "", "Made from the docstrings by `docs/make_api.py`: change those, not this page.", ""]
    for title, (module_name, chosen) in SECTIONS.items():
        module = importlib.import_module(module_name)
        lines += [f"## {title}", "", markdown(module.__doc__ or ""), ""]
        for name in sorted(chosen or module.__all__, key=str.lower):
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                lines += entry(name, value)
                home = sys.modules[value.__module__]
                if (
                    module_name.endswith("functional")
                    and home.__doc__
                    and value.__name__ == home.__name__.split(".")[-1]
                ):
                    lines += ["```text", inspect.cleandoc(home.__doc__), "```", ""]
            elif not name.startswith("_") and not inspect.ismodule(value):
                lines += [f"### `{name}`", "", f"Values: {', '.join(f'`{one}`' for one in value)}.", ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Run the script and return its exit code."""
    text = reference()
    if "--check" in sys.argv[1:]:
        current = FILE.is_file() and FILE.read_text(encoding="utf-8") == text
        print(f"{FILE.relative_to(ROOT)} is {'up to date' if current else 'old: run python docs/make_api.py'}")
        return 0 if current else 1
    FILE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
