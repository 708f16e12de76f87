"""Read the weights of a llama checkpoint as NumPy arrays in float32, without torch."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinystory.checkpoint import hf_layout
from tinystory.checkpoint.header import CheckpointHeader
from tinystory.errors import CheckpointError

__all__ = ["read_arrays"]

_NUMPY_DTYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "F64": np.float64}
"""The type of array that each stored format is read into. NumPy has no bfloat16, so its bits are read as integers."""


def read_arrays(header: CheckpointHeader) -> dict[str, NDArray[np.float32]]:
    """Read every tensor of a llama checkpoint, under our parameter names; a tied head is left out.

    Raises:
        CheckpointError: a value is not finite, or a file has changed since the header was read.
    """
    config = header.config
    assert config is not None
    assert config.family == "llama"
    prefix = hf_layout.name_prefix(config, header.tensors)
    return {
        layout.parameters[0]: _read(header, layout.name, hf_layout.name_in_file(layout.name, prefix, config))
        for layout in hf_layout.tensor_layout(config)
    }


def _read(header: CheckpointHeader, shown_name: str, name: str) -> NDArray[np.float32]:
    entry = header.tensors[name]
    path = header.directory / entry.file
    raw = np.empty(entry.n_elements, _NUMPY_DTYPES[entry.dtype])
    try:
        with path.open("rb") as file:
            file.seek(entry.start)
            n_read = file.readinto(raw.data.cast("B")) if raw.size else 0
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if n_read != raw.nbytes:
        raise CheckpointError(f"{path} became shorter while it was read; try again")
    if entry.dtype == "BF16":  # its bits are the upper half of a float32
        array = (raw.astype(np.uint32) << 16).view(np.float32)
    else:
        with np.errstate(over="ignore"):
            array = raw.astype(np.float32)
    where = f"{header.directory}: the tensor {shown_name}"
    if not _is_finite(array):
        if entry.dtype == "F64" and _is_finite(raw):
            raise CheckpointError(f"{where} has numbers of float64 that do not fit into float32")
        raise CheckpointError(f"{where} holds NaN or infinity; the training failed")
    return array.reshape(entry.shape)


def _is_finite(array: NDArray[Any]) -> bool:
    return bool(np.isfinite((array.min(), array.max())).all())  # both propagate NaN
