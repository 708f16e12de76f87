"""Words as readers see them: whole words in a text, and the end of a text that may become a word. It knows no model.

A word, or several words with spaces between them, is whole if no other letter or digit touches its ends. Upper and
lower case are the same, and any white space counts as one space. If the character at an end is neither a letter nor a
digit, such as "!", anything may stand next to it.
"""

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinystory.errors import UsageError

__all__ = ["HALF", "Watch", "Watched", "begins_inside_word", "check_words", "checklist", "has_word", "whole"]

HALF = "\ufffd"
"""The character that replaces a part of a character in a text."""

_BETWEEN = " "
_INSIDE = "x"


def check_words(words: Sequence[str], stage: str) -> None:
    """Raise UsageError if a word is empty. `stage` is the name in the message."""
    if not all(word.strip() for word in words):
        raise UsageError(f"{stage}: a word is empty")


def has_word(text: str, word: str) -> bool:
    """Return True if a text has a word as a whole word, in upper or lower case."""
    return bool(word.strip()) and whole([word]).search(_folded(text)) is not None


def begins_inside_word(text: str) -> bool:
    """Return True if a text may continue a word that stands before it. A part of a character may be a letter."""
    return bool(re.match(rf"[\w{HALF}]", text))


def whole(words: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern that finds words in a folded text. At each place, the group `word` is the longest one."""
    longest_first = sorted(map(_spelled, words), key=len, reverse=True)
    return re.compile("(?=(?P<word>" + "|".join(map(_edged, longest_first)) + "))")


def _edged(word: str) -> str:
    before, after = (r"(?<!\w)" if _in_word(word[0]) else ""), (r"(?!\w)" if _in_word(word[-1]) else "")
    return before + re.escape(word) + after


def _spelled(word: str) -> str:
    return _folded(word.strip())


def _folded(text: str) -> str:
    """Return a text in lower case with single spaces. A letter stays one letter, so places stay comparable."""
    lowered = text.lower() if text.isascii() else "".join(map(_lower, text))
    return re.sub(r"\s+", " ", lowered)


def _lower(letter: str) -> str:
    return next((form for form in (letter.casefold(), letter.lower()) if len(form) == 1), letter)


class Watched(NamedTuple):
    """The end of a text, as far as it matters for the words that may come next.

    Attributes:
        tail: one character, then the part of a word that has begun. The character is a space or a letter, and it
            stands for the text before.
        half: the tokens of a character that is not complete yet.
    """

    tail: str = _BETWEEN
    half: tuple[int, ...] = ()


class Watch:
    """A watch that follows a text token by token, and finds the tokens that would complete one of its words.

    Args:
        words: the words; at least one.
        pieces: the text that each token adds to a text, by id.
        detokenize: returns the text of token ids, for characters of several tokens.
    """

    def __init__(self, words: Sequence[str], pieces: Sequence[str], detokenize: Callable[[Sequence[int]], str]) -> None:
        spelled = [_spelled(word) for word in words]
        self._pattern = whole(words)
        self._beginnings = frozenset(word[:n] for word in spelled for n in range(1, len(word) + 1))
        self._longest = max(map(len, spelled))
        self._raw = pieces
        self._detokenize = detokenize
        self._completing: dict[Watched, NDArray[np.intp]] = {}

    @cached_property
    def _pieces(self) -> list[str]:
        return [_folded(piece) for piece in self._raw]

    def begin(self, token_ids: Sequence[int]) -> Watched:
        """Return the end of the text of these tokens."""
        n_whole = len(token_ids)
        while n_whole and n_whole > len(token_ids) - 3 and self._raw[token_ids[n_whole - 1]].endswith(HALF):
            n_whole -= 1
        watched = Watched(self._tail(_folded(self._detokenize(token_ids[:n_whole]))))
        for token_id in token_ids[n_whole:]:
            watched = self.add(watched, token_id)
        return watched

    def add(self, watched: Watched, token_id: int) -> Watched:
        """Return the end of the text after one more token."""
        piece = self._raw[token_id] if token_id < len(self._raw) else ""
        if HALF not in piece:
            added = self._shown(watched.half) + piece
            return Watched(self._tail(_joined(watched.tail, _folded(added)))) if added else watched
        half = (*watched.half, token_id)
        added = self._detokenize(half)
        if added.endswith(HALF) and len(half) < 4:  # a character has at most four bytes
            return Watched(watched.tail, half)
        return Watched(self._tail(_joined(watched.tail, _folded(added))))

    def completing(self, watched: Watched) -> NDArray[np.intp]:
        """Return the ids of the tokens that would complete one of the words. The answer for each end is cached."""
        token_ids = self._completing.get(watched)
        if token_ids is None:
            before = _folded(self._shown(watched.half))
            ids = [i for i, piece in enumerate(self._pieces) if piece and self._completes(watched, before, i)]
            token_ids = self._completing[watched] = np.array(ids, dtype=np.intp)
        return token_ids

    def _completes(self, watched: Watched, before: str, token_id: int) -> bool:
        added = before + self._pieces[token_id]
        if HALF in self._raw[token_id]:
            added = _folded(self._detokenize((*watched.half, token_id)))
        text = _joined(watched.tail, added)
        return any(match.end("word") > len(watched.tail) for match in self._pattern.finditer(text))

    def _shown(self, half: tuple[int, ...]) -> str:
        return self._detokenize(half) if half else ""

    def _tail(self, text: str) -> str:
        """Return the longest end of a text that begins a word, with one character before it."""
        text = (_BETWEEN + text)[-self._longest - 1 :]
        for start in range(1, len(text)):
            touching = _in_word(text[start - 1]) and _in_word(text[start])
            if not touching and text[start:] in self._beginnings:
                return (_INSIDE if _in_word(text[start - 1]) else _BETWEEN) + text[start:]
        return _INSIDE if _in_word(text[-1]) else _BETWEEN


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _joined(text: str, added: str) -> str:
    """Return two folded texts as one text. Two spaces between them become one."""
    return text + (added[1:] if text.endswith(" ") and added.startswith(" ") else added)


def checklist(words: tuple[str, ...], text: str) -> str:
    """Return the words in a line, with a tick before each that the text has as a whole word, in any case."""
    return "  ".join(f"{'✓' if has_word(text, word) else '·'} {word}" for word in words)
