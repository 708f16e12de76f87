"""Read files that may come from a stranger: only regular files of limited size, with errors of one line."""

import json
import os
import reprlib
import stat
from collections import Counter
from pathlib import Path
from typing import Any

from tinystory.errors import TinystoryError, UnreadableFile, one_line

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


def regular_file_size(path: Path, *, raises: type[TinystoryError] = UnreadableFile) -> int:
    """Return the size in bytes of a regular file.

    Args:
        path: the path of the file.
        raises: the class of the error; a checkpoint's reader gives `CheckpointError`.

    Raises:
        UnreadableFile: (or `raises`) it is missing, or it is a directory, a loop of links, or a pipe or a
            device, which could block for ever when it is opened.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # the name is too long, or it has a zero byte
        raise raises(f"cannot read {path}: {getattr(error, 'strerror', error)}") from error
    if not stat.S_ISREG(status.st_mode):
        raise raises(f"{path} is not a regular file")
    return status.st_size


def read_json_object(
    path: Path, max_bytes: int = MAX_JSON_BYTES, *, raises: type[TinystoryError] = UnreadableFile
) -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        path: the path of the file.
        max_bytes: the largest size that is read.
        raises: the class of the error, as in `regular_file_size`.

    Raises:
        UnreadableFile: (or `raises`) the file cannot be read, is larger than `max_bytes`, or holds no JSON object.
    """
    size = regular_file_size(path, raises=raises)
    if size > max_bytes:
        raise raises(f"{path} has {size} bytes; at most {max_bytes} are allowed here")
    try:
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
    except OSError as error:
        raise raises(f"cannot read {path}: {error.strerror}") from error
    return parse_json_object(raw, str(path), raises=raises)


def parse_json_object(
    raw: bytes | str, where: str, *, unique_keys: bool = False, raises: type[TinystoryError] = UnreadableFile
) -> dict[str, Any]:
    """Parse a JSON object; `where` names its place in error messages.

    Args:
        raw: the document. Bytes must be UTF-8; a byte order mark before them is skipped.
        where: the name of the place, for example a path.
        unique_keys: refuse an object that has a key twice (at any depth).
        raises: the class of the error, as in `regular_file_size`.

    Raises:
        UnreadableFile: (or `raises`) it is not JSON or not an object, is nested too deeply, or has a key twice.
    """
    try:
        text = raw.decode("utf-8-sig") if isinstance(raw, bytes) else raw
        value = json.loads(text, object_pairs_hook=_without_duplicates if unique_keys else None)
    except RecursionError:
        raise raises(f"{where} is nested too deeply to be read") from None
    except ValueError as error:  # also UnicodeDecodeError and an integer of thousands of digits
        raise raises(f"{where} is not valid JSON: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise raises(f"{where} holds a JSON {type(value).__name__}; it must be an object {{...}}")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {shown(twice)} stands twice")
    return result
