"""The command line: `vitpose-fast COMMAND` or `python -m vitpose_fast COMMAND`.

The module of a command is imported only when that command runs, so `vitpose-fast --help` does not wait for PyTorch.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable

COMMANDS = {  # name -> ("module:function", one line of help)
    "demo": (
        "vitpose_training.demo.demo:main",
        "train the tiny model on rendered people, evaluate it and draw its poses",
    ),
    "predict": (
        "vitpose_fast.commands:predict",
        "estimate the poses of people in images; write results.json and pictures",
    ),
    "train": ("vitpose_training.run.train:main", "train on any supported data set, in one process or under torchrun"),
    "validate": (
        "vitpose_training.evaluation.validate:main",
        "compute the metrics of a checkpoint on any supported data set",
    ),
    "convert": (
        "vitpose_fast.commands:convert",
        "read a checkpoint of any format; write our, the official or the Hugging Face format",
    ),
    "bench": (
        "vitpose_fast.bench:main",
        "speed and memory of a model on this machine; or run the benchmarks of a checkout",
    ),
    "kernels": (
        "vitpose_fast.kernel_report:main",
        "compile every kernel for every supported GPU; report registers, spills and roofline times",
    ),
    "info": (
        "vitpose_training.data.survey:info",
        "show versions, devices and presets; describe a checkpoint; or check a data set",
    ),
}


def usage() -> str:
    """Return the text of `vitpose-fast --help`."""
    lines = [f"  {name:10}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        ["usage: vitpose-fast COMMAND [options]    (vitpose-fast COMMAND --help lists its options)", "", *lines]
    )


def run(command: Callable[[], int]) -> int:
    """Call a command and return its exit code.

    A ValueError, OSError, ImportError or MemoryError, which a user can cause, is printed as one line on stderr and
    gives 1; Ctrl-C gives 130, and a reader of the output that stops early, such as `head`, 141. Other exceptions are
    raised.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        code = command()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # What is still buffered would fail again when the interpreter flushes it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, ImportError, MemoryError) as error:
        text = " ".join(str(error).split()) or ("out of memory" if isinstance(error, MemoryError) else repr(error))
        print(f"vitpose-fast: error: {text}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vitpose-fast: interrupted", file=sys.stderr)
        return 130


def _show(text: str, code: int) -> int:
    print(text)
    return code


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit the process with the exit code of the command (see `run`), or 2 on wrong usage.

    Args:
        args: the arguments after the program name. Default: `sys.argv[1:]`.
    """
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        sys.exit(run(lambda: _show(usage(), 0 if args else 2)))
    if args[0] == "--version":
        from vitpose_fast import __version__

        sys.exit(run(lambda: _show(f"vitpose-fast {__version__}", 0)))
    if args[0] not in COMMANDS:
        print(f"vitpose-fast: unknown command {args[0]!r}; valid: {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    module, function = COMMANDS[args[0]][0].split(":")

    def command() -> int:
        return getattr(importlib.import_module(module), function)(args[1:])

    sys.exit(run(command))


if __name__ == "__main__":
    main()
