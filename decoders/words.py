"""Stories that must contain some words, like the tasks of TinyStories-Instruct (Eldan and Li 2023, 2305.07759).

The method belongs to this project. At each place, the model says how unlikely a missing word would be there as a whole.
The longer no word has come, the more unlikely a word may be. A word that is likely enough is raised to the top. So a
word comes at the best of the next places. If its first token is picked to begin this word, its other tokens follow. A
word is forced only when there is no room left, and only between two words.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tinystory.decoding import (
    Chain,
    Commit,
    Event,
    Finish,
    FinishReason,
    Request,
    Search,
    Session,
    Step,
    Token,
    Vocabulary,
    option,
    shrunk,
)
from tinystory.errors import UsageError
from tinystory.words import begins_inside_word, check_words, has_word

if TYPE_CHECKING:
    from torch import Tensor

_PACE = 50
_TOLERATED = 7.0
"""After `_PACE` tokens without a word (fewer if room is short), a word may be this many nats below the top token."""
_SHARPNESS = 8.0
_LEAD = 2.0
"""A word that is tolerated is raised above the likeliest token: by `_SHARPNESS` nats for each nat of tolerance that is
left, and by at most `_LEAD` nats."""
_MOST_UNLIKELY_REST = 12.0
"""The most nats that the rest of a word may cost. If the model cannot spell a word, its first token thus decides."""
_APART = 8
"""The number of tokens that are kept between two words that have to be forced."""


@dataclass(frozen=True)
class Words(Search):
    """Write a story that contains all of the given words, as whole words in upper or lower case.

    The story does not end before the last word has come, and every word is certain to come. For this, max-tokens must
    be at least 40 plus 3 times the tokens of the missing words. Otherwise the story is refused before its first token.
    Words in the prompt count. The processors before this search cannot remove a forced token.
    """

    name = "words"
    example = 'words owl,kite,"red ball"'
    takes_sampler = True
    needs_rewind = True
    words: tuple[str, ...] = option(help="the words, with commas between them")

    def __post_init__(self) -> None:
        """Check the options. Raise UsageError if one is wrong."""
        super().__post_init__()
        check_words(self.words, self.name)
        if not self.words:
            raise UsageError(f"words: there is no word; e.g. `{self.example}`")

    def search(self, session: Session, request: Request, chain: Chain) -> Iterator[Event]:
        """Commit the story token by token.

        Raises:
            UsageError: the vocabulary cannot spell a word, or max_new_tokens is too small.
        """
        writer = _Writer(session, request, chain, self.words)
        _check_room(writer.progress.missing, request.max_new_tokens)
        while True:
            token = writer.advance()
            reason: FinishReason | None = "eos"
            if token:
                yield Commit((token,))
                reason = request.reason_to_end(writer.n_new)
            if reason:
                yield Finish(reason, writer.statistics())
                return


class _Spelling(NamedTuple):
    """A word in tokens.

    Attributes:
        word: the word as the user wrote it.
        forms: its token ids by (after a space, with a capital); at least one form.
    """

    word: str
    forms: dict[tuple[bool, bool], tuple[int, ...]]

    @property
    def n_tokens(self) -> int:
        """The number of tokens of the word after another word, as the user wrote it."""
        return len(self.forms.get((True, False)) or min(self.forms.values(), key=len))

    @property
    def n_more(self) -> int:
        """The number of tokens that the longest form needs beyond `n_tokens`."""
        return max(map(len, self.forms.values())) - self.n_tokens

    def after(self, text: str) -> tuple[int, ...]:
        """Return the ids of the form that fits after a text.

        It has a space after a word or a punctuation mark, and a capital after a sentence.
        """
        opened = text.endswith(("“", "(")) or (text.endswith('"') and text.count('"') % 2 == 1)
        spaced = bool(text) and not text[-1].isspace() and not opened
        capital = not text.strip(' \n"“”') or text.rstrip(' \n"“”').endswith((".", "!", "?"))
        wanted = [(spaced, capital), (spaced, not capital), (not spaced, capital), (not spaced, not capital)]
        return next(self.forms[form] for form in wanted if form in self.forms)


def _spelled(word: str, vocabulary: Vocabulary) -> _Spelling:
    """Return a word in tokens. Raise UsageError if the vocabulary cannot spell any form of it."""
    anchor = vocabulary.encode("a", bos=False)
    n_anchor = len(vocabulary.detokenize(anchor))
    forms: dict[tuple[bool, bool], tuple[int, ...]] = {}
    for written in (word, word.lower()):  # a vocabulary may have no capitals
        for capital, cased in ((False, written), (True, written[:1].upper() + written[1:])):
            for space in ("", " "):
                ids = tuple(vocabulary.encode(space + cased, bos=False))
                text = vocabulary.detokenize([*anchor, *ids])[n_anchor:]
                if text.strip() == cased and len(text) <= len(cased) + 1:
                    forms.setdefault((text != cased, capital), ids)
    if not forms:
        raise UsageError(f"words: this vocabulary cannot spell {word!r}")
    return _Spelling(word, forms)


def _check_room(missing: Sequence[_Spelling], max_new_tokens: int) -> None:
    """Raise UsageError if the story is too short for the missing words."""
    needed = 3 * sum(spelling.n_tokens for spelling in missing) + 40
    if missing and max_new_tokens < needed:
        names = ", ".join(spelling.word for spelling in missing)
        raise UsageError(f"words: {names} need at least {needed} new tokens; max-tokens is {max_new_tokens}")


class _Progress:
    """The words that the text has, those that it lacks, and those that have begun at its end.

    Attributes:
        missing: the words that have not come yet.
        places: the number of new tokens that the story had when each word came.
        last_place: the last of them, or 0.
        begun: the tokens that are left of words whose first tokens stand at the end of the text.
    """

    def __init__(self, words: Sequence[str], vocabulary: Vocabulary, prompt_ids: Sequence[int]) -> None:
        self._vocabulary = vocabulary
        self._text = vocabulary.detokenize(prompt_ids)
        self._wanted = [_spelled(" ".join(word.split()), vocabulary) for word in words]
        self.begun: list[tuple[int, ...]] = []
        self.missing = self._still_missing()
        self.places: list[int] = []
        self.last_place = 0

    @property
    def n_needed(self) -> int:
        """The number of tokens that the missing words need."""
        return sum(spelling.n_tokens for spelling in self.missing)

    @property
    def is_open(self) -> bool:
        """True if the text ends with a word that counts only as long as no letter follows it."""
        return any(
            has_word(self._text, spelling.word) and not has_word(self._text + "x", spelling.word)
            for spelling in self._wanted
        )

    def spellings(self) -> list[tuple[int, ...]]:
        """Return the token ids that would complete a missing word now: of begun words, or else of all."""
        return self.begun or [spelling.after(self._text) for spelling in self.missing]

    def add(self, story: Sequence[int], n_new: int) -> None:
        """Take note of the last token of a story that now has `n_new` new tokens."""
        self.begun = [ids[1:] for ids in self.spellings() if ids[0] == story[-1] and len(ids) > 1]
        self._text = self._vocabulary.detokenize(story)
        missing = self._still_missing()
        if len(missing) < len(self.missing):
            self.places += [n_new] * (len(self.missing) - len(missing))
            self.last_place = n_new
            self.begun = []
        self.missing = missing

    def _still_missing(self) -> list[_Spelling]:
        return [spelling for spelling in self._wanted if not has_word(self._text, spelling.word)]


class _Reader:
    """The model and its context. If the story is longer than the model's context, old text is cut."""

    def __init__(self, session: Session, request: Request) -> None:
        self._session = session
        self._request = request
        self._context = list(request.prompt_ids)
        self._has_read = False

    def add(self, token_id: int) -> None:
        """Append a token, which the model reads with the next `logits`."""
        self._context.append(token_id)

    def logits(self, story: Sequence[int]) -> "Tensor":
        """Return the (V,) logits after the story."""
        import torch

        too_long = len(self._context) > self._session.max_seq_len
        if self._has_read and not too_long:
            return self._session.decode(torch.tensor([self._context[-1]]))[0]
        if too_long:
            self._context = shrunk(story, self._request.window, self._session.max_seq_len)
        self._has_read = True
        return self._session.prefill([self._context])[0]

    def log_prob_of_rest(self, ids: tuple[int, ...]) -> float:
        """Return the log-probability in nats of all tokens of a spelling after its first one; 0 if there are none."""
        import torch

        if len(ids) == 1 or len(self._context) + len(ids) > self._session.max_seq_len or self._request.cancel():
            return 0.0
        log_probs = self._session.decode(torch.tensor([ids[:-1]]))[0].log_softmax(dim=-1)
        self._session.rewind([len(ids) - 1])
        rest = sum(float(row[token_id]) for row, token_id in zip(log_probs, ids[1:], strict=True))
        return min(max(rest, -_MOST_UNLIKELY_REST), -1e-6)


