"""Weights files to tensors, without running any code that a file may carry."""

from __future__ import annotations

import argparse
import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from vitpose_fast.checkpoints.formats import State
from vitpose_fast.files import sha256


def find_checkpoint(source: str | os.PathLike) -> Path:
    """The weights file behind a file, a folder or a hub id `owner/name`.

    Raises:
        FileNotFoundError: nothing of that name, or a folder without weights.
    """
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".pth", ".pt", ".bin"))
        named = [p for p in found if p.name == "model.safetensors"]
        if len(named or found) != 1:
            names = ", ".join(p.name for p in found) or "none"
            raise FileNotFoundError(f"{path}: expected one weights file in the folder, found {names}")
        return (named or found)[0]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and not path.suffix:
        return _download(str(source))
    raise FileNotFoundError(f"{source}: no such file, folder or hub id (owner/name)")


def _download(repo: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise FileNotFoundError(
            f"{repo}: no such file or folder; for hub ids pip install 'vitpose-fast[hub]'"
        ) from None
    try:
        return find_checkpoint(snapshot_download(repo, allow_patterns=["*.json", "*.safetensors", "*.pth"]))
    except Exception as error:  # the hub client raises a dozen unrelated types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(f"{repo}: no such file or folder, and the hub says: {reason}") from None


def read_tensors(path: Path) -> State:
    """All tensors of a weights file, by name, without running any code that it may carry.

    Raises:
        ValueError: damaged, not a checkpoint, holding code (named), or not as its manifest says.
    """
    _check_manifest(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                data: Any = {name: file.get_tensor(name) for name in file.keys()}
        else:
            data = _read_pickle(path)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: not a readable checkpoint ({_first_line(error)})") from None
    for name in ("state_dict", "model", "module"):
        if isinstance(data, dict) and isinstance(data.get(name), dict):
            data = data[name]
            break
    if not isinstance(data, dict):
        raise ValueError(f"{path}: holds a {type(data).__name__}, expected a dict of tensors")
    state = {str(k).removeprefix("module."): v for k, v in data.items() if isinstance(v, Tensor)}
    if not state:
        raise ValueError(f"{path}: holds no tensors")
    return state


def _read_pickle(path: Path) -> Any:
    # Plain values that training loops store beside the weights: numbers of numpy, and the arguments of a script.
    scalar = np.float64(0).__reduce__()[0]
    harmless: list[Any] = [argparse.Namespace, np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.int64))]
    harmless += [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    try:
        with torch.serialization.safe_globals(harmless):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        text = str(error)
        unsafe = re.findall(r"GLOBAL ([\w.]+)|Unsupported class ([\w.]+)|Unsupported operand", text)
        if not unsafe and "weights_only" not in text.lower():
            raise
        names = sorted({a or b for a, b in unsafe if a or b}) if unsafe else []
        if not names and zipfile.is_zipfile(path):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
        what = f"it would run or build {', '.join(names)}" if names else "it is not a plain dict of tensors"
        raise ValueError(
            f"{path}: refused, {what}; only tensors and plain values are read. Ask for a .safetensors file of the weights"
        ) from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _check_manifest(path: Path) -> None:
    manifest = path.with_name("manifest.json")
    if not manifest.is_file():
        return
    expected = _read_json(manifest).get("sha256", {}).get(path.name)
    if expected is not None and expected != sha256(path):
        raise ValueError(f"{path}: damaged, its sha256 is not the one in manifest.json; copy or download it again")


def read_config(path: Path) -> dict[str, Any]:
    """What is written about the model beside its tensors: in the file itself (ours), else in config.json; may be empty."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if "vitpose_fast" in metadata:
            return {"vitpose_fast": json.loads(metadata["vitpose_fast"])}
    side = path.with_name("config.json")
    return _read_json(side) if side.is_file() else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not readable as JSON ({_first_line(error)})") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: holds a JSON {type(data).__name__}, expected an object")
    return data
