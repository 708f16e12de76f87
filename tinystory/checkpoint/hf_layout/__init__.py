"""The layout of Hugging Face: its config.json and our `ModelConfig`, its tensors and our parameters.

No other module knows the names of Hugging Face. Importing this folder does not import torch.
"""

from tinystory.checkpoint.hf_layout.config_json import from_hf_config, generation_rules, missing_sizes, to_hf_config
from tinystory.checkpoint.hf_layout.tensors import (
    HEAD,
    HfTensor,
    embedding_name,
    is_known_buffer,
    name_in_file,
    name_prefix,
    pack,
    tensor_layout,
    unpack,
    with_embedding,
)

__all__ = [
    "HEAD", "HfTensor", "embedding_name", "from_hf_config", "generation_rules", "is_known_buffer", "missing_sizes",
    "name_in_file", "name_prefix", "pack", "tensor_layout", "to_hf_config", "unpack", "with_embedding",
]  # fmt: skip
