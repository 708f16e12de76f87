"""Read everything of a checkpoint except the values of its weights, and check it before torch is imported.

This module knows no tensor and runs no code from a checkpoint. `hf_layout` knows the names of Hugging Face.
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tinystory.checkpoint import hf_layout
from tinystory.checkpoint.directory import follow_latest
from tinystory.checkpoint.formats.foreign_files import told_folder
from tinystory.checkpoint.hash import file_stamp
from tinystory.checkpoint.safetensors_header import TensorEntry, read_tensors
from tinystory.checkpoint.tokens.special import SpecialIds, configured_ids, read_optional
from tinystory.checkpoint.vocabulary import read_vocabulary
from tinystory.dtypes import dtype_of_safetensors
from tinystory.errors import CheckpointError
from tinystory.model.config import ModelConfig
from tinystory.safe.reading import open_regular, read_json_object, shown

__all__ = [
    "CheckpointHeader", "check_doubled_head", "lacking_tensors", "read_header", "warnings_about_unused",
]  # fmt: skip

_BLOCK_BYTES = 2**20
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_MOST_NAMES = 3
"""The number of tensors that a message names."""


@dataclass(frozen=True)
class CheckpointHeader:
    """A checkpoint without the values of its weights. `read_header` has checked it.

    Attributes:
        directory: the directory with the files, after all links.
        config: the shape of the model; None if only transformers knows the architecture. In that case nothing is
            checked of the tensors except their places in the files. The head is tied if config.json ties it and the
            files do not have another head.
        hf_config: the content of config.json.
        dtype: the format of most weights on the disk: float32, bfloat16, float16 or float64. A model that only
            transformers runs may have another one, under its safetensors name.
        tensors: the file, dtype, shape and byte offsets of each tensor, by the name that Hugging Face gives it. A
            matrix that is both embedding and head stands here once, as the embedding.
        special_ids: the tokens that begin and end a story, as the configs name them.
        provenance: the content of tinystory.json; empty if there is no such file.
        stamp: sizes and times of the files, as from `file_stamp`; it differs once a file has been replaced.
        warnings: one line for each thing that a user should know, though the model runs.
    """

    directory: Path
    config: ModelConfig | None
    hf_config: Mapping[str, Any]
    dtype: str
    tensors: Mapping[str, TensorEntry]
    special_ids: SpecialIds
    provenance: Mapping[str, Any]
    stamp: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def bos_id(self) -> int | None:
        """The token that a story begins with, as the configs name it, or None."""
        return self.special_ids.bos_id

    @property
    def eos_ids(self) -> frozenset[int]:
        """The tokens that end a story, as the configs name them."""
        return self.special_ids.eos_ids

    @property
    def vocab_size(self) -> int | None:
        """The number of tokens that the model knows; None if config.json does not say it."""
        return self.config.vocab_size if self.config else _stated_vocab_size(self.hf_config)


def read_header(directory: Path) -> CheckpointHeader:
    """Read and check a checkpoint without the values of its weights; imports neither torch nor transformers.

    Args:
        directory: a checkpoint, or the checkpoint folder of a training run, whose `latest` is read.

    Raises:
        CheckpointError: a file is missing or damaged, a value is out of range, or two files do not fit together.
    """
    directory = follow_latest(directory)
    hf_config = read_json_object(directory / "config.json", raises=CheckpointError)
    _check_not_foreign(directory, hf_config)
    config = hf_layout.from_hf_config(hf_config)
    tensors = read_tensors(directory)
    stamp = file_stamp(directory)
    warnings: tuple[str, ...] = ()
    if config is not None:
        tensors = hf_layout.with_embedding(config, tensors)
        warnings = _check_tensors(directory, hf_config, config, tensors)
        config, tensors = _resolve_head(directory, config, tensors)
        vocab_size: int | None = config.vocab_size
    else:
        vocab_size = _stated_vocab_size(hf_config)
    warnings += _warnings_about_tokens(directory, read_vocabulary(directory, vocab_size)[1], vocab_size)
    generation_config = read_optional(directory / "generation_config.json")
    warnings += _warnings_about_rules(directory, hf_layout.generation_rules(hf_config, generation_config))
    special_ids, warnings_about_ids = configured_ids(hf_config, generation_config, vocab_size)
    warnings += warnings_about_ids
    provenance = read_optional(directory / "tinystory.json")
    dtype = _main_dtype(tensors)
    return CheckpointHeader(directory, config, hf_config, dtype, tensors, special_ids, provenance, stamp, warnings)


def _check_not_foreign(directory: Path, hf_config: Mapping[str, Any]) -> None:
    """Refuse a config.json of another program: CTranslate2's has no model_type, and MLX has its own quantisation."""
    if "model_type" not in hf_config:
        with contextlib.suppress(OSError):
            if told := told_folder(directory, os.listdir(directory)):
                raise CheckpointError(f"{directory} {told}")
    quantization = hf_config.get("quantization")
    if isinstance(quantization, dict) and "bits" in quantization and "quantization_config" not in hf_config:
        raise CheckpointError(
            f"{directory} is quantised by MLX; take the model that it was made from, or run mlx_lm.convert --dequantize"
        )


def _stated_vocab_size(hf_config: Mapping[str, Any]) -> int | None:
    """Return the vocab_size of an architecture that only transformers knows, if it stands where it mostly does."""
    text_config = hf_config.get("text_config")
    for fields in (hf_config, text_config if isinstance(text_config, dict) else {}):
        stated = fields.get("vocab_size")
        if type(stated) is int and stated > 0:
            return stated
    return None


