"""The cloze test: measure whether a model knows which ending belongs to a story.

Each held-out story is cut at the end of a sentence, before its last third. The model scores the true ending and the
endings of three other stories of like length. It is right if the true ending is the likeliest per token. A model that
knows sentences but no stories stays near chance.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tinystory.decoding import Session
from tinystory.errors import UsageError
from tinystory.evaluation.perplexity import ScoredWindow, nats_of_windows, window_batches
from tinystory.text.sentences import ends_sentence
from tinystory.text.tokenizer import Tokenizer

__all__ = ["Cloze", "cloze", "cut_before_ending"]

_N_CHOICES = 4
_SHORTEST_ENDING = 5
"""Tokens. A shorter ending says nothing about its story."""


@dataclass(frozen=True)
class Cloze:
    """The result of a cloze test.

    Attributes:
        accuracy: the share of stories whose true ending is the likeliest per token, from 0 to 1.
        standard_error: of the accuracy, from 0 to 0.5.
        stories: the number of stories that were asked about.
        chance: the accuracy of a model that guesses.
    """

    accuracy: float
    standard_error: float
    stories: int
    chance: float = 1 / _N_CHOICES


@dataclass(frozen=True)
class _CutStory:
    """A story in two parts: the token ids of its opening, with BOS, and those of its ending, with EOS."""

    opening: list[int]
    ending: list[int]


def cut_before_ending(text: str) -> tuple[str, str] | None:
    """Cut a story at the end of the sentence that is nearest to two thirds of its characters.

    Returns:
        The opening and the ending, which together are the text; None if the text has no such place.

    >>> cut_before_ending("One day. Tim ran. He fell. He cried.")
    ('One day. Tim ran. He fell.', ' He cried.')
    """
    places = [n for n in range(1, len(text)) if text[n].isspace() and not text[n - 1].isspace()]
    places = [n for n in places if ends_sentence(text[:n]) and text[n:].strip()]
    if not places:
        return None
    place = min(places, key=lambda n: abs(3 * n - 2 * len(text)))
    return text[:place], text[place:]


def cloze(
    session: Session,
    tokenizer: Tokenizer,
    stories: Sequence[str],
    *,
    batch_tokens: int = 2048,
    progress: Callable[[int], None] | None = None,
) -> Cloze:
    """Ask a model for the right ending of each story, among four.

    The other three endings are those of the stories whose endings are nearest in length, so length gives no hint. An
    opening that does not fit the context with an ending loses its oldest tokens, but not BOS.

    Args:
        session: computes the logits; its rows are replaced.
        tokenizer: the tokenizer of the model.
        stories: the texts; a text that cannot be cut, or that has a very short ending, is left out.
        batch_tokens: positions that are computed together, with padding; the result does not depend on it.
        progress: called with the number of endings that are scored.

    Raises:
        UsageError: fewer than four stories are left, or the vocabulary has no BOS.
    """
    cut = _cut_stories(tokenizer, stories)
    if len(cut) < _N_CHOICES:
        raise UsageError(f"the cloze test needs {_N_CHOICES} stories that can be cut; there are {len(cut)}")
    choices = [_window(session.max_seq_len, len(tokenizer.before_story), cut[i], cut[j]) for i, j in _pairs(cut)]
    nats = dict.fromkeys(range(len(choices)), math.inf)
    n_scored = 0
    for batch in window_batches(list(enumerate(choices)), batch_tokens, lambda item: len(item[1].token_ids)):
        for (number, window), total in zip(batch, nats_of_windows(session, [w for _, w in batch]), strict=True):
            nats[number] = total / window.n_scored
        n_scored += len(batch)
        if progress:
            progress(n_scored)
    n_right = sum(
        nats[first] < min(nats[other] for other in range(first + 1, first + _N_CHOICES))
        for first in range(0, len(choices), _N_CHOICES)
    )
    accuracy = n_right / len(cut)
    return Cloze(accuracy, math.sqrt(accuracy * (1 - accuracy) / len(cut)), len(cut))


def _cut_stories(tokenizer: Tokenizer, stories: Sequence[str]) -> list[_CutStory]:
    """Cut and tokenise the stories that can be used."""
    if tokenizer.bos_id is None:
        raise UsageError("this vocabulary has no BOS token, so a story cannot be scored from its beginning")
    end = [min(tokenizer.eos_ids)] if tokenizer.eos_ids else []
    parts = list(filter(None, map(cut_before_ending, stories)))
    openings = tokenizer.encode_batch([opening for opening, _ in parts])
    endings = tokenizer.encode_batch([ending for _, ending in parts])
    return [
        _CutStory([*tokenizer.before_story, *opening], [*ending, *end])
        for opening, ending in zip(openings, endings, strict=True)
        if len(ending) >= _SHORTEST_ENDING
    ]


def _pairs(cut: Sequence[_CutStory]) -> Iterator[tuple[int, int]]:
    """Yield for each story the pair of itself with its own ending, then three pairs with the endings of others."""
    order = sorted(range(len(cut)), key=lambda i: (len(cut[i].ending), i))
    for rank, story in enumerate(order):
        nearby = order[max(0, rank - _N_CHOICES) : rank] + order[rank + 1 : rank + _N_CHOICES]
        length = len(cut[story].ending)
        others = sorted(nearby, key=lambda i: (abs(len(cut[i].ending) - length), i))[: _N_CHOICES - 1]
        for ending in (story, *others):
            yield story, ending


def _window(max_seq_len: int, n_before: int, story: _CutStory, other: _CutStory) -> ScoredWindow:
    """Join the opening of one story and the ending of another; only the ending is scored.

    An opening that is too long loses its oldest tokens after the `n_before` special ones.
    """
    ending = other.ending[:max_seq_len]
    room = max_seq_len + 1 - len(ending)
    opening = story.opening
    if len(opening) > room:
        n_kept = max(0, room - n_before)
        opening = [*opening[:n_before], *opening[len(opening) - n_kept :]][:room]
    return ScoredWindow([*opening, *ending], len(ending))
