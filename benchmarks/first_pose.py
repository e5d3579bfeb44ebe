"""One fresh process, from its start to the first keypoints, in this library or in Hugging Face's.

`test_first_pose.py` runs it. It prints one line of JSON: the seconds of each part, and the keypoints [[x, y], ...] of
the only person.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any


def ours(folder: str, image: str, box: list[float], dtype: str) -> Iterator[tuple[str, Any]]:
    """Yield (name of a part, None) after each part, and the keypoints after the last."""
    import torch

    yield "import_torch", None
    import vitpose_fast as vp

    load, freeze, predictor = vp.load_model, vp.freeze, vp.PosePredictor  # imported on access
    yield "import", None
    model = load(folder)
    yield "load", None
    frozen = freeze(model, dtype=getattr(torch, dtype))
    yield "freeze", None
    yield "first_call", predictor(frozen)(image, [box]).keypoints[0].tolist()


def hugging_face(folder: str, image: str, box: list[float], dtype: str) -> Iterator[tuple[str, Any]]:
    """Do the same as `ours`, as the documentation of `transformers` shows it."""
    import torch

    yield "import_torch", None
    from PIL import Image
    from transformers import VitPoseForPoseEstimation, VitPoseImageProcessor

    yield "import", None
    processor = VitPoseImageProcessor.from_pretrained(folder)
    model = VitPoseForPoseEstimation.from_pretrained(folder, dtype=getattr(torch, dtype))
    yield "load", None
    with torch.inference_mode():
        pixels = processor(Image.open(image), boxes=[[box]], return_tensors="pt")["pixel_values"]
        out = model(pixels.to(model.dtype))
        out.heatmaps = out.heatmaps.float()
        poses = processor.post_process_pose_estimation(out, boxes=[[box]])
    yield "first_call", poses[0][0]["keypoints"].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_pose", description=__doc__)
    parser.add_argument("library", choices=["ours", "hugging_face"])
    parser.add_argument("folder", help="the checkpoint")
    parser.add_argument("image")
    parser.add_argument("--box", type=float, nargs=4, required=True, help="x y width height in pixels")
    parser.add_argument("--dtype", required=True)
    options = parser.parse_args()
    steps = {"ours": ours, "hugging_face": hugging_face}[options.library]
    parts: dict[str, float] = {}
    found, last = None, time.perf_counter()
    for name, value in steps(options.folder, options.image, options.box, options.dtype):
        now = time.perf_counter()
        parts[f"{name}_s"], last, found = now - last, now, value
    print(json.dumps({"parts": parts, "keypoints": found}))
    sys.stdout.flush()
    os._exit(0)  # the end of the process is nobody's first pose


if __name__ == "__main__":
    main()
