"""Read stories from text files, JSON lines, parquet, folders saved by `datasets`, or the Hugging Face hub.

A story is the text between separators, stripped. Sources are read a block at a time, when the stories are needed.
Faults of single stories are counted in a `SourceReport`; a fault of a whole source is an error. Knows no tokens.
"""

import glob
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from tinystory.checkpoint import hub
from tinystory.data.records import FILE_SUFFIXES, Record, dataset_records, file_records, reading
from tinystory.data.selection import NothingSelected, Selection
from tinystory.data.separators import SEPARATOR
from tinystory.errors import UsageError, one_line
from tinystory.safe.reading import regular_file_size, shown
from tinystory.safe.showing import visible

__all__ = ["Source", "SourceReport", "find_sources", "read_stories"]

_SAVED_DATASET_FILES = ("state.json", "dataset_dict.json")
_MANY_LOST = 10
"""So many records without a text, and few with one, are not single faults but another column."""

_NOT_WINDOWS_1252 = re.compile(
    rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"  # a character in UTF-8
    rb"|[\xe2\xf0][\x80-\xbf]+\Z"  # the beginning of one, cut off
    rb"|[\x81\x8d\x8f\x90\x9d\xfe\xff]"  # no characters in Windows-1252, or two that hardly any text has
)
_MOJIBAKE = re.compile("â€[™œ\x9d“”˜¦\x99\x9c]|Ã[©¨¤¶¼±³¡§ªº\xad\x9f]|Â[\xa0£°«»]")


