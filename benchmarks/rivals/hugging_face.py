"""Hugging Face's VitPose with the weights of one of our models, and its pre- and post-processing."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from vitpose_fast.checkpoints import formats
from vitpose_fast.checkpoints.save import hf_config, official_state
from vitpose_fast.models.vitpose import ViTPose


def why_missing() -> str | None:
    """Return the reason why transformers cannot be used, or None if it can."""
    return None if find_spec("transformers") is not None else "transformers is not installed"


def twin(model: ViTPose) -> nn.Module:
    """Return a `VitPoseForPoseEstimation` with the weights of `model`, in evaluation mode on the same device.

    `model` must have one head. Its experts are kept. The parameters are float32, and attention uses SDPA.
    """
    import transformers

    settings = {k: v for k, v in hf_config(model).items() if k not in ("architectures", "model_type")}
    backbone = transformers.VitPoseBackboneConfig(
        **{k: v for k, v in settings.pop("backbone_config").items() if k != "model_type"}
    )
    edges = [tuple(edge) for edge in settings.pop("edges")]
    config = transformers.VitPoseConfig(backbone_config=backbone, edges=edges, **settings)
    with torch.device("meta"):
        theirs = transformers.VitPoseForPoseEstimation(config)
    theirs = theirs.to_empty(device=model.device)
    theirs.load_state_dict(formats.to_hf(official_state(model)))
    return theirs.eval()


def heatmaps(theirs: nn.Module, images: Tensor, experts: Tensor | None = None) -> Tensor:
    """Compute heatmaps: images [B, 3, H, W] -> [B, K, h, w].

    A ++ model needs `experts`, int64 [B], the index of the task whose expert each image uses.
    """
    return theirs(images, dataset_index=experts).heatmaps


def processor() -> Any:
    """Return the image processor of `transformers`, which uses scipy on the CPU."""
    import transformers

    with contextlib.redirect_stdout(io.StringIO()):
        return transformers.VitPoseImageProcessor()


class Decoded:
    """The argument that `post_process_pose_estimation` expects: an object with `heatmaps`."""

    def __init__(self, maps: Tensor) -> None:
        self.heatmaps = maps


def decode(process: Any, maps: Tensor, boxes: Sequence[Sequence[Any]]) -> tuple[Tensor, Tensor]:
    """Decode heatmaps of P people to keypoints [P, K, 2] in image pixels and scores [P, K].

    Args:
        process: the result of `processor`.
        maps: float32 [P, K, h, w] on the CPU.
        boxes: for each image a list of its people's boxes [x, y, width, height], in the order of `maps`.
    """
    people = [p for image in process.post_process_pose_estimation(Decoded(maps), boxes=boxes) for p in image]
    return tuple(torch.stack([torch.as_tensor(p[key]) for p in people]) for key in ("keypoints", "scores"))  # type: ignore[return-value]


def predict(
    theirs: nn.Module,
    process: Any,
    images: Sequence[Any],
    boxes: Sequence[Sequence[Any]],
    flip_pairs: Tensor | None = None,
    experts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Predict keypoints [P, K, 2] in image pixels and scores [P, K], as shown in the documentation of `transformers`.

    Args:
        theirs: the model, from `twin`.
        process: the result of `processor`.
        images: uint8 [h, w, 3] arrays.
        boxes: for each image a list of its people's boxes [x, y, width, height]; P people in total.
        flip_pairs: [n, 2], channels that are mirror images of each other. If given, the heatmaps are averaged with the
            heatmaps of the mirrored crop (flip test).
        experts: int64 [P], the expert of each person in a ++ model.
    """
    parameter = next(theirs.parameters())
    pixels = process(images=list(images), boxes=list(boxes), return_tensors="pt")["pixel_values"]
    pixels = pixels.to(parameter.device, parameter.dtype)
    maps = heatmaps(theirs, pixels, experts)
    if flip_pairs is not None:
        maps = (maps + theirs(pixels.flip(-1), flip_pairs=flip_pairs, dataset_index=experts).heatmaps) / 2
    return decode(process, maps.float().cpu(), boxes)
