"""Make token batches from tokenised stories: packed rows have several whole stories, padded rows have one.

A story is BOS + tokens + EOS; a batch predicts all of it except BOS. A story that is longer than a row is cut into
pieces, in the same way in both modes. A piece never sees another piece, and its positions start at 0. The batches of an
epoch follow from seed and epoch alone, so a place in the data is two numbers: the epoch and the batch. Knows arrays of
tokens, and not the model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol, overload, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from tinystory.model.cross_entropy import IGNORE
from tinystory.noise import Noise

__all__ = [
    "Batch",
    "BatchPlan",
    "BatchRows",
    "Batching",
    "Epoch",
    "Piece",
    "Pieces",
    "Stories",
    "collate",
    "cut",
    "epoch_batches",
    "pack",
    "share",
]  # fmt: skip


Piece = np.ndarray
"""(n,) integers: up to `row_len` + 1 consecutive tokens of one story; all except the first are predicted."""

BatchRows = list[list[int]]
"""The rows of a batch; a row is a list of the numbers of its pieces."""

Batching = Literal["packed", "padded"]


class Stories(Protocol):
    """Tokenised stories: a list of arrays, `TokenShards`, or any other sequence of arrays."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> np.ndarray: ...


@runtime_checkable
class _Measured(Protocol):
    """Stories that know their lengths, so that they need not be read."""

    def lengths(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Batch:
    """The tensors of some rows; R rows of L positions.

    Attributes:
        token_ids: (R, L) int64.
        labels: (R, L) int64, the next token of the same story, or `IGNORE`.
        positions: (R, L) int64, starting at 0 in each story.
        story: (R, L) int32, the number of the story within its row; -1 is padding.
        alone: whether no row has two stories.
        lengths: the lengths of the stories after `joined`; else None.
    """

    token_ids: Tensor
    labels: Tensor
    positions: Tensor
    story: Tensor
    alone: bool = False
    lengths: list[int] | None = None

    @property
    def n_tokens(self) -> int:
        """The number of predicted tokens."""
        return int((self.labels != IGNORE).sum())

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device. Pinned memory carries it to a GPU, so that the CPU need not wait."""
        tensors = [self.token_ids, self.labels, self.positions, self.story]
        if device.type == "cuda":
            tensors = [tensor.pin_memory() if tensor.device.type == "cpu" else tensor for tensor in tensors]
        token_ids, labels, positions, story = (tensor.to(device, non_blocking=True) for tensor in tensors)
        return Batch(token_ids, labels, positions, story, self.alone)

    def joined(self) -> "Batch":
        """Return the same stories as one row without padding. This suits a device on which new shapes are free.

        A batch that has only padding is returned unchanged.
        """
        real = self.story >= 0
        if not real.any():
            return self
        numbers = self.story + torch.arange(len(self.story), device=self.story.device)[:, None] * self.story.shape[1]
        lengths = [length for length in numbers[real].bincount().tolist() if length]
        token_ids, labels, positions, story = (
            values[real][None] for values in (self.token_ids, self.labels, self.positions, numbers)
        )
        return Batch(token_ids, labels, positions, story, lengths=lengths)

    def mask(self) -> Tensor | list[int] | None:
        """Return which positions see which others.

        Returns:
            (R, 1, L, L) bool: a position sees the earlier positions of its own story, and padding sees padding. After
            `joined`, it is the list of lengths, which says the same. If no row has two stories, it is None, which means
            plain causal attention: padding is on the right, so no predicted position sees it.
        """
        if self.lengths is not None:
            return self.lengths
        if self.alone:
            return None
        n = self.token_ids.shape[1]
        causal = torch.ones(n, n, dtype=torch.bool, device=self.story.device).tril()
        return ((self.story[:, :, None] == self.story[:, None, :]) & causal)[:, None]


class Pieces(Sequence[Piece]):
    """Stories, cut into pieces that fit a row. A piece is a view into its story, made when it is read.

    Attributes:
        n_predicted: (pieces,) int32, the predicted tokens of each piece, from 1 to `row_len`.
    """

    def __init__(self, stories: Stories, row_len: int) -> None:
        n = _lengths(stories) - 1  # predicted tokens of each story
        n_pieces = np.maximum(-(-n // row_len), 0)
        self._stories = stories
        self._story = np.repeat(np.arange(len(n), dtype=np.int32), n_pieces)
        first = np.repeat(n_pieces.cumsum() - n_pieces, n_pieces)
        start = (np.arange(len(self._story)) - first) * row_len
        self._start = start.astype(np.int32)
        self.n_predicted: np.ndarray = np.minimum(n[self._story] - start, row_len).astype(np.int32)

    def __len__(self) -> int:
        return len(self._story)

    @overload
    def __getitem__(self, index: int) -> Piece: ...
    @overload
    def __getitem__(self, index: slice) -> list[Piece]: ...
    def __getitem__(self, index: int | slice) -> Piece | list[Piece]:
        """Return one piece, or a list of several."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start = int(self._start[index])
        return self._stories[int(self._story[index])][start : start + int(self.n_predicted[index]) + 1]


def cut(stories: Stories, row_len: int) -> Pieces:
    """Cut stories into pieces of at most `row_len` inputs, so that every token is predicted once."""
    return Pieces(stories, row_len)


def pack(lengths: np.ndarray, row_len: int) -> np.ndarray:
    """Distribute items over rows by best fit: each item goes into the fullest row that still has room for it.

    Args:
        lengths: (n,) integers, the lengths of the items, from 1 to `row_len` positions.
        row_len: the length of a row in positions.

    Returns:
        (n,) int32, the row of each item; rows are numbered in the order in which they were begun.
    """
    with_room: list[list[int]] = [[] for _ in range(row_len)]  # rows, by their number of free positions
    rooms = 0  # bit f is set if a row has f free positions, so the lowest bit that fits is found in one step
    row_of = np.empty(len(lengths), np.int32)
    n_rows = 0
    for item, length in enumerate(lengths.tolist()):
        fitting = rooms >> length
        if fitting:
            free = length + (fitting & -fitting).bit_length() - 1
            row = with_room[free].pop()
            if not with_room[free]:
                rooms ^= 1 << free
        else:
            free, row = row_len, n_rows
            n_rows += 1
        row_of[item] = row
        if left := free - length:
            with_room[left].append(row)
            rooms |= 1 << left
    return row_of


class Epoch(Sequence[BatchRows]):
    """One pass over all pieces: `epoch[i]` has the rows of a batch, `len(epoch)` counts the batches."""

    def __init__(self, order: np.ndarray, ends: np.ndarray, n_rows: int) -> None:
        """Take the pieces of all rows, one row after the other, and the place in this list where each row ends."""
        self._order, self._ends, self._n_rows = order, ends, n_rows

    def __len__(self) -> int:
        return -(-len(self._ends) // self._n_rows)

    @overload
    def __getitem__(self, index: int) -> BatchRows: ...
    @overload
    def __getitem__(self, index: slice) -> list[BatchRows]: ...
    def __getitem__(self, index: int | slice) -> BatchRows | list[BatchRows]:
        """Return the rows of a batch, or a list of several; the last batch may have fewer rows than the others."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        first = index % len(self) * self._n_rows
        bounds = [self._ends[first - 1] if first else 0, *self._ends[first : first + self._n_rows]]
        return [self._order[a:b].tolist() for a, b in pairwise(bounds)]


def epoch_batches(
    pieces: Sequence[Piece],
    row_len: int,
    n_rows: int,
    seed: int | None = None,
    *,
    epoch: int = 0,
    batching: Batching = "packed",
) -> Epoch:
    """Return the batches of an epoch. The same arguments give the same batches on every machine and every rank.

    Args:
        pieces: from `cut` with the same `row_len`.
        row_len: length of a packed row in positions.
        n_rows: rows of a batch, over all ranks.
        seed: shuffles the pieces before packing and the rows after it; None keeps their order.
        epoch: number of the epoch, from 0; each epoch has its own order.
        batching: "packed", or "padded" for one piece in each row.
    """
    lengths = _n_predicted(pieces)
    order = _shuffled(len(pieces), seed, "pieces", epoch)
    if batching == "padded":
        return Epoch(order, np.arange(1, len(order) + 1), n_rows)
    row_of = pack(lengths[order], row_len)
    fills = np.bincount(row_of)  # pieces of each row
    place_of = np.empty(len(fills), np.int64)
    shuffled_rows = _shuffled(len(fills), seed, "rows", epoch)
    place_of[shuffled_rows] = np.arange(len(fills))
    return Epoch(order[np.argsort(place_of[row_of], kind="stable")], fills[shuffled_rows].cumsum(), n_rows)


def share(rows: BatchRows, rank: int = 0, world_size: int = 1) -> BatchRows:
    """Return the rows of a batch that one rank computes: every `world_size`-th row; empty if there are too few.

    The shares of all ranks together are the batch. So a step is the same for any number of ranks, if the loss is summed
    over the ranks and divided by the tokens of the whole batch.
    """
    return rows[rank::world_size]


def collate(pieces: Sequence[Piece], rows: BatchRows, row_len: int | None = None) -> Batch:
    """Return the tensors of rows: the pieces of a row stand one after the other, with padding on the right.

    Args:
        pieces: from `cut`.
        rows: from `epoch_batches`; an empty list gives a batch without rows.
        row_len: length of each row in positions; None takes the length of the longest row.
    """
    loaded = [[pieces[index] for index in row] for row in rows]
    if row_len is None:
        row_len = max((sum(len(piece) - 1 for piece in row) for row in loaded), default=1)
    shape = (len(rows), row_len)
    token_ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    labels, story = np.full(shape, IGNORE, np.int64), np.full(shape, -1, np.int32)
    for r, row in enumerate(loaded):
        start = 0
        for number, piece in enumerate(row):
            end = start + len(piece) - 1
            token_ids[r, start:end], labels[r, start:end] = piece[:-1], piece[1:]
            positions[r, start:end], story[r, start:end] = np.arange(end - start), number
            start = end
    alone = all(len(row) < 2 for row in rows)
    tensor = torch.from_numpy
    return Batch(tensor(token_ids), tensor(labels), tensor(positions), tensor(story), alone)


class BatchPlan:
    """All batches of a run over some stories, packed or padded.

    Attributes:
        pieces: the stories, cut to `row_len`.
        n_tokens: the tokens that are predicted in an epoch.
    """

    def __init__(
        self, stories: Stories, row_len: int, n_rows: int, *, batching: Batching = "packed", seed: int | None = None
    ) -> None:
        """Cut the stories; the arguments are those of `epoch_batches`."""
        self.pieces = cut(stories, row_len)
        self.n_tokens = int(self.pieces.n_predicted.sum(dtype=np.int64))
        self._row_len, self._n_rows, self._batching, self._seed = row_len, n_rows, batching, seed
        self._latest: tuple[int, Epoch] | None = None

    def epoch(self, number: int = 0) -> Epoch:
        """Return the batches of an epoch. The number of batches may differ from epoch to epoch."""
        if self._latest is None or self._latest[0] != number:
            batches = epoch_batches(
                self.pieces, self._row_len, self._n_rows, self._seed, epoch=number, batching=self._batching
            )
            self._latest = number, batches
        return self._latest[1]

    def ahead(self, epoch: int = 0, batch: int = 0) -> Iterator[tuple[int, int, BatchRows]]:
        """Yield the rows of batches from a place in the data on, epoch after epoch, without end.

        Yields:
            (epoch, batch, rows), where epoch and batch are the place after these rows, from which a later run can go
            on. Batch 0 means that these rows end an epoch. Without stories, nothing is yielded.
        """
        while len(self.pieces):
            order = self.epoch(epoch)
            for number in range(batch, len(order)):
                next_place = (epoch, number + 1) if number + 1 < len(order) else (epoch + 1, 0)
                yield *next_place, order[number]
            epoch, batch = epoch + 1, 0

    def collate(self, rows: BatchRows) -> Batch:
        """Return the tensors of rows: packed rows have the length of a row, padded rows that of the longest of them."""
        return collate(self.pieces, rows, self._row_len if self._batching == "packed" else None)

    def count(self, rows: BatchRows) -> int:
        """Return how many tokens are predicted in rows, without reading them; so a rank knows it for all ranks."""
        return int(sum(self.pieces.n_predicted[row].sum() for row in rows))


def _lengths(stories: Stories) -> np.ndarray:
    """Return the lengths of stories: (n,) int64."""
    if isinstance(stories, _Measured):
        return stories.lengths().astype(np.int64)
    return np.fromiter((len(stories[i]) for i in range(len(stories))), np.int64, len(stories))


def _n_predicted(pieces: Sequence[Piece]) -> np.ndarray:
    return pieces.n_predicted if isinstance(pieces, Pieces) else _lengths(pieces) - 1


def _shuffled(n: int, seed: int | None, stream: str, epoch: int) -> np.ndarray:
    """Return a permutation of n numbers. It follows from our own noise, so no library can change it."""
    if seed is None:
        return np.arange(n)
    return np.argsort(Noise(seed, f"shuffled {stream}", 0, epoch).uniform(np.arange(n)), kind="stable")
