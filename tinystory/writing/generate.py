"""Decoder events become text: detokenizing, stop strings, context notices, statistics.

The commands and the REPL call `write`; it knows sessions and tokenizers, but no terminal.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import TYPE_CHECKING

from tinystory.decoding import Commit, Decoder, Draft, Finish, FinishReason, Request, Session, Step, Token
from tinystory.decoding.loop import run
from tinystory.errors import UsageError
from tinystory.text.sentences import whole_sentences
from tinystory.text.tokenizer import Detokenizer, Tokenizer
from tinystory.writing.healing import Healing
from tinystory.writing.stops import StopFilter

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DraftText", "Ended", "Story", "StoryRequest", "Text", "TextEvent", "Trimmed", "write"]


def _never() -> bool:
    return False


@dataclass(frozen=True)
class StoryRequest:
    """One story to write.

    Attributes:
        prompt: text to begin with; empty starts from BOS.
        decoder: picks the tokens.
        seed: of the coupled noise.
        max_new_tokens: at most so many tokens.
        stop: texts at which the story ends; they are not part of it.
        number: among siblings of one prompt; enters the noise.
        cancel: polled after every token; True ends the story with what it has.
        prompt_ids: the exact tokens of `prompt`, where the caller has them (a story that goes on).
        n_prompt: how many of them are the writer's; None: all.
        heal: text that the story has to begin with: the end of what was typed, taken back from the prompt. Kept only
            where the vocabulary is one of bytes.
        choose: asks a person, as in `Request`.
    """

    prompt: str
    decoder: Decoder
    _: KW_ONLY
    seed: int
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    number: int = 0
    cancel: Callable[[], bool] = _never
    prompt_ids: tuple[int, ...] | None = None
    n_prompt: int | None = None
    heal: str = ""
    choose: "Callable[[Tensor, Step], int] | None" = None


@dataclass(frozen=True)
class Story:
    """A finished story.

    Attributes:
        request: what was asked for.
        completion: the text after the prompt.
        prompt_ids: tokens of the prompt, BOS included.
        tokens: the picked tokens with their log-probabilities; an EOS is not among them.
        finish_reason: why it ended.
        statistics: tokens, seconds, first_token_seconds, tokens_per_second, bits_per_token, and the search's own.
    """

    request: StoryRequest
    completion: str
    prompt_ids: tuple[int, ...]
    tokens: tuple[Token, ...]
    finish_reason: FinishReason
    statistics: dict[str, float]

    @property
    def text(self) -> str:
        """Prompt and completion."""
        return self.request.prompt + self.completion

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Ids of the completion."""
        return tuple(token.id for token in self.tokens)


@dataclass(frozen=True, slots=True)
class Text:
    """Final text, with the tokens it came from; either may be empty for a while (a half-received character)."""

    story: int
    text: str
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class DraftText:
    """A guess at what follows the text so far, up to a stop text; replaced by the next event of the story."""

    story: int
    text: str


