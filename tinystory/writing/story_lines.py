"""A file of finished stories, a JSON object a line, that goes on where it was stopped.

Every line says what it is about, so that files can be joined with `cat` and taken apart again. A line is whole once
its newline is there: what a crash has left of a last one is cut off.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tinystory.errors import UsageError
from tinystory.safe.showing import visible

if sys.platform != "win32":
    import fcntl

__all__ = ["StoryLines", "line"]

_BEGIN = b'{"index": '
_MOST_LINE_BYTES = 2**26


class StoryLines:
    """Stories on the disk, by their prompt's index and their number among its siblings.

    Attributes:
        seed: of the first prompt: the seed of a story less its prompt's index; None where nobody has said it yet.
        n_done: how many of those asked for are there.
    """

    def __init__(
        self, path: Path, subject: Mapping[str, Any], n_prompts: int, n_siblings: int, seed: int | None = None
    ) -> None:
        """Read a file that is there, and open it, or a new one, to write on.

        Args:
            path: in a folder that exists.
            subject: what every line has to say of itself.
            n_prompts: how many prompts there are.
            n_siblings: how many stories are asked for from each.
            seed: of the first prompt; None takes that of the stories that are there.

        Raises:
            UsageError: it is no file of stories, or of others, is being written by another process, or cannot be.
        """
        self.path, self._n_siblings = path, n_siblings
        self._name = visible(str(path))
        self.seed = seed
        self.n_done = 0
        self._done = bytearray(n_prompts * n_siblings)
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise UsageError(f"cannot write {self._name}: {error.strerror or error}") from error
        try:
            self._is_regular = path.is_file()
            if self._is_regular:  # a pipe is only written
                self._lock()
                os.ftruncate(self._descriptor, self._read(subject))
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> "StoryLines":
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def has(self, index: int, number: int) -> bool:
        """Whether a story is there."""
        return bool(self._done[index * self._n_siblings + number])

    def add(self, record: Mapping[str, Any]) -> None:
        """Write a story down.

        Raises:
            OSError: it cannot be written; what is there of it will be cut off.
        """
        rest = memoryview(line(record))
        while rest:  # a disk that gets full takes a part first
            rest = rest[os.write(self._descriptor, rest) :]
        self._mark(record["index"], record["story"])

    def sync(self) -> None:
        """What was added is safe from a power cut when this returns."""
        if self._is_regular:
            os.fsync(self._descriptor)

    def _mark(self, index: int, number: int) -> None:
        place = index * self._n_siblings + number
        if number < self._n_siblings and not self._done[place]:
            self._done[place] = 1
            self.n_done += 1

    def _lock(self) -> None:
        """Until the file is closed: two runs would write every story twice."""
        if sys.platform == "win32":
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"another process is writing {self._name}: wait for it, or give another -o") from error
        except OSError:  # some network drives have no locks
            pass

    def _read(self, subject: Mapping[str, Any]) -> int:
        """Note what is there; how many bytes of it are whole lines."""
        size = 0
        for number, raw in enumerate(self._whole_lines(), start=1):
            record = self._parsed(number, raw)
            seed = record["seed"] - record["index"]
            for name, wanted in {**subject, "seed": seed if self.seed is None else self.seed}.items():
                self._check(name, seed if name == "seed" else record.get(name), wanted)
            if not 0 <= record["index"] < len(self._done) // self._n_siblings:
                raise UsageError(
                    f"{self._name} has a story of prompt {record['index']}, which is not among the prompts"
                )
            self.seed = seed
            self._mark(record["index"], record["story"])
            size += len(raw)
        return size

    def _whole_lines(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            while raw := file.readline(_MOST_LINE_BYTES):
                if raw[: len(_BEGIN)] != _BEGIN[: len(raw)]:  # whatever it is, it shall not be written on, nor cut
                    raise UsageError(f"{self._name} is no file of stories written from prompts: give another -o")
                if not raw.endswith(b"\n"):
                    return
                yield raw

    def _parsed(self, number: int, raw: bytes) -> dict[str, Any]:
        record: Any
        try:
            record = json.loads(raw)
        except (ValueError, RecursionError):
            record = {}
        if not all(type(record.get(name)) is int for name in ("index", "story", "seed")) or record["story"] < 0:
            raise UsageError(f"line {number} of {self._name} is damaged; take it out, or give another -o")
        return dict(record)

    def _check(self, name: str, there: object, wanted: object) -> None:
        if there != wanted:
            raise UsageError(
                f"{self._name} has stories with {name.replace('_', ' ')} {visible(str(there))[:80]}, not "
                f"{visible(str(wanted))[:80]}: give another -o, or the arguments it was begun with"
            )


def line(record: Mapping[str, Any]) -> bytes:
    """A story as it stands in a file; `index` comes first."""
    return json.dumps(record).encode() + b"\n"
