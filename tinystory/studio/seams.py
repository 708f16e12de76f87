"""Join typed text to a story, with the right space between them and the right tokens on both sides."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol

__all__ = ["Speller", "joint", "lengthened", "spelling", "split_at", "without_last_word"]

_CLOSING = re.compile(r"""[\s.,;:!?…)\]}”’»—]|'(s|t|d|m|re|ve|ll)\b|['"]\s*$""")
_OPENING = "([{“‘«—-/"
_MOST_OF_A_WORD = 8
"""The largest number of tokens before a seam that are tokenised again, to keep its word whole."""


class Speller(Protocol):
    """A vocabulary: it turns text into token ids and back."""

    def encode(self, text: str, *, bos: bool) -> list[int]:
        """Return the token ids of a text; `bos` puts BOS before them."""
        ...

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        ...


def joint(text: str, addition: str) -> str:
    """Return what belongs between a story and the text that its writer adds: a space, or nothing.

    >>> joint("The cat sat", "on the mat"), joint("The cat sat", ", and"), joint('He said "', "Hello")
    (' ', '', '')
    """
    if not text or not addition or text[-1].isspace() or text[-1] in _OPENING or _CLOSING.match(addition):
        return ""
    paragraph = text.rpartition("\n")[2]
    inside_quotes = paragraph.count('"') % 2 == 1
    if inside_quotes and (text.endswith('"') or addition.startswith('"')):
        return ""
    return " "


def lengthened(vocabulary: Speller, token_ids: Sequence[int], text: str) -> tuple[int, list[int]]:
    """Find tokens for a text, and keep as many tokens as possible of a story that begins in the same way.

    A word at the seam is tokenised as a whole. If no kept tokens give exactly this text, all of it is tokenised.

    Args:
        vocabulary: the vocabulary of the tokens.
        token_ids: the tokens of the story, BOS included; empty if there is no story.
        text: the text of all tokens together.

    Returns:
        How many tokens of the story to keep, and the tokens that follow them.
    """
    kept = split_at(vocabulary, token_ids, text)
    if kept == len(token_ids) and vocabulary.detokenize(token_ids) == text:
        return kept, []
    for start in range(kept, max(0, kept - _MOST_OF_A_WORD), -1):
        rest = text[len(vocabulary.detokenize(token_ids[:start])) :]
        whole_words = start < 2 or not rest or rest[0].isspace() or not rest[0].isalnum()
        if whole_words:
            ids = spelling(vocabulary, token_ids[:start], rest, text)
            if ids is not None:
                return start, ids
    return 0, vocabulary.encode(text, bos=True)


def without_last_word(
    vocabulary: Speller, before: Sequence[int], typed_ids: Sequence[int], text: str
) -> tuple[tuple[int, ...], str]:
    """Take the last word of what was typed back, so that a model can spell it again.

    Args:
        vocabulary: the vocabulary of the tokens.
        before: the tokens of the story before; they stay.
        typed_ids: the tokens of what was typed.
        text: the text of all tokens together.

    Returns:
        The typed tokens that stay, and the end of the text that they lack. One token of the story always stays.
    """
    left, heal = list(typed_ids), ""
    while len(before) + len(left) > 1 and left and not heal[:1].isspace():
        left.pop()
        heal = text[len(vocabulary.detokenize((*before, *left))) :]
    return tuple(left), heal


def spelling(vocabulary: Speller, token_ids: Sequence[int], rest: str, text: str) -> list[int] | None:
    """Return the tokens of `rest` that give exactly `text` after `token_ids`; None if there are none.

    Some vocabularies put a space before every text, so `rest` is also tried without its own space.
    """
    for candidate in (rest, rest.removeprefix(" ")):
        ids = vocabulary.encode(candidate, bos=False)
        if vocabulary.detokenize([*token_ids, *ids]) == text:
            return ids
    return None


def split_at(vocabulary: Speller, token_ids: Sequence[int], text: str) -> int:
    """Return how many of the first tokens spell only the beginning of a text."""

    def beyond(n: int) -> bool:
        return not text.startswith(vocabulary.detokenize(token_ids[:n]))

    if not beyond(len(token_ids)):
        return len(token_ids)
    n = bisect_right(range(len(token_ids) + 1), False, key=beyond) - 1
    while n > 0 and beyond(n):  # an incomplete character is shown as a mark, which is not in the text
        n -= 1
    return n
