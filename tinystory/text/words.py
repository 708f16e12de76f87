"""Words as readers see them: whole ones in a text, and a text that may yet grow into one. Knows no model.

A word, or several with spaces between, stands whole where no letter or digit touches those at its ends. Case does not
matter, and any run of white space is a space. An end of a word that is no letter or digit itself, as of "!", stands
anywhere.
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
"""What stands in a text for a part of a character."""

_BETWEEN = " "
_INSIDE = "x"


def check_words(words: Sequence[str], stage: str) -> None:
    """Refuse words that are no text; raises UsageError."""
    if not all(word.strip() for word in words):
        raise UsageError(f"{stage}: a word is empty")


def has_word(text: str, word: str) -> bool:
    """Whether a text has a word, not as a part of another, whatever its case."""
    return bool(word.strip()) and whole([word]).search(_folded(text)) is not None


def begins_inside_word(text: str) -> bool:
    """Whether a text could go on with a word that stands before it; half a character may be a letter's."""
    return bool(re.match(rf"[\w{HALF}]", text))


def whole(words: Sequence[str]) -> re.Pattern[str]:
    """Finds, at each place of a folded text where one of the words stands, the longest; the group `word` has it."""
    longest_first = sorted(map(_spelled, words), key=len, reverse=True)
    return re.compile("(?=(?P<word>" + "|".join(map(_edged, longest_first)) + "))")


def _edged(word: str) -> str:
    before, after = (r"(?<!\w)" if _in_word(word[0]) else ""), (r"(?!\w)" if _in_word(word[-1]) else "")
    return before + re.escape(word) + after


def _spelled(word: str) -> str:
    return _folded(word.strip())


def _folded(text: str) -> str:
    """Lower case and single spaces. A letter stays one letter, so that places in a text stay comparable."""
    lowered = text.lower() if text.isascii() else "".join(map(_lower, text))
    return re.sub(r"\s+", " ", lowered)


def _lower(letter: str) -> str:
    return next((form for form in (letter.casefold(), letter.lower()) if len(form) == 1), letter)


class Watched(NamedTuple):
    """What has to be known of a text to see a word come up in it.

    Attributes:
        tail: the end that may be the beginning of a word, after the one character before it; a space or a letter
            stands for an end that may not.
        half: tokens of a character that is not whole yet.
    """

    tail: str = _BETWEEN
    half: tuple[int, ...] = ()


class Watch:
    """Follows a text token by token, and tells after which tokens one of some words would stand whole in it.

    Args:
        words: at least one.
        pieces: what each token adds to a text, by id.
        detokenize: text of token ids, for characters that are spread over several.
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
        """After a text of some tokens."""
        n_whole = len(token_ids)
        while n_whole and n_whole > len(token_ids) - 3 and self._raw[token_ids[n_whole - 1]].endswith(HALF):
            n_whole -= 1
        watched = Watched(self._tail(_folded(self._detokenize(token_ids[:n_whole]))))
        for token_id in token_ids[n_whole:]:
            watched = self.add(watched, token_id)
        return watched

    def add(self, watched: Watched, token_id: int) -> Watched:
        """After one more token."""
        piece = self._raw[token_id] if token_id < len(self._raw) else ""
        if HALF not in piece:
            added = self._shown(watched.half) + piece
            return Watched(self._tail(_joined(watched.tail, _folded(added)))) if added else watched
        half = (*watched.half, token_id)
        added = self._detokenize(half)
        if added.endswith(HALF) and len(half) < 4:  # no character has more bytes
            return Watched(watched.tail, half)
        return Watched(self._tail(_joined(watched.tail, _folded(added))))

    def completing(self, watched: Watched) -> NDArray[np.intp]:
        """Ids of the tokens after which one of the words stands whole that did not before; computed once for a tail."""
        found = self._completing.get(watched)
        if found is None:
            before = _folded(self._shown(watched.half))
            ids = [i for i, piece in enumerate(self._pieces) if piece and self._completes(watched, before, i)]
            found = self._completing[watched] = np.array(ids, dtype=np.intp)
        return found

    def _completes(self, watched: Watched, before: str, token_id: int) -> bool:
        added = before + self._pieces[token_id]
        if HALF in self._raw[token_id]:
            added = _folded(self._detokenize((*watched.half, token_id)))
        text = _joined(watched.tail, added)
        return any(match.end("word") > len(watched.tail) for match in self._pattern.finditer(text))

    def _shown(self, half: tuple[int, ...]) -> str:
        return self._detokenize(half) if half else ""

    def _tail(self, text: str) -> str:
        """The longest end that a word begins with, and the character before it."""
        text = (_BETWEEN + text)[-self._longest - 1 :]
        for start in range(1, len(text)):
            touching = _in_word(text[start - 1]) and _in_word(text[start])
            if not touching and text[start:] in self._beginnings:
                return (_INSIDE if _in_word(text[start - 1]) else _BETWEEN) + text[start:]
        return _INSIDE if _in_word(text[-1]) else _BETWEEN


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _joined(text: str, added: str) -> str:
    """Two folded texts as one; a space at the seam is one space."""
    return text + (added[1:] if text.endswith(" ") and added.startswith(" ") else added)


def checklist(words: tuple[str, ...], text: str) -> str:
    """The words, each with a tick where the text has it as a whole word, whatever its case."""
    return "  ".join(f"{'✓' if has_word(text, word) else '·'} {word}" for word in words)
