"""Where typed text meets written text: the space between them, and the tokens on both sides."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol

__all__ = ["Speller", "joint", "lengthened", "spelling", "split_at"]

_CLOSING = re.compile(r"""[\s.,;:!?…)\]}”’»—]|'(s|t|d|m|re|ve|ll)\b|['"]\s*$""")
_OPENING = "([{“‘«—-/"
_MOST_OF_A_WORD = 8
"""Tokens that are encoded again to find a better seam."""


class Speller(Protocol):
    """What turns text into tokens and back."""

    def encode(self, text: str, *, bos: bool) -> list[int]:
        """Token ids of a text."""
        ...

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text of token ids."""
        ...


def joint(text: str, addition: str) -> str:
    """What belongs between a story and what its writer adds: a space, or nothing.

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
    """The tokens of a text, as many as can be from a story that it begins like.

    Args:
        vocabulary: of the tokens.
        token_ids: the story, BOS included; empty where there is none.
        text: what the tokens together are to say.

    Returns:
        How many of the tokens to keep, and the ones that follow them. Where a word would be cut at the seam, it is
        encoded anew; where nothing else gives just this text, all of it.
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


def spelling(vocabulary: Speller, token_ids: Sequence[int], rest: str, text: str) -> list[int] | None:
    """The tokens of `rest` that, after these, make just `text`; None where there are none.

    Some vocabularies put a space before whatever they are given, so one that is there has to go.
    """
    for candidate in (rest, rest.removeprefix(" ")):
        ids = vocabulary.encode(candidate, bos=False)
        if vocabulary.detokenize([*token_ids, *ids]) == text:
            return ids
    return None


def split_at(vocabulary: Speller, token_ids: Sequence[int], text: str) -> int:
    """How many leading tokens say nothing but the beginning of a text."""

    def beyond(n: int) -> bool:
        return not text.startswith(vocabulary.detokenize(token_ids[:n]))

    if not beyond(len(token_ids)):
        return len(token_ids)
    n = bisect_right(range(len(token_ids) + 1), False, key=beyond) - 1
    while n > 0 and beyond(n):  # half a character is shown as a mark that no longer text has in its place
        n -= 1
    return n
