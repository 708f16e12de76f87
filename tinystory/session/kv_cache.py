"""Keys and values of the tokens that rows hold, in one block of memory that outlives the rows.

It is written for arrays of torch and of NumPy alike, and imports neither.

Shapes: L layers, B rows, S positions, K key/value heads, D d_head.
"""

from collections.abc import Callable, Sequence
from typing import Any

from tinystory.decoding.request import common_prefix
from tinystory.model.config import ModelConfig

__all__ = ["KVCache"]

_FULL_ROW_BYTES = 64 * 2**20
"""A row up to this size is taken whole; a larger one grows by doubling."""
_FIRST_POSITIONS = 256
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

    def __init__(self, config: ModelConfig, zeros: Callable[[tuple[int, ...]], Any]) -> None:
        """An empty cache.

        Args:
            config: of the model.
            zeros: gives an array of a shape, in the dtype and on the device to compute with. Zeros, since masked
                positions are multiplied by 0, and 0 · NaN is NaN.
        """
        self.rows: list[list[int]] = []
        self.version = 0
        self._config = config
        self._zeros = zeros
        self._memory: Any = None  # (L, 2, rows, K, S, D)
        self._left: list[list[int]] = []  # what the rows after the last one still hold

    @property
    def capacity(self) -> int:
        """Positions that a row has room for; 0 before there is any."""
        return 0 if self._memory is None else self._memory.shape[4]

    def layers(self) -> list[tuple[Any, Any]]:
        """Keys and values of each layer, views of (B, K, S, D)."""
        return [(keys, values) for keys, values in self._memory[:, :, : len(self.rows)]]

    def reserve(self, n_positions: int) -> None:
        """Make room for so many positions, at most max_seq_len."""
        if n_positions <= self.capacity:
            return
        capacity = min(self._config.max_seq_len, max(2 * self.capacity, n_positions))
        self._replace(self._memory.shape[2], capacity)

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
            self._replace(len(held), self.capacity)
        moves = [(row, source) for row, source in enumerate(order) if row != source and held[row] != held[source]]
        if moves:
            self._copy(moves, held)
        if len(order) != len(self.rows):
            self.version += 1
        self.rows, self._left = sources, held[len(order) :]
        if self._left and self._memory.nbytes > _KEPT_BYTES:
            self._left = []
            self._replace(len(order), self.capacity)

    def _copy(self, moves: Sequence[tuple[int, int]], held: Sequence[Sequence[int]]) -> None:
        """Copy rows onto rows, from where the first of them parts from its source."""
        start = min(common_prefix(held[row], held[source]) for row, source in moves)
        end = max(len(held[source]) for _, source in moves)
        rows, sources = ([move[side] for move in moves] for side in (0, 1))
        part = self._memory[:, :, :, :, start:end]
        part[:, :, rows] = part[:, :, sources]

    def _replace(self, n_rows: int, capacity: int) -> None:
        """Other memory, with as much of what the old one holds as there is room for."""
        memory = self._new_memory(n_rows, capacity)
        n_kept, end = min(n_rows, self._memory.shape[2]), min(capacity, self.capacity)
        memory[:, :, :n_kept, :, :end] = self._memory[:, :, :n_kept, :, :end]
        self._memory = memory
        self.version += 1

    def _take(self, n_rows: int) -> None:
        """The first memory."""
        c = self._config
        self._memory = self._new_memory(n_rows, min(c.max_seq_len, _FIRST_POSITIONS))
        if self._memory.nbytes // self._memory.shape[4] * c.max_seq_len <= _FULL_ROW_BYTES * n_rows:
            self._memory = self._new_memory(n_rows, c.max_seq_len)
        self.rows = [[] for _ in range(n_rows)]
        self.version += 1

    def _new_memory(self, n_rows: int, capacity: int) -> Any:
        c = self._config
        return self._zeros((c.n_layer, 2, n_rows, c.n_kv_head, capacity, c.d_head))
