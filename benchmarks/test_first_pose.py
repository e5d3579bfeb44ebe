"""The time to the first pose: a fresh process, from its start to the keypoints of one person, on a CPU.

It imports the library, loads a checkpoint of ViTPose-B, freezes the model (only ours), and runs it on one image file.
The checkpoint was just written, so it is read from memory and not from the disk.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

import pytest
import torch
from PIL import Image

import vitpose_fast as vp
from benchmarks.harness import Case, Contender, same_place
from benchmarks.machine import ROOT
from benchmarks.models import frame, people, random_model
from benchmarks.rivals import hugging_face
from vitpose_fast.bench import with_sources
from vitpose_fast.checkpoints import save_hf

NAME = "ViTPose-B first pose of a process"


class FreshProcess:
    """A library in a new process per call, which returns keypoints [1, K, 2].

    Attributes:
        parts: seconds of each part, as medians over all calls so far.
    """

    def __init__(self, library: str, folder, image, box: list[float], dtype: torch.dtype) -> None:
        self.command = [sys.executable, "-m", "benchmarks.first_pose", library, str(folder), str(image)]
        self.command += ["--box", *map(str, box), "--dtype", str(dtype).removeprefix("torch.")]
        self.seen: list[dict[str, float]] = []
        self.parts: dict[str, float] = {}

    def __call__(self, box) -> tuple[torch.Tensor]:
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"}
        environment = with_sources(ROOT) | threads
        done = subprocess.run(self.command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "the process died")
        found = json.loads(done.stdout.splitlines()[-1])
        self.seen.append(found["parts"])
        self.parts |= {name: statistics.median(s[name] for s in self.seen) for name in found["parts"]}
        return (torch.tensor([found["keypoints"]]),)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_first_pose(compare, machine, quick, tmp_path, dtype):
    if machine.cuda or quick:
        pytest.skip("measured on CPUs, not in quick runs")
    model = random_model("vitpose-b", machine.device)
    vp.save_model(model, tmp_path / "ours")
    reason = hugging_face.why_missing()
    if reason is None:
        save_hf(model, tmp_path / "hugging_face")
    image, box = tmp_path / "frame.png", people(3, 1)[0]
    Image.fromarray(frame(0)).save(image)
    runs = {name: FreshProcess(name, tmp_path / name, image, box, dtype) for name in ("ours", "hugging_face")}
    contenders = [
        Contender("vitpose_fast", runs["ours"], extra=runs["ours"].parts),
        Contender("Hugging Face", None if reason else runs["hugging_face"], reason, extra=runs["hugging_face"].parts),
    ]

    def make(seed):
        return (torch.tensor(box),)

    compare(Case("start", NAME, dtype, 1, make, contenders, same_place(15.0), latency=True))
