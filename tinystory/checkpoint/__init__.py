"""Find, check, load, save and hash checkpoints: directories in the format of Hugging Face.

Importing this package does not import torch. Nothing in it unpickles, or runs code from a checkpoint.
"""

from tinystory.checkpoint.directory import locate
from tinystory.checkpoint.hash import model_hash
from tinystory.checkpoint.header import CheckpointHeader, check_doubled_head, read_header
from tinystory.checkpoint.hf_layout import name_in_file
from tinystory.checkpoint.load import load_model
from tinystory.checkpoint.safetensors_header import TensorEntry
from tinystory.checkpoint.save import save_checkpoint

__all__ = [
    "CheckpointHeader",
    "TensorEntry",
    "check_doubled_head",
    "load_model",
    "locate",
    "model_hash",
    "name_in_file",
    "read_header",
    "save_checkpoint",
]
