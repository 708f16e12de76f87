"""The number formats of weights: their names and sizes, and where each can be used.

Every other list of dtypes follows from this table. The module imports nothing heavy, and must not know who uses it.
"""

from typing import NamedTuple

__all__ = ["COMPUTED_DTYPES", "DTYPES", "LOADED_DTYPES", "STORED_DTYPES", "Dtype", "dtype_of_safetensors"]


class Dtype(NamedTuple):
    """One number format.

    Attributes:
        n_bytes: size of one weight, in bytes.
        safetensors_name: the name in the header of a safetensors file.
        is_computed: a session can compute in it; users choose among these with `--dtype`.
        is_loaded: `load_model` can give a model parameters in it.
        is_stored: a checkpoint of ours can have weights in it.
    """

    n_bytes: int
    safetensors_name: str
    is_computed: bool
    is_loaded: bool
    is_stored: bool


DTYPES = {
    "float32": Dtype(4, "F32", is_computed=True, is_loaded=True, is_stored=True),
    "bfloat16": Dtype(2, "BF16", is_computed=True, is_loaded=True, is_stored=True),
    "float16": Dtype(2, "F16", is_computed=True, is_loaded=True, is_stored=True),
    "float64": Dtype(8, "F64", is_computed=False, is_loaded=True, is_stored=False),
    "int8": Dtype(1, "I8", is_computed=True, is_loaded=False, is_stored=False),
}
"""Every format by the name that users write and that torch has for it."""

COMPUTED_DTYPES = tuple(name for name, dtype in DTYPES.items() if dtype.is_computed)
LOADED_DTYPES = tuple(name for name, dtype in DTYPES.items() if dtype.is_loaded)
STORED_DTYPES = tuple(name for name, dtype in DTYPES.items() if dtype.is_stored)


def dtype_of_safetensors(safetensors_name: str) -> str | None:
    """Return the name of the format that safetensors calls so; None if weights in it cannot be loaded."""
    matches = (name for name in LOADED_DTYPES if DTYPES[name].safetensors_name == safetensors_name)
    return next(matches, None)
