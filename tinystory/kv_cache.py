"""Keys and values of the tokens that rows hold, in one block of memory that outlives the rows.

Shapes: L layers, B rows, S positions, K key/value heads, D d_head.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tinystory.config import ModelConfig
from tinystory.request import common_prefix

__all__ = ["KVCache"]

_FULL_ROW_BYTES = 64 * 2**20
"""A row up to this size is taken whole; a larger one grows by doubling."""
_KEPT_BYTES = 256 * 2**20
"""Memory of rows that have gone is kept for others up to this size."""


class KVCache:
    """The cache of B rows, each with the token ids whose keys and values it has.

    Rows that go leave their memory, and what it holds, to those that come: a row that becomes a copy of another
    copies only from where their tokens part. Beams, which part late, are copied in no time.

    Attributes:
        rows: the token ids of each row; the owner appends to them and cuts them.
        version: changes whenever views of the memory have become wrong.
    """

    def __init__(self, config: ModelConfig, like: Tensor) -> None:
        """An empty cache.

        Args:
            config: of the model.
            like: a tensor with the device and dtype to compute in.
        """
        self.rows: list[list[int]] = []
        self.version = 0
        self._config = config
        self._like = like
        self._memory: Tensor | None = None  # (L, 2, rows, K, S, D)
        self._left: list[list[int]] = []  # what the rows after the last one still hold

    @property
    def capacity(self) -> int:
        """Positions that a row has room for; 0 before there is any."""
        return 0 if self._memory is None else self._memory.shape[4]

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, views of (B, K, S, D)."""
        assert self._memory is not None
        return [(keys, values) for keys, values in self._memory[:, :, : len(self.rows)].unbind()]

    def reserve(self, n_positions: int) -> None:
        """Make room for so many positions, at most max_seq_len."""
        if n_positions <= self.capacity:
            return
        assert self._memory is not None
        capacity = min(self._config.max_seq_len, max(2 * self.capacity, n_positions))
        self._memory = F.pad(self._memory, (0, 0, 0, capacity - self.capacity))
        self.version += 1

    def adopt(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Give each prompt the row with which it shares most; how many of its tokens are cached there.

        At least the last token of a prompt is left to be computed, since its logits are wanted.
        """
        if not self.rows:
            self._take(len(prompts))
            return [0] * len(prompts)
        shared = [[common_prefix(prompt, row) for row in self.rows] for prompt in prompts]
        parents = [max(range(len(row)), key=row.__getitem__) for row in shared]
        self.reorder(parents)
        return [min(row[parent], len(prompt) - 1) for row, parent, prompt in zip(shared, parents, prompts, strict=True)]

    def reorder(self, order: Sequence[int]) -> None:
        """Row i becomes a copy of row order[i]; any number of rows, at least one."""
        if list(order) == list(range(len(self.rows))):
            return
        held = [*self.rows, *self._left]
        sources = [list(self.rows[source]) for source in order]
        if len(order) > len(held):
            held += [[] for _ in range(len(order) - len(held))]
            self._grow(len(held))
        moves = [(row, source) for row, source in enumerate(order) if row != source and held[row] != held[source]]
        if moves:
            self._copy(moves, held)
        if len(order) != len(self.rows):
            self.version += 1
        self.rows, self._left = sources, held[len(order) :]
        if self._left and self._size() > _KEPT_BYTES:
            assert self._memory is not None
            self._memory, self._left = self._memory[:, :, : len(order)].clone(), []
            self.version += 1

    def _copy(self, moves: Sequence[tuple[int, int]], held: Sequence[Sequence[int]]) -> None:
        """Copy rows onto rows, from where the first of them parts from its source."""
        assert self._memory is not None
        start = min(common_prefix(held[row], held[source]) for row, source in moves)
        end = max(len(held[source]) for _, source in moves)
        rows, sources = torch.tensor(moves, device=self._like.device).T
        part = self._memory[:, :, :, :, start:end]
        part.index_copy_(2, rows, part.index_select(2, sources))

    def _grow(self, n_rows: int) -> None:
        """Make room for so many rows; the new ones hold nothing."""
        assert self._memory is not None
        memory = self._zeros(n_rows, self.capacity)
        end = max(len(row) for row in (*self.rows, *self._left))
        memory[:, :, : self._memory.shape[2], :, :end] = self._memory[:, :, :, :, :end]
        self._memory = memory
        self.version += 1

    def _take(self, n_rows: int) -> None:
        """The first memory."""
        c = self._config
        row_bytes = 2 * c.n_layer * c.n_kv_head * c.d_head * c.max_seq_len * self._like.element_size()
        self._memory = self._zeros(n_rows, c.max_seq_len if row_bytes <= _FULL_ROW_BYTES else min(c.max_seq_len, 256))
        self.rows = [[] for _ in range(n_rows)]
        self.version += 1

    def _zeros(self, n_rows: int, capacity: int) -> Tensor:
        """Fresh memory; zeros, since masked positions are multiplied by 0 and 0 · NaN is NaN."""
        c = self._config
        return self._like.new_zeros(c.n_layer, 2, n_rows, c.n_kv_head, capacity, c.d_head)

    def _size(self) -> int:
        return 0 if self._memory is None else self._memory.numel() * self._memory.element_size()
