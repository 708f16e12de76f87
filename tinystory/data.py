"""Stories from files and hubs, and token batches from stories.

A story is the text between separators, stripped. Each becomes BOS + tokens + EOS, of which a batch predicts
everything but the BOS. Rows of a batch hold several whole stories (packing); a story never looks at another,
and its positions start at 0.
"""

import random
import re
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tinystory.errors import UsageError
from tinystory.tokenizer import END_OF_TEXT, Tokenizer

__all__ = ["IGNORE", "Batch", "Piece", "batches", "collate", "cut", "pack", "read_stories", "tokenize"]

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+(?<!\.txt)(?<!\.jsonl)(?<!\.parquet)")

IGNORE = -100
"""The label of a position that is not scored."""

Piece = np.ndarray
"""(n,) int32: up to `row_len` + 1 consecutive tokens of one story; each but the first is predicted."""


@dataclass(frozen=True)
class Batch:
    """Packed rows.

    Attributes:
        token_ids: (R, L) int64.
        labels: (R, L) int64, the next token of the same story, or `IGNORE`.
        positions: (R, L) int64, restarting at 0 with each story.
        story: (R, L) int32, the number of the story within its row; -1 on padding.
    """

    token_ids: Tensor
    labels: Tensor
    positions: Tensor
    story: Tensor

    @property
    def n_tokens(self) -> int:
        """Scored tokens."""
        return int((self.labels != IGNORE).sum())

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return Batch(
            self.token_ids.to(device),
            self.labels.to(device),
            self.positions.to(device),
            self.story.to(device),
        )

    def mask(self) -> Tensor:
        """(R, 1, L, L) bool: a query sees earlier positions of its own story, padding sees padding."""
        n = self.token_ids.shape[1]
        causal = torch.ones(n, n, dtype=torch.bool, device=self.story.device).tril()
        return ((self.story[:, :, None] == self.story[:, None, :]) & causal)[:, None]


def read_stories(source: str | Path, split: str = "train") -> Iterator[str]:
    """Yield the non-empty stories of a source.

    Args:
        source: a text file with `<|endoftext|>` between stories, a folder written by
            `Dataset.save_to_disk`, or the name of a hub dataset with a `text` column.
        split: the split of a hub dataset or saved dataset dictionary.

    Raises:
        UsageError: nothing readable is there.
    """
    path = Path(source)
    if path.is_file():
        return _stories_of_text(path)
    if not path.is_dir() and not _HUB_NAME.fullmatch(str(source)):
        raise UsageError(f"{source}: no such file or folder, and not the name of a hub dataset (owner/name)")
    return _stories_of_dataset(source, path, split)


def _stories_of_text(path: Path) -> Iterator[str]:
    lines: list[str] = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            before, separator, after = line.partition(END_OF_TEXT)
            lines.append(before)
            if separator:
                story = "".join(lines).strip()
                lines = [after]
                if story:
                    yield story
    if story := "".join(lines).strip():
        yield story


def _stories_of_dataset(source: str | Path, path: Path, split: str) -> Iterator[str]:
    import datasets

    try:
        if path.is_dir():
            data = datasets.load_from_disk(str(path))
            data = data[split] if isinstance(data, datasets.DatasetDict) else data
        else:
            data = datasets.load_dataset(str(source), split=split)
    except Exception as error:  # the library raises its own, the hub's and the file system's errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"{source} is not a story file, a saved dataset, or a reachable hub dataset: {reason}"
        ) from error
    if "text" not in data.column_names:
        raise UsageError(f"{source} has no column 'text'; it has {', '.join(data.column_names)}")
    return (story for row in data if (story := row["text"].strip()))


def tokenize(stories: Sequence[str], tokenizer: Tokenizer) -> list[np.ndarray]:
    """Each story as int32 BOS + tokens + EOS."""
    if tokenizer.bos_id is None or not tokenizer.eos_ids:
        raise UsageError("this vocabulary has no BOS or EOS token; training needs both")
    bos, eos = tokenizer.bos_id, min(tokenizer.eos_ids)
    return [np.array([bos, *ids, eos], dtype=np.int32) for ids in tokenizer.encode_batch(stories)]


def cut(stories: Sequence[np.ndarray], row_len: int) -> list[Piece]:
    """Cut what is longer than a row: pieces of `row_len` inputs, so that every token is predicted once."""
    return [
        story[start : start + row_len + 1] for story in stories for start in range(0, max(len(story) - 1, 1), row_len)
    ]


def pack(lengths: Sequence[int], row_len: int) -> list[list[int]]:
    """Fill rows best-fit: each item goes into the fullest open row that still has room.

    Args:
        lengths: items of 1 to `row_len` positions.
        row_len: room of a row.

    Returns:
        Rows as lists of item indices, in order of opening.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free positions, row), sorted: the first that fits is the fullest
    for item, length in enumerate(lengths):
        at = bisect_left(room, (length, -1))
        if at == len(room):
            rows.append([item])
            free, row = row_len, len(rows) - 1
        else:
            free, row = room.pop(at)
            rows[row].append(item)
        if free > length:
            insort(room, (free - length, row))
    return rows


def batches(pieces: Sequence[Piece], row_len: int, n_rows: int, seed: int | None = None) -> list[list[list[int]]]:
    """One epoch: batches of rows of piece indices, the same for the same arguments.

    With a seed, pieces are shuffled before packing and rows after it; the last batch may have fewer rows.
    """
    order = list(range(len(pieces)))
    shuffle = random.Random(seed).shuffle if seed is not None else None
    if shuffle:
        shuffle(order)
    rows = [[order[i] for i in row] for row in pack([len(pieces[i]) - 1 for i in order], row_len)]
    if shuffle:
        shuffle(rows)
    return [rows[start : start + n_rows] for start in range(0, len(rows), n_rows)]


def collate(pieces: Sequence[Piece], rows: Sequence[Sequence[int]], row_len: int) -> Batch:
    """Lay the pieces of each row one after the other into a `Batch` of `row_len` positions."""
    shape = (len(rows), row_len)
    token_ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    labels, story = np.full(shape, IGNORE, np.int64), np.full(shape, -1, np.int32)
    for r, row in enumerate(rows):
        start = 0
        for number, index in enumerate(row):
            piece = pieces[index]
            end = start + len(piece) - 1
            token_ids[r, start:end], labels[r, start:end] = piece[:-1], piece[1:]
            positions[r, start:end], story[r, start:end] = np.arange(end - start), number
            start = end
    return Batch(*(torch.from_numpy(array) for array in (token_ids, labels, positions, story)))
