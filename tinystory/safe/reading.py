"""Read files that may come from a stranger: only regular files of limited size, with errors of one line."""

import json
import os
import reprlib
import stat
from collections import Counter
from pathlib import Path
from typing import Any

from tinystory.errors import CheckpointError, one_line

__all__ = ["parse_json_object", "read_json_object", "regular_file_size", "shown"]

MAX_JSON_BYTES = 4 * 2**20
"""Far above the size of any real config.json. A parsed JSON document takes up to 25 times its size in memory."""

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 80
_repr.maxlevel, _repr.maxlist, _repr.maxdict, _repr.maxtuple = 2, 4, 3, 8


def shown(value: object) -> str:
    r"""Return a value from a file as text for an error message: short, on one line, control characters escaped.

    >>> shown("a\nb")
    "'a\\nb'"
    """
    return _repr.repr(value)


def regular_file_size(path: Path) -> int:
    """Size in bytes of a readable regular file.

    Raises:
        CheckpointError: it is missing, a directory, a pipe or device (opening one could block for ever), or
            behind a loop of links.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # a name too long, or with a zero in it
        raise CheckpointError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from error
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path} is not a regular file")
    return status.st_size


def read_json_object(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CheckpointError: the file cannot be read, is larger than `max_bytes`, or holds no JSON object.
    """
    size = regular_file_size(path)
    if size > max_bytes:
        raise CheckpointError(f"{path} has {size} bytes; at most {max_bytes} are allowed here")
    try:
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    return parse_json_object(raw, str(path))


def parse_json_object(raw: bytes | str, where: str, *, unique_keys: bool = False) -> dict[str, Any]:
    """Parse a JSON object; `where` names its place in error messages.

    Args:
        raw: the document, UTF-8 where bytes.
        where: for example a path.
        unique_keys: refuse an object that has a key twice (at any depth).

    Raises:
        CheckpointError: not JSON, not an object, nested too deeply, or a key stands twice.
    """
    try:
        text = raw.decode("utf-8") if isinstance(raw, bytes) else raw
        value = json.loads(text, object_pairs_hook=_without_duplicates if unique_keys else None)
    except RecursionError:
        raise CheckpointError(f"{where} is nested too deeply to be what it claims to be") from None
    except ValueError as error:  # also UnicodeDecodeError and an integer of thousands of digits
        raise CheckpointError(f"{where} is not valid JSON: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} holds a JSON {type(value).__name__}; it must be an object {{...}}")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {shown(twice)} stands twice")
    return result
