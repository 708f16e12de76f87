"""A checkpoint directory: what its files say, checked before torch is imported, and the model in it.

Nothing here unpickles or runs code from a checkpoint. The layout is Hugging Face's, see `hf_layout`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tinystory.checkpoint import hf_layout
from tinystory.checkpoint.directory import follow_latest, locate
from tinystory.checkpoint.hash import file_stamp, model_hash
from tinystory.checkpoint.safetensors_header import TensorEntry, read_tensors
from tinystory.checkpoint.save import save_checkpoint
from tinystory.checkpoint.vocabulary import read_vocabulary
from tinystory.errors import CheckpointError
from tinystory.model.config import ModelConfig
from tinystory.safe.reading import read_json_object, shown

if TYPE_CHECKING:
    pass

__all__ = [
    "CheckpointHeader", "TensorEntry", "check_doubled_head", "locate", "model_hash", "name_in_file", "read_header",
    "save_checkpoint",
]  # fmt: skip

STORED_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_HEAD = "lm_head.weight"
_BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class CheckpointHeader:
    """Everything about a checkpoint but the values of its weights; one that exists has been checked.

    Attributes:
        directory: where the files are, links followed.
        config: None where only transformers knows the architecture; its tensors are then unchecked but for
            their place in the files.
        hf_config: the content of config.json.
        dtype: of most weights on disk: float32, bfloat16 or float16 (for a model not ours, perhaps another
            safetensors name).
        tensors: Hugging Face's names -> file, dtype, shape and byte offsets.
        bos_id: the token that a story begins with, if any.
        eos_ids: the tokens that end one.
        provenance: the content of tinystory.json, empty where there is none.
        stamp: tells whether the files are still those that were read.
    """

    directory: Path
    config: ModelConfig | None
    hf_config: Mapping[str, Any]
    dtype: str
    tensors: Mapping[str, TensorEntry]
    bos_id: int | None
    eos_ids: frozenset[int]
    provenance: Mapping[str, Any]
    stamp: str = ""


def read_header(directory: Path) -> CheckpointHeader:
    """Read and check a checkpoint but for its weights' values; imports neither torch nor transformers.

    Args:
        directory: a checkpoint, or the checkpoint folder of a training run, whose `latest` is read.

    Raises:
        CheckpointError: anything is missing, damaged, out of range or does not fit together.
    """
    directory = follow_latest(directory)
    hf_config = read_json_object(directory / "config.json", raises=CheckpointError)
    config = hf_layout.from_hf_config(hf_config)
    tensors = read_tensors(directory)
    stamp = file_stamp(directory)
    if config is not None:
        _check_tensors(directory, config, tensors)
        vocab_size: int | None = config.vocab_size
    else:
        stated = hf_config.get("vocab_size")
        vocab_size = stated if type(stated) is int and stated > 0 else None
    read_vocabulary(directory, vocab_size)
    generation_config = _read_optional(directory / "generation_config.json")
    bos_id, eos_ids = hf_layout.token_ids(hf_config, generation_config, vocab_size)
    provenance = _read_optional(directory / "tinystory.json")
    dtype = _main_dtype(tensors)
    return CheckpointHeader(directory, config, hf_config, dtype, tensors, bos_id, eos_ids, provenance, stamp)


# --- checks without torch ---


def _check_tensors(directory: Path, config: ModelConfig, tensors: Mapping[str, TensorEntry]) -> None:
    """Every expected tensor is there with its shape and a float dtype, and no other."""
    prefix = hf_layout.name_prefix(config, tensors)
    expected = {name_in_file(layout.name, prefix, config): layout.shape for layout in hf_layout.tensor_layout(config)}
    if config.tied_head and _HEAD in tensors:
        expected[_HEAD] = (config.vocab_size, config.d_model)
    for name, shape in expected.items():
        entry = tensors.get(name)
        if entry is None:
            raise CheckpointError(f"{directory}: the weights lack the tensor {name}, {shown(shape)}")
        where = f"{directory / entry.file}: the tensor {name}"
        if entry.shape != shape:
            raise CheckpointError(f"{where} has the shape {shown(entry.shape)}; config.json makes it {shown(shape)}")
        if entry.dtype not in STORED_DTYPES:
            raise CheckpointError(f"{where} is {entry.dtype}; weights must be F32, BF16 or F16")
    for name in tensors:
        if name not in expected and not hf_layout.is_known_buffer(config, name):
            raise CheckpointError(
                f"{directory}: the weights have an unknown tensor {shown(name)}; "
                f"config.json describes a {config.family} model without it"
            )


def name_in_file(full_name: str, prefix: str, config: ModelConfig) -> str:
    """A tensor's name in a file, from transformers' full name and the prefix that the file has."""
    return full_name if prefix or full_name == _HEAD else full_name.split(".", 1)[1]


def _main_dtype(tensors: Mapping[str, TensorEntry]) -> str:
    n_bytes: dict[str, int] = {}
    for entry in tensors.values():
        n_bytes[entry.dtype] = n_bytes.get(entry.dtype, 0) + entry.end - entry.start
    largest = max(n_bytes, key=n_bytes.__getitem__, default="F32")
    return STORED_DTYPES.get(largest, largest)


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json_object(path, raises=CheckpointError) if os.path.lexists(path) else {}


# --- values ---


def check_doubled_head(header: CheckpointHeader, prefix: str) -> None:
    """A tied model may store its head a second time, but it must be the same: transformers would use both."""
    if _HEAD not in header.tensors or header.config is None:
        return
    embed_name = hf_layout.tensor_layout(header.config)[0].name
    head, embed = header.tensors[_HEAD], header.tensors[name_in_file(embed_name, prefix, header.config)]
    with (
        (header.directory / head.file).open("rb") as head_file,
        (header.directory / embed.file).open("rb") as embed_file,
    ):
        if not _same_bytes(head_file, head, embed_file, embed):
            raise CheckpointError(
                f"{header.directory}: config.json ties head and embedding, but {_HEAD} and {embed_name} differ"
            )


def _same_bytes(file: BinaryIO, entry: TensorEntry, other_file: BinaryIO, other: TensorEntry) -> bool:
    n_left = entry.end - entry.start
    if n_left != other.end - other.start or entry.dtype != other.dtype:
        return False
    file.seek(entry.start)
    other_file.seek(other.start)
    while n_left:
        n = min(n_left, _BLOCK_BYTES)
        if file.read(n) != other_file.read(n):
            return False
        n_left -= n
    return True
