"""The front door: `vitpose-fast COMMAND`, `python -m vitpose_fast COMMAND`. Commands are loaded when asked for."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable

COMMANDS = {  # name -> (function, what it does)
    "demo": ("vitpose_training.demo.demo:main", "train the tiny model on rendered people, evaluate it, draw its poses"),
    "predict": ("vitpose_fast.commands:predict", "poses of people in images: results.json and pictures"),
    "train": ("vitpose_training.run.train:main", "train on any of the data sets, alone or under torchrun"),
    "validate": ("vitpose_training.evaluation.validate:main", "the metrics of a checkpoint on any of the data sets"),
    "convert": (
        "vitpose_fast.commands:convert",
        "read any checkpoint, write ours, the official or the Hugging Face one",
    ),
    "bench": ("vitpose_fast.bench:main", "run the benchmarks of a checkout, leave a result file"),
    "kernels": (
        "vitpose_fast.kernel_report:main",
        "compile every kernel for any GPU: registers, spills, roofline floors",
    ),
    "info": (
        "vitpose_training.data.survey:info",
        "versions, devices and presets; what is in a checkpoint; or check a data set",
    ),
}


def usage() -> str:
    """The text of `vitpose-fast --help`."""
    lines = [f"  {name:10}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: vitpose-fast COMMAND [options]    (COMMAND --help for its options)", "", *lines])


def run(command: Callable[[], int]) -> int:
    """Call a command; a failure that its user can cause becomes one line on stderr and exit code 1."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        return command()
    except (ValueError, OSError, ImportError, MemoryError) as error:
        text = " ".join(str(error).split()) or ("out of memory" if isinstance(error, MemoryError) else repr(error))
        print(f"vitpose-fast: error: {text}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vitpose-fast: interrupted", file=sys.stderr)
        return 130


def main(args: list[str] | None = None) -> None:
    """Entry point; leaves with 0, with 1 for a failure said in one line, with 2 for wrong usage."""
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        sys.exit(0 if args else 2)
    if args[0] == "--version":
        from vitpose_fast import __version__

        print(f"vitpose-fast {__version__}")
        sys.exit(0)
    if args[0] not in COMMANDS:
        print(f"vitpose-fast: no command {args[0]!r}; valid: {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    module, function = COMMANDS[args[0]][0].split(":")

    def command() -> int:
        return getattr(importlib.import_module(module), function)(args[1:])

    sys.exit(run(command))


if __name__ == "__main__":
    main()
