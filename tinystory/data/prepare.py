"""XXX-DOC."""

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tinystory.data.selection import Selection
from tinystory.data.shards import (
    BUILD_NAME,
    FORMAT,
    ID_DTYPES,
    MANIFEST,
    OFFSETS,
    TEXT_BYTES,
    TokenShards,
    fingerprint,
    shard_name,
)
from tinystory.data.sources import SourceReport, find_sources, read_stories
from tinystory.errors import TinystoryError, UsageError
from tinystory.text.tokenizer import Tokenizer

__all__ = ["prepare", "tokenize"]


def tokenize(stories: Sequence[str], tokenizer: Tokenizer) -> list[np.ndarray]:
    """Each story as BOS + tokens + EOS, uint16 where the vocabulary allows it, else uint32; on all cores.

    Raises:
        UsageError: the vocabulary has no BOS or no EOS.
    """
    bos, eos, dtype = _bos_eos_dtype(tokenizer)
    return [np.array([bos, *ids, eos], dtype) for ids in tokenizer.encode_batch(stories)]


def prepare(
    sources: str | Path | Sequence[str | Path],
    tokenizer: Tokenizer,
    directory: Path,
    *,
    split: str = "train",
    column: str | None = None,
    streaming: bool = False,
    selection: Selection | None = None,
    shard_bytes: int = 2**28,
    rebuild: bool = False,
    progress: Callable[[SourceReport], None] | None = None,
) -> "TokenShards":
    """Tokenise stories into a folder, or reuse it where it was made of the same.

    The same is: tokenizer, selection, column, and the sources' file names, sizes and times of change (of a hub dataset
    its name and split: what changed on the hub needs `rebuild`). A folder made of something else is replaced once
    the new build is complete. One process prepares a folder at a time.

    Args:
        sources: as for `read_stories`, like `split`, `column`, `streaming` and `selection`.
        tokenizer: with BOS and EOS.
        directory: made with its parents; nothing in it but an older build is touched.
        split: of a hub dataset or saved dataset dictionary.
        column: with the text.
        streaming: of a hub dataset.
        selection: which stories.
        shard_bytes: a shard is closed before it grows past this, unless a single story does.
        rebuild: do not reuse.
        progress: called every few thousand stories; not at all when the folder is reused.

    Returns:
        The opened folder; its `reused` says whether it was there.

    Raises:
        UsageError: no such source, no story, a vocabulary without BOS or EOS.
        TinystoryError: the folder cannot be written, for example for want of space; nothing is left of the attempt.
    """
    selection = selection or Selection()
    bos, eos, dtype = _bos_eos_dtype(tokenizer)
    recipe: dict[str, Any] = {
        "tokenizer": fingerprint(tokenizer),
        "bos_id": bos,
        "eos_id": eos,
        "sources": [source.fingerprint(split) for source in find_sources(sources)],
        "column": column,
        "selection": None if selection.is_everything else dataclasses.asdict(selection),
    }
    old = _opened(directory)
    if old is not None and old.recipe == recipe and not rebuild:
        old.reused = True
        return old
    report = SourceReport()
    stories = read_stories(
        sources, split, column=column, streaming=streaming, selection=selection, report=report
    )  # raises what is wrong with the sources before anything is written
    build = directory / f"build-{secrets.token_hex(4)}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _sweep(directory, None if old is None else old.build, _STALE_SECONDS)
        build.mkdir()
        with contextlib.closing(_Writer(build, dtype, shard_bytes)) as writer:
            for chunk in _chunks(stories):
                for text, token_ids in zip(chunk, tokenize(chunk, tokenizer), strict=True):
                    writer.add(token_ids, len(text.encode()))
                if progress:
                    progress(report)
            counts = writer.finish()
        manifest = {"format": FORMAT, "build": build.name, "dtype": dtype.name, **counts}
        manifest |= {"recipe": recipe, "report": dataclasses.asdict(report)}
        _replace_file(directory / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    except BaseException as error:
        done = _opened(directory)
        if done is None or done.build != build.name:  # else the interrupt came after the last rename
            shutil.rmtree(build, ignore_errors=True)
        if isinstance(error, OSError):
            raise TinystoryError(
                f"cannot write {directory}: {error.strerror or error}; what was there before is untouched"
            ) from error
        raise
    if old is not None:
        shutil.rmtree(directory / old.build, ignore_errors=True)
    return TokenShards(directory)


class _Writer:
    """The files of a build; `finish` gives their part of the manifest."""

    def __init__(self, build: Path, dtype: np.dtype[Any], shard_bytes: int) -> None:
        self._build, self._itemsize, self._shard_bytes = build, dtype.itemsize, shard_bytes
        self._shards: list[dict[str, int]] = []
        self._sha256: dict[str, str] = {}
        self._offset = 0
        self._offsets = _HashedFile(build / OFFSETS)
        self._text_bytes = _HashedFile(build / TEXT_BYTES)
        self._tokens: _HashedFile | None = None
        self._offsets.write(np.zeros(1, "<u8"))

    def add(self, token_ids: np.ndarray, text_bytes: int) -> None:
        """Append a story; `token_ids` in the build's dtype."""
        full = self._shards and (self._shards[-1]["tokens"] + len(token_ids)) * self._itemsize > self._shard_bytes
        if self._tokens is None or full:
            if self._tokens is not None:
                self._end(self._tokens)
            self._tokens = _HashedFile(self._build / shard_name(len(self._shards)))
            self._shards.append({"stories": 0, "tokens": 0})
        self._tokens.write(token_ids)
        self._shards[-1]["stories"] += 1
        self._shards[-1]["tokens"] += len(token_ids)
        self._offset += len(token_ids)
        self._offsets.write(np.array([self._offset], "<u8"))
        self._text_bytes.write(np.array([text_bytes], "<u4"))

    def finish(self) -> dict[str, Any]:
        """Bring everything to the disk."""
        for file in (self._tokens, self._offsets, self._text_bytes):
            if file is not None:
                self._end(file)
        _sync(self._build)
        n_stories = sum(shard["stories"] for shard in self._shards)
        return {"stories": n_stories, "tokens": self._offset, "shards": self._shards, "sha256": self._sha256}

    def close(self) -> None:
        """Close what is open, after a failure too."""
        for file in (self._tokens, self._offsets, self._text_bytes):
            if file is not None:
                with contextlib.suppress(OSError):  # what could not be flushed for want of space
                    file.file.close()

    def _end(self, file: "_HashedFile") -> None:
        file.file.flush()
        os.fsync(file.file.fileno())
        file.file.close()
        self._sha256[file.path.name] = file.digest.hexdigest()


class _HashedFile:
    """A file whose SHA-256 is known when it is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: BinaryIO = path.open("wb")
        self.digest = hashlib.sha256()

    def write(self, numbers: np.ndarray) -> None:
        self.file.write(numbers.data)
        self.digest.update(numbers.data)


def _bos_eos_dtype(tokenizer: Tokenizer) -> tuple[int, int, np.dtype[Any]]:
    if tokenizer.bos_id is None or not tokenizer.eos_ids:
        raise UsageError("this vocabulary has no BOS or EOS token; training needs both")
    bos, eos = tokenizer.bos_id, min(tokenizer.eos_ids)
    # ids may have gaps, so the largest counts rather than the number of tokens
    largest = max(bos, eos, *tokenizer.fast.get_vocab(with_added_tokens=True).values())
    return bos, eos, ID_DTYPES["uint16" if largest < 2**16 else "uint32"]


def _chunks(stories: Iterable[str]) -> Iterator[list[str]]:
    """Stories enough to keep all cores busy, and no more."""
    chunk: list[str] = []
    n_characters = 0
    for story in stories:
        chunk.append(story)
        n_characters += len(story)
        if len(chunk) == _STORIES_AT_ONCE or n_characters >= _CHARACTERS_AT_ONCE:
            yield chunk
            chunk, n_characters = [], 0
    if chunk:
        yield chunk


def _opened(directory: Path) -> TokenShards | None:
    """What is in a folder, where it is whole."""
    try:
        return TokenShards(directory)
    except TinystoryError:
        return None


def _sweep(directory: Path, keep: str | None, older_than_seconds: float) -> None:
    """Remove builds that no manifest names: replaced ones, and what a killed process left."""
    for build in directory.glob("build-*"):
        with contextlib.suppress(OSError):
            is_old = time.time() - build.stat().st_mtime >= older_than_seconds
            if is_old and build.name != keep and BUILD_NAME.fullmatch(build.name):
                shutil.rmtree(build, ignore_errors=True)


def _replace_file(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _sync(directory: Path) -> None:
    """Make the names in a directory durable, where the system has such a thing."""
    with contextlib.suppress(OSError):
        number = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


_STORIES_AT_ONCE, _CHARACTERS_AT_ONCE = 4096, 2**22


_STALE_SECONDS = 3600
