"""Read tokenised stories from memory-mapped files, so that only the stories in use take memory.

`prepare.py` writes such a folder:
    manifest.json                    the recipe, counts and checksums; names the build
    build-1a2b3c4d/tokens-00000.bin  token ids, story after story, each BOS + tokens + EOS; uint16 or uint32
    build-1a2b3c4d/offsets.bin       uint64, where each story begins in all shards together, and where the last ends
    build-1a2b3c4d/text_bytes.bin    uint32, the UTF-8 bytes of each story's text
Numbers are little-endian. A story never lies in two shards. The manifest is replaced by one rename when all other files
are on the disk, so a folder never mixes two builds. Knows no sources of stories and no models.
"""

import copy
import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from tinystory.data.sources import SourceReport
from tinystory.errors import UnreadableFile, UsageError
from tinystory.safe.reading import read_json_object
from tinystory.text.tokenizer import Tokenizer

__all__ = [
    "BUILD_NAME", "FORMAT", "ID_DTYPES", "MANIFEST", "OFFSETS", "TEXT_BYTES",
    "TokenShards", "fingerprint", "shard_name",
]  # fmt: skip

FORMAT = 1
"""Number of the folder's format; a folder with another number is refused."""

MANIFEST, OFFSETS, TEXT_BYTES = "manifest.json", "offsets.bin", "text_bytes.bin"
BUILD_NAME = re.compile(r"build-[0-9a-f]{8}")
ID_DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
_MAX_MANIFEST_BYTES = 2**26


def shard_name(number: int) -> str:
    """Return the file name of a shard; numbers begin at 0."""
    return f"tokens-{number:05d}.bin"


def fingerprint(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of a vocabulary, in hex; prepared stories have it as `recipe["tokenizer"]`."""
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()


class TokenShards:
    """Prepared stories: `shards[i]` has the token ids of one story and reads no other; `len(shards)` counts them.

    Attributes:
        recipe: the tokenizer, sources and selection from which the stories were made.
        report: the counts of the sources.
        reused: whether `prepare` has reused the folder instead of writing it.
        build: the name of the folder that has the token ids.
    """

    def __init__(self, directory: Path) -> None:
        """Open a folder that `prepare` wrote, and check the sizes of its files.

        Raises:
            UsageError: the folder has no complete build, or is damaged.
        """
        self.directory = directory
        self.reused = False
        if not (directory / MANIFEST).is_file():
            raise UsageError(f"{directory} holds no prepared stories; make them with scripts/prepare_data.py")
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
        if not BUILD_NAME.fullmatch(self.build):  # the manifest may name any path
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

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the tokens of each story, (T,)."""
        return (self[index] for index in range(len(self)))

    def __len__(self) -> int:
        return len(self._text_bytes)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return BOS + tokens + EOS of a story: (n,) uint16 or uint32, a read-only view into the file."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        shard = bisect_right(self._first_story, index) - 1
        start, end = self._offsets[index : index + 2].tolist()
        return self._tokens[shard][start - self._first_token[shard] : end - self._first_token[shard]]

    def lengths(self) -> np.ndarray:
        """Return how many tokens each story has, with BOS and EOS: (stories,) int64."""
        return np.diff(self._offsets.astype(np.int64))

    def text_bytes(self) -> np.ndarray:
        """Return how many UTF-8 bytes each story has: (stories,) uint32."""
        return self._text_bytes

    @property
    def n_tokens(self) -> int:
        """The tokens of all stories, with a BOS and an EOS for each."""
        return int(self._offsets[-1])

    @property
    def n_bytes(self) -> int:
        """The UTF-8 bytes of all stories."""
        return int(self._text_bytes.sum(dtype=np.int64))

    def first(self, n: int) -> "TokenShards":
        """Return the first `n` stories, or all if there are fewer, from the same files."""
        part = copy.copy(self)
        part._offsets, part._text_bytes = self._offsets[: n + 1], self._text_bytes[:n]
        return part

    def content_hash(self) -> str:
        """Return a SHA-256 of the checksums of all files, in hex: the same stories and vocabulary give the same."""
        return hashlib.sha256(json.dumps(sorted(self._sha256.items())).encode()).hexdigest()

    def verify(self) -> None:
        """Read every file and compare its SHA-256 with the manifest.

        Raises:
            UsageError: a file is different or cannot be read.
        """
        for name in (*map(shard_name, range(len(self._tokens))), OFFSETS, TEXT_BYTES):
            path = self.directory / self.build / name
            try:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise UsageError(f"cannot read {path}: {error.strerror}") from error
            if digest != self._sha256.get(name):
                raise UsageError(
                    f"{path} is damaged: its SHA-256 is not that of the manifest; prepare the stories again"
                )
