"""Tokenised stories on disk: made once, read through the memory map, in as little memory as a batch takes.

A folder of them:
    manifest.json                    what it was made of, counts, checksums; names the build
    build-1a2b3c4d/tokens-00000.bin  token ids, story after story, each BOS + tokens + EOS; uint16 or uint32
    build-1a2b3c4d/offsets.bin       uint64, where each story begins in all shards together, and where the last ends
    build-1a2b3c4d/text_bytes.bin    uint32, the UTF-8 bytes of each story's text
Numbers are little-endian; no story lies across two shards. The manifest is replaced by one rename when all else is on
the disk, so a folder is never half one build, half another.
"""

import copy
import hashlib
import re
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from tinystory.data.sources import SourceReport
from tinystory.errors import UnreadableFile, UsageError
from tinystory.safe.reading import read_json_object
from tinystory.text.tokenizer import Tokenizer

__all__ = ["TokenShards", "fingerprint"]

FORMAT = 1
MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 2**26
BUILD_NAME = re.compile(r"build-[0-9a-f]{8}")
ID_DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
OFFSETS, TEXT_BYTES = "offsets.bin", "text_bytes.bin"


def fingerprint(tokenizer: Tokenizer) -> str:
    """SHA-256 of a vocabulary, in hex: what `recipe["tokenizer"]` is for stories prepared with it."""
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()


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
        if not (directory / MANIFEST).is_file():
            raise UsageError(f"{directory} holds no prepared stories; scripts/prepare_data.py makes them")
        try:
            manifest = read_json_object(directory / MANIFEST, _MAX_MANIFEST_BYTES)
            if manifest["format"] != FORMAT:
                raise UsageError(f"{directory} is of format {manifest['format']}, not {FORMAT}; prepare it again")
            self._open(manifest)
        except (LookupError, TypeError, ValueError, OverflowError, UnreadableFile) as error:
            raise UsageError(f"{directory / MANIFEST} is damaged; prepare the stories again") from error
        except OSError as error:
            raise UsageError(f"cannot read {error.filename or directory}: {error.strerror}") from error

    def _open(self, manifest: dict[str, Any]) -> None:
        self.recipe: dict[str, Any] = dict(manifest["recipe"])
        self.report = SourceReport(**manifest["report"])
        self.build = str(manifest["build"])
        if not BUILD_NAME.fullmatch(self.build):  # a path of a stranger's choice
            raise ValueError(self.build)
        self._sha256: dict[str, str] = dict(manifest["sha256"])
        dtype, n_stories = ID_DTYPES[manifest["dtype"]], int(manifest["stories"])
        shards = [(int(shard["stories"]), int(shard["tokens"])) for shard in manifest["shards"]]
        self._first_story = [0, *accumulate(n for n, _ in shards)]
        self._first_token = [0, *accumulate(n for _, n in shards)]
        self._tokens = [self._mapped(shard_name(i), dtype, n) for i, (_, n) in enumerate(shards)]
        self._offsets = self._mapped(OFFSETS, np.dtype("<u8"), n_stories + 1)
        self._text_bytes = self._mapped(TEXT_BYTES, np.dtype("<u4"), n_stories)
        at_shards = self._offsets[self._first_story] if self._first_story[-1] == n_stories else None
        if at_shards is None or at_shards.tolist() != self._first_token or not (self.lengths() > 0).all():
            raise UsageError(f"{self.directory / self.build / OFFSETS} is damaged; prepare the stories again")

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
        for name in (*map(shard_name, range(len(self._tokens))), OFFSETS, TEXT_BYTES):
            path = self.directory / self.build / name
            try:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise UsageError(f"cannot read {path}: {error.strerror}") from error
            if digest != self._sha256.get(name):
                raise UsageError(f"{path} is damaged: its SHA-256 is not the manifest's; prepare the stories again")


def shard_name(number: int) -> str:
    return f"tokens-{number:05d}.bin"
