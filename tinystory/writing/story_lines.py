"""Keep a file of finished stories, one JSON object a line, that goes on where it was stopped.

Every line says how its story was made. So files can be joined with `cat` and taken apart again.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinystory.errors import UsageError
from tinystory.safe.lines import ClosedAtExit, ForeignLine, JsonLines, parse_line
from tinystory.safe.reading import shown
from tinystory.safe.showing import visible

__all__ = ["StoryLines", "line"]

_BEGIN = b'{"index": '


class StoryLines(ClosedAtExit):
    """The stories of a file, each named by the index of its prompt and its number among the stories of that prompt.

    Attributes:
        path: the file.
        seed: the seed of the first prompt. The seed of a story is this number plus the index of its prompt. None if
            neither the caller nor the file has given it.
        n_done: the number of wanted stories that the file has.
    """

    def __init__(
        self, path: Path, subject: Mapping[str, Any], n_prompts: int, n_per_prompt: int, seed: int | None = None
    ) -> None:
        """Read an existing file and open it, or open a new one.

        Args:
            path: in a folder that exists.
            subject: fields that every line must have, with their values.
            n_prompts: the number of prompts.
            n_per_prompt: the number of stories that are wanted from each prompt.
            seed: the seed of the first prompt; None takes the seed of the stories in the file.

        Raises:
            UsageError: the file holds something else or other stories, another process is writing it, or it cannot be
                written.
        """
        self.path, self._n_per_prompt = path, n_per_prompt
        self._name = visible(str(path))
        self.seed = seed
        self.n_done = 0
        self._done = bytearray(n_prompts * n_per_prompt)
        try:
            self._lines = JsonLines(path, _BEGIN, exclusive=True)
        except BlockingIOError as error:  # two runs would write every story twice
            raise UsageError(f"another process is writing {self._name}: wait for it, or give another -o") from error
        except OSError as error:
            raise UsageError(f"cannot write {self._name}: {error.strerror or error}") from error
        try:
            self._read(subject)
        except BaseException:
            self._lines.close()
            raise

    def close(self) -> None:
        """Close the file and release its lock."""
        self._lines.close()

    def has(self, index: int, number: int) -> bool:
        """Return whether the file has story `number` of the prompt at `index`."""
        return bool(self._done[index * self._n_per_prompt + number])

    def add(self, record: Mapping[str, Any]) -> None:
        """Add a story.

        Raises:
            OSError: the story cannot be written. The next process to open the file cuts off the part that was written.
        """
        self._lines.append(line(record))
        self._mark(record["index"], record["story"])

    def sync(self) -> None:
        """Wait until all added stories are on the disk, where a power cut cannot lose them."""
        self._lines.sync()

    def _mark(self, index: int, number: int) -> None:
        place = index * self._n_per_prompt + number
        if number < self._n_per_prompt and not self._done[place]:
            self._done[place] = 1
            self.n_done += 1

    def _read(self, subject: Mapping[str, Any]) -> None:
        """Mark the stories of the file as done, and check that they are the wanted ones."""
        try:
            for number, raw in enumerate(self._lines.whole_lines(), start=1):
                record = self._parsed(number, raw)
                self._check(record, subject)
                self.seed = record["seed"] - record["index"]
                self._mark(record["index"], record["story"])
        except ForeignLine:
            raise UsageError(f"{self._name} is no file of stories written from prompts: give another -o") from None

    def _parsed(self, number: int, raw: bytes) -> dict[str, Any]:
        record = parse_line(raw) or {}
        if not all(type(record.get(name)) is int for name in ("index", "story", "seed")) or record["story"] < 0:
            raise UsageError(f"line {number} of {self._name} is damaged: delete this line, or give another -o")
        return record

    def _check(self, record: Mapping[str, Any], subject: Mapping[str, Any]) -> None:
        seed = record["seed"] - record["index"]
        for name, wanted in {**subject, "seed": seed if self.seed is None else self.seed}.items():
            value = seed if name == "seed" else record.get(name)
            if value != wanted:
                here, there = (shown(one).strip("'") for one in (value, wanted))
                raise UsageError(
                    f"{self._name} has stories with {name.replace('_', ' ')} {here}, not {there}: "
                    "give another -o, or the arguments that the file was begun with"
                )
        if not 0 <= record["index"] < len(self._done) // self._n_per_prompt:
            raise UsageError(f"{self._name} has a story of prompt {record['index']}, which is not among the prompts")


def line(record: Mapping[str, Any]) -> bytes:
    """Return the line of a story in the file; the key `index` must come first."""
    return json.dumps(record).encode() + b"\n"