class _Tilt(NamedTuple):
    """The nats that raise the first token of a word, and the tokens that follow if it is picked for this word."""

    nats: float
    following: list[int]


class _Writer:
    """A story that is being written: a chain picks its tokens, and missing words are pushed or forced."""

    def __init__(self, session: Session, request: Request, chain: Chain, words: Sequence[str]) -> None:
        vocabulary = request.require_vocabulary()
        self._request = request
        self._chain = chain
        self._eos_ids = session.eos_ids
        self._state = chain.start(request)
        self._story = list(request.prompt_ids)
        self._reader = _Reader(session, request)
        self.progress = _Progress(words, vocabulary, request.prompt_ids)
        self._due: list[int] = []  # the tokens that come next, no matter what the chain picks
        self._n_forced = self._n_forced_words = 0
        self._joins_word = np.array([begins_inside_word(piece) for piece in vocabulary.pieces], dtype=bool)

    @property
    def n_new(self) -> int:
        """The number of tokens that have come."""
        return len(self._story) - len(self._request.prompt_ids)

    @property
    def n_left(self) -> int:
        """The number of tokens that may still come."""
        return self._request.max_new_tokens - self.n_new

    @property
    def _n_spare(self) -> int:
        """The number of tokens that may still come and that the missing words do not need."""
        return self.n_left - self.progress.n_needed

    def advance(self) -> Token | None:
        """Add one token and return it; None at the end of the story."""
        logits = self._reader.logits(self._story)
        if not self._due and self._has_no_room:
            self._force(logits)
        token_id = self._forced(logits) if self._due else self._picked(logits)
        if token_id is None:
            return None
        self._story.append(token_id)
        self._reader.add(token_id)
        self.progress.add(self._story, self.n_new)
        return Token.of(logits, token_id)

    def statistics(self) -> dict[str, float]:
        """Return how the words came, and the figures of the stages. Positions are shares of the new text."""
        places = self.progress.places
        mean_position = {"mean_position": sum(places) / len(places) / max(1, self.n_new)} if places else {}
        return {
            "words_placed": float(len(places)),
            "words_missing": float(len(self.progress.missing)),
            "words_forced": float(self._n_forced_words),
            "forced_tokens": float(self._n_forced),
            **mean_position,
            **self._chain.statistics(self._state),
        }

    def _picked(self, logits: "Tensor") -> int | None:
        """Return the token that the chain picks, or a forced one in its place; None for an EOS."""
        steered, tilts = self._steered(logits)
        token_id, state = self._chain.pick(steered, self._step(), self._state)
        if self._has_little_room and self._begins_new(token_id):
            self._force(logits)
            return self._forced(logits)
        if token_id in self._eos_ids:
            return None
        self._state = state
        self._due = tilts[token_id].following if token_id in tilts else []
        return token_id

    def _step(self) -> Step:
        return Step(self._request, self._story, self._eos_ids)

    @property
    def _has_no_room(self) -> bool:
        """True if a word must come now. Only the first of several forced words may need its longest form."""
        missing = self.progress.missing
        return bool(missing) and self._n_spare <= max(spelling.n_more for spelling in missing)

    @property
    def _has_little_room(self) -> bool:
        """True if a word should come at the next gap between two words."""
        missing = self.progress.missing
        return bool(missing) and self._n_spare <= _APART * len(missing)

    def _begins_new(self, token_id: int) -> bool:
        """Return True if a token begins a new word, so that another word may stand before it."""
        joins_word = token_id < len(self._joins_word) and self._joins_word[token_id]
        return not self.progress.begun and not joins_word

    def _force(self, logits: "Tensor") -> None:
        """Make the begun word come next, or else the missing word that the model finds likeliest."""
        likeliest: tuple[int, ...] = max(self.progress.spellings(), key=lambda ids: float(logits[ids[0]]))
        self._due = list(likeliest)
        self._n_forced_words += 1

    def _forced(self, logits: "Tensor") -> int:
        token_id = self._due.pop(0)
        received = self._chain.receive(logits, self._step(), self._state)
        self._state = self._chain.observe(self._state, token_id, received)
        self._n_forced += 1
        return token_id

    def _steered(self, logits: "Tensor") -> "tuple[Tensor, dict[int, _Tilt]]":
        """Return (V,) logits without the tokens that must not come, with the missing words raised by the tilts."""
        steered = logits.clone()
        if self.progress.is_open:
            _remove(steered, np.flatnonzero(self._joins_word[: len(logits)]).tolist())
        if not self.progress.missing:
            return steered, {}
        _remove(steered, list(self._eos_ids))
        tilts = self._tilts(logits.log_softmax(dim=-1))
        for token_id, tilt in tilts.items():
            steered[token_id] += tilt.nats
        return steered, tilts

    def _tilts(self, log_probs: "Tensor") -> dict[int, _Tilt]:
        """Return the tilt of each first token of a missing word. If two words share it, the larger tilt counts."""
        likeliest, tolerance = float(log_probs.max()), self._tolerance()
        tilts: dict[int, _Tilt] = {}
        for ids in self.progress.spellings():
            first = float(log_probs[ids[0]]) - likeliest
            if first + tolerance < -_LEAD:  # the rest of the word can only make it less likely
                continue
            rest = self._reader.log_prob_of_rest(ids)
            push = max(0.0, min(_LEAD, _SHARPNESS * (first + rest + tolerance)) - first - rest)
            # The effect of a push of the whole word on its first token, with which other words may begin, too.
            nats = push if rest == 0 else float(np.logaddexp(math.log1p(-math.exp(rest)), rest + push))
            if nats >= (tilts[ids[0]].nats if ids[0] in tilts else 0.0):
                is_meant = rest + push - nats > math.log(0.5)  # if the token comes, then more likely for this word
                tilts[ids[0]] = _Tilt(nats, list(ids[1:]) if is_meant else [])
        return tilts

    def _tolerance(self) -> float:
        """Return how much less likely than the likeliest token a word may be, in nats.

        The tolerance grows from one word to the next, so the words spread over the story.
        """
        n_since = self.n_new - self.progress.last_place
        pace = max(1.0, min(_PACE, (self._n_spare + n_since) / (len(self.progress.missing) + 1)))
        return _TOLERATED * n_since / pace


def _remove(logits: "Tensor", token_ids: list[int]) -> None:
    """Set the logits of tokens to −inf, in place, if other tokens are left."""
    import torch

    kept = logits.index_fill(0, torch.tensor(token_ids, dtype=torch.long, device=logits.device), -math.inf)
    if kept.max() > -math.inf:
        logits.copy_(kept)
