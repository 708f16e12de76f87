"""Read the header of a GGUF file and check it against the file's size, before any large memory is taken.

This module knows the container (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). It knows nothing about
architectures, tokenizers or the values of weights.
"""

import itertools
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinystory.errors import CheckpointError
from tinystory.safe.reading import open_regular, shown

__all__ = [
    "ALIGNMENT", "MAGIC", "STORAGE_TYPES", "GgufHeader", "GgufTensor", "StorageType", "ValueType", "is_gguf",
    "read_gguf_header",
]  # fmt: skip

MAGIC = b"GGUF"
ALIGNMENT = 32
"""Bytes to whose multiples tensors are aligned, unless `general.alignment` says otherwise."""

_VERSIONS = (2, 3)
_MAX_HEADER_BYTES = 64 * 2**20
_MAX_FIELDS, _MAX_TENSORS, _MAX_STRINGS = 10_000, 100_000, 4_000_000
_MAX_ALIGNMENT = 2**20
_MAX_DIMENSIONS = 4
_KEPT_STRING_ARRAYS = frozenset({"tokenizer.ggml.tokens", "tokenizer.ggml.merges"})


class ValueType(IntEnum):
    """The kinds of values in the metadata of a GGUF file."""

    UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)


_SCALARS = {
    ValueType.UINT8: "<B", ValueType.INT8: "<b", ValueType.UINT16: "<H", ValueType.INT16: "<h",
    ValueType.UINT32: "<I", ValueType.INT32: "<i", ValueType.FLOAT32: "<f", ValueType.BOOL: "<B",
    ValueType.UINT64: "<Q", ValueType.INT64: "<q", ValueType.FLOAT64: "<d",
}  # fmt: skip
_SIZES = {form: struct.calcsize(form) for form in _SCALARS.values()}
_FIXED_SIZE_ARRAYS = {
    ValueType.UINT8: "<u1", ValueType.INT8: "<i1", ValueType.UINT16: "<u2", ValueType.INT16: "<i2",
    ValueType.UINT32: "<u4", ValueType.INT32: "<i4", ValueType.FLOAT32: "<f4", ValueType.BOOL: "<u1",
    ValueType.UINT64: "<u8", ValueType.INT64: "<i8", ValueType.FLOAT64: "<f8",
}  # fmt: skip


class StorageType(NamedTuple):
    """The storage of a tensor's values: `block` values of a row take `n_bytes` bytes."""

    name: str
    block: int
    n_bytes: int


STORAGE_TYPES: Mapping[int, StorageType] = {
    0: StorageType("F32", 1, 4),
    1: StorageType("F16", 1, 2),
    2: StorageType("Q4_0", 32, 18),
    3: StorageType("Q4_1", 32, 20),
    6: StorageType("Q5_0", 32, 22),
    7: StorageType("Q5_1", 32, 24),
    8: StorageType("Q8_0", 32, 34),
    10: StorageType("Q2_K", 256, 84),
    11: StorageType("Q3_K", 256, 110),
    12: StorageType("Q4_K", 256, 144),
    13: StorageType("Q5_K", 256, 176),
    14: StorageType("Q6_K", 256, 210),
    30: StorageType("BF16", 1, 2),
}
_OTHER_TYPES = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a file: its shape, its storage type, and where its bytes lie.

    Attributes:
        name: llama.cpp's name, such as `blk.0.attn_q.weight`.
        shape: rows first, as in NumPy. The file lists it the other way round.
        storage: how the values are stored.
        start: place of the first byte, counted from the beginning of the file.
        n_bytes: length in bytes.
    """

    name: str
    shape: tuple[int, ...]
    storage: StorageType
    start: int
    n_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """Everything in a GGUF file except the values of its tensors.

    Attributes:
        path: the file.
        size: its length in bytes.
        version: 2 or 3.
        fields: the metadata. A number is an int or a float, an array of numbers a NumPy array, and an array of
            strings a list. Only the tokens and the merges of the tokenizer are kept as lists; any other array of
            strings is an empty list.
        tensors: name -> tensor. Their bytes lie in the file and do not overlap.
    """

    path: Path
    size: int
    version: int
    fields: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def is_gguf(path: Path) -> bool:
    """Return whether a readable regular file begins as a GGUF file does."""
    try:
        with open_regular(path, raises=CheckpointError) as file:
            return file.read(len(MAGIC)) == MAGIC
    except (CheckpointError, OSError):
        return False


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and check the header of a GGUF file; at most 64 MiB of the file are read.

    Raises:
        CheckpointError: the file cannot be read, is no GGUF file of version 2 or 3, or is damaged. Counts, lengths,
            offsets and sizes that do not fit the file are damage.
    """
    try:
        with open_regular(path, raises=CheckpointError) as file:
            size = os.fstat(file.fileno()).st_size
            raw = file.read(min(size, _MAX_HEADER_BYTES))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    reader = _HeaderReader(path, size, raw)
    version, n_tensors, n_fields = reader.preamble()
    fields = reader.fields(n_fields)
    tensors = reader.tensors(n_tensors, fields.get("general.alignment", ALIGNMENT))
    return GgufHeader(path, size, version, fields, tensors)


