"""Tokenise stories into a folder of shards, once for many runs. `shards.py` reads such a folder.

Knows sources of stories and the tokenizer. Does not know models, batches or runs.
"""

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
from tinystory.safe.writing import sync_folder, write_atomically
from tinystory.text.tokenizer import Tokenizer

__all__ = ["overlap", "prepare", "tokenize"]

_STORIES_AT_ONCE, _CHARACTERS_AT_ONCE = 4096, 2**22
"""Size of a chunk that is tokenised at once: enough to keep all cores busy."""

_STALE_SECONDS = 3600
"""A build that no manifest names is deleted at this age; a younger one may belong to a process that still writes."""


def tokenize(stories: Sequence[str], tokenizer: Tokenizer) -> list[np.ndarray]:
    """Return each story as BOS + tokens + EOS, tokenised on all cores.

    Returns:
        One array (n,) for each story: uint16 if every id of the vocabulary fits, else uint32.

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
    separator: str | None = None,
    streaming: bool = False,
    selection: Selection | None = None,
    shard_bytes: int = 2**28,
    rebuild: bool = False,
    progress: Callable[[SourceReport], None] | None = None,
) -> TokenShards:
    """Tokenise stories into a folder, or reuse the folder if it was made from the same things.

    The things are: tokenizer, selection, column, separator, and the name, size and modification time of each source
    file. For a hub dataset, they are its name and split; if the dataset has changed on the hub, use `rebuild`. A
    folder that was made from other things is replaced when the new build is complete. Only one process may prepare a
    folder at a time.

    Args:
        sources: as for `read_stories`, like `split`, `column`, `separator`, `streaming` and `selection`.
        tokenizer: with BOS and EOS.
        directory: made with its parents; nothing in it is touched except older builds.
        split: the split of a hub dataset or of a saved dataset dictionary.
        column: the column that has the text.
        separator: the text between stories.
        streaming: read a hub dataset without downloading it first.
        selection: which stories to take; None takes all.
        shard_bytes: largest size of a shard in bytes; only a single story may exceed it.
        rebuild: do not reuse the folder.
        progress: called every few thousand stories, and not at all when the folder is reused.

    Returns:
        The opened folder; its `reused` tells whether it was made before.

    Raises:
        UsageError: a source does not exist, there is no story, or the vocabulary has no BOS or EOS.
        TinystoryError: the folder cannot be written, for example because the disk is full; the attempt leaves nothing.
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
    if separator is not None:
        recipe["separator"] = separator
    old = _opened(directory)
    if old is not None and old.recipe == recipe and not rebuild:
        old.reused = True
        return old
    report = SourceReport()
    stories = read_stories(
        sources, split, column=column, separator=separator, streaming=streaming, selection=selection, report=report
    )  # refuses wrong sources before anything is written

    def after_chunk() -> None:
        if progress:
            progress(report)

    def write_build(build: Path) -> None:
        counts = _write_stories(build, stories, tokenizer, dtype, shard_bytes, after_chunk)
        manifest = {"format": FORMAT, "build": build.name, "dtype": dtype.name, **counts}
        manifest |= {"recipe": recipe, "report": dataclasses.asdict(report)}
        write_atomically(directory / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())

    _replace_build(directory, None if old is None else old.build, write_build)
    return TokenShards(directory)


def overlap(stories: TokenShards, others: TokenShards) -> int:
    """Return how many of the other stories are among the stories, too."""
    found = {others[index].tobytes(): 0 for index in range(len(others))}
    lengths = set(others.lengths().tolist())
    for index in np.flatnonzero(np.isin(stories.lengths(), list(lengths))).tolist():
        story = stories[index].tobytes()
        if story in found:
            found[story] = 1
    return sum(found[others[index].tobytes()] for index in range(len(others)))


def _replace_build(directory: Path, old: str | None, write_build: Callable[[Path], None]) -> None:
    """Write a new build and its manifest, then delete the old build. A failure leaves the folder as it was."""
    build = directory / f"build-{secrets.token_hex(4)}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _sweep(directory, old, _STALE_SECONDS)
        build.mkdir()
        write_build(build)
    except BaseException as error:
        current = _opened(directory)
        if current is None or current.build != build.name:  # else the interrupt came after the last rename
            shutil.rmtree(build, ignore_errors=True)
        if isinstance(error, OSError):
            raise TinystoryError(
                f"cannot write {directory}: {error.strerror or error}; what was there before is untouched"
            ) from error
        raise
    if old is not None:
        shutil.rmtree(directory / old, ignore_errors=True)


def _write_stories(
    build: Path,
    stories: Iterable[str],
    tokenizer: Tokenizer,
    dtype: np.dtype[Any],
    shard_bytes: int,
    after_chunk: Callable[[], None],
) -> dict[str, Any]:
    """Tokenise all stories into a build; return its counts and checksums for the manifest."""
    with contextlib.closing(_BuildWriter(build, dtype, shard_bytes)) as writer:
        for chunk in _chunks(stories):
            for text, token_ids in zip(chunk, tokenize(chunk, tokenizer), strict=True):
                writer.add(token_ids, len(text.encode()))
            after_chunk()
        return writer.finish()


class _BuildWriter:
    """The open files of a build."""

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
        """Append a story; `token_ids` (n,) has the dtype of the build."""
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
        """Sync all files to the disk; return the counts and checksums for the manifest."""
        for file in (self._tokens, self._offsets, self._text_bytes):
            if file is not None:
                self._end(file)
        sync_folder(self._build)
        n_stories = sum(shard["stories"] for shard in self._shards)
        return {"stories": n_stories, "tokens": self._offset, "shards": self._shards, "sha256": self._sha256}

    def close(self) -> None:
        """Close the files that are still open; also right after a failure."""
        for file in (self._tokens, self._offsets, self._text_bytes):
            if file is not None:
                with contextlib.suppress(OSError):  # its last bytes did not fit on the disk
                    file.file.close()

    def _end(self, file: "_HashedFile") -> None:
        file.file.flush()
        os.fsync(file.file.fileno())
        file.file.close()
        self._sha256[file.path.name] = file.digest.hexdigest()


class _HashedFile:
    """A new file that computes its SHA-256 while it is written."""

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
    # ids may have gaps, so the number of tokens is not enough
    largest = max(bos, eos, *tokenizer.fast.get_vocab(with_added_tokens=True).values())
    return bos, eos, ID_DTYPES["uint16" if largest < 2**16 else "uint32"]


def _chunks(stories: Iterable[str]) -> Iterator[list[str]]:
    """Yield the stories in lists of limited size."""
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
    """Return the prepared stories of a folder, or None if it has no complete build."""
    try:
        return TokenShards(directory)
    except TinystoryError:
        return None


def _sweep(directory: Path, keep: str | None, older_than_seconds: float) -> None:
    """Delete old builds that the manifest does not name; killed processes leave such builds."""
    for build in directory.glob("build-*"):
        with contextlib.suppress(OSError):
            is_old = time.time() - build.stat().st_mtime >= older_than_seconds
            if is_old and build.name != keep and BUILD_NAME.fullmatch(build.name):
                shutil.rmtree(build, ignore_errors=True)
