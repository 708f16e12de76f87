"""Tokenised stories on disk: made once, read through the memory map, in as little memory as a batch takes.

A folder of them:
    manifest.json                    what it was made of, counts, checksums; names the build
    build-1a2b3c4d/tokens-00000.bin  token ids, story after story, each BOS + tokens + EOS; uint16 or uint32
    build-1a2b3c4d/offsets.bin       uint64, where each story begins in all shards together, and where the last ends
    build-1a2b3c4d/text_bytes.bin    uint32, the UTF-8 bytes of each story's text
Numbers are little-endian; no story lies across two shards. The manifest is replaced by one rename when all else is on
the disk, so a folder is never half one build, half another.
"""

import contextlib
import copy
import dataclasses
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tinystory.errors import CheckpointError, TinystoryError, UsageError
from tinystory.selection import Selection
from tinystory.sources import SourceReport, find_sources, read_stories
from tinystory.tokenizer import Tokenizer
from tinystory.untrusted import read_json_object

__all__ = ["TokenShards", "fingerprint", "prepare", "tokenize"]

_FORMAT = 1
_MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 2**26
_BUILD_NAME = re.compile(r"build-[0-9a-f]{8}")
_DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
_OFFSETS, _TEXT_BYTES = "offsets.bin", "text_bytes.bin"
_STORIES_AT_ONCE, _CHARACTERS_AT_ONCE = 4096, 2**22
_STALE_SECONDS = 3600


def tokenize(stories: Sequence[str], tokenizer: Tokenizer) -> list[np.ndarray]:
    """Each story as BOS + tokens + EOS, uint16 where the vocabulary allows it, else uint32; on all cores.

    Raises:
        UsageError: the vocabulary has no BOS or no EOS.
    """
    bos, eos, dtype = _bos_eos_dtype(tokenizer)
    return [np.array([bos, *ids, eos], dtype) for ids in tokenizer.encode_batch(stories)]


