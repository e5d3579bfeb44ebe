"""Tune ViTPose-B on this machine, and append what was found to results.jsonl: the step `tune` of `bench --budget`.

    python -m benchmarks.tuning --device cuda --lines results.jsonl --until TIME

A line {"tuning": ...} for each batch size holds the times, errors and notes of `tune.Measured`, and the choices as
`choices.to_rows` gives them. `report.py convert` takes them into a tuned.json. The default that they are compared with
is that of the ops' own rules: the choices that the package ships are not in effect.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import vitpose_fast as vp
from benchmarks.machine import Machine
from benchmarks.models import random_model
from benchmarks.records import append_line
from vitpose_kernels import choices
from vitpose_kernels.choices import to_rows

TINY: dict[str, Any] = dict(image_size=(64, 48), depth=2, width=32, num_heads=2, decoder_width=16)


def main() -> int:
    """Run the command. Return 1 if there was no time for a batch size, else 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuning", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--lines", type=Path, required=True, help="file to append to")
    parser.add_argument("--until", type=float, required=True, help="stop at this time (seconds since 1970)")
    parser.add_argument("--commit", help="commit to record if git is not available")
    parser.add_argument("--quick", action="store_true", help="tune a tiny model for a second per batch size")
    options = parser.parse_args()
    machine = Machine(options.device, options.quick)
    command = "python -m benchmarks.tuning"
    append_line(options.lines, {"environment": machine.environment(options.commit, command, options.quick)})
    name, batches = "vitpose-tiny" if options.quick else "vitpose-b", (1, 2) if options.quick else (64, 1, 8)
    model = random_model(name, machine.device, **(TINY if options.quick else {}))
    dtype = torch.bfloat16 if machine.cuda else torch.float32
    besides = 0.0  # seconds of a call of `freeze` that are not tuning
    with tempfile.TemporaryDirectory() as cache, mock.patch.object(choices, "_shipped", lambda device: {}):
        os.environ["VITPOSE_FAST_CACHE"] = cache  # what an earlier run found is measured again
        for i, batch in enumerate(batches):
            began = time.time()
            seconds = (options.until - began) / (len(batches) - i) - besides
            if seconds <= 0.5:
                print(f"no time left for batch {batch}")
                return 1
            seconds = min(seconds, 1.0) if options.quick else seconds
            frozen = vp.freeze(model, dtype=dtype, tune=seconds, tune_batches=(batch,))
            besides = max(besides, time.time() - began - seconds)
            (found,) = frozen.choices.measured
            identity = {"model": name, "dtype": str(dtype).removeprefix("torch.")}
            row = identity | asdict(found) | {"choices": to_rows(frozen.choices.table)}
            append_line(options.lines, {"tuning": row})
            print(found, *found.notes, sep="\n  ", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