@dataclass(frozen=True, slots=True)
class Trimmed:
    """The context was full: the story goes on without its oldest n_tokens in sight. Said once a story."""

    story: int
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event of a story."""

    story: int
    result: Story


TextEvent = Text | DraftText | Trimmed | Ended


def write(session: Session, tokenizer: Tokenizer, requests: Sequence[StoryRequest]) -> Iterator[TextEvent]:
    """Write stories, batched where their decoders allow it.

    Args:
        session: its rows are replaced; cached prefixes are reused.
        tokenizer: the model's.
        requests: the stories; events carry the index into this sequence.

    Yields:
        Events of all stories, interleaved; one `Ended` each.

    Raises:
        UsageError: a prompt has no token, or a stop text is empty.
        TinystoryError: a decoder failed.
    """
    writers = [_Writer(index, session, tokenizer, request) for index, request in enumerate(requests)]
    for index, event in run(session, [(w.decoder, w.job) for w in writers]):
        writer = writers[index]
        if writer.dropped and not writer.told:
            writer.told = True
            yield Trimmed(index, writer.dropped)
        if isinstance(event, Commit):
            yield Text(index, writer.add(event.tokens), event.tokens)
        elif isinstance(event, Draft):
            yield DraftText(index, writer.draft(event.tokens))
        else:
            rest = writer.finish()
            if rest:
                yield Text(index, rest)
            yield Ended(index, writer.story(event))
            for waiting in writers:
                waiting.wait()


@dataclass
class _Writer:
    """One story on its way from tokens to text."""

    index: int
    session: Session
    tokenizer: Tokenizer
    request: StoryRequest
    pieces: list[str] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    dropped: int = 0
    told: bool = False
    first_token: float | None = None

    def __post_init__(self) -> None:
        if any(not text for text in self.request.stop):
            raise UsageError("a stop text is empty; it would end the story before its first word")
        self.started = time.perf_counter()
        self.stop = StopFilter(self.request.stop)
        r = self.request
        self.job = Request(
            prompt_ids=tuple(self.tokenizer.encode(r.prompt)) if r.prompt_ids is None else r.prompt_ids,
            max_new_tokens=r.max_new_tokens,
            seed=r.seed,
            n_prompt=r.n_prompt,
            story=r.number,
            stop=lambda: self.stop.hit,
            cancel=r.cancel,
            window=self.window,
            vocabulary=self.tokenizer,
            choose=r.choose,
        )
        self.decoder = r.decoder
        if r.heal and self.tokenizer.token_bytes:
            healing = Healing(r.heal, self.tokenizer.token_bytes)
            self.decoder = replace(r.decoder, processors=(healing, *r.decoder.processors))
        # What a token looks like can depend on the one before it: a space, the other half of a character.
        self.detokenizer = Detokenizer(self.tokenizer, self.job.prompt_ids)

    def wait(self) -> None:
        """Start the clock anew, if this story is written alone and its turn has not come."""
        alone = self.decoder.search is not None or not self.session.can_reorder
        if alone and self.first_token is None:
            self.started = time.perf_counter()

    def window(self, token_ids: Sequence[int], max_seq_len: int) -> Sequence[int]:
        kept = whole_sentences(self.tokenizer, token_ids, max_seq_len)
        if (
            max_seq_len == self.session.max_seq_len
            and tuple(token_ids[: len(self.job.prompt_ids)]) == self.job.prompt_ids
        ):
            self.dropped = len(token_ids) - len(kept)  # else it is what a second model sees
        return kept

    def add(self, tokens: Sequence[Token]) -> str:
        if self.first_token is None:
            self.first_token = time.perf_counter()
        self.tokens.extend(tokens)
        text = self.stop.add("".join(self.detokenizer.add(token.id) for token in tokens))
        self.pieces.append(text)
        return text

    def draft(self, tokens: Sequence[Token]) -> str:
        return self.stop.peek(self.detokenizer.peek([token.id for token in tokens]))

    def finish(self) -> str:
        text = self.stop.add(self.detokenizer.finish()) + self.stop.finish()
        self.pieces.append(text)
        return text

    def story(self, finish: Finish) -> Story:
        now = time.perf_counter()
        seconds = now - self.started
        statistics = {
            "tokens": float(len(self.tokens)),
            "seconds": seconds,
            "first_token_seconds": (self.first_token or now) - self.started,
            "tokens_per_second": len(self.tokens) / seconds if seconds > 0 else 0.0,
            "bits_per_token": bits_per_token(self.tokens),
            **finish.statistics,
        }
        return Story(
            self.request, "".join(self.pieces), self.job.prompt_ids, tuple(self.tokens), finish.reason, statistics
        )


def bits_per_token(tokens: Sequence[Token]) -> float:
    """Mean surprise under the model's own distribution; 0 for no token."""
    return -sum(token.logprob for token in tokens) / math.log(2) / len(tokens) if tokens else 0.0