def _warnings_about_tokens(directory: Path, above: Mapping[str, int], vocab_size: int | None) -> tuple[str, ...]:
    """Return at most one warning about added tokens that the model does not know."""
    if not above:
        return ()
    first = min(above, key=above.__getitem__)
    count = f"{len(above)} added token{'s' if len(above) > 1 else ''} above the {vocab_size} of the model"
    return (f"{directory}: the tokenizer has {count}, like {shown(first)}; they are never written",)


def _warnings_about_rules(directory: Path, rules: Mapping[str, Any]) -> tuple[str, ...]:
    """Return at most one warning about fields with which transformers writes another text than we do."""
    if not rules:
        return ()
    listed = ", ".join(
        f"{name} {shown(value)}" if isinstance(value, int | float) else name for name, value in rules.items()
    )
    return (f"{directory}: transformers would write with {listed}; here only the decoder changes what a model writes",)


def _check_tensors(
    directory: Path, hf_config: Mapping[str, Any], config: ModelConfig, tensors: Mapping[str, TensorEntry]
) -> tuple[str, ...]:
    """Check that the file has the tensors of the config, each with its shape and a stored dtype.

    Returns:
        Warnings about tensors that the model does not use.
    """
    prefix, layouts = hf_layout.name_prefix(config, tensors), hf_layout.tensor_layout(config)
    expected = {hf_layout.name_in_file(layout.name, prefix, config): layout.shape for layout in layouts}
    if config.tied_head and hf_layout.HEAD in tensors:
        expected[hf_layout.HEAD] = (config.vocab_size, config.d_model)
    missing = ", ".join(hf_layout.missing_sizes(hf_config))
    hint = f" ({missing} is missing in config.json, so its default counts)" if missing else ""
    for name, shape in expected.items():
        entry = tensors.get(name)
        if entry is None:
            raise CheckpointError(f"{directory}: the weights lack the tensor {name}, {shown(shape)}{hint}")
        where = f"{directory / entry.file}: the tensor {name}"
        if entry.shape != shape:
            raise CheckpointError(
                f"{where} has the shape {shown(entry.shape)}; config.json asks for {shown(shape)}{hint}"
            )
        if dtype_of_safetensors(entry.dtype) is None:
            raise CheckpointError(f"{where} is {entry.dtype}; weights must be F32, BF16, F16 or F64")
    unused = {name for name in tensors if name not in expected and not hf_layout.is_known_buffer(config, name)}
    return warnings_about_unused(directory, unused, expected)


def lacking_tensors(directory: Path, names: Collection[str]) -> CheckpointError:
    """Return the error for weights that lack these tensors."""
    return CheckpointError(f"{directory}: the weights lack {_listed(names)}; the download or the copy is incomplete")


def warnings_about_unused(directory: Path, unused: Collection[str], used: Collection[str]) -> tuple[str, ...]:
    """Return at most one warning about tensors of the files that the model does not use.

    Args:
        directory: the checkpoint.
        unused: the names of these tensors.
        used: the names of the model's own tensors.

    Raises:
        CheckpointError: the tensors are a further layer or expert. Without it, the model is another one.
    """
    patterns = {_NUMBER.sub("#", name) for name in used}
    if more := [name for name in unused if _NUMBER.sub("#", name) in patterns]:
        raise CheckpointError(f"{directory}: the weights have more layers than config.json: {_listed(more)}")
    return (f"{directory}: the weights have {_listed(unused)}, which the model does not use",) if unused else ()


def _listed(names: Collection[str]) -> str:
    """Return tensor names as words: the first few in order, and the number of the others."""
    first = ", ".join(shown(name) for name in sorted(names, key=_in_order)[:_MOST_NAMES])
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"the tensor{'s' if len(names) > 1 else ''} {first}{more}"


def _in_order(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts layer 2 before layer 10."""
    return [(int(part) if part.isdecimal() and len(part) < 10 else 0, part) for part in name.split(".")]


def _main_dtype(tensors: Mapping[str, TensorEntry]) -> str:
    """Return the dtype that takes the most bytes, by our name for it. If we have none, return the safetensors name."""
    n_bytes: dict[str, int] = {}
    for entry in tensors.values():
        n_bytes[entry.dtype] = n_bytes.get(entry.dtype, 0) + entry.end - entry.start
    largest = max(n_bytes, key=n_bytes.__getitem__, default="F32")
    return dtype_of_safetensors(largest) or largest


def check_doubled_head(header: CheckpointHeader, prefix: str) -> None:
    """Do nothing: `read_header` itself compares a head and an embedding. The name stays for programs that call it."""


def _resolve_head(
    directory: Path, config: ModelConfig, tensors: dict[str, TensorEntry]
) -> tuple[ModelConfig, dict[str, TensorEntry]]:
    """Untie a head that the files have beside the embedding with other values, as transformers 5 does.

    Returns:
        The config, and the tensors without a second copy of the embedding.

    Raises:
        CheckpointError: a file cannot be read.
    """
    head = tensors.get(hf_layout.HEAD)
    if head is None or not config.tied_head:
        return config, tensors
    embed = tensors[hf_layout.embedding_name(config, tensors)]
    try:
        with (
            open_regular(directory / head.file, raises=CheckpointError) as head_file,
            open_regular(directory / embed.file, raises=CheckpointError) as embed_file,
        ):
            same = _same_bytes(head_file, head, embed_file, embed)
    except OSError as error:
        raise CheckpointError(f"cannot read {directory}: {error.strerror}") from error
    if not same:
        return dataclasses.replace(config, tied_head=False), tensors
    return config, {name: entry for name, entry in tensors.items() if name != hf_layout.HEAD}


def _same_bytes(file: BinaryIO, entry: TensorEntry, other_file: BinaryIO, other: TensorEntry) -> bool:
    """Compare two tensors block by block, so that neither has to fit into memory."""
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
