"""Translate the parameter names of all known checkpoint formats to canonical names, and canonical to Hugging Face's.

Canonical names are the names of the official code: `backbone.*`, `keypoint_head.*` for the first head, and
`associate_keypoint_heads.<i>.*`, with i from 0, for the others. In our own files the heads are named `heads.<task>.*`,
which is left unchanged. Source: docs/numerics.md 2.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

State = dict[str, Tensor]

_HF_BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "mlp": "mlp",
}
_HF_TOP = {
    "backbone.embeddings.position_embeddings": "backbone.pos_embed",
    "backbone.embeddings.patch_embeddings.projection": "backbone.patch_embed.proj",
    "backbone.layernorm": "backbone.last_norm",
    "head.deconv1": "keypoint_head.deconv_layers.0",
    "head.batchnorm1": "keypoint_head.deconv_layers.1",
    "head.deconv2": "keypoint_head.deconv_layers.3",
    "head.batchnorm2": "keypoint_head.deconv_layers.4",
    "head.conv": "keypoint_head.final_layer",
}
_MMPOSE = (  # mmpose 1.x
    (r"^backbone\.layers\.(\d+)\.ln([12])\.", r"backbone.blocks.\1.norm\2."),
    (r"^backbone\.layers\.(\d+)\.attn\.", r"backbone.blocks.\1.attn."),
    (r"^backbone\.layers\.(\d+)\.ffn\.layers\.0\.0\.", r"backbone.blocks.\1.mlp.fc1."),
    (r"^backbone\.layers\.(\d+)\.ffn\.layers\.1\.", r"backbone.blocks.\1.mlp.fc2."),
    (r"^backbone\.patch_embed\.projection\.", "backbone.patch_embed.proj."),
    (r"^backbone\.ln1\.", "backbone.last_norm."),
    (r"^head\.", "keypoint_head."),
)


def family_of(state: State) -> str | None:
    """Return the format of a checkpoint, judged by its parameter names: "hf", "mmpose", "ours", "official" or "mae".

    Returns None if it is none of them.
    """
    keys = state.keys()
    if any(k.startswith("backbone.encoder.layer.") for k in keys):
        return "hf"
    if any(k.startswith("backbone.layers.") for k in keys):
        return "mmpose"
    if any(k.startswith("backbone.blocks.") for k in keys):
        return "ours" if any(k.startswith("heads.") for k in keys) else "official"
    if any(k.startswith(("blocks.", "encoder.blocks.")) for k in keys):
        return "mae"
    return None


def to_canonical(state: State, family: str) -> tuple[State, list[str]]:
    """Return (tensors in the canonical format, names of tensors that were left out on purpose).

    `family` is the format that `family_of` returned. Where the layouts differ, tensors are converted: Hugging Face's
    query, key and value become one qkv, mmpose's position embedding gets a class slot of zeros, and MAE's 14x14 patch
    convolution is zero-padded to 16x16. Left out are class and mask tokens and, for MAE, the decoder, the classifier
    and the final norm (docs/numerics.md 1.6). Of a MAE file with `encoder.*` keys only those are read; the others are
    not listed. Tensors that the format does not know keep their names (in MAE files, with the prefix "backbone.").
    """
    if family == "hf":
        return _from_hf(state), []
    if family == "mmpose":
        return _from_mmpose(state), []
    if family == "mae":
        return _from_mae(state)
    ignored = [k for k in state if k in ("backbone.cls_token", "backbone.mask_token")]
    return {k: v for k, v in state.items() if k not in ignored}, ignored


def _from_hf(state: State) -> State:
    out: State = {}
    for key, value in state.items():
        match = re.match(r"backbone\.encoder\.layer\.(\d+)\.(.+)", key)
        if match is None:
            stem = next((s for s in _HF_TOP if key == s or key.startswith(f"{s}.")), None)
            out[key if stem is None else _HF_TOP[stem] + key[len(stem) :]] = value
            continue
        index, rest = match.groups()
        if rest.startswith("attention.attention."):
            if rest.startswith("attention.attention.query."):
                kind = rest.rsplit(".", 1)[1]
                parts = [state.get(key.replace(".query.", f".{n}.")) for n in ("query", "key", "value")]
                if all(p is not None for p in parts):
                    out[f"backbone.blocks.{index}.attn.qkv.{kind}"] = torch.cat(parts)  # type: ignore[arg-type]
            continue
        stem = next((s for s in _HF_BLOCK if rest.startswith(f"{s}.")), None)
        name = rest if stem is None else _HF_BLOCK[stem] + rest[len(stem) :]
        out[f"backbone.blocks.{index}.{name}"] = value
    return out


def to_hf(state: State) -> State:
    """Return the tensors under Hugging Face's names, with qkv split into query, key and value.

    The state must have one head, `keypoint_head.*`, and dense or split FFNs without relative position.
    """
    out: State = {}
    top = {ours: theirs for theirs, ours in _HF_TOP.items()}
    block = {ours: theirs for theirs, ours in _HF_BLOCK.items()}
    for key, value in state.items():
        match = re.match(r"backbone\.blocks\.(\d+)\.(.+)", key)
        if match is None:
            stem = next(s for s in top if key == s or key.startswith(f"{s}."))
            out[top[stem] + key[len(stem) :]] = value
            continue
        index, rest = match.groups()
        prefix = f"backbone.encoder.layer.{index}"
        if rest.startswith("attn.qkv."):
            kind = rest.rsplit(".", 1)[1]
            for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                out[f"{prefix}.attention.attention.{name}.{kind}"] = part.clone()
            continue
        stem = next(s for s in block if rest.startswith(f"{s}."))
        out[f"{prefix}.{block[stem]}{rest[len(stem) :]}"] = value
    return out


def _from_mmpose(state: State) -> State:
    out: State = {}
    for key, value in state.items():
        for pattern, name in _MMPOSE:
            key = re.sub(pattern, name, key)
        out[key] = value
    position = out.get("backbone.pos_embed")
    if position is not None:  # mmpose has no class slot; prepend one of zeros, which adds nothing
        out["backbone.pos_embed"] = torch.cat([torch.zeros_like(position[:, :1]), position], 1)
    return out


def _from_mae(state: State) -> tuple[State, list[str]]:
    if any(k.startswith("encoder.") for k in state):
        state = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
    # The final norm of MAE is left out on purpose, since the official loader does not load it (docs/numerics.md 1.6).
    foreign = ("cls_token", "mask_token", "decoder_", "head.", "norm.", "fc_norm.")
    ignored = [k for k in state if k.startswith(foreign)]
    out = {f"backbone.{k}": v for k, v in state.items() if not k.startswith(foreign)}
    kernel = out.get("backbone.patch_embed.proj.weight")
    if kernel is not None and kernel.shape[-1] == 14:  # zero-pad to the 16x16 patches of ViTPose
        out["backbone.patch_embed.proj.weight"] = torch.nn.functional.pad(kernel, (1, 1, 1, 1))
    return out, ignored
