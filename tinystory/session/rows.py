"""Rows of a model that have a cache: the part of a session that is the same whatever computes it.

It is written for arrays of torch and of NumPy alike, and does not import torch.
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
    from tinystory.session.steps.compiled_step import CompiledStep, PackedModel
    from tinystory.session.steps.compiling import CompiledCode

__all__ = ["CachedRows", "as_lists", "check_prompts"]

_MOST_ALONE, _ALONE_PARAMETERS = 3, 5_000_000
"""So few rows of so small a model are faster one after the other: its weights stay in the processor's cache."""


class CachedRows(ABC):
    """Prefill, decode, reorder, rewind and hidden of a `request.Session`; a subclass computes what NumPy does not.

    Shapes: B rows, T new positions, C d_model, V vocab_size.
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
        """Empty rows.

        Args:
            config: of the model.
            bos_id: what a story begins with.
            eos_ids: what ends one.
            zeros: gives the memory of the cache, as for `KVCache`.
            uses_numpy: a few tokens at a time are computed in NumPy.
        """
        self.config = config
        self.vocab_size = config.vocab_size
        self.max_seq_len = config.max_seq_len
        self.bos_id = bos_id
        self.eos_ids = eos_ids
        self._zeros = zeros
        self._most_tokens = MOST_TOKENS if uses_numpy else 0  # that a step takes
        small = config.n_parameters <= _ALONE_PARAMETERS
        self._most_alone = (_MOST_ALONE if small else 1) if uses_numpy else 0
        self._packed: PackedModel | None = None
        self._forget()

    def compile(self, code: "CompiledCode") -> None:
        """Compute every step in compiled code from now on; before there are rows, in float32 on the CPU."""
        from tinystory.session.steps.compiled_step import PackedModel

        self._packed = PackedModel(code, self.config, self._model_weights())
        self._most_tokens, self._most_alone = sys.maxsize, 1

    def _forget(self) -> None:
        """Begin with no rows and a cache of their own."""
        self._cache = KVCache(self.config, self._zeros)
        self._hidden: Any = None  # (B, C) of the last tokens; None after a rewind
        # Over the cache's memory as it was in this version.
        self._step: tuple[int, NumpyStep | CompiledStep] | None = None

    @abstractmethod
    def _array(self, array: NDArray[Any]) -> Any:
        """What NumPy has computed, as an array of the kind that decoders get; logits are float32."""

    @abstractmethod
    def _model_weights(self) -> ModelWeights:
        """The model's own memory; not called any more once it is compiled."""

    @abstractmethod
    def _rotations(self) -> Rotations | None:
        """For the positions that the cache has room for; None where they are learned."""

    @abstractmethod
    def _forward_many(self, token_ids: list[list[int]], lengths: list[int]) -> Any:
        """Feed (B, T) ids to rows of these lengths, writing the cache; normed hidden states (B, T, C)."""

    @abstractmethod
    def _logits_of_many(self, hidden: Any) -> Any:
        """(..., C) -> (..., V) float32."""

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Any:
        """Make the rows hold these prompts and give the next-token logits, (B, V) float32.

        What the rows already hold is reused: each prompt starts from the row with which it shares the longest
        prefix, and equal prompts are computed once.

        Raises:
            UsageError: a prompt is empty, longer than max_seq_len, or has an id outside the vocabulary.
        """
        check_prompts(prompts, self.max_seq_len, self.vocab_size)
        unique = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
        kept = self._cache.adopt(unique)
        n_new = max(len(prompt) - n for prompt, n in zip(unique, kept, strict=True))
        # A short row is padded to n_new positions; they have to fit below max_seq_len too, so it keeps less.
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
        given = as_lists(token_ids)
        rows = self._cache.rows
        one_each = not isinstance(given[0], list)
        new = [[token_id] for token_id in given] if one_each else given
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
        """`decode` for a token each of one or a few rows, each by itself; (B, V)."""
        rows = self._cache.rows
        self._cache.reserve(max(map(len, rows)) + 1)
        step = self._current_step()
        pairs = enumerate(zip(token_ids, rows, strict=True))
        found = [step.one(token_id, len(row), index) for index, (token_id, row) in pairs]
        hidden, logits = (
            np.stack(arrays) if len(found) > 1 else arrays[0][None] for arrays in zip(*found, strict=True)
        )
        self._hidden = self._array(hidden)
        for row, token_id in zip(rows, token_ids, strict=True):
            row.append(token_id)
        return self._array(logits.astype(np.float32, copy=False))

    def _forward(self, token_ids: list[list[int]]) -> Any:
        """Feed (B, T) ids after what the rows hold, writing the cache; normed hidden states (B, T, C)."""
        lengths = [len(row) for row in self._cache.rows]
        self._cache.reserve(max(lengths) + len(token_ids[0]))
        if not self._is_few(len(token_ids) * len(token_ids[0])):
            return self._forward_many(token_ids, lengths)
        return self._array(self._current_step().several(np.array(token_ids), np.array(lengths)))

    def _logits(self, hidden: Any) -> Any:
        """(..., C) -> (..., V) float32."""
        shape = hidden.shape[:-1]
        n_tokens = int(np.prod(shape))
        if not self._is_few(n_tokens):
            return self._logits_of_many(hidden)
        logits = self._current_step().logits(np.asarray(hidden).reshape(n_tokens, -1))
        return self._array(logits.astype(np.float32, copy=False).reshape(*shape, -1))

    def _is_few(self, n_tokens: int) -> bool:
        return n_tokens <= self._most_tokens

    def _current_step(self) -> "NumpyStep | CompiledStep":
        """The model and the cache; made anew where the cache's memory is no longer the same."""
        version = self._cache.version
        if self._step is None or self._step[0] != version:
            caches = [(np.asarray(keys), np.asarray(values)) for keys, values in self._cache.layers()]
            self._step = version, self._new_step(caches)
        return self._step[1]

    def _new_step(self, caches: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> "NumpyStep | CompiledStep":
        rotations = self._rotations()
        if self._packed is None:
            assert rotations is not None  # a plain model's positions are rotary
            return NumpyStep(self._model_weights(), rotations, caches)
        from tinystory.session.steps.compiled_step import CompiledStep

        return CompiledStep(self._packed, rotations, caches)

    def reorder(self, rows: Any) -> None:
        """Row i becomes a copy of row rows[i]; (B',) with any B' ≥ 1."""
        order = as_lists(rows)
        self._cache.reorder(order)
        if self._hidden is not None:
            self._hidden = self._hidden[order]

    def rewind(self, n_tokens: Sequence[int]) -> None:
        """Forget the last n_tokens[i] tokens of row i; stale cache entries are overwritten later.

        `hidden` has no value until the next decode.

        Raises:
            UsageError: a row is shorter than that.
        """
        for row, n in zip(self._cache.rows, n_tokens, strict=True):
            if not 0 <= n <= len(row):
                raise UsageError(f"cannot rewind {n} tokens of a row of {len(row)}")
            del row[len(row) - n :]
        self._hidden = None

    def hidden(self) -> Any:
        """The normed last hidden state of each row's last token; (B, C)."""
        if self._hidden is None:
            raise UsageError("no hidden state: nothing was decoded since the rewind")
        return self._hidden


def as_lists(array: Any) -> Any:
    """Nested lists of an array, or of what is lists already."""
    return array.tolist() if hasattr(array, "tolist") else list(array)


def check_prompts(prompts: Sequence[Sequence[int]], max_seq_len: int, vocab_size: int) -> None:
    """Refuse what no model can take.

    Raises:
        UsageError: no prompt, an empty or too long one, or an id outside the vocabulary.
    """
    if not prompts:
        raise UsageError("there is no prompt")
    for prompt in prompts:
        if not 1 <= len(prompt) <= max_seq_len:
            raise UsageError(f"a prompt has {len(prompt)} tokens; this model takes 1 to {max_seq_len}")
        stray = next((token_id for token_id in (min(prompt), max(prompt)) if not 0 <= token_id < vocab_size), None)
        if stray is not None:
            raise UsageError(f"a prompt has token id {stray}; this vocabulary has 0 to {vocab_size - 1}")
