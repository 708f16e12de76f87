"""Read the records of a file of stories: texts between separators, lines of JSON, or rows of a table.

A record is the bytes of a text, not yet decoded, so the caller decides about broken UTF-8. Only one record and one
block of the file are in memory. Knows file formats, and not what a story is.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinystory.data.separators import Separator, find_separator, split_stories
from tinystory.errors import UsageError, one_line
from tinystory.safe.reading import open_regular, without_mark
from tinystory.safe.showing import shortened, visible

__all__ = ["FILE_SUFFIXES", "Record", "dataset_records", "file_records", "reading"]

_COLUMNS = ("text", "story")
_JSON_LINES = frozenset({".jsonl", ".ndjson"})
_OTHER_FORMATS = frozenset({".json", ".csv", ".tsv", ".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".arrow"})
FILE_SUFFIXES = _JSON_LINES | _OTHER_FORMATS | {".txt", ".parquet"}
"""Endings of files; a name with such an ending is never a hub dataset."""
_BLOCK_BYTES = 2**20
_MAX_RECORD_BYTES = 2**28
"""A text that is longer, without a separator or a line end, is no story; this also limits the memory."""
_ROWS_AT_ONCE = 1000
_MAX_BAD_LINES = 100
_LONGEST_NAME = 60
"""Characters of the name of a column in a message."""
"""A file that begins with this many lines without a JSON object has another format."""

Record = bytes | None
"""UTF-8 text of a record, which may be broken and may have several stories; None if the record has no text."""


def file_records(
    path: Path,
    column: str | None = None,
    separator: str | None = None,
    note: Callable[[str], object] | None = None,
) -> Iterator[Record]:
    """Return the records of a .jsonl, .parquet or text file.

    Args:
        path: a file; an empty text file has no records.
        column: the column of a .jsonl or .parquet file that has the text; by default `text`, else `story`.
        separator: the text between the stories of a text file, as for `find_separator`.
        note: gets what a user should know about a text file without the usual separator.

    Raises:
        UsageError: at once, if the file cannot be opened, has another format or lacks the column; while records are
            read, if the file is damaged.
    """
    suffix = path.suffix.lower()
    if suffix in _OTHER_FORMATS:
        raise UsageError(f"cannot read {path}: stories come from .txt, .jsonl or .parquet files, not from {suffix}")
    with reading(path), open_regular(path, raises=UsageError) as file:
        begin = file.read(4096)
    if suffix == ".parquet":
        if not begin:
            raise UsageError(f"{path} is empty")
        return _parquet_records(path, _parquet_column(path, column))
    if b"\0" in begin:
        raise UsageError(f"{path} is not UTF-8 text (it has zero bytes)")
    if suffix in _JSON_LINES:
        return _json_records(path, column)
    with reading(path):
        found = find_separator(path, separator)
    if found.note and note is not None:
        note(found.note)
    return _text_records(path, found)


def dataset_records(name: str, data: Any, column: str | None = None) -> Iterator[Record]:
    """Return the rows of a `datasets` Dataset or IterableDataset.

    A streamed dataset may show its columns only with its first rows.

    Raises:
        UsageError: at once, if the dataset lacks the column; while records are read, if it cannot be read.
    """
    text_column = None if data.column_names is None else _text_column(name, data.column_names, column)

    def records() -> Iterator[Record]:
        try:
            for table in data.with_format("arrow").iter(_ROWS_AT_ONCE):
                source = text_column or _text_column(name, table.column_names, column)
                yield from _binary(name, source, table.column(source)).to_pylist()
        except UsageError:
            raise
        except Exception as error:  # from Arrow, the file system or the network
            raise UsageError(f"cannot read the next rows of {name}: {one_line(error)}") from error

    return records()


def _text_column(name: object, columns: Iterable[object], wanted: str | None) -> str:
    """Return the column to read: the wanted one, or else `text` or `story`.

    Raises:
        UsageError: no such column; the message lists the columns.
    """
    names = [str(column) for column in columns]
    tried = _COLUMNS if wanted is None else (wanted,)
    for column in tried:
        if column in names:
            return column
    listed = ", ".join(shortened(" ".join(visible(column).split()), _LONGEST_NAME) for column in names[:12]) or "none"
    more = ", …" if len(names) > 12 else ""
    raise UsageError(f"{name} has no column {' or '.join(map(repr, tried))}; it has {listed}{more}")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors of the file system into a message of one line for the user."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot read {visible(str(path))}: {error.strerror or one_line(error)}") from error


def _text_records(path: Path, separator: Separator) -> Iterator[Record]:
    """Yield the texts between separators, with `LF` as newline; an empty text at the beginning is left out."""
    is_first = True
    with reading(path), open_regular(path, raises=UsageError) as file:
        for text in split_stories(file, path, separator):
            if not (is_first and not text.strip()):
                yield text.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in text else text
            is_first = False


def _json_records(path: Path, column: str | None) -> Iterator[Record]:
    """Yield the text of each line: of the column that was asked for, else of `text`, else of `story`."""
    columns = _COLUMNS if column is None else (column,)
    first_row: dict[str, Any] | None = None
    n_without = 0  # lines without such a column
    has_column = False
    with reading(path), open_regular(path, raises=UsageError) as file:
        while line := file.readline(_MAX_RECORD_BYTES):
            if len(line) == _MAX_RECORD_BYTES:
                raise UsageError(f"{path} has a line of {_MAX_RECORD_BYTES:,} bytes or more")
            if line.isspace():
                continue
            row = _json_object(line)
            first_row = first_row or row
            if row is None or not any(name in row for name in columns):
                n_without += 1
                if not has_column and n_without == _MAX_BAD_LINES:
                    break
                yield None
                continue
            has_column = True
            text = next((row[name] for name in columns if isinstance(row.get(name), str)), None)
            yield None if text is None else _utf8(text)
    if first_row is None and n_without:
        raise UsageError(f"{path} is not JSON lines: none of its first {n_without} lines is an object {{...}}")
    if not has_column and first_row is not None:
        _text_column(path, first_row, column)


def _json_object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(without_mark(line).decode(errors="surrogateescape"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _utf8(text: str) -> bytes:
    """Return the bytes of a JSON string as they stand in the file. Lone surrogates become broken UTF-8."""
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return text.encode(errors="surrogatepass")


def _parquet_column(path: Path, column: str | None) -> str:
    import pyarrow.parquet

    with _reading_parquet(path), pyarrow.parquet.ParquetFile(path) as file:
        text_column = _text_column(path, file.schema_arrow.names, column)
        _binary(path, text_column, file.schema_arrow.empty_table().column(text_column))
    return text_column


def _parquet_records(path: Path, column: str) -> Iterator[Record]:
    import pyarrow.parquet

    # without these two options, a whole row group would be in memory
    options = {"pre_buffer": False, "buffer_size": _BLOCK_BYTES}
    with _reading_parquet(path), pyarrow.parquet.ParquetFile(path, **options) as file:
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[column]):
            yield from _binary(path, column, batch.column(0)).to_pylist()


def _binary(name: object, column: str, values: Any) -> Any:
    """Return an Arrow column of text as bytes, because Arrow fails when it decodes broken UTF-8."""
    import pyarrow

    try:
        return values.cast(pyarrow.large_binary())
    except pyarrow.ArrowException as error:
        raise UsageError(f"the column {column!r} of {name} has {values.type}, not text") from error


@contextmanager
def _reading_parquet(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        if isinstance(error, OSError) and error.strerror:
            raise UsageError(f"cannot read {path}: {error.strerror}") from error
        raise UsageError(f"{path} is damaged, or is not a parquet file: {one_line(error)}") from error