class _HeaderReader:
    """A place in the first bytes of a file. Each method reads one part and moves on."""

    def __init__(self, path: Path, size: int, raw: bytes) -> None:
        self._path, self._size, self._raw = path, size, raw
        self._position = 0

    def preamble(self) -> tuple[int, int, int]:
        """Return the version and the numbers of tensors and of fields."""
        if self._raw[:4] != MAGIC:
            raise CheckpointError(f"{self._path} is no GGUF file; it does not begin with GGUF")
        self._position = 4
        version = self._number("<I")
        if version & 0xFFFF == 0 and version:
            raise CheckpointError(f"{self._path} is a big-endian GGUF file; only little-endian files can be read")
        if version not in _VERSIONS:
            raise CheckpointError(f"{self._path} is a GGUF file of version {version}; versions 2 and 3 can be read")
        n_tensors, n_fields = self._number("<Q"), self._number("<Q")
        for count, limit, what in ((n_tensors, _MAX_TENSORS, "tensors"), (n_fields, _MAX_FIELDS, "metadata fields")):
            if count > limit:
                raise self._damaged(f"it claims {count} {what}; at most {limit} are allowed")
        return version, n_tensors, n_fields

    def fields(self, count: int) -> dict[str, Any]:
        """Return the metadata, name -> value."""
        fields: dict[str, Any] = {}
        for _ in range(count):
            key = self._text("a metadata name")
            if key in fields:
                raise self._damaged(f"the metadata field {shown(key)} stands twice")
            fields[key] = self._value(key)
        return fields

    def tensors(self, count: int, alignment: object) -> dict[str, GgufTensor]:
        """Return the tensors by name; their data begins at the next multiple of `alignment` after the last one."""
        if type(alignment) is not int or not 1 <= alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
            raise self._damaged(f"general.alignment is {shown(alignment)}; it must be a power of two")
        entries = [self._tensor_entry() for _ in range(count)]
        data_start = -(-self._position // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, shape, storage, offset in entries:
            n_bytes = math.prod(shape) // storage.block * storage.n_bytes
            start = data_start + offset
            if offset % alignment or start + n_bytes > self._size:
                raise self._damaged(
                    f"the tensor {shown(name)} lies at {start} with {n_bytes} bytes; "
                    f"the file has {self._size} bytes and an alignment of {alignment}"
                )
            if name in tensors:
                raise self._damaged(f"the tensor {shown(name)} stands twice")
            tensors[name] = GgufTensor(name, shape, storage, start, n_bytes)
        in_order = sorted(tensors.values(), key=lambda tensor: tensor.start)
        for before, after in itertools.pairwise(in_order):
            if before.start + before.n_bytes > after.start:
                raise self._damaged(f"the tensors {shown(before.name)} and {shown(after.name)} overlap")
        return tensors

    def _tensor_entry(self) -> tuple[str, tuple[int, ...], StorageType, int]:
        """Return name, shape, storage type and offset of one tensor."""
        name = self._text("a tensor's name")
        n_dimensions = self._number("<I")
        if not 1 <= n_dimensions <= _MAX_DIMENSIONS:
            raise self._damaged(f"the tensor {shown(name)} has {n_dimensions} dimensions")
        shape = tuple(self._number("<Q") for _ in range(n_dimensions))[::-1]
        kind, offset = self._number("<I"), self._number("<Q")
        storage = STORAGE_TYPES.get(kind)
        if storage is None:
            raise CheckpointError(
                f"{self._path}: the tensor {shown(name)} is stored as {_OTHER_TYPES.get(kind, f'type {kind}')}; "
                f"readable are {', '.join(known.name for known in STORAGE_TYPES.values())}"
            )
        if not all(1 <= length <= self._size * storage.block for length in shape) or shape[-1] % storage.block:
            raise self._damaged(f"the tensor {shown(name)} has the shape {shown(shape)} in {storage.name}")
        return name, shape, storage, offset

    # --- single values ---

    def _value(self, key: str) -> Any:
        kind = self._number("<I")
        if kind == ValueType.STRING:
            return self._text(f"the value of {shown(key)}")
        if kind == ValueType.ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise self._damaged(f"the metadata field {shown(key)} has the unknown type {kind}")
        value = self._number(_SCALARS[ValueType(kind)])
        if kind == ValueType.FLOAT32:
            return float(str(np.float32(value)))  # 1e-5, not 9.99999974e-06: the shortest number that is stored so
        if kind == ValueType.BOOL:
            if value > 1:
                raise self._damaged(f"the metadata field {shown(key)} is {value}; it must be 0 or 1")
            return bool(value)
        return value

    def _array(self, key: str) -> Any:
        kind, count = self._number("<I"), self._number("<Q")
        if kind == ValueType.STRING:
            self._check_room(8 * count)
            if count > _MAX_STRINGS:
                raise self._damaged(f"the metadata field {shown(key)} has {count} strings")
            if key in _KEPT_STRING_ARRAYS:
                what = f"an item of {shown(key)}"
                return [self._text(what) for _ in range(count)]
            for _ in range(count):
                self._step_over(self._number("<Q"))
            return []
        if kind not in _FIXED_SIZE_ARRAYS:
            raise self._damaged(f"the metadata field {shown(key)} is an array of the unknown type {kind}")
        dtype = np.dtype(_FIXED_SIZE_ARRAYS[ValueType(kind)])
        start = self._step_over(count * dtype.itemsize)
        return np.frombuffer(self._raw, dtype, count, start)

    def _text(self, what: str) -> str:
        length = self._number("<Q")
        start = self._step_over(length)
        try:
            return self._raw[start : start + length].decode()
        except UnicodeDecodeError as error:
            raise self._damaged(f"{what} is not UTF-8") from error

    def _number(self, form: str) -> Any:
        start = self._step_over(_SIZES[form])
        return struct.unpack_from(form, self._raw, start)[0]

    def _step_over(self, n_bytes: int) -> int:
        """Move over bytes, and return where they begin."""
        self._check_room(n_bytes)
        start = self._position
        self._position += n_bytes
        return start

    def _check_room(self, n_bytes: int) -> None:
        if n_bytes <= len(self._raw) - self._position:
            return
        if len(self._raw) < self._size and n_bytes <= self._size - self._position:
            raise CheckpointError(f"{self._path}: the header is longer than {_MAX_HEADER_BYTES // 2**20} MiB")
        raise self._damaged(f"{n_bytes} bytes should follow byte {self._position}, but the file has {self._size}")

    def _damaged(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self._path} is damaged: {reason}")