@dataclass
class SourceReport:
    """The counts of some sources, made while they are read.

    Attributes:
        stories: stories that were given.
        bytes: UTF-8 bytes of these stories.
        empty: stories that have only white space; they are left out.
        broken_utf8: stories with invalid UTF-8, selected or not; U+FFFD replaces each invalid part.
        windows_1252: stories in Windows-1252 instead of UTF-8, selected or not; they are read as such.
        zero_bytes: stories with a zero byte, selected or not.
        mojibake: stories with characters that come from reading UTF-8 as Windows-1252, selected or not.
        unreadable: lines that are not a JSON object, and records without a text; they are left out.
        not_selected: stories that the `Selection` leaves out.
        notes: what a user should know about how a source was read, in a sentence each.
    """

    stories: int = 0
    bytes: int = 0
    empty: int = 0
    broken_utf8: int = 0
    windows_1252: int = 0
    zero_bytes: int = 0
    mojibake: int = 0
    unreadable: int = 0
    not_selected: int = 0
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Return the counts in one line, without those that are 0."""
        notes = {
            "not selected": self.not_selected,
            "empty and left out": self.empty,
            "with broken UTF-8, repaired": self.broken_utf8,
            "in Windows-1252, read as such": self.windows_1252,
            "with zero bytes (is this text?)": self.zero_bytes,
            "with characters such as â€™, damaged by another program": self.mojibake,
            "records without a text, left out": self.unreadable,
        }
        parts = [f"{self.stories:,} stories, {self.bytes:,} bytes"]
        return "; ".join(parts + [f"{count:,} {what}" for what, count in notes.items() if count])


@dataclass(frozen=True)
class Source:
    """A place from which stories come; it exists, but is not yet read.

    Attributes:
        name: the name that the user gave.
        kind: single files, a folder saved by `datasets`, or a dataset on the hub.
        files: the files to read, in order: all files of a folder, and none of a hub dataset.
    """

    name: str
    kind: Literal["files", "folder", "hub"]
    files: tuple[Path, ...] = field(default=())

    def fingerprint(self, split: str) -> dict[str, Any]:
        """Return JSON values that identify the content without reading it.

        They are the file names without folders, the sizes in bytes, and the times of the last change. A hub dataset has
        only its name and split, so that prepared stories can be reused offline.

        Raises:
            UsageError: a file does not exist any more.
        """
        if self.kind == "hub":
            return {"hub": self.name, "split": split}
        stamps = []
        for path in self.files:
            with reading(path):
                status = path.stat()
            stamps.append([path.name, status.st_size, status.st_mtime_ns])
        if self.kind == "files":
            return {"files": stamps}
        digest = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()
        return {"folder": Path(self.name).name, "split": split, "files": digest}


def find_sources(names: str | Path | Sequence[str | Path]) -> list[Source]:
    """Return the source of each name: a file, a folder of a saved dataset, a glob (files sorted), or a hub dataset.

    Raises:
        UsageError: there is no such file, folder or dataset, or a glob matches no file.
    """
    if isinstance(names, str | Path):
        names = [names]
    if not names:
        raise UsageError("no source of stories is given")
    return [_find(str(name)) for name in names]


def read_stories(
    names: str | Path | Sequence[str | Path],
    split: str = "train",
    *,
    column: str | None = None,
    separator: str | None = None,
    streaming: bool = False,
    selection: Selection | None = None,
    report: SourceReport | None = None,
) -> Iterator[str]:
    """Return an iterator over the stories of some sources, one source after the other, in little memory.

    Args:
        names: one source or several. A source is a `.txt` file with `<|endoftext|>` between stories, a `.jsonl` file, a
            `.parquet` file, a glob of such files, a folder written by `save_to_disk`, or the name of a hub dataset
            (owner/name).
        split: the split of a hub dataset or a saved dataset dictionary.
        column: the column that has the text; by default `text`, else `story`.
        separator: the text between the stories of a text file, as for `find_separator`; by default `<|endoftext|>`, or
            what a file plainly has instead, which `report` names.
        streaming: read a hub dataset while it is downloaded, instead of afterwards.
        selection: which stories to give; None gives all.
        report: its counts grow while stories are read.

    Raises:
        UsageError: at once, if a source is missing, unreadable, empty or without the column; while stories are read, if
            a file is damaged, a source has no story, or the selection keeps none.
    """
    sources, report = find_sources(names), report or SourceReport()
    if separator is not None and not any(is_text(path) for source in sources for path in source.files):
        raise UsageError("--separator is for text files; the stories of other files stand in lines or rows")
    opened = [(source, _open(source, split, column, separator, streaming, report)) for source in sources]
    return _selected(opened, selection or Selection(), report)


def _selected(
    opened: list[tuple[Source, Iterator[Record]]], selection: Selection, report: SourceReport
) -> Iterator[str]:
    n_found = n_kept = 0
    for source, records in opened:
        n_before, n_unreadable = n_found, report.unreadable
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
        n_lost = report.unreadable - n_unreadable
        if n_lost >= _MANY_LOST and n_lost > 3 * (n_found - n_before):
            raise UsageError(
                f"{n_lost:,} records of {source.name} have no text, and only {n_found - n_before:,} have one; "
                "name the right --column"
            )
    if not n_kept:
        raise NothingSelected(
            f"none of {n_found:,} stories is left: fraction {selection.fraction}, test_split {selection.test_split}, "
            f"the {selection.part} part{''.join(f'; {note}' for note in report.notes)}"
        )


def _stories(records: Iterable[Record], report: SourceReport) -> Iterator[str]:
    for record in records:
        if record is None:
            report.unreadable += 1
            continue
        for part in _between_separators(record):
            story = _decoded(part, report).strip()
            if story:
                yield story
            else:
                report.empty += 1


def _decoded(part: bytes, report: SourceReport) -> str:
    """Return the text of a story, and count what is wrong with it."""
    try:
        text = part.decode()
    except UnicodeDecodeError:
        is_1252 = not _NOT_WINDOWS_1252.search(part)
        text = part.decode("cp1252") if is_1252 else part.decode(errors="replace")
        report.windows_1252 += is_1252
        report.broken_utf8 += not is_1252
    report.zero_bytes += "\0" in text
    report.mojibake += _MOJIBAKE.search(text) is not None
    return text


def is_text(path: Path) -> bool:
    """Return whether a file is read as text with separators."""
    return path.suffix.lower() not in FILE_SUFFIXES or path.suffix.lower() == ".txt"


def _between_separators(record: bytes) -> list[bytes]:
    """Return the stories of a record. White space before the first or after the last separator is not a story."""
    parts = record.split(SEPARATOR)
    if len(parts) > 1 and not parts[0].strip():
        del parts[0]
    if len(parts) > 1 and not parts[-1].strip():
        del parts[-1]
    return parts


# --- what a name means ---


def _find(name: str) -> Source:
    path = Path(name)
    with reading(path):
        if path.is_dir():
            if not any((path / file).is_file() for file in _SAVED_DATASET_FILES):
                raise UsageError(
                    f"{path} is not a folder written by save_to_disk; if it has files of stories, name the files: "
                    f"'{path}/*.txt'"
                )
            entries = sorted(entry for entry in path.rglob("*") if entry.exists() and not entry.is_dir())
            for entry in entries:
                regular_file_size(entry, raises=UsageError)  # the library would wait for a pipe
            return Source(name, "folder", tuple(entries))
        if path.exists():
            return Source(name, "files", (path,))
        if glob.has_magic(name):
            files = tuple(sorted(file for file in map(Path, glob.glob(name, recursive=True)) if file.is_file()))
            if not files:
                raise UsageError(f"{visible(name)} matches no file")
            return Source(name, "files", files)
    if "/" in name and hub.is_model_id(name) and path.suffix.lower() not in FILE_SUFFIXES:
        return Source(name, "hub")
    raise UsageError(f"{visible(name)}: no such file or folder, and not the name of a hub dataset (owner/name)")


def _open(
    source: Source, split: str, column: str | None, separator: str | None, streaming: bool, report: SourceReport
) -> Iterator[Record]:
    """Return the records of a source, after all checks that need not read the whole source."""
    if source.kind == "hub":
        return dataset_records(source.name, _hub_dataset(source.name, split, streaming), column)
    if source.kind == "folder":
        return dataset_records(source.name, _saved_dataset(source.name, split), column)
    records = [file_records(path, column, separator, report.notes.append) for path in source.files]
    with reading(Path(source.name)):
        if not any(path.stat().st_size for path in source.files):
            raise UsageError(f"{source.name} is empty")
    return chain.from_iterable(records)


def _saved_dataset(path: str, split: str) -> Any:
    import datasets

    try:
        data = datasets.load_from_disk(path)
    except Exception as error:  # from the library, Arrow or the file system
        raise UsageError(f"{path} is a damaged dataset folder: {one_line(error)}") from error
    if not isinstance(data, datasets.DatasetDict):
        return data
    if split not in data:
        raise UsageError(f"{path} has no split {shown(split)}; it has {', '.join(data)}")
    return data[split]


def _hub_dataset(name: str, split: str, streaming: bool) -> Any:
    """Return a dataset from the hub, or from the local cache if the hub cannot be reached."""
    import datasets

    problem = hub.dataset_problem(name)
    was_offline = datasets.config.HF_HUB_OFFLINE
    try:
        # without the hub, the library would try for half a minute before it reads its cache
        datasets.config.HF_HUB_OFFLINE = was_offline or problem is not None
        return datasets.load_dataset(name, split=split, streaming=streaming)
    except Exception as error:  # from the library, the hub or the file system
        if problem and isinstance(error, OSError):  # the cache does not have it either
            raise UsageError(problem) from error
        raise UsageError(f"cannot load {name}: {one_line(error)}") from error
    finally:
        datasets.config.HF_HUB_OFFLINE = was_offline
