"""Read prompts from a file, one at a time: a YAML list, texts between separators, or lines.

Knows files and texts, and not what is written from a prompt.
"""

import hashlib
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tinystory.data.records import reading
from tinystory.data.separators import SEPARATOR, split_stories
from tinystory.errors import UsageError
from tinystory.safe.showing import visible

__all__ = ["PromptFile", "digest"]

_YAML = (".yaml", ".yml")
_MOST_YAML_BYTES = 2**24
_MOST_LINE_BYTES = 2**24
_OTHER_FORMATS = frozenset({".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".gz", ".zip"})
_BLOCK_BYTES = 2**16
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class PromptFile:
    """The prompts of a file. Each is stripped, because white space at its end would be a part of the next token.

    Iterating reads the prompts, as often as wanted, but not twice at the same time. For a text file, only one prompt
    is in memory.

    Attributes:
        name: the name of the file, for messages.
        count: how many prompts the file has.
        digest: identifies the prompts; see `digest`.
    """

    def __init__(self, path: Path) -> None:
        """Open a file, and read it once from beginning to end.

        Args:
            path: a `.yaml` or `.yml` file has a list of texts. Any other file is text, with `<|endoftext|>` between the
                prompts, or else with one prompt on each line. Empty prompts are left out, and are not counted. `-` is
                standard input; like any pipe, it is copied to a temporary file.

        Raises:
            UsageError: the file cannot be read, has another format, or has no prompt.
        """
        self.name = "standard input" if path == Path("-") else visible(str(path))
        self._path = path
        suffix = path.suffix.lower()
        if suffix in _OTHER_FORMATS:
            raise UsageError(f"{self.name}: prompts come from .txt or .yaml files, not from {suffix}")
        with reading(path):
            self._file = _rereadable(path)
        self.count = 0
        try:
            self._look(suffix)
        except BaseException:
            self._file.close()
            raise

    def _look(self, suffix: str) -> None:
        """Find the format of the file, and read all prompts."""
        with reading(self._path):
            self._yaml = self._yaml_texts() if suffix in _YAML else None
            self._separated = self._yaml is None and _has_separator(self._file)
        self.digest = digest(self._counted())
        if not self.count:
            raise UsageError(f"{self.name} has no prompt: write one on each line, or put {SEPARATOR.decode()} between")

    def __enter__(self) -> "PromptFile":
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[str]:
        """Yield each prompt; raise UsageError if one is not UTF-8."""
        for number, raw in enumerate(self._raw(), start=1):
            try:
                prompt = (raw if isinstance(raw, str) else raw.decode()).strip()
            except UnicodeDecodeError as error:
                kind = "text" if self._separated else "line"
                raise UsageError(f"{self.name} is not UTF-8 text: its {kind} {number} is broken") from error
            if prompt:
                yield prompt

    def _counted(self) -> Iterator[str]:
        for prompt in self:
            self.count += 1
            yield prompt

    def _raw(self) -> Iterator[str | bytes]:
        if self._yaml is not None:
            yield from self._yaml
            return
        with reading(self._path):
            self._file.seek(0)
            yield from split_stories(self._file, self._path) if self._separated else self._lines()

    def _lines(self) -> Iterator[bytes]:
        self._file.seek(len(_BYTE_ORDER_MARK) if self._file.read(3) == _BYTE_ORDER_MARK else 0)
        while line := self._file.readline(_MOST_LINE_BYTES):
            if len(line) == _MOST_LINE_BYTES:
                raise UsageError(
                    f"{self.name} has a line of {_MOST_LINE_BYTES:,} bytes or more, which is too long for a prompt"
                )
            yield line

    def _yaml_texts(self) -> list[str]:
        import yaml

        raw = self._file.read(_MOST_YAML_BYTES + 1)
        if len(raw) > _MOST_YAML_BYTES:
            raise UsageError(
                f"{self.name} has more than {_MOST_YAML_BYTES:,} bytes; put that many prompts into a text file"
            )
        try:
            content: Any = yaml.safe_load(raw.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise UsageError(f"{self.name} is not UTF-8 text") from error
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise UsageError(f"{self.name} is not YAML: {' '.join(str(error).split())[:200]}") from error
        if not isinstance(content, list) or not all(isinstance(text, str) for text in content):
            raise UsageError(f"{self.name} is not a YAML list of texts")
        # A YAML escape can write half of a surrogate pair, which no tokenizer accepts.
        return [text.encode(errors="replace").decode() for text in content]


def digest(texts: Iterable[str]) -> str:
    """Return 16 hexadecimal digits that identify a list of texts."""
    total = hashlib.sha256()
    for text in texts:
        total.update(hashlib.sha256(text.encode()).digest())
    return total.hexdigest()[:16]


def _rereadable(path: Path) -> IO[bytes]:
    """Open a file so that it can be read again: a regular file directly, and anything else as a copy."""
    if path == Path("-"):
        if sys.stdin is None:
            raise UsageError("standard input is closed: there are no prompts")
        return _copy(sys.stdin.buffer)
    file = path.open("rb")
    if stat.S_ISREG(path.stat().st_mode):
        return file
    with file:
        return _copy(file)


def _copy(source: IO[bytes]) -> IO[bytes]:
    file = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
    shutil.copyfileobj(source, file)
    file.seek(0)
    return file


def _has_separator(file: IO[bytes]) -> bool:
    tail = b""  # the end of a block may be the beginning of a separator
    while block := file.read(_BLOCK_BYTES):
        block = tail + block
        if SEPARATOR in block:
            return True
        tail = block[1 - len(SEPARATOR) :]
    return False
