"""Find weights files and read their tensors, without running code that a file may contain."""

from __future__ import annotations

import argparse
import json
import os
import pickletools
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
    """Return the path of the weights file that `source` means: a file, a folder, or a hub id `owner/name` (downloaded).

    In a folder `model.safetensors` is preferred; without it, the folder must hold exactly one weights file, which is a
    .safetensors, .pth, .pt or .bin file.

    Raises:
        FileNotFoundError: If there is no such file or folder, if the folder has no or several weights files, or if the
            hub id cannot be downloaded (huggingface_hub is not installed, or the hub reports an error).
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
            f"{repo}: no such file or folder; for hub ids run pip install huggingface_hub"
        ) from None
    try:
        return find_checkpoint(snapshot_download(repo, allow_patterns=["*.json", "*.safetensors", "*.pth"]))
    except Exception as error:  # the hub client raises a dozen unrelated types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(f"{repo}: no such file or folder, and the hub says: {reason}") from None


def read_checkpoint(path: Path) -> tuple[State, dict[str, Any]]:
    """Read a weights file without running any code that it may contain.

    Returns:
        (tensors, description of the model). The tensors are by name, without the prefix "module."; if the file holds
        them in an entry "state_dict", "model" or "module", they are taken from it, and values that are not tensors are
        dropped. The description is {"vitpose_fast": options} from the file itself (files that this library wrote), else
        the contents of config.json in the same folder, else {}.

    Raises:
        ValueError: If the file is damaged, holds no tensors, contains code (whose functions and classes are named), or
            does not match the sha256 in a manifest.json in the same folder; or if config.json or manifest.json is
            damaged.
    """
    _check_manifest(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                data: Any = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
        else:
            data = _read_pickle(path)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path}: not a readable checkpoint ({_first_line(error)}), expected a .safetensors or .pth file of "
            f"weights; copy or download it again"
        ) from None
    written = read_config(path)
    meta = data.get("meta") if isinstance(data, dict) else None
    if isinstance(meta, dict) and isinstance(meta.get("vitpose_fast"), str):
        written = {"vitpose_fast": json.loads(meta["vitpose_fast"])}
    for name in ("state_dict", "model", "module"):
        if isinstance(data, dict) and isinstance(data.get(name), dict):
            data = data[name]
            break
    if not isinstance(data, dict):
        raise ValueError(f"{path}: contains a {type(data).__name__}, expected a dict of tensors")
    state = {str(k).removeprefix("module."): v for k, v in data.items() if isinstance(v, Tensor)}
    if not state:
        raise ValueError(f"{path}: contains no tensors")
    return state, written


def _harmless() -> list[Any]:
    """Return the harmless types that training loops store with the weights: NumPy numbers and arrays, arguments, paths.

    The result is the argument of `torch.serialization.safe_globals`, which allows them in a pickle.
    """
    builders = {"scalar": np.float64(0).__reduce__()[0], "_reconstruct": np.zeros(0).__reduce__()[0]}
    named = [(f, f"numpy.{core}.multiarray.{n}") for n, f in builders.items() for core in ("core", "_core")]
    dtypes = {type(np.dtype(code)) for code in "?bhilqBHILQefdU"}
    return [*named, *dtypes, np.dtype, np.ndarray, argparse.Namespace, type(Path())]


def _read_pickle(path: Path) -> Any:
    with torch.serialization.safe_globals(_harmless()):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            names = _unsafe_names(path, str(error))
            if not names:
                raise
            raise ValueError(
                f"{path}: refused, loading would run or build {', '.join(names)}, expected only tensors and plain "
                f"values; get the weights as a .safetensors file"
            ) from None


def _unsafe_names(path: Path, reason: str) -> list[str]:
    """Return the sorted names of functions and classes that a refused pickle needs, without running it.

    `reason` is the error message of `torch.load`, which names some of them. The list is empty for a file that is not a
    pickle.
    """
    if zipfile.is_zipfile(path):
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    names = set(re.findall(r"GLOBAL ([\w.]+)", reason))
    strings: list[str] = []
    try:
        for opcode, value, _ in pickletools.genops(path.read_bytes()):
            if opcode.name == "GLOBAL":
                names.add(str(value).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL":
                names.add(".".join(strings[-2:]))
            elif isinstance(value, str):
                strings.append(value)
    except Exception:  # the file is not a pickle or is damaged
        pass
    return sorted(names)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].split('. ')[0]}" if lines else type(error).__name__


def _check_manifest(path: Path) -> None:
    manifest = path.with_name("manifest.json")
    if not manifest.is_file():
        return
    digests = _read_json(manifest).get("sha256")
    expected = digests.get(path.name) if isinstance(digests, dict) else None
    if expected is not None and expected != sha256(path):
        raise ValueError(f"{path}: damaged, its sha256 differs from manifest.json; copy or download it again")


def read_config(path: Path) -> dict[str, Any]:
    """Return the description of the model that belongs to a weights file.

    It is {"vitpose_fast": options} from the metadata of a .safetensors file that this library wrote, else the contents
    of config.json in the same folder, else {}.

    Raises:
        ValueError: If config.json is not a readable JSON object.
    """
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
        raise ValueError(f"{path}: contains a JSON {type(data).__name__}, expected an object")
    return data
