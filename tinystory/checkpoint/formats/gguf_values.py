"""Read the values of a GGUF tensor as float32, some rows at a time. The package `gguf` undoes quantisation."""

import math
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from tinystory.checkpoint.formats.gguf_header import GgufTensor
from tinystory.errors import CheckpointError

__all__ = ["INSTALL_HINT", "PLAIN_TYPES", "has_gguf_package", "read_values"]

INSTALL_HINT = "pip install 'tinystory[gguf]'"
PLAIN_TYPES = ("F32", "F16", "BF16")
"""The storage types that need no package."""

_VALUES_AT_ONCE = 2**24


def read_values(file: BinaryIO, tensor: GgufTensor) -> NDArray[np.float32]:
    """Read a tensor into memory of its own, some rows at a time, as float32."""
    row_bytes = tensor.shape[-1] // tensor.storage.block * tensor.storage.n_bytes
    n_rows = math.prod(tensor.shape[:-1])
    values = np.empty((n_rows, tensor.shape[-1]), np.float32)
    step = max(1, _VALUES_AT_ONCE // tensor.shape[-1])
    file.seek(tensor.start)
    for row in range(0, n_rows, step):
        n = min(step, n_rows - row)
        raw = file.read(n * row_bytes)
        if len(raw) != n * row_bytes:
            raise CheckpointError(f"{file.name} became shorter while it was read; try again")
        values[row : row + n] = _dequantised(raw, tensor.storage.name, n)
    return values.reshape(tensor.shape)


def _dequantised(raw: bytes, storage: str, n_rows: int) -> NDArray[np.float32]:
    """Return some rows of a tensor as float32."""
    if storage in ("F32", "F16"):
        return np.frombuffer(raw, "<f4" if storage == "F32" else "<f2").reshape(n_rows, -1).astype(np.float32)
    if storage == "BF16":  # the upper half of a float32
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(n_rows, -1)
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    with np.errstate(all="ignore"):  # a damaged scale gives NaN or infinity, which the save refuses
        rows = dequantize(np.frombuffer(raw, np.uint8).reshape(n_rows, -1), GGMLQuantizationType[storage])
    return np.asarray(rows, np.float32)


def has_gguf_package() -> bool:
    """Return whether quantised weights can be read and written."""
    try:
        import gguf.quants  # noqa: F401
    except ImportError:
        return False
    return True
