"""Keep the rows of a session and their cache: the part of a session that does not depend on how it computes.

The same code works with arrays of torch and of NumPy, and does not import torch.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tinystory.errors import UsageError
from tinystory.model.config import ModelConfig
from tinystory.session.kv_cache import KVCache
from tinystory.session.steps.numpy_step import MOST_TOKENS, NumpyStep
from tinystory.session.steps.weights import ModelWeights, Rotations

if TYPE_CHECKING:
    from tinystory.session.steps.compiled_code import CompiledCode
    from tinystory.session.steps.compiled_step import CompiledStep, PackedModel

__all__ = ["CachedRows", "as_lists", "check_prompts"]

_MOST_ALONE, _ALONE_PARAMETERS = 3, 5_000_000
"""Up to 3 rows of a model of at most 5 M weights are computed one after the other, which is faster than together:
the weights stay in the processor's cache."""


class CachedRows(ABC):
    """A `decoding.Session` whose rows have a cache.

    This class does prefill, decode, reorder, rewind and hidden, and computes a few tokens in NumPy or compiled code. A
    subclass has the weights and computes many tokens. Shapes: B rows, T new positions, C d_model, V vocab_size.
    """

    can_rewind = True
    can_reorder = True

    def __init__(
        self,
        config: ModelConfig,
        bos_id: int | None,
        eos_ids: frozenset[int],
        zeros: Callable[[tuple[int, ...]], Any],
        *,
        uses_numpy: bool,
    ) -> None:
        """Begin without rows.

        Args:
            config: the shape of the model.
            bos_id: the token that a story begins with, or None.
            eos_ids: the tokens that end a story.
            zeros: makes the memory of the cache, as for `KVCache`.
            uses_numpy: compute a few tokens at a time in NumPy.
        """
        self.config = config
        self.vocab_size = config.vocab_size
        self.max_seq_len = config.max_seq_len
        self.bos_id = bos_id
        self.eos_ids = eos_ids
        self._zeros = zeros
        self._most_tokens = MOST_TOKENS if uses_numpy else 0  # most tokens for which a step is used
        small = config.n_parameters <= _ALONE_PARAMETERS
        self._most_alone = (_MOST_ALONE if small else 1) if uses_numpy else 0
        self._packed: PackedModel | None = None
        self._forget()

    def compile(self, code: "CompiledCode") -> None:
        """Compute everything in compiled code from now on.

        Call this before the first prefill. The model must be in float32 or int8 on the CPU.
        """
        from tinystory.session.steps.compiled_step import PackedModel

        self._packed = PackedModel(code, self.config, self._model_weights())
        self._most_tokens, self._most_alone = sys.maxsize, 1

    def _forget(self) -> None:
        """Begin again without rows, with a new cache."""
        self._cache = KVCache(self.config, self._zeros)
        self._hidden: Any = None  # (B, C) of the last tokens; None after a rewind
        # A step and the version of the cache whose memory it uses.
        self._step: tuple[int, NumpyStep | CompiledStep] | None = None

    @abstractmethod
    def _array(self, array: NDArray[Any]) -> Any:
        """Convert an array of NumPy to the kind that decoders get; logits are float32."""

    @abstractmethod
    def _model_weights(self) -> ModelWeights:
        """Return the weights in the memory of the model; not called again after `compile`."""

    @abstractmethod
    def _rotations(self) -> Rotations | None:
        """Return the rotations of all positions of the cache; None if positions are learned."""

    @abstractmethod
    def _forward_many(self, token_ids: list[list[int]], lengths: list[int]) -> Any:
        """Feed (B, T) ids to rows of these lengths and write the cache; return normed hidden states (B, T, C)."""

    @abstractmethod
    def _logits_of_many(self, hidden: Any) -> Any:
        """Compute logits from hidden states: (..., C) -> (..., V) float32."""

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Any:
        """Make the rows hold these prompts, and return the next-token logits, (B, V) float32.

        Each prompt starts from the cached row with which it shares the longest prefix. Equal prompts are computed
        once.

        Raises:
            UsageError: a prompt is empty, longer than max_seq_len, or has an id outside the vocabulary.
        """
        check_prompts(prompts, self.max_seq_len, self.vocab_size)
        unique = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
        kept = self._cache.adopt(unique)
        n_new = max(len(prompt) - n for prompt, n in zip(unique, kept, strict=True))
        # A short row is padded to n_new positions. These must also fit below max_seq_len, so the row keeps fewer.
        kept = [min(n, self.max_seq_len - n_new) for n in kept]
        self._cache.rows = [list(prompt[:n]) for prompt, n in zip(unique, kept, strict=True)]
        padded = [list(prompt[n : n + n_new]) for prompt, n in zip(unique, kept, strict=True)]
        last = [len(new) - 1 for new in padded]
        for new in padded:
            new.extend([0] * (n_new - len(new)))
        self._hidden = self._forward(padded)[list(range(len(unique))), last]
        self._cache.rows = [list(prompt) for prompt in unique]
        if len(unique) < len(prompts):
            place = {prompt: index for index, prompt in enumerate(unique)}
            self.reorder([place[tuple(prompt)] for prompt in prompts])
        return self._logits(self._hidden)

    def decode(self, token_ids: Any) -> Any:
        """Append tokens to every row: (B,) ids give (B, V) float32 logits, (B, T) ids give (B, T, V).

        Args:
            token_ids: an array or nested lists.

        Raises:
            UsageError: a row would pass max_seq_len, or an id is outside the vocabulary.
        """
        ids_by_row = as_lists(token_ids)
        rows = self._cache.rows
        one_each = not isinstance(ids_by_row[0], list)
        new = [[token_id] for token_id in ids_by_row] if one_each else ids_by_row
        stray = next((i for ids in new for i in ids if not 0 <= i < self.vocab_size), None)
        if stray is not None:
            raise UsageError(f"token id {stray} is not of this vocabulary, which has 0 to {self.vocab_size - 1}")
        if max(map(len, rows)) + len(new[0]) > self.max_seq_len:
            raise UsageError(f"the context is full: this model sees {self.max_seq_len} tokens")
        if len(new) <= self._most_alone and len(new[0]) == 1:
            logits = self._decode_alone([ids[0] for ids in new])
            return logits if one_each else logits[:, None]
        hidden = self._forward(new)
        self._hidden = hidden[:, -1]
        for row, ids in zip(rows, new, strict=True):
            row.extend(ids)
        return self._logits(self._hidden if one_each else hidden)

    def _decode_alone(self, token_ids: Sequence[int]) -> Any:
        """Decode one token for each of a few rows, one row after the other; return logits (B, V)."""
        rows = self._cache.rows
        self._cache.reserve(max(map(len, rows)) + 1)
        step = self._current_step()
        pairs = enumerate(zip(token_ids, rows, strict=True))
        results = [step.one(token_id, len(row), index) for index, (token_id, row) in pairs]
        hidden, logits = (
            np.stack(arrays) if len(results) > 1 else arrays[0][None] for arrays in zip(*results, strict=True)
        )
        self._hidden = self._array(hidden)
        for row, token_id in zip(rows, token_ids, strict=True):
            row.append(token_id)
        return self._array(logits.astype(np.float32, copy=False))

    def _forward(self, token_ids: list[list[int]]) -> Any:
        """Append (B, T) ids to the cache, but not to the lists of rows; return normed hidden states (B, T, C)."""
        lengths = [len(row) for row in self._cache.rows]
        self._cache.reserve(max(lengths) + len(token_ids[0]))
        if not self._is_few(len(token_ids) * len(token_ids[0])):
            return self._forward_many(token_ids, lengths)
        return self._array(self._current_step().several(np.array(token_ids), np.array(lengths)))

    def _logits(self, hidden: Any) -> Any:
        """Compute logits from hidden states: (..., C) -> (..., V) float32."""
        shape = hidden.shape[:-1]
        n_tokens = int(np.prod(shape))
        if not self._is_few(n_tokens):
            return self._logits_of_many(hidden)
        logits = self._current_step().logits(np.asarray(hidden).reshape(n_tokens, -1))
        return self._array(logits.astype(np.float32, copy=False).reshape(*shape, -1))

    def _is_few(self, n_tokens: int) -> bool:
        return n_tokens <= self._most_tokens

    def _current_step(self) -> "NumpyStep | CompiledStep":
        """Return the step for the memory that the cache has now; make a new one if the cache has moved."""
        version = self._cache.version
        if self._step is None or self._step[0] != version:
            caches = [(np.asarray(keys), np.asarray(values)) for keys, values in self._cache.layers()]
            self._step = version, self._new_step(caches)
        return self._step[1]

    def _new_step(self, caches: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> "NumpyStep | CompiledStep":
        rotations = self._rotations()
        if self._packed is None:
            assert rotations is not None  # `is_plain` models have rotary positions
            return NumpyStep(self._model_weights(), rotations, caches)
        from tinystory.session.steps.compiled_step import CompiledStep

        return CompiledStep(self._packed, rotations, caches)

    def reorder(self, rows: Any) -> None:
        """Make row i a copy of row rows[i]; `rows` is (B',) with any B' ≥ 1."""
        order = as_lists(rows)
        self._cache.reorder(order)
        if self._hidden is not None:
            self._hidden = self._hidden[order]

    def rewind(self, n_tokens: Sequence[int]) -> None:
        """Forget the last n_tokens[i] tokens of row i. `hidden` has no value until the next decode.

        Raises:
            UsageError: a row has fewer tokens than that.
        """
        for row, n in zip(self._cache.rows, n_tokens, strict=True):
            if not 0 <= n <= len(row):
                raise UsageError(f"cannot rewind {n} tokens of a row of {len(row)}")
            del row[len(row) - n :]
        self._hidden = None

    def hidden(self) -> Any:
        """Return the normed last hidden state of each row's last token, (B, C).

        Raises:
            UsageError: nothing was decoded since a rewind.
        """
        if self._hidden is None:
            raise UsageError("no hidden state: nothing was decoded since the rewind")
        return self._hidden


def as_lists(array: Any) -> Any:
    """Return an array as nested lists; lists stay lists."""
    return array.tolist() if hasattr(array, "tolist") else list(array)


def check_prompts(prompts: Sequence[Sequence[int]], max_seq_len: int, vocab_size: int) -> None:
    """Check that a model can take these prompts.

    Raises:
        UsageError: there is no prompt, one is empty or too long, or has an id outside the vocabulary.
    """
    if not prompts:
        raise UsageError("there is no prompt")
    for prompt in prompts:
        if not 1 <= len(prompt) <= max_seq_len:
            raise UsageError(f"a prompt has {len(prompt)} tokens; this model takes 1 to {max_seq_len}")
        stray = next((token_id for token_id in (min(prompt), max(prompt)) if not 0 <= token_id < vocab_size), None)
        if stray is not None:
            raise UsageError(f"a prompt has token id {stray}; this vocabulary has 0 to {vocab_size - 1}")
