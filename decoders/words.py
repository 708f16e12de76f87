"""Stories that have to contain some words, like the tasks of TinyStories-Instruct (Eldan and Li 2023, 2305.07759).

The method is the project's own. How strange a missing word would be at a place, as a whole, the model is asked for
there. What is tolerated grows while none comes; where a word is within it, it is pushed to the top. So a word comes at
the least strange of the next places. Where its first token is picked for its sake, the others follow. Only when room
becomes short a word is forced, between two words.
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
    Request,
    Search,
    Session,
    Step,
    Token,
    Vocabulary,
    option,
)
from tinystory.decoding.loop import shrunk
from tinystory.errors import UsageError
from tinystory.text.words import begins_inside_word, check_words, has_word

if TYPE_CHECKING:
    from torch import Tensor

_PACE = 50
_TOLERATED = 7.0
"""Nats below the likeliest token that are tolerated after `_PACE` tokens without a word; sooner where room is short."""
_SHARPNESS = 8.0
_LEAD = 2.0
"""What is tolerated comes out above the likeliest token, `_SHARPNESS` nats for each nat to spare, `_LEAD` at most."""
_UNKNOWN = 12.0
"""The rest of a word is taken for no stranger than so many nats: where the model cannot spell it, its start decides."""
_APART = 8
"""Tokens kept between words that have to be forced."""


@dataclass(frozen=True)
class Words(Search):
    """Write a story that has certain words in it: whole ones, in any case.

    The story does not end before the last has come. It is certain to come: max-tokens has to be at least 3 times the
    tokens of the missing words, and 40, else the story is refused before its first token. Words that the prompt has
    are there already. A forced token passes by the processors before it.
    """

    name = "words"
    example = 'words owl,kite,"red ball"'
    takes_sampler = True
    needs_rewind = True
    words: tuple[str, ...] = option(help="the words, with commas between")

    def __post_init__(self) -> None:
        """Check the options; raises UsageError."""
        super().__post_init__()
        check_words(self.words, self.name)
        if not self.words:
            raise UsageError(f"words: there is no word; e.g. `{self.example}`")

    def search(self, session: Session, request: Request, chain: Chain) -> Iterator[Event]:
        """Commit token by token.

        Raises:
            UsageError: the vocabulary cannot spell a word, or max_new_tokens is too small.
        """
        reason = request.interrupted() or ("length" if request.max_new_tokens == 0 else None)
        if reason:
            yield Finish(reason)
            return
        writer = _Writer(session, request, chain, self.words)
        if writer.missing:
            n_tokens = sum(spelling.n_tokens for spelling in writer.missing)
            if request.max_new_tokens < 3 * n_tokens + 40:
                raise UsageError(
                    f"words: {', '.join(spelling.word for spelling in writer.missing)} need at least "
                    f"{3 * n_tokens + 40} new tokens; max-tokens is {request.max_new_tokens}"
                )
        while True:
            token = writer.advance()
            if token:
                yield Commit((token,))
                reason = request.interrupted() or ("length" if writer.n_left == 0 else None)
            else:
                reason = "eos"
            if reason:
                yield Finish(reason, writer.statistics())
                return


class _Spelling(NamedTuple):
    """A word in tokens.

    Attributes:
        word: as the user wrote it.
        forms: its ids by (after a space, with a capital); at least one.
    """

    word: str
    forms: dict[tuple[bool, bool], tuple[int, ...]]

    @property
    def n_tokens(self) -> int:
        """Of the word after another one, as it is written."""
        return len(self.forms.get((True, False)) or min(self.forms.values(), key=len))

    @property
    def n_more(self) -> int:
        """How many more it may take elsewhere."""
        return max(map(len, self.forms.values())) - self.n_tokens

    def after(self, text: str) -> tuple[int, ...]:
        """The ids that fit behind a text: with a space after a word or a mark, with a capital after a sentence."""
        opened = text.endswith(("“", "(")) or (text.endswith('"') and text.count('"') % 2 == 1)
        spaced = bool(text) and not text[-1].isspace() and not opened
        capital = not text.strip(' \n"“”') or text.rstrip(' \n"“”').endswith((".", "!", "?"))
        wanted = [(spaced, capital), (spaced, not capital), (not spaced, capital), (not spaced, not capital)]
        return next(self.forms[form] for form in wanted if form in self.forms)


def _spelled(word: str, vocabulary: Vocabulary) -> _Spelling:
    """Raises UsageError where no form can be spelled."""
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


class _Writer:
    """A story on its way, with the words that it still lacks."""

    def __init__(self, session: Session, request: Request, chain: Chain, words: Sequence[str]) -> None:
        self._session = session
        self._request = request
        self._chain = chain
        self._vocabulary = request.require_vocabulary()
        self._state = chain.start(request)
        self._story = list(request.prompt_ids)
        self._context = list(request.prompt_ids)
        self._text = self._vocabulary.detokenize(self._story)
        self._wanted = [_spelled(" ".join(word.split()), self._vocabulary) for word in words]
        self.missing = [spelling for spelling in self._wanted if not has_word(self._text, spelling.word)]
        self._begun: list[tuple[int, ...]] = []  # what is left of spellings whose first tokens stand at the end
        self._due: list[int] = []  # tokens that come next, whatever the chain says
        self._behind: dict[int, list[int]] = {}  # what becomes due if a token is picked now
        self._places: list[int] = []
        self._n_forced = self._n_forced_words = 0
        self._last_place = 0
        self._glue = np.array([begins_inside_word(piece) for piece in self._vocabulary.pieces], dtype=bool)
        self._logits: Tensor | None = None

    @property
    def n_new(self) -> int:
        """How many tokens have come."""
        return len(self._story) - len(self._request.prompt_ids)

    @property
    def n_left(self) -> int:
        """How many may still come."""
        return self._request.max_new_tokens - self.n_new

    @property
    def _spare(self) -> int:
        """How many of them the missing words do not need."""
        return self.n_left - sum(spelling.n_tokens for spelling in self.missing)

    def advance(self) -> Token | None:
        """Settle one token; None is the story's end."""
        logits = self._read()
        # Words that are forced in a row stand after another one, all but the first.
        if not self._due and self.missing and self._spare <= max(spelling.n_more for spelling in self.missing):
            self._force(logits)
        if self._due:
            token_id = self._forced(logits)
        else:
            steered = self._steered(logits)
            step = Step(self._request, self._story, self._session.eos_ids)
            token_id, state = self._chain.pick(steered, step, self._state)
            if self._is_tight and self._ends_word(token_id):
                self._force(logits)
                token_id = self._forced(logits)
            elif token_id in self._session.eos_ids:
                return None
            else:
                self._state = state
                self._due = self._behind.get(token_id, [])
        self._add(token_id)
        return Token.of(logits, token_id)

    def statistics(self) -> dict[str, float]:
        """How the words came, and what the stages tell; positions are shares of the new text."""
        placed = {"mean_position": sum(self._places) / len(self._places) / max(1, self.n_new)} if self._places else {}
        return {
            "words_placed": float(len(self._places)),
            "words_missing": float(len(self.missing)),
            "words_forced": float(self._n_forced_words),
            "forced_tokens": float(self._n_forced),
            **placed,
            **self._chain.statistics(self._state),
        }

    # Forcing.

    @property
    def _is_tight(self) -> bool:
        return bool(self.missing) and self._spare <= _APART * len(self.missing)

    def _ends_word(self, token_id: int) -> bool:
        """Whether a token begins something new, so that another word may stand before it."""
        return not self._begun and not (token_id < len(self._glue) and self._glue[token_id])

    def _force(self, logits: "Tensor") -> None:
        """Have the missing word come next that the model finds likeliest, or the one that has begun."""
        spellings = self._begun or [spelling.after(self._text) for spelling in self.missing]
        likeliest: tuple[int, ...] = max(spellings, key=lambda ids: float(logits[ids[0]]))
        self._due = list(likeliest)
        self._n_forced_words += 1

    def _forced(self, logits: "Tensor") -> int:
        token_id = self._due.pop(0)
        step = Step(self._request, self._story, self._session.eos_ids)
        self._state = self._chain.observe(self._state, token_id, self._chain.receive(logits, step, self._state))
        self._n_forced += 1
        return token_id

    # Steering.

    def _steered(self, logits: "Tensor") -> "Tensor":
        """(V,) logits without what must not come, and with missing words pushed."""
        self._behind = {}
        steered = logits.clone()
        if self._is_open():
            glue = np.flatnonzero(self._glue[: len(logits)])
            _remove(steered, glue.tolist())
        if not self.missing:
            return steered
        _remove(steered, list(self._session.eos_ids))
        log_probs = logits.log_softmax(dim=-1)
        top, tolerance = float(log_probs.max()), self._tolerance()
        tilts: dict[int, float] = {}
        for ids in self._begun or [spelling.after(self._text) for spelling in self.missing]:
            first = float(log_probs[ids[0]]) - top
            if first + tolerance < -_LEAD:  # with what follows it is stranger still
                continue
            rest = self._log_prob_behind(ids)
            push = max(0.0, min(_LEAD, _SHARPNESS * (first + rest + tolerance)) - first - rest)
            # What a push of the whole word does to its first token, which may begin others too.
            tilt = push if rest == 0 else float(np.logaddexp(math.log1p(-math.exp(rest)), rest + push))
            if tilt >= tilts.get(ids[0], 0.0):
                tilts[ids[0]] = tilt
                meant = rest + push - tilt > math.log(0.5)  # if it comes, then rather for this word than for another
                self._behind[ids[0]] = list(ids[1:]) if meant else []
        for token_id, tilt in tilts.items():
            steered[token_id] += tilt
        return steered

    def _tolerance(self) -> float:
        """Nats; they grow from one word to the next, so that the words spread over the story."""
        pace = max(1.0, min(_PACE, (self._spare + self.n_new - self._last_place) / (len(self.missing) + 1)))
        return _TOLERATED * (self.n_new - self._last_place) / pace

    def _log_prob_behind(self, ids: tuple[int, ...]) -> float:
        """How likely the model finds the rest of a spelling after its first token; in nats, 0 where there is none."""
        import torch

        if len(ids) == 1 or len(self._context) + len(ids) > self._session.max_seq_len or self._request.cancel():
            return 0.0
        log_probs = self._session.decode(torch.tensor([ids[:-1]]))[0].log_softmax(dim=-1)
        self._session.rewind([len(ids) - 1])
        rest = sum(float(row[token_id]) for row, token_id in zip(log_probs, ids[1:], strict=True))
        return min(max(rest, -_UNKNOWN), -1e-6)

    def _is_open(self) -> bool:
        """Whether the text ends with a word that counts only as long as no letter follows."""
        return any(
            has_word(self._text, spelling.word) and not has_word(self._text + "x", spelling.word)
            for spelling in self._wanted
        )

    # Going on.

    def _add(self, token_id: int) -> None:
        fresh = [spelling.after(self._text) for spelling in self.missing]
        self._begun = [ids[1:] for ids in (self._begun or fresh) if ids[0] == token_id and len(ids) > 1]
        self._story.append(token_id)
        self._context.append(token_id)
        self._text = self._vocabulary.detokenize(self._story)
        missing = [spelling for spelling in self._wanted if not has_word(self._text, spelling.word)]
        if len(missing) < len(self.missing):
            self._places += [self.n_new] * (len(self.missing) - len(missing))
            self._last_place = self.n_new
            self._begun = []
        self.missing = missing

    def _read(self) -> "Tensor":
        """(V,) logits after the story."""
        import torch

        if self._logits is not None and len(self._context) <= self._session.max_seq_len:
            self._logits = self._session.decode(torch.tensor([self._context[-1]]))[0]
            return self._logits
        if len(self._context) > self._session.max_seq_len:
            self._context = shrunk(self._story, self._request.window, self._session.max_seq_len)
        self._logits = self._session.prefill([self._context])[0]
        return self._logits


def _remove(logits: "Tensor", token_ids: list[int]) -> None:
    """Remove tokens in place, as long as others are left."""
    import torch

    kept = logits.index_fill(0, torch.tensor(token_ids, dtype=torch.long, device=logits.device), -math.inf)
    if kept.max() > -math.inf:
        logits.copy_(kept)
