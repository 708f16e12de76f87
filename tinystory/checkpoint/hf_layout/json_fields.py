"""Read single fields of a config.json: each with its type, its range and its default."""

from collections.abc import Mapping
from typing import Any

from tinystory.errors import CheckpointError
from tinystory.safe.reading import shown

__all__ = ["count", "flag", "optional_count", "positive", "text"]


def count(fields: Mapping[str, Any], *keys: str, default: int) -> int:
    """Return a size: the value of the first of `keys` that has one.

    Args:
        fields: the content of config.json.
        keys: names of the field. transformers prefers the first that the file has.
        default: what transformers takes if the file has none of them.

    Raises:
        CheckpointError: the value is not an integer from 1 to 2^31 - 1; null is none, either.
    """
    key = next((key for key in keys if fields.get(key) is not None), None)
    if key is None:
        key = next((key for key in keys if key in fields), None)
    return default if key is None else _counted(key, fields[key])


def optional_count(fields: Mapping[str, Any], key: str, default: int) -> int:
    """Return a size that may be missing or null, and then has a default.

    Raises:
        CheckpointError: the value is neither null nor an integer from 1 to 2^31 - 1.
    """
    value = fields.get(key)
    return default if value is None else _counted(key, value)


def _counted(key: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value < 2**31:
        raise CheckpointError(f"{key} is {shown(value)}; it must be an integer from 1 to {2**31 - 1}")
    return value


def positive(fields: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """Return a number above 0 and below 1e12.

    Raises:
        CheckpointError: it is no such number, or there is none and no default.
    """
    value = fields.get(key)
    if value is None:
        if default is None:
            raise CheckpointError(f"{key} is missing; it must be a positive number")
        return default
    if type(value) not in (int, float) or not 0 < value < 1e12:
        raise CheckpointError(f"{key} is {shown(value)}; it must be a number above 0 and below 1e12")
    return float(value)


def flag(fields: Mapping[str, Any], key: str, default: bool) -> bool:
    """Return true or false; raise CheckpointError for anything else."""
    value = default if fields.get(key) is None else fields[key]
    if not isinstance(value, bool):
        raise CheckpointError(f"{key} is {shown(value)}; it must be true or false")
    return value


def text(fields: Mapping[str, Any], key: str, default: str) -> str:
    """Return a string; raise CheckpointError for anything else."""
    value = default if fields.get(key) is None else fields[key]
    if not isinstance(value, str):
        raise CheckpointError(f"{key} is {shown(value)}; it must be a string")
    return value
