"""Stories from anything: text files, JSON lines, parquet, folders saved by `datasets`, the Hugging Face hub.

A story is the text between separators, stripped. Everything is read lazily, a block at a time. What is wrong with
single stories is counted in a `SourceReport`; what is wrong with a source as a whole is an error. Knows nothing of
tokens.
"""

import glob
import hashlib
import json
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from tinystory import hub
from tinystory.errors import UsageError
from tinystory.selection import Selection
from tinystory.tokenizer import END_OF_TEXT
from tinystory.visible import visible

__all__ = ["Source", "SourceReport", "find_sources", "read_stories"]

_SEPARATOR = END_OF_TEXT.encode()
_COLUMNS = ("text", "story")
_JSON_LINES = frozenset({".jsonl", ".ndjson"})
_OTHER_FORMATS = frozenset({".json", ".csv", ".tsv", ".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".arrow"})
_FILE_SUFFIXES = _JSON_LINES | _OTHER_FORMATS | {".txt", ".parquet"}
_SAVED_DATASET_FILES = ("state.json", "dataset_dict.json")
_BLOCK_BYTES = 2**20
_MAX_STORY_BYTES = 2**28
"""What goes on longer without a separator or a line end is no story; also bounds the memory taken."""
_ROWS_AT_ONCE = 1000
_HOPELESS_LINES = 100
"""So many lines without one JSON object, and the file is something else."""

Record = bytes | None
"""UTF-8 text of a record, perhaps broken, perhaps of several stories; None where the record has no text."""


@dataclass
class SourceReport:
    """What came out of some sources, counted while they are read.

    Attributes:
        stories: given out.
        bytes: UTF-8 bytes of those.
        empty: stories of nothing but white space, left out.
        broken_utf8: stories with invalid UTF-8, each piece of it replaced by U+FFFD; selected or not.
        unreadable: lines that are no JSON object and records without a text, left out.
        not_selected: stories left out by the `Selection`.
    """

    stories: int = 0
    bytes: int = 0
    empty: int = 0
    broken_utf8: int = 0
    unreadable: int = 0
    not_selected: int = 0

    def __str__(self) -> str:
        """All in one line; what did not happen is not mentioned."""
        notes = {
            "not selected": self.not_selected,
            "empty and left out": self.empty,
            "with broken UTF-8, mended": self.broken_utf8,
            "records without a text, left out": self.unreadable,
        }
        parts = [f"{self.stories:,} stories, {self.bytes:,} bytes"]
        return "; ".join(parts + [f"{count:,} {what}" for what, count in notes.items() if count])


@dataclass(frozen=True)
class Source:
    """One place that stories come from, found but not yet read.

    Attributes:
        name: as the user gave it.
        kind: single files, a folder saved by `datasets`, or a dataset on the hub.
        files: the files to read, in order; of a folder all that are in it, of a hub dataset none.
    """

    name: str
    kind: Literal["files", "folder", "hub"]
    files: tuple[Path, ...] = field(default=())

    def fingerprint(self, split: str) -> dict[str, Any]:
        """What identifies the content without reading it: names without folders, sizes in bytes, times of change.

        A hub dataset is known by its name and split alone, so that prepared stories can be reused offline.

        Raises:
            UsageError: a file is gone.
        """
        if self.kind == "hub":
            return {"hub": self.name, "split": split}
        stamps = []
        for path in self.files:
            with _reading(path):
                status = path.stat()
            stamps.append([path.name, status.st_size, status.st_mtime_ns])
        if self.kind == "files":
            return {"files": stamps}
        digest = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()
        return {"folder": Path(self.name).name, "split": split, "files": digest}


def find_sources(names: str | Path | Sequence[str | Path]) -> list[Source]:
    """Find out what each name means: a file, a saved dataset's folder, a glob (its files sorted), a hub dataset.

    Raises:
        UsageError: nothing is there, or a glob matches no file.
    """
    single = isinstance(names, str | Path)
    found = [_find(str(name)) for name in ([names] if single else names)]
    if not found:
        raise UsageError("no story source is given")
    return found


def read_stories(
    names: str | Path | Sequence[str | Path],
    split: str = "train",
    *,
    column: str | None = None,
    streaming: bool = False,
    selection: Selection | None = None,
    report: SourceReport | None = None,
) -> Iterator[str]:
    """Yield the stories of sources, one source after the other, in memory that does not grow with them.

    Args:
        names: one source or several, each a `.txt` with `<|endoftext|>` between stories, a `.jsonl`, a `.parquet`,
            a glob of such files, a folder written by `save_to_disk`, or the name of a hub dataset (owner/name).
        split: the split of a hub dataset or a saved dataset dictionary.
        column: the column with the text; by default `text`, else `story`.
        streaming: read a hub dataset while it is downloaded, instead of after.
        selection: leaves out what it does not keep.
        report: counts up while stories are taken.

    Raises:
        UsageError: at once where a source is missing, unreadable, empty or without the column; while stories are
            taken where a file turns out to be damaged, a source to have no story, or the selection to keep none.
    """
    sources = find_sources(names)
    opened = [(source, _open(source, split, column, streaming)) for source in sources]
    return _selected(opened, selection or Selection(), report or SourceReport())


def _selected(
    opened: list[tuple[Source, Iterator[Record]]], selection: Selection, report: SourceReport
) -> Iterator[str]:
    n_found = n_kept = 0
    for source, records in opened:
        n_before = n_found
        for story in _stories(records, report):
            n_found += 1
            if not selection.keeps(story):
                report.not_selected += 1
                continue
            n_kept += 1
            report.stories += 1
            report.bytes += len(story.encode())
            yield story
        if n_found == n_before:
            raise UsageError(f"{source.name} has no story ({report.empty} empty, {report.unreadable} without a text)")
    if not n_kept:
        raise UsageError(f"of {n_found} stories none is selected: {selection}")


def _stories(records: Iterable[Record], report: SourceReport) -> Iterator[str]:
    for record in records:
        if record is None:
            report.unreadable += 1
            continue
        for part in _between_separators(record):
            try:
                story = part.decode().strip()
            except UnicodeDecodeError:
                story = part.decode(errors="replace").strip()
                report.broken_utf8 += 1
            if story:
                yield story
            else:
                report.empty += 1


def _between_separators(record: bytes) -> list[bytes]:
    """The stories of a record; nothing before a first or after a last separator is not an empty story."""
    parts = record.split(_SEPARATOR)
    if len(parts) > 1 and not parts[0].strip():
        del parts[0]
    if len(parts) > 1 and not parts[-1].strip():
        del parts[-1]
    return parts


# --- what a name means ---


def _find(name: str) -> Source:
    path = Path(name)
    with _reading(path):
        if path.is_dir():
            return Source(name, "folder", tuple(sorted(file for file in path.rglob("*") if file.is_file())))
        if path.exists():
            return Source(name, "files", (path,))
        if glob.has_magic(name):
            files = tuple(sorted(file for file in map(Path, glob.glob(name, recursive=True)) if file.is_file()))
            if not files:
                raise UsageError(f"{visible(name)} matches no file")
            return Source(name, "files", files)
    if "/" in name and hub.is_model_id(name) and path.suffix.lower() not in _FILE_SUFFIXES:
        return Source(name, "hub")
    raise UsageError(f"{visible(name)}: no such file or folder, and not the name of a hub dataset (owner/name)")


def _open(source: Source, split: str, column: str | None, streaming: bool) -> Iterator[Record]:
    """The records of a source, after every check that needs no reading from end to end."""
    if source.kind == "hub":
        return _dataset_records(source, _hub_dataset(source.name, split, streaming), column)
    if source.kind == "folder":
        return _dataset_records(source, _saved_dataset(source, split), column)
    readers = [_checked_reader(path, column) for path in source.files]
    if not any(path.stat().st_size for path in source.files):
        raise UsageError(f"{source.name} is empty")
    return chain.from_iterable(reader() for reader in readers)


def _checked_reader(path: Path, column: str | None) -> Callable[[], Iterator[Record]]:
    suffix = path.suffix.lower()
    if suffix in _OTHER_FORMATS:
        raise UsageError(f"cannot read {path}: stories come from .txt, .jsonl or .parquet files, not from {suffix}")
    with _reading(path):
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would block, and could not be read a second time
            raise UsageError(f"{path} is not a regular file")
        with path.open("rb") as file:
            begin = file.read(4096)
    if suffix == ".parquet":
        if not begin:
            raise UsageError(f"{path} is empty")
        found = _parquet_column(path, column)
        return lambda: _parquet_records(path, found)
    if b"\0" in begin:
        raise UsageError(f"{path} is not UTF-8 text (it has zero bytes)")
    if suffix in _JSON_LINES:
        return lambda: _json_records(path, column)
    return lambda: _text_records(path)


def _text_column(name: object, columns: Iterable[object], wanted: str | None) -> str:
    """The column to read: the wanted one, else the first of `text`, `story` that is there."""
    columns = [str(column) for column in columns]
    tried = _COLUMNS if wanted is None else (wanted,)
    for column in tried:
        if column in columns:
            return column
    listed = ", ".join(" ".join(visible(column).split()) for column in columns[:12]) or "none"
    more = ", …" if len(columns) > 12 else ""
    raise UsageError(f"{name} has no column {' or '.join(map(repr, tried))}; it has {listed}{more}")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or _first_line(error)
        raise UsageError(f"cannot read {visible(str(path))}: {reason}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


# --- the formats ---


def _text_records(path: Path) -> Iterator[Record]:
    """The texts between separators. Each byte is looked at once, however long a line or a story."""
    is_first = True
    for text in _split(path):
        if not (is_first and not text.strip()):
            yield text.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in text else text
        is_first = False


def _split(path: Path) -> Iterator[bytes]:
    begun: list[bytes] = []
    n_begun = 0
    tail = b""  # may be the beginning of a separator
    n_kept = len(_SEPARATOR) - 1
    with _reading(path), path.open("rb") as file:
        file.seek(3 if file.read(3) == b"\xef\xbb\xbf" else 0)  # a byte order mark is no text
        while block := file.read(_BLOCK_BYTES):
            *ended, rest = (tail + block).split(_SEPARATOR)
            for end in ended:
                yield b"".join((*begun, end))
                begun, n_begun = [], 0
            begun.append(rest[:-n_kept])
            n_begun += len(begun[-1])
            tail = rest[-n_kept:]
            if n_begun > _MAX_STORY_BYTES:
                raise UsageError(f"{path} goes on for {n_begun:,} bytes without {END_OF_TEXT}; put it between stories")
    last = b"".join((*begun, tail))
    if last.strip():
        yield last


def _json_records(path: Path, column: str | None) -> Iterator[Record]:
    """The text column of each line; which one it is, the first object decides."""
    found: str | None = None
    n_others = 0
    with _reading(path), path.open("rb") as file:
        while line := file.readline(_MAX_STORY_BYTES):
            if len(line) == _MAX_STORY_BYTES:
                raise UsageError(f"{path} has a line of {_MAX_STORY_BYTES:,} bytes or more")
            if line.isspace():
                continue
            row = _json_object(line)
            if row is None:
                n_others += 1
                if found is None and n_others == _HOPELESS_LINES:
                    break
                yield None
                continue
            found = found or _text_column(path, row, column)
            value = row.get(found)
            yield _utf8(value) if isinstance(value, str) else None
    if found is None and n_others:
        raise UsageError(f"{path} is not JSON lines: none of its first {n_others} lines is an object {{...}}")


def _json_object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _utf8(text: str) -> bytes:
    """The bytes of a JSON string as they stood in the file, broken ones too; lone surrogates become broken ones."""
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return text.encode(errors="surrogatepass")


def _parquet_column(path: Path, column: str | None) -> str:
    import pyarrow.parquet

    with _reading_arrow(path), pyarrow.parquet.ParquetFile(path) as file:
        found = _text_column(path, file.schema_arrow.names, column)
        _binary(path, found, file.schema_arrow.empty_table().column(found))
    return found


def _parquet_records(path: Path, column: str) -> Iterator[Record]:
    import pyarrow.parquet

    # without these two, a whole row group is held in memory
    options = {"pre_buffer": False, "buffer_size": _BLOCK_BYTES}
    with _reading_arrow(path), pyarrow.parquet.ParquetFile(path, **options) as file:
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[column]):
            yield from _binary(path, column, batch.column(0)).to_pylist()


def _dataset_records(source: Source, data: Any, column: str | None) -> Iterator[Record]:
    """The rows of a Dataset or IterableDataset, which tells its columns now or with its first rows."""
    found = None if data.column_names is None else _text_column(source.name, data.column_names, column)

    def records() -> Iterator[Record]:
        with _reading_arrow(Path(source.name)):
            for table in data.with_format("arrow").iter(_ROWS_AT_ONCE):
                name = found or _text_column(source.name, table.column_names, column)
                yield from _binary(source.name, name, table.column(name)).to_pylist()

    return records()


def _binary(name: object, column: str, values: Any) -> Any:
    """An Arrow column of text as bytes: Arrow takes broken UTF-8 for text, and fails only when it is decoded."""
    import pyarrow

    try:
        return values.cast(pyarrow.large_binary())
    except pyarrow.ArrowException as error:
        raise UsageError(f"the column {column!r} of {name} holds {values.type}, not text") from error


@contextmanager
def _reading_arrow(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        with _reading(path):
            yield
    except pyarrow.ArrowException as error:
        raise UsageError(f"{path} is damaged or in another format: {_first_line(error)}") from error


def _saved_dataset(source: Source, split: str) -> Any:
    path = Path(source.name)
    if not any((path / file).is_file() for file in _SAVED_DATASET_FILES):
        raise UsageError(
            f"{path} is no folder written by save_to_disk; of a folder of story files, give the files: '{path}/*.txt'"
        )
    import datasets

    try:
        data = datasets.load_from_disk(str(path))
    except Exception as error:  # the library raises its own, Arrow's and the file system's errors
        raise UsageError(f"{path} is a damaged dataset folder: {_first_line(error)}") from error
    if not isinstance(data, datasets.DatasetDict):
        return data
    if split not in data:
        raise UsageError(f"{path} has no split {split!r}; it has {', '.join(data)}")
    return data[split]


def _hub_dataset(name: str, split: str, streaming: bool) -> Any:
    """A dataset from the hub; where that cannot be reached, from the local cache."""
    import datasets

    problem = hub.dataset_problem(name)
    was_offline = datasets.config.HF_HUB_OFFLINE
    try:
        # without a hub, the library would retry for half a minute before it looks into its cache
        datasets.config.HF_HUB_OFFLINE = was_offline or problem is not None
        return datasets.load_dataset(name, split=split, streaming=streaming)
    except Exception as error:  # the library raises its own, the hub's and the file system's errors
        raise UsageError(problem or f"cannot load {name} from the hub: {_first_line(error)}") from error
    finally:
        datasets.config.HF_HUB_OFFLINE = was_offline
