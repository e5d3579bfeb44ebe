"""Checkpoints: any format of SPEC 2 in, ours, the official and the Hugging Face one out.

Rooms: `read` (files to tensors, nothing executed), `formats` (names), `detect` (tensors to a config), `load`, `save`.
"""

from vitpose_fast.checkpoints.load import LoadReport, load_model, load_pretrained
from vitpose_fast.checkpoints.save import save_hf, save_model, save_official

__all__ = ["LoadReport", "load_model", "load_pretrained", "save_hf", "save_model", "save_official"]
