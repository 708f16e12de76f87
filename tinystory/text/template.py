"""The special tokens that a tokenizer puts around a text, such as BOS before it. Knows no file."""

from collections.abc import Iterator
from itertools import islice

from tokenizers import Tokenizer as FastTokenizer

__all__ = ["special_tokens_around"]

_TEXTS = ("a", "A", "the", "0", ".")
_MOST_TOKENS_TRIED = 100


def special_tokens_around(fast: FastTokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that the post-processor of a tokenizer puts before a text, and those that it puts after it.

    If the tokenizer knows none of the texts that are tried, all of them count as ids before the text.
    """
    for text in _texts(fast):
        encoding = fast.encode(text)
        own = [index for index, sequence in enumerate(encoding.sequence_ids) if sequence is not None]
        if own:
            return tuple(encoding.ids[: own[0]]), tuple(encoding.ids[own[-1] + 1 :])
    return tuple(fast.encode("").ids), ()


def _texts(fast: FastTokenizer) -> Iterator[str]:
    """Yield texts of which at least one should have tokens."""
    yield from _TEXTS
    yield from islice(fast.get_vocab(), _MOST_TOKENS_TRIED)
