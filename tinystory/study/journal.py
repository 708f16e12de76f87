"""Keep the journal of a study: one JSON line for each finished part of the work, so that a stopped study can go on.

The first line names the subject of the study. Knows the file and the fields of each record, and not what a study makes
of them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinystory.errors import UsageError
from tinystory.safe.fields import Fields, WrongField
from tinystory.safe.lines import ClosedAtExit, ForeignLine, JsonLines, parse_line
from tinystory.safe.reading import is_absent, regular_file_size, shown
from tinystory.safe.showing import visible

__all__ = ["Journal"]

_FORMAT = 1

_MOST_ITEMS = 10_000_000

_LARGEST = 2**63
"""The largest whole number of a record; Python can read numbers that are too large for a float."""


class Journal(ClosedAtExit):
    """A file of records that grows by whole lines.

    Attributes:
        path: the file.
        records: all records, in the order in which they were added.
    """

    def __init__(self, path: Path, subject: Mapping[str, Any]) -> None:
        """Begin a journal, or continue one.

        Args:
            path: in a folder that exists.
            subject: what the study is about, as JSON values. A journal of another subject is refused.

        Raises:
            UsageError: the file is no regular file, is about another subject, or is damaged before its last line.
            OSError: the file cannot be read or written.
        """
        self.path = path
        self.records: list[dict[str, Any]] = []
        head = {"tinystory_study": _FORMAT, **subject}
        if not is_absent(path):
            regular_file_size(path, raises=UsageError)  # a pipe would wait for a reader
        self._lines = JsonLines(path)
        try:
            self._read(head)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; the records can still be read."""
        self._lines.close()

    def add(self, record: Mapping[str, Any]) -> None:
        """Add a record; it is on the disk when this returns.

        Raises:
            OSError: the record cannot be written. The next process cuts off the part that was written.
        """
        line = _line(record)
        self._lines.append(line)
        self._lines.sync()
        self.records.append(json.loads(line))  # as a later process will read it

    def _read(self, head: Mapping[str, Any]) -> None:
        """Take over the records of the file, or write the first line of an empty one."""
        first = None
        try:
            for number, line in enumerate(self._lines.whole_lines(), start=1):
                record = self._parsed(number, line)
                if first is None:
                    first = record
                    self._check(record, head)
                else:
                    self._check_record(number, record)
                    self.records.append(record)
        except ForeignLine:
            raise UsageError(f"{visible(str(self.path))} is not the journal of a study: give another -o") from None
        if first is None:
            self._lines.append(_line(head))
            self._lines.sync()

    def _parsed(self, number: int, line: bytes) -> dict[str, Any]:
        record = parse_line(line)
        if record is None:
            raise self._damaged(number)
        return record

    def _check_record(self, number: int, record: Mapping[str, Any]) -> None:
        """Check the fields of a record. One of a kind that is not known here is left alone."""
        try:
            fields = Fields(record, "")
            if check := _CHECKS.get(fields.text("kind")):
                check(fields)
        except WrongField as error:
            raise self._damaged(number, f" ({error})") from error

    def _damaged(self, number: int, reason: str = "") -> UsageError:
        name = visible(str(self.path))
        return UsageError(f"line {number} of {name} is damaged{reason}: delete this line, or give another -o")

    def _check(self, first: Mapping[str, Any], head: Mapping[str, Any]) -> None:
        for key, value in head.items():
            if first.get(key) != value:
                other = shown(first.get(key)).strip("'")
                raise UsageError(
                    f"{visible(str(self.path.parent))} has a study with {key.replace('_', ' ')} {other}, not {value}: "
                    "give another -o, or the arguments that the study was begun with"
                )


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


# --- the fields of each kind of record ---


def _check_real(fields: Fields) -> None:
    fields.whole("group")
    fields.items("bits", _numbers, _MOST_ITEMS)


def _check_stories(fields: Fields) -> None:
    fields.text("spec")
    fields.seed("seed")
    fields.whole("first")
    _number(fields.get("cpu_seconds"), "cpu_seconds")
    fields.items("stories", _check_story, _MOST_ITEMS)


def _check_story(story: object, where: str) -> None:
    fields = Fields(story, f"{where}.")
    fields.text("completion")
    fields.text("finish_reason")
    fields.items("bits", _number, _MOST_ITEMS)


def _check_coverage(fields: Fields) -> None:
    fields.whole("story")
    for spec, counts in Fields(fields.get("impossible"), "impossible.").values.items():
        if counts is not None and len(_numbers(counts, "impossible")) != 2:
            raise WrongField(f"impossible: {shown(spec)} must have two counts, not {shown(counts)}")


def _numbers(value: object, where: str) -> list[Any]:
    return Fields({"": value}, where).items("", _number, _MOST_ITEMS)


def _number(value: object, where: str) -> object:
    if isinstance(value, float) or (type(value) is int and abs(value) <= _LARGEST):
        return value
    raise WrongField(f"{where} must be a number, not {shown(value)}")


_CHECKS = {"real": _check_real, "stories": _check_stories, "coverage": _check_coverage}
