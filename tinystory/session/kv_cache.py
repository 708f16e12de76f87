"""Keep keys and values of all rows in one block of memory, which is reused when rows come and go.

The same code works with arrays of torch and of NumPy, and imports neither.

Shapes: L layers, B rows, S positions, K key/value heads, D d_head.
"""

from collections.abc import Callable, Sequence
from typing import Any

from tinystory.decoding.request import common_prefix
from tinystory.model.config import ModelConfig

__all__ = ["KVCache"]

_FULL_ROW_BYTES = 64 * 2**20
"""Up to this size, a row gets memory for the longest context at once; a larger row grows by doubling."""
_FIRST_POSITIONS = 256
_KEPT_BYTES = 256 * 2**20
"""Up to this size of the whole cache, the memory of rows that have left is kept for new rows."""


class KVCache:
    """The cache of B rows, each with the token ids whose keys and values it has.

    When a row leaves, its memory and the content stay for the next row. A row that becomes a copy of another copies
    only the part after the first token in which the two differ. So beams, which differ late, are copied quickly.

    Attributes:
        rows: the token ids of each row; the owner of the cache appends to them and cuts them.
        version: changes whenever earlier views of the memory have become invalid.
    """

    def __init__(self, config: ModelConfig, zeros: Callable[[tuple[int, ...]], Any]) -> None:
        """Begin without rows and without memory.

        Args:
            config: the shape of the model.
            zeros: makes an array of zeros of a shape, in the dtype and on the device of the computation. Empty memory
                would not do: masked positions are multiplied by 0, and 0 · NaN is NaN.
        """
        self.rows: list[list[int]] = []
        self.version = 0
        self._config = config
        self._zeros = zeros
        self._memory: Any = None  # (L, 2, rows, K, S, D)
        self._left: list[list[int]] = []  # token ids whose keys and values are still in the memory after the last row

    @property
    def capacity(self) -> int:
        """The number of positions that a row has room for; 0 before the first prefill."""
        return 0 if self._memory is None else self._memory.shape[4]

    def layers(self) -> list[tuple[Any, Any]]:
        """Return keys and values of each layer, as views (B, K, S, D)."""
        return [(keys, values) for keys, values in self._memory[:, :, : len(self.rows)]]

    def reserve(self, n_positions: int) -> None:
        """Make room for `n_positions` in each row; at most max_seq_len."""
        if n_positions <= self.capacity:
            return
        capacity = min(self._config.max_seq_len, max(2 * self.capacity, n_positions))
        self._replace(self._memory.shape[2], capacity)

    def adopt(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Give each prompt a copy of the row with which it shares the longest prefix.

        Returns:
            The number of cached tokens of each prompt. The last token never counts as cached, since its logits have
            to be computed.
        """
        if not self.rows:
            self._allocate(len(prompts))
            return [0] * len(prompts)
        shared = [[common_prefix(prompt, row) for row in self.rows] for prompt in prompts]
        parents = [max(range(len(row)), key=row.__getitem__) for row in shared]
        self.reorder(parents)
        return [min(row[parent], len(prompt) - 1) for row, parent, prompt in zip(shared, parents, prompts, strict=True)]

    def reorder(self, order: Sequence[int]) -> None:
        """Make row i a copy of row order[i]; `order` has any length from 1."""
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
        """Copy rows onto rows, from the first position at which any of them differs from its source."""
        start = min(common_prefix(held[row], held[source]) for row, source in moves)
        end = max(len(held[source]) for _, source in moves)
        rows, sources = ([move[side] for move in moves] for side in (0, 1))
        part = self._memory[:, :, :, :, start:end]
        part[:, :, rows] = part[:, :, sources]

    def _replace(self, n_rows: int, capacity: int) -> None:
        """Allocate new memory, and copy the old content as far as it fits."""
        memory = self._new_memory(n_rows, capacity)
        n_kept, end = min(n_rows, self._memory.shape[2]), min(capacity, self.capacity)
        memory[:, :, :n_kept, :, :end] = self._memory[:, :, :n_kept, :, :end]
        self._memory = memory
        self.version += 1

    def _allocate(self, n_rows: int) -> None:
        """Allocate the first memory, for `n_rows` empty rows."""
        c = self._config
        self._memory = self._new_memory(n_rows, min(c.max_seq_len, _FIRST_POSITIONS))
        if self._memory.nbytes // self._memory.shape[4] * c.max_seq_len <= _FULL_ROW_BYTES * n_rows:
            self._memory = self._new_memory(n_rows, c.max_seq_len)
        self.rows = [[] for _ in range(n_rows)]
        self.version += 1

    def _new_memory(self, n_rows: int, capacity: int) -> Any:
        c = self._config
        return self._zeros((c.n_layer, 2, n_rows, c.n_kv_head, capacity, c.d_head))