def fingerprint(tokenizer: Tokenizer) -> str:
    """SHA-256 of a vocabulary, in hex: what `recipe["tokenizer"]` is for stories prepared with it."""
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()


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
        manifest = {"format": _FORMAT, "build": build.name, "dtype": dtype.name, **counts}
        manifest |= {"recipe": recipe, "report": dataclasses.asdict(report)}
        _replace_file(directory / _MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
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


class TokenShards:
    """Prepared stories: `len(shards)` of them, `shards[i]` the token ids of one, without reading the others.

    Attributes:
        recipe: what they were made of.
        report: what their sources held.
        reused: whether `prepare` found them rather than made them.
        build: the name of the folder with the numbers.
    """

    def __init__(self, directory: Path) -> None:
        """Open a folder that `prepare` wrote, and check that its files have the sizes they should.

        Raises:
            UsageError: there is no complete one, or it is damaged.
        """
        self.directory = directory
        self.reused = False
        if not (directory / _MANIFEST).is_file():
            raise UsageError(f"{directory} holds no prepared stories; scripts/prepare_data.py makes them")
        try:
            manifest = read_json_object(directory / _MANIFEST, _MAX_MANIFEST_BYTES)
            if manifest["format"] != _FORMAT:
                raise UsageError(f"{directory} is of format {manifest['format']}, not {_FORMAT}; prepare it again")
            self._open(manifest)
        except (LookupError, TypeError, ValueError, OverflowError, CheckpointError) as error:
            raise UsageError(f"{directory / _MANIFEST} is damaged; prepare the stories again") from error
        except OSError as error:
            raise UsageError(f"cannot read {error.filename or directory}: {error.strerror}") from error

    def _open(self, manifest: dict[str, Any]) -> None:
        self.recipe: dict[str, Any] = dict(manifest["recipe"])
        self.report = SourceReport(**manifest["report"])
        self.build = str(manifest["build"])
        if not _BUILD_NAME.fullmatch(self.build):  # a path of a stranger's choice
            raise ValueError(self.build)
        self._sha256: dict[str, str] = dict(manifest["sha256"])
        dtype, n_stories = _DTYPES[manifest["dtype"]], int(manifest["stories"])
        shards = [(int(shard["stories"]), int(shard["tokens"])) for shard in manifest["shards"]]
        self._first_story = [0, *accumulate(n for n, _ in shards)]
        self._first_token = [0, *accumulate(n for _, n in shards)]
        self._tokens = [self._mapped(_shard_name(i), dtype, n) for i, (_, n) in enumerate(shards)]
        self._offsets = self._mapped(_OFFSETS, np.dtype("<u8"), n_stories + 1)
        self._text_bytes = self._mapped(_TEXT_BYTES, np.dtype("<u4"), n_stories)
        at_shards = self._offsets[self._first_story] if self._first_story[-1] == n_stories else None
        if at_shards is None or at_shards.tolist() != self._first_token or not (self.lengths() > 0).all():
            raise UsageError(f"{self.directory / self.build / _OFFSETS} is damaged; prepare the stories again")

    def _mapped(self, name: str, dtype: np.dtype[Any], n: int) -> np.ndarray:
        path = self.directory / self.build / name
        size = path.stat().st_size
        if size != n * dtype.itemsize or not n:
            raise UsageError(
                f"{path} is damaged: {size:,} bytes instead of {n * dtype.itemsize:,}; prepare the stories again"
            )
        return np.asarray(np.memmap(path, dtype, mode="r"))

    def __len__(self) -> int:
        return len(self._text_bytes)

    def __getitem__(self, index: int) -> np.ndarray:
        """(n,) uint16 or uint32: BOS + tokens + EOS of a story, a read-only view into the file."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        shard = bisect_right(self._first_story, index) - 1
        start, end = self._offsets[index : index + 2].tolist()
        return self._tokens[shard][start - self._first_token[shard] : end - self._first_token[shard]]

    def lengths(self) -> np.ndarray:
        """(stories,) int64: tokens of each story, BOS and EOS included."""
        return np.diff(self._offsets.astype(np.int64))

    def text_bytes(self) -> np.ndarray:
        """(stories,) uint32: UTF-8 bytes of each story's text."""
        return self._text_bytes

    @property
    def n_tokens(self) -> int:
        """Tokens of all stories, a BOS and an EOS of each included."""
        return int(self._offsets[-1])

    @property
    def n_bytes(self) -> int:
        """UTF-8 bytes of all stories' texts."""
        return int(self._text_bytes.sum(dtype=np.int64))

    def first(self, n: int) -> "TokenShards":
        """The first `n` stories, or all where there are fewer; the same files behind them."""
        part = copy.copy(self)
        part._offsets, part._text_bytes = self._offsets[: n + 1], self._text_bytes[:n]
        return part

    def verify(self) -> None:
        """Read every file and compare its SHA-256 with the manifest's.

        Raises:
            UsageError: one differs, or cannot be read.
        """
        for name in (*map(_shard_name, range(len(self._tokens))), _OFFSETS, _TEXT_BYTES):
            path = self.directory / self.build / name
            try:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise UsageError(f"cannot read {path}: {error.strerror}") from error
            if digest != self._sha256.get(name):
                raise UsageError(f"{path} is damaged: its SHA-256 is not the manifest's; prepare the stories again")


class _Writer:
    """The files of a build; `finish` gives their part of the manifest."""

    def __init__(self, build: Path, dtype: np.dtype[Any], shard_bytes: int) -> None:
        self._build, self._itemsize, self._shard_bytes = build, dtype.itemsize, shard_bytes
        self._shards: list[dict[str, int]] = []
        self._sha256: dict[str, str] = {}
        self._offset = 0
        self._offsets = _HashedFile(build / _OFFSETS)
        self._text_bytes = _HashedFile(build / _TEXT_BYTES)
        self._tokens: _HashedFile | None = None
        self._offsets.write(np.zeros(1, "<u8"))

    def add(self, token_ids: np.ndarray, text_bytes: int) -> None:
        """Append a story; `token_ids` in the build's dtype."""
        full = self._shards and (self._shards[-1]["tokens"] + len(token_ids)) * self._itemsize > self._shard_bytes
        if self._tokens is None or full:
            if self._tokens is not None:
                self._end(self._tokens)
            self._tokens = _HashedFile(self._build / _shard_name(len(self._shards)))
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
    return bos, eos, _DTYPES["uint16" if largest < 2**16 else "uint32"]


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


def _shard_name(number: int) -> str:
    return f"tokens-{number:05d}.bin"


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
            if is_old and build.name != keep and _BUILD_NAME.fullmatch(build.name):
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
