"""Read the headers of safetensors files: the place, dtype and shape of each tensor. It needs no torch.

A file is an 8-byte little-endian length, a JSON header of that length, and the data. Every number of the header is
checked against the size of the file before memory is taken for it. The data itself is not read here.
"""

import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tinystory.checkpoint.formats.foreign_files import told_weights
from tinystory.errors import CheckpointError
from tinystory.safe.reading import parse_json_object, read_json_object, regular_file_size, shown

__all__ = ["TensorEntry", "read_tensors", "weight_files"]

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# The format allows 100 MB, but parsed JSON takes up to 25 times its size in memory. A header of fifty thousand
# tensors has about 6 MB.
MAX_HEADER_BYTES = 8 * 2**20
MAX_INDEX_BYTES = 8 * 2**20

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
    "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
_MAX_DIMENSIONS = 16
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors")


@dataclass(frozen=True)
class TensorEntry:
    """The place of one tensor in its file.

    Attributes:
        file: the name of the file in the checkpoint directory.
        dtype: the name of the dtype in safetensors, like "F32".
        shape: the size of each axis.
        start: the first byte, counted from the beginning of the file.
        end: the byte after the last one.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def n_elements(self) -> int:
        """The number of values."""
        return prod(self.shape)


def weight_files(directory: Path) -> list[str]:
    """Return the names of the files with the weights of a checkpoint, in order.

    Raises:
        CheckpointError: there are no such files, or the index of a sharded checkpoint is damaged.
    """
    if os.path.lexists(directory / SINGLE_FILE):
        return [SINGLE_FILE]
    if os.path.lexists(directory / INDEX_FILE):
        return sorted(set(_read_index(directory).values()))
    raise CheckpointError(told_weights(directory))


def read_tensors(directory: Path) -> dict[str, TensorEntry]:
    """Read the places of all tensors of a checkpoint directory, from its single file or from all its shards.

    Raises:
        CheckpointError: there are no weights, or a header, an index or a file size is wrong.
    """
    files = weight_files(directory)
    if files == [SINGLE_FILE]:
        return _read_file(directory / SINGLE_FILE)
    index = _read_index(directory)
    tensors: dict[str, TensorEntry] = {}
    for file in files:
        if not os.path.lexists(directory / file):
            raise CheckpointError(
                f"{directory} lacks the shard {file} that {INDEX_FILE} names; download or copy it again"
            )
        shard = _read_file(directory / file)
        if twice := shard.keys() & tensors.keys():
            raise CheckpointError(f"{directory}: the tensor {shown(min(twice))} lies in two shards")
        tensors.update(shard)
    for name, file in index.items():
        if name not in tensors or tensors[name].file != file:
            raise CheckpointError(f"{directory / file} lacks the tensor {shown(name)} that {INDEX_FILE} puts there")
    return tensors


def _read_index(directory: Path) -> dict[str, str]:
    path = directory / INDEX_FILE
    weight_map = read_json_object(path, MAX_INDEX_BYTES, raises=CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map from tensor names to files")
    for file in weight_map.values():
        if not isinstance(file, str) or not _SHARD_NAME.fullmatch(file):
            raise CheckpointError(f"{path} names the shard {shown(file)}; it must be a plain file name, *.safetensors")
    return weight_map


def _read_file(path: Path) -> dict[str, TensorEntry]:
    size = regular_file_size(path, raises=CheckpointError)
    try:
        with path.open("rb") as file:
            start = file.read(8)
            n_header = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= n_header <= min(size - 8, MAX_HEADER_BYTES):
                raise CheckpointError(_not_safetensors(path, start, size, n_header))
            raw = file.read(n_header)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    header = parse_json_object(raw, f"the header of {path}", unique_keys=True, raises=CheckpointError)
    header.pop("__metadata__", None)
    n_data = size - 8 - n_header
    entries = {name: _entry(path, name, value, 8 + n_header, n_data) for name, value in header.items()}

    position = 8 + n_header
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != position:
            problem = "overlaps another tensor" if entry.start < position else "leaves a hole before it"
            raise CheckpointError(f"{path}: the tensor {shown(name)} {problem}; the file is damaged")
        position = entry.end
    if position != size:
        raise CheckpointError(f"{path}: {size - position} bytes after the last tensor; the file is damaged")
    return entries


def _entry(path: Path, name: str, value: Any, offset: int, n_data: int) -> TensorEntry:
    """Check the entry of one tensor against itself and against the `n_data` bytes that follow the header."""
    where = f"{path}: the tensor {shown(name)}"
    fields: Mapping[str, Any] = value if isinstance(value, dict) else {}
    dtype, shape, span = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise CheckpointError(f"{where} has the dtype {shown(dtype)}; it must be one like F32, BF16 or F16")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS or not all(map(_is_size, shape)):
        raise CheckpointError(f"{where} has the shape {shown(shape)}; it must be a list of sizes")
    if not isinstance(span, list) or len(span) != 2 or not all(map(_is_size, span)):
        raise CheckpointError(f"{where} has the data_offsets {shown(span)}; they must be two byte positions")
    start, end = span
    if not start <= end <= n_data:
        raise CheckpointError(
            f"{where} lies at bytes {start} to {end} of {n_data}; the file is cut short: get it again"
        )
    if prod(shape) * _BITS[dtype] != (end - start) * 8:
        raise CheckpointError(f"{where}: shape {shown(shape)} of {dtype} does not fill its {end - start} bytes")
    return TensorEntry(path.name, dtype, tuple(shape), offset + start, offset + end)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _not_safetensors(path: Path, start: bytes, size: int, n_header: int) -> str:
    """Return the error message for a file that does not begin like safetensors: it names the format if it can."""
    if start.startswith(b"PK\x03\x04"):
        kind = "a zip archive (PyTorch's pickled format)"
    elif start[:1] == b"\x80" and start[1:2] <= b"\x05":
        kind = "a pickle, which can run code when it is read,"
    elif start.startswith(b"GGUF"):
        kind = "a GGUF file"
    elif start == b"version ":
        return f"{path} is a git-lfs pointer, not the weights: run `git lfs pull` where it came from"
    elif len(start) < 8 or size - 8 < n_header <= MAX_HEADER_BYTES:
        return f"{path} has only {size} bytes: it is cut short, get it again"
    else:
        return (
            f"{path} is not a safetensors file: it has {size} bytes and claims a header of {n_header} "
            f"(2 to {MAX_HEADER_BYTES} are allowed)"
        )
    return f"{path} is {kind} not safetensors; convert the original model to safetensors"
