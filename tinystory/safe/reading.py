"""Read files that may come from a stranger: only regular files of limited size, with errors of one line."""

import json
import os
import reprlib
import stat
import tomllib
from collections import Counter
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any

from tinystory.errors import TinystoryError, UnreadableFile, one_line

__all__ = [
    "BYTE_ORDER_MARK", "is_absent", "open_regular", "parse_json_object", "read_bytes",
    "read_json_object", "read_text", "read_toml", "regular_file_size", "shown", "without_mark",
]  # fmt: skip

MAX_JSON_BYTES = 4 * 2**20
"""Far above the size of any real config.json. A parsed JSON document takes up to 25 times its size in memory."""

MAX_TOML_BYTES = 2**20
"""Far above the size of any real file of settings, presets or a run."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""What some editors put before UTF-8 text; it is no part of the text."""

_LONGEST_NUMBER = 1000
"""The bits of the largest whole number that is shown by its digits; Python refuses to show far larger ones."""


class _Repr(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        n_bits = x.bit_length()
        return f"a whole number of {n_bits:,} bits" if n_bits > _LONGEST_NUMBER else super().repr_int(x, level)


_repr = _Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 80
_repr.maxlevel, _repr.maxlist, _repr.maxdict, _repr.maxtuple = 2, 4, 3, 8


Raises = Callable[[str], TinystoryError]
"""The class of the errors of a reader, which makes an error from its message."""


def shown(value: object) -> str:
    r"""Return a value from a file as text for an error message: short, on one line, control characters escaped.

    Examples:
        >>> shown("a\nb")
        "'a\\nb'"
    """
    return _repr.repr(value)


def is_absent(path: Path) -> bool:
    """Return whether a file is certainly not there, or is the null device, with which users switch a file off.

    The result is False if this cannot be seen, for example without permission.
    """
    try:
        return os.path.samestat(os.stat(path), os.stat(os.devnull))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return True
    except OSError:
        return False


def regular_file_size(path: Path, *, raises: Raises = UnreadableFile) -> int:
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
        raise _unreadable(path, error, raises) from error
    return _checked_size(path, status, raises)


def open_regular(path: Path, max_bytes: int | None = None, *, raises: Raises = UnreadableFile) -> BufferedReader:
    """Open a regular file to read its bytes. Neither the opening nor a read can wait for anybody.

    Args:
        path: the path of the file; a link is followed.
        max_bytes: the largest size; None for a file that may be of any size.
        raises: the class of the error, as in `regular_file_size`.

    Raises:
        UnreadableFile: (or `raises`) as `regular_file_size`, or the file is larger, or it has bytes but no size, as
            the endless files of /proc.
    """
    regular_file_size(path, raises=raises)  # a pipe is not even opened, because its writer would notice
    try:
        file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115 (the caller closes it)
    except OSError as error:
        raise _unreadable(path, error, raises) from error
    try:
        size = _checked_size(path, os.fstat(file.fileno()), raises)
        if size == 0 and file.peek(1):
            raise raises(f"{path} is not a regular file: the system gives no size for it")
        if max_bytes is not None and size > max_bytes:
            raise raises(f"{path} has {size} bytes; at most {max_bytes} are allowed here")
    except OSError as error:
        file.close()
        raise _unreadable(path, error, raises) from error
    except TinystoryError:
        file.close()
        raise
    return file


def read_bytes(path: Path, max_bytes: int, *, raises: Raises = UnreadableFile) -> bytes:
    """Return the content of a regular file of at most `max_bytes`.

    Raises:
        UnreadableFile: (or `raises`) as `open_regular`.
    """
    with open_regular(path, max_bytes, raises=raises) as file:
        try:
            raw = file.read(max_bytes + 1) or b""
        except OSError as error:
            raise _unreadable(path, error, raises) from error
    if len(raw) > max_bytes:  # it grew while it was read
        raise raises(f"{path} has more than {max_bytes} bytes, which is the most that is allowed here")
    return raw


def read_text(path: Path, max_bytes: int, *, raises: Raises = UnreadableFile) -> str:
    """Return the text of a regular file of at most `max_bytes`, without a byte order mark.

    Raises:
        UnreadableFile: (or `raises`) as `open_regular`, or the file is not UTF-8.
    """
    raw = read_bytes(path, max_bytes, raises=raises)
    try:
        return without_mark(raw).decode("utf-8")
    except UnicodeDecodeError as error:
        raise raises(f"{path} is not UTF-8 text: {one_line(error)}") from error


def read_toml(path: Path, *, raises: Raises = UnreadableFile) -> dict[str, Any]:
    """Return the content of a TOML file; a byte order mark at its beginning is ignored.

    Raises:
        UnreadableFile: (or `raises`) the file cannot be read, is larger than `MAX_TOML_BYTES`, or is not TOML.
    """
    text = read_text(path, MAX_TOML_BYTES, raises=raises)
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise raises(f"{path} is nested too deeply to be read") from None
    except ValueError as error:  # also an integer of thousands of digits
        raise raises(f"{path} cannot be read as TOML: {one_line(error)}") from error


def read_json_object(path: Path, max_bytes: int = MAX_JSON_BYTES, *, raises: Raises = UnreadableFile) -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        path: the path of the file.
        max_bytes: the largest size that is read.
        raises: the class of the error, as in `regular_file_size`.

    Raises:
        UnreadableFile: (or `raises`) the file cannot be read, is larger than `max_bytes`, or holds no JSON object.
    """
    raw = read_bytes(path, max_bytes, raises=raises)
    return parse_json_object(without_mark(raw), str(path), raises=raises)


def parse_json_object(
    raw: bytes | str, where: str, *, unique_keys: bool = False, raises: Raises = UnreadableFile
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


def without_mark(raw: bytes) -> bytes:
    """Return UTF-8 text without a byte order mark at its beginning."""
    return raw.removeprefix(BYTE_ORDER_MARK)


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))


def _checked_size(path: Path, status: os.stat_result, raises: Raises) -> int:
    if not stat.S_ISREG(status.st_mode):
        raise raises(f"{path} is not a regular file")
    return status.st_size


def _unreadable(path: Path, error: OSError | ValueError, raises: Raises) -> TinystoryError:
    return raises(f"cannot read {path}: {getattr(error, 'strerror', None) or one_line(error)}")
