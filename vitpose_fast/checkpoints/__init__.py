"""Load and save checkpoints: read every format of docs/numerics.md 2; write ours, the official and Hugging Face's.

Modules: `read` (files to tensors, without running code that a file may contain), `formats` (parameter names), `detect`
(tensors to a `ModelConfig`), `load` and `save`.
"""

from vitpose_fast.checkpoints.load import LoadReport, load_model, load_pretrained
from vitpose_fast.checkpoints.save import save_hf, save_model, save_official

__all__ = ["LoadReport", "load_model", "load_pretrained", "save_hf", "save_model", "save_official"]
