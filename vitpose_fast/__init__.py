"""Fast ViTPose and ViTPose++ in PyTorch. Public names are imported lazily, on first access."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {  # public name -> the module that defines it; "" for a submodule of this package
    "create_model": "vitpose_fast.models.vitpose",
    "ViTPose": "vitpose_fast.models.vitpose",
    "ModelConfig": "vitpose_fast.models.config",
    "PRESETS": "vitpose_fast.models.config",
    "load_model": "vitpose_fast.checkpoints",
    "load_pretrained": "vitpose_fast.checkpoints",
    "save_model": "vitpose_fast.checkpoints",
    "freeze": "vitpose_fast.runtime",
    "FrozenViTPose": "vitpose_fast.runtime",
    "PosePredictor": "vitpose_fast.predictor",
    "Poses": "vitpose_fast.poses",
    "KeypointSet": "vitpose_fast.keypoints",
    "KEYPOINT_SETS": "vitpose_fast.keypoints",
    "load_keypoint_set": "vitpose_fast.keypoints",
    "HeatmapCodec": "vitpose_fast.codec",
    "ClassicHead": "vitpose_fast.models.heads",
    "HeatmapDecoder": "vitpose_fast.modules",
    "HeatmapLoss": "vitpose_fast.modules",
    "LayerNorm": "vitpose_fast.modules",
    "PatchEmbed": "vitpose_fast.modules",
    "SplitFFN": "vitpose_fast.modules",
    "WindowAttention": "vitpose_fast.modules",
    "use_impl": "vitpose_fast.modules",
    "functional": "",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'vitpose_fast' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name) if home else importlib.import_module(f"vitpose_fast.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from vitpose_fast import functional as functional
    from vitpose_fast.checkpoints import load_model as load_model
    from vitpose_fast.checkpoints import load_pretrained as load_pretrained
    from vitpose_fast.checkpoints import save_model as save_model
    from vitpose_fast.codec import HeatmapCodec as HeatmapCodec
    from vitpose_fast.keypoints import KEYPOINT_SETS as KEYPOINT_SETS
    from vitpose_fast.keypoints import KeypointSet as KeypointSet
    from vitpose_fast.keypoints import load_keypoint_set as load_keypoint_set
    from vitpose_fast.models.config import PRESETS as PRESETS
    from vitpose_fast.models.config import ModelConfig as ModelConfig
    from vitpose_fast.models.heads import ClassicHead as ClassicHead
    from vitpose_fast.models.vitpose import ViTPose as ViTPose
    from vitpose_fast.models.vitpose import create_model as create_model
    from vitpose_fast.modules import HeatmapDecoder as HeatmapDecoder
    from vitpose_fast.modules import HeatmapLoss as HeatmapLoss
    from vitpose_fast.modules import LayerNorm as LayerNorm
    from vitpose_fast.modules import PatchEmbed as PatchEmbed
    from vitpose_fast.modules import SplitFFN as SplitFFN
    from vitpose_fast.modules import WindowAttention as WindowAttention
    from vitpose_fast.modules import use_impl as use_impl
    from vitpose_fast.poses import Poses as Poses
    from vitpose_fast.predictor import PosePredictor as PosePredictor
    from vitpose_fast.runtime import FrozenViTPose as FrozenViTPose
    from vitpose_fast.runtime import freeze as freeze
