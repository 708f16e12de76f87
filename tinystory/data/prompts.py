"""Read prompts from a file, one at a time: a YAML list, texts between separators, or lines.

Knows files and texts, and not what is written from a prompt.
"""

import hashlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

from tinystory.data.records import reading
from tinystory.data.separators import SEPARATOR, split_stories
from tinystory.data.yaml_texts import yaml_texts
from tinystory.errors import UsageError
from tinystory.safe.reading import open_regular, without_mark
from tinystory.safe.showing import visible
from tinystory.text.prompt_text import MAX_PROMPT_BYTES, check_prompt, prompt_text

__all__ = ["PromptFile", "digest"]

_YAML = (".yaml", ".yml")
_MOST_YAML_BYTES = 2**24
_MOST_PIPE_BYTES = 2**28
"""A pipe may be endless, and it is copied to the disk."""
_OTHER_FORMATS = frozenset({".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".gz", ".zip"})
_BLOCK_BYTES = 2**16


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
            self._file = _rereadable(path, self.name)
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
            part = f"its {'text' if self._separated else 'line'} {number}"
            prompt = (check_prompt(raw) if isinstance(raw, str) else prompt_text(raw, self.name, part)).strip()
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
        while line := self._file.readline(MAX_PROMPT_BYTES + 1):
            yield line

    def _yaml_texts(self) -> list[str]:
        raw = self._file.read(_MOST_YAML_BYTES + 1)
        if len(raw) > _MOST_YAML_BYTES:
            raise UsageError(
                f"{self.name} has more than {_MOST_YAML_BYTES:,} bytes; put that many prompts into a text file"
            )
        try:
            return yaml_texts(without_mark(raw).decode("utf-8"))
        except UnicodeDecodeError as error:
            raise UsageError(f"{self.name} is not UTF-8 text") from error
        except ValueError as error:
            raise UsageError(f"{self.name} {error}") from error


def digest(texts: Iterable[str]) -> str:
    """Return 16 hexadecimal digits that identify a list of texts."""
    total = hashlib.sha256()
    for text in texts:
        total.update(hashlib.sha256(text.encode()).digest())
    return total.hexdigest()[:16]


def _rereadable(path: Path, name: str) -> IO[bytes]:
    """Open a file so that it can be read again: a regular file directly, a pipe as a copy."""
    if path == Path("-"):
        if sys.stdin is None:
            raise UsageError("standard input is closed: there are no prompts")
        return _copy(sys.stdin.buffer, name)
    status = path.stat()
    if stat.S_ISREG(status.st_mode):
        return open_regular(path, raises=UsageError)
    is_terminal = os.isatty(0) and os.path.samestat(status, os.fstat(0))
    if not (stat.S_ISFIFO(status.st_mode) or is_terminal or os.path.samestat(status, os.stat(os.devnull))):
        raise UsageError(f"{name} is neither a file nor a pipe")
    with path.open("rb") as file:
        return _copy(file, name)


def _copy(source: IO[bytes], name: str) -> IO[bytes]:
    """Return a copy of a pipe in a temporary file.

    Raises:
        UsageError: the pipe has more bytes than a pipe may have, or it has no text.
    """
    file = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
    try:
        n_bytes = 0
        while block := source.read(_BLOCK_BYTES):
            n_bytes += len(block)
            if n_bytes > _MOST_PIPE_BYTES and not _is_regular(source):
                raise UsageError(f"{name} has more than {_MOST_PIPE_BYTES:,} bytes: put so many prompts into a file")
            if b"\0" in block:
                raise UsageError(f"{name} is not UTF-8 text (it has zero bytes)")
            file.write(block)
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return file


def _is_regular(source: IO[bytes]) -> bool:
    try:
        return stat.S_ISREG(os.fstat(source.fileno()).st_mode)
    except OSError:  # it has no descriptor
        return False


def _has_separator(file: IO[bytes]) -> bool:
    tail = b""  # the end of a block may be the beginning of a separator
    while block := file.read(_BLOCK_BYTES):
        block = tail + block
        if SEPARATOR in block:
            return True
        tail = block[1 - len(SEPARATOR) :]
    return False
