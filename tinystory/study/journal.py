"""The journal of a study: JSON lines, one for each piece of work done, so that a study goes on where it was stopped.

The first line says what the rest is about. A line is whole once its newline is on the disk: what a crash has left of
a last one is cut off. Knows nothing of what the lines mean.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinystory.errors import UsageError
from tinystory.safe.showing import visible
from tinystory.safe.writing import write_atomically

__all__ = ["Journal"]

_FORMAT = 1


class Journal:
    """A file of records that grows by whole lines.

    Attributes:
        records: all of them, in the order in which they were added.
    """

    def __init__(self, path: Path, subject: Mapping[str, Any]) -> None:
        """Begin a journal, or go on with one.

        Args:
            path: in a folder that exists.
            subject: what it is about, as JSON knows it; a journal of another subject is refused.

        Raises:
            UsageError: the file is about something else, or damaged before its last line.
            OSError: it cannot be read or written.
        """
        self.path = path
        self.records: list[dict[str, Any]] = []
        head = {"tinystory_study": _FORMAT, **subject}
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        if lines and not lines[-1].endswith(b"\n"):
            del lines[-1]
        if not lines:
            write_atomically(path, _line(head))
            return
        first, *self.records = (self._parsed(number, line) for number, line in enumerate(lines, start=1))
        self._check(first, head)
        os.truncate(path, sum(map(len, lines)))

    def add(self, record: Mapping[str, Any]) -> None:
        """Write a record down; it is on the disk when this returns.

        Raises:
            OSError: it cannot be written; what is there of it will be cut off.
        """
        line = _line(record)
        with self.path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.records.append(json.loads(line))  # as it will be read another time

    def _parsed(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise UsageError(f"line {number} of {visible(str(self.path))} is damaged; take it out, or use another -o")
        return record

    def _check(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        for key, value in wanted.items():
            if found.get(key) != value:
                there = visible(str(found.get(key)))[:80]
                raise UsageError(
                    f"{visible(str(self.path.parent))} has a study with {key.replace('_', ' ')} {there}, not {value}: "
                    "give another -o, or the arguments it was begun with"
                )


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"
