"""Save a model in our format, the official layout or the Hugging Face layout; all writes are atomic."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vitpose_fast.checkpoints import formats
from vitpose_fast.checkpoints.formats import State
from vitpose_fast.files import sha256, write_atomic, write_folder_atomic
from vitpose_fast.models.config import ModelConfig
from vitpose_fast.models.vitpose import ViTPose


def official_state(model: ViTPose) -> State:
    """Return copies of the tensors on the CPU under official names.

    The first head is `keypoint_head`, the following ones are `associate_keypoint_heads.<i>` with i from 0.
    """
    names = list(model.heads)
    prefixes = {n: "keypoint_head" if i == 0 else f"associate_keypoint_heads.{i - 1}" for i, n in enumerate(names)}
    out = {}
    for key, value in _tensors(model).items():
        if key.startswith("heads."):
            _, name, rest = key.split(".", 2)
            key = f"{prefixes[name]}.{rest}"
        out[key] = value
    return out


def _not_official(model: ViTPose) -> dict[str, bool]:
    """Return the possible reasons why the official layout (and so Hugging Face's) cannot hold a model.

    The result maps each reason to whether it applies to `model`.
    """
    c = model.config
    return {
        f"it has no {c.decoder} decoder": c.decoder == "minimal",
        f"it has no {c.attention} attention": c.attention != "full",
        "it has no relative position": c.has_rel_pos,
        "it has no whole FFNs per task": c.experts != "none",
        "its heads belong to the first tasks, in their order": c.head_tasks != model.tasks[: len(c.head_tasks)],
    }


def _refuse(layout: str, reasons: dict[str, bool]) -> None:
    refused = [reason for reason, applies in reasons.items() if applies]
    if refused:
        raise ValueError(f"cannot write the {layout} layout: {'; '.join(refused)}; use save_model instead")


def _tensors(model: ViTPose) -> State:
    return {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}


def save_model(model: ViTPose, folder: str | os.PathLike, overwrite: bool = False) -> None:
    """Save a model in our format: a folder with `model.safetensors`, `config.json` and `manifest.json` (sha256).

    The folder appears complete or not at all. `overwrite` allows replacing an existing folder.

    Raises:
        FileExistsError: If the folder exists and `overwrite` is False, or if it holds files with other names, which
            would be lost.
        OSError: If the folder cannot be written.
    """

    def write(temporary: Path) -> None:
        described = model.config.to_dict()
        metadata = {"format": "pt", "vitpose_fast": json.dumps(described)}  # so that the file loads without its folder
        save_file(_tensors(model), temporary / "model.safetensors", metadata)
        config = {"model_type": "vitpose_fast", "vitpose_fast": described}
        (temporary / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        _write_manifest(temporary)

    write_folder_atomic(folder, write, overwrite)


def save_official(model: ViTPose, path: str | os.PathLike) -> None:
    """Save a model in the official layout: one .pth file with all heads and experts.

    The file appears complete or not at all, and replaces an older one.

    Raises:
        ValueError: If the layout cannot hold the model (attention other than "full", relative position, whole FFNs per
            task, the minimal decoder, or heads that do not belong to the first tasks in their order), or the name does
            not end in .pth or .pt.
        OSError: If the file cannot be written.
    """
    _refuse("official", _not_official(model))
    if Path(path).suffix not in (".pth", ".pt"):
        raise ValueError(f"{path}: the official layout is a .pth file; choose a name that ends in .pth")
    meta = {"vitpose_fast": json.dumps(model.config.to_dict())}  # what our loader cannot infer from tensors
    write_atomic(path, lambda p: torch.save({"meta": meta, "state_dict": official_state(model)}, p))


def save_hf(model: ViTPose, folder: str | os.PathLike, overwrite: bool = False) -> None:
    """Save a model in the Hugging Face layout, for transformers' `VitPoseForPoseEstimation`.

    The folder holds `model.safetensors`, `config.json`, `preprocessor_config.json` and `manifest.json`, and appears
    complete or not at all. A model with experts for a single task is saved with its experts merged into dense FFNs.
    `overwrite` allows replacing an existing folder.

    Raises:
        ValueError: If the layout cannot hold the model: several heads, a classic decoder that is not 256 wide, a patch
            stride other than 16, an image side that is no multiple of 16, or anything that the official layout cannot
            hold (see `save_official`).
        FileExistsError: If the folder exists and `overwrite` is False, or if it holds files with other names, which
            would be lost.
        OSError: If the folder cannot be written.
    """
    if model.config.part_features and len(model.tasks) == 1:
        model = model.for_task()  # transformers builds no experts for num_experts = 1
    c = model.config
    reasons = _not_official(model) | {
        f"it holds one head, the model has {len(model.heads)} (choose one with --task)": len(model.heads) != 1,
        "its classic decoder is 256 wide": c.decoder.startswith("classic") and c.decoder_width != 256,
        "its patch stride is 16": c.patch_stride != 16,
        "its image sizes are multiples of 16": any(s % 16 for s in c.image_size),
    }
    _refuse("Hugging Face", reasons)

    def write(temporary: Path) -> None:
        save_file(formats.to_hf(official_state(model)), temporary / "model.safetensors", metadata={"format": "pt"})
        for name, content in (("config.json", hf_config(model)), ("preprocessor_config.json", _hf_processor(c))):
            (temporary / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
        _write_manifest(temporary)

    write_folder_atomic(folder, write, overwrite)


def hf_config(model: ViTPose) -> dict[str, Any]:
    """Return the contents of Hugging Face's config.json for a model, with the keypoints of its first head."""
    c = model.config
    keypoints = c.task(next(iter(model.heads)))
    return {
        "architectures": ["VitPoseForPoseEstimation"],
        "model_type": "vitpose",
        "backbone_config": {
            "model_type": "vitpose_backbone",
            "image_size": list(c.image_size),
            "patch_size": [16, 16],
            "num_channels": 3,
            "hidden_size": c.width,
            "num_hidden_layers": c.depth,
            "num_attention_heads": c.num_heads,
            "mlp_ratio": c.ffn_ratio,
            "num_experts": len(c.tasks) if c.part_features else 1,
            "part_features": c.part_features,
            "hidden_act": "gelu",
            "layer_norm_eps": c.layer_norm_eps,
            "qkv_bias": True,
            "out_indices": [c.depth],
        },
        "use_simple_decoder": c.decoder == "simple",
        "scale_factor": 4,
        "edges": [list(edge) for edge in keypoints.skeleton],
        "id2label": {str(i): name for i, name in enumerate(keypoints.names)},
        "label2id": {name: i for i, name in enumerate(keypoints.names)},
    }


def _hf_processor(config: ModelConfig) -> dict[str, Any]:
    from vitpose_kernels.normalization import IMAGENET_MEAN, IMAGENET_STD

    return {
        "image_processor_type": "VitPoseImageProcessor",
        "do_affine_transform": True,
        "do_normalize": True,
        "do_rescale": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "normalize_factor": 200.0,
        "rescale_factor": 1 / 255,
        "size": {"height": config.image_size[0], "width": config.image_size[1]},
    }


def _write_manifest(folder: Path) -> None:
    digests = {p.name: sha256(p) for p in sorted(folder.iterdir())}
    (folder / "manifest.json").write_text(json.dumps({"sha256": digests}, indent=1), encoding="utf-8")
