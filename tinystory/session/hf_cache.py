"""Find out what the cache of a transformers model can do, by comparing it with passes over whole rows.

A cache can be wrong in silence: a recurrent state cannot be cut, and rotary positions may depend on the length of the
row. This module knows models and caches of transformers, and no session.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["CacheAbilities", "cut", "examine_cache", "rope_stage", "whole_row"]

_MOST_IDS = 16
"""The length of the prompt of the examination, and of each of the two texts that go on from it."""

_MOST_COPIED_PARAMETERS = 50_000_000
"""A model of half precision with at most so many parameters is examined as a copy in float32, since its rounding
could hide small mistakes."""

_PLAIN_LAYERS = frozenset({"DynamicLayer", "DynamicIndexedLayer", "DummyLayer"})
"""The layers of a cache that keep every token in a place of its own, as `transformers.cache_utils` calls them."""


@dataclass(frozen=True)
class CacheAbilities:
    """What is right with the cache of a model.

    Attributes:
        works: tokens can be appended one at a time. If not, whole rows are computed, and the rest holds.
        appends_many: several tokens can be appended at once.
        can_cut: the last tokens can be removed.
        can_copy: a copy goes on by itself.
    """

    works: bool
    appends_many: bool = True
    can_cut: bool = True
    can_copy: bool = True


def examine_cache(model: Any, max_seq_len: int, vocab_size: int) -> CacheAbilities:
    """Compare what the cache of a model gives with passes over whole rows.

    This takes eleven passes over 1 to 32 tokens, or at most 28 if several tokens at once are wrong: the time in which
    the model writes about as many tokens.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        max_seq_len: the most tokens that a row can hold.
        vocab_size: the number of tokens.

    Raises:
        ValueError: the model sees the tokens that follow, or its logits differ from pass to pass.
        Exception: of any kind, if transformers cannot run the model.
    """
    n = min(_MOST_IDS, max_seq_len // 2)
    if not n:
        return CacheAbilities(works=False)
    small = sum(parameter.numel() for parameter in model.parameters()) <= _MOST_COPIED_PARAMETERS
    if small and model.dtype in (torch.float16, torch.bfloat16):
        model = copy.deepcopy(model).float()
    ids = _ordinary_ids(model.config, vocab_size, 3 * n)
    with torch.inference_mode():
        examination = _Examination(model, ids[: 2 * n], ids[:n] + ids[2 * n :])
        examination.check_causality()
        return examination.abilities() if n >= 3 else CacheAbilities(works=False)


class _Examination:
    """A model, and two rows whose first halves are equal: `story` and `other`.

    `cache` holds the first `length` tokens of one of them.
    """

    def __init__(self, model: Any, story: list[int], other: list[int]) -> None:
        self.model = model
        self.half = len(story) // 2
        self.cache: Any = None
        self.length = 0
        self.story = story, self._whole(story)
        self.other = other, self._whole(other)
        # A share of the spread, since untrained models have logits near zero: half of the digits that the dtype has.
        self.spread, self.eps = float(self.story[1].std(dim=-1).mean()), torch.finfo(model.dtype).eps
        self.tolerance: float = self.spread * self.eps**0.5

    def check_causality(self) -> None:
        """Check that other tokens at the end leave the logits before them as they are.

        Raises:
            ValueError: they do not, or the logits differ from pass to pass, or are NaN.
        """
        (ids, logits), (_, others) = self.story, self.other
        kind = self.model.config.model_type
        if logits.isnan().any():
            raise ValueError(f"the logits of this {kind} are NaN, so it cannot write; its weights may be damaged")
        # Both rows have the same length, so they round in the same way.
        if _largest_difference(logits[: self.half], others[: self.half]) <= self.spread * self.eps ** (2 / 3):
            return
        if not self._same(logits, self._whole(ids)):
            raise ValueError(f"the logits of this {kind} differ from pass to pass, so it cannot write")
        raise ValueError(f"a {kind} sees the tokens that follow, so it cannot write")

    def abilities(self) -> CacheAbilities:
        """Try the cache in each way in which a session uses it."""
        if not _holds(self._works):
            return CacheAbilities(works=False)
        appends_many = _holds(self._appends_many)
        if not appends_many and not _holds(self._appends_each):
            return CacheAbilities(works=False)
        can_cut = _is_plain(self.cache) and _holds(lambda: self._can_cut(appends_many))
        return CacheAbilities(True, appends_many, can_cut, _holds(self._can_copy))

    def _works(self) -> bool:
        return self._begins() and self._goes_on(self.story, 1) and self._goes_on(self.story, 1)

    def _appends_many(self) -> bool:
        return self._goes_on(self.story, self.half - 2)

    def _appends_each(self) -> bool:
        return self._begins() and all(self._goes_on(self.story, 1) for _ in range(self.half))

    def _can_cut(self, appends_many: bool) -> bool:
        cut(self.cache, self.length - self.half)
        self.length = self.half
        return self._goes_on(self.other, 1) and self._goes_on(self.other, self.half - 1 if appends_many else 1)

    def _can_copy(self) -> bool:
        if not self._begins():
            return False
        twin = copy.deepcopy(self.cache)
        went_on = self._goes_on(self.story, 1)
        self.cache, self.length = twin, self.half
        return went_on and self._goes_on(self.other, 1)

    def _begins(self) -> bool:
        """Put the first half of a row into a new cache; return whether that works and the logits are right."""
        self.cache, self.length = None, 0
        return self._goes_on(self.story, self.half) and self.cache is not None

    def _goes_on(self, row: tuple[list[int], Tensor], n: int) -> bool:
        """Append the next n tokens of a row at once; return whether the logits are those of a pass over the row."""
        end = self.length + n
        ids = torch.tensor([row[0][self.length : end]], device=self.model.device)
        output = self.model(input_ids=ids, past_key_values=self.cache, use_cache=True)
        expected = row[1][self.length : end]
        self.cache, self.length = output.past_key_values, end
        return self._same(output.logits[0].float(), expected)

    def _whole(self, ids: list[int]) -> Tensor:
        return whole_row(self.model, ids)

    def _same(self, logits: Tensor, expected: Tensor) -> bool:
        return _largest_difference(logits, expected) <= self.tolerance


def whole_row(model: Any, ids: list[int]) -> Tensor:
    """Return the logits of a row that is computed without a cache, (T, V) float32."""
    row = torch.tensor([ids], device=model.device)
    try:
        output = model(input_ids=row, use_cache=False)
    except TypeError:  # an architecture that has no cache need not know the argument
        output = model(input_ids=row)
    logits: Tensor = output.logits[0].float()
    return logits


def cut(cache: Any, n_tokens: int) -> None:
    """Remove the last n_tokens from a cache; None stays None."""
    if cache is not None and n_tokens:
        cache.crop(-n_tokens)


def rope_stage(config: Any, length: int) -> tuple[int, ...]:
    """Return which rotary positions a model uses for a row of this length; cached keys belong to one stage.

    With `longrope`, all positions change when a row grows past the length of the first training. With `dynamic`, they
    change with each token past the longest length.

    Args:
        config: the text config of the model.
        length: the number of tokens in the row.
    """
    return tuple(_stages(config, getattr(config, "rope_parameters", None) or {}, length))


def _stages(config: Any, rope: Any, length: int) -> list[int]:
    if not isinstance(rope, Mapping):
        return []
    longest = getattr(config, "max_position_embeddings", None) or length
    kind = rope.get("rope_type")
    if kind == "longrope":
        return [int(length > rope.get("original_max_position_embeddings", longest))]
    if kind == "dynamic":
        return [max(length, longest)]
    return [stage for part in rope.values() for stage in _stages(config, part, length)]  # one for each kind of layer


def _is_plain(cache: Any) -> bool:
    """Return whether a cache keeps every token in a place of its own, and nothing else.

    A window or a recurrent state may be too long for the examination to see what a cut does to it.
    """
    if type(cache).__name__ == "EncoderDecoderCache":
        return _is_plain(cache.self_attention_cache)
    return type(cache).__name__ == "DynamicCache" and all(
        type(layer).__name__ in _PLAIN_LAYERS for layer in cache.layers
    )


def _largest_difference(logits: Tensor, expected: Tensor) -> float:
    """Return the largest difference of two logits; some models give -inf to tokens that they never write."""
    return float((logits.nan_to_num(0, 0, 0) - expected.nan_to_num(0, 0, 0)).abs().max())


def _holds(ability: Callable[[], bool]) -> bool:
    try:
        return ability()
    except Exception:  # the cache of an unknown architecture may fail in any way
        return False


def _ordinary_ids(config: Any, vocab_size: int, n: int) -> list[int]:
    """Return n token ids, different ones if there are so many, and none that the config has for a special purpose."""
    special = {
        token_id
        for part in (config, config.get_text_config())
        for name, value in vars(part).items()
        if name.endswith(("_token_id", "_token_index", "_token_ids"))
        for token_id in (value if isinstance(value, (list, tuple)) else [value])
    }
    ordinary = [token_id for token_id in range(min(vocab_size, n + 1000)) if token_id not in special] or [0]
    order = torch.randperm(len(ordinary), generator=torch.Generator().manual_seed(0)).tolist()
    return [ordinary[order[index % len(order)]] for index in range(n)]
