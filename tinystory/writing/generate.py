"""Write stories: turn decoder events into text events, and add stop texts, one notice and statistics.

The commands and the chat call `write`. This module knows sessions and tokenizers, but no story tree and no terminal.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import TYPE_CHECKING

from tinystory.decoding import Commit, Decoder, Draft, Finish, FinishReason, Request, Session, Step, Token
from tinystory.decoding.loop import run
from tinystory.text.prompt_text import check_prompt
from tinystory.text.sentences import whole_sentences
from tinystory.text.tokenizer import Detokenizer, Tokenizer
from tinystory.writing.healing import Healing
from tinystory.writing.stops import StopFilter, check_stops

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DraftText", "Ended", "Story", "StoryRequest", "Text", "TextEvent", "Trimmed", "bits_per_token", "write"]


def _never() -> bool:
    return False


@dataclass(frozen=True)
class StoryRequest:
    """One story that is to be written.

    Attributes:
        prompt: the text to begin with; if it is empty, the story begins with BOS.
        decoder: picks the tokens.
        seed: the seed of the noise.
        max_new_tokens: the largest number of new tokens.
        stop: texts at which the story ends; they are not part of it.
        number: the number of the branch among the stories of one prompt, from 0; the noise depends on it.
        cancel: is called after every token; True ends the story with the tokens that it has.
        prompt_ids: the exact tokens of `prompt`, for a story that goes on; None tokenises `prompt`.
        n_prompt: how many of these tokens the writer typed at the story's beginning; None for all.
        heal: the end of the typed text, which `prompt_ids` lacks. The first new tokens have to spell it. It is ignored
            if the tokens of the vocabulary are not known as bytes.
        choose: asks a person for a token, as in `Request`.
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
        request: the request that it was written from.
        completion: the text after the prompt.
        prompt_ids: the tokens of the prompt, BOS included.
        tokens: the picked tokens with their log-probabilities, without EOS.
        finish_reason: why the story ended.
        statistics: tokens, seconds, first_token_seconds, tokens_per_second, bits_per_token, and those of the decoder.
    """

    request: StoryRequest
    completion: str
    prompt_ids: tuple[int, ...]
    tokens: tuple[Token, ...]
    finish_reason: FinishReason
    statistics: dict[str, float]

    @property
    def text(self) -> str:
        """The prompt and the completion."""
        return self.request.prompt + self.completion

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The token ids of the completion."""
        return tuple(token.id for token in self.tokens)


@dataclass(frozen=True, slots=True)
class Text:
    """An event with new text and the tokens that it came from.

    The text is empty while a character is incomplete, or while a stop text may have begun. It is final.
    """

    story: int
    text: str
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class DraftText:
    """An event with a draft of the text that follows; the next event of the story replaces it."""

    story: int
    text: str


@dataclass(frozen=True, slots=True)
class Trimmed:
    """An event, at most once in a story: the context was full, and the oldest `n_tokens` tokens have left it."""

    story: int
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event of a story, with the finished story."""

    story: int
    result: Story


TextEvent = Text | DraftText | Trimmed | Ended


def write(session: Session, tokenizer: Tokenizer, requests: Sequence[StoryRequest]) -> Iterator[TextEvent]:
    """Write stories, in one batch if their decoders are chains.

    Args:
        session: the model; its rows are replaced, and prefixes in its cache are used again.
        tokenizer: the tokenizer of the model.
        requests: the stories; the `story` of an event is an index into this sequence.

    Yields:
        The events of all stories, mixed; the last event of each is its `Ended`.

    Raises:
        UsageError: a prompt has no token, or a stop text is empty.
        TinystoryError: a decoder failed.
    """
    writers = [_Writer(index, session, tokenizer, request) for index, request in enumerate(requests)]
    for index, event in run(session, [(writer.decoder, writer.request) for writer in writers]):
        writer = writers[index]
        if writer.n_dropped and not writer.trimmed:
            writer.trimmed = True
            yield Trimmed(index, writer.n_dropped)
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
                waiting.restart_clock()


@dataclass
class _Writer:
    """One story while it is written: it takes tokens and gives text."""

    index: int
    session: Session
    tokenizer: Tokenizer
    story_request: StoryRequest
    texts: list[str] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    n_dropped: int = 0
    trimmed: bool = False
    stopped_at_end: bool = False
    first_token_at: float | None = None

    def __post_init__(self) -> None:
        check_stops(self.story_request.stop)
        self.started = time.perf_counter()
        self.stop = StopFilter(self.story_request.stop)
        self.request = self._request()
        self.decoder = self._decoder()
        # The text of a token can depend on the token before it: a space, or the other half of a character.
        self.detokenizer = Detokenizer(self.tokenizer, self.request.prompt_ids)

    def _request(self) -> Request:
        """Return the request for the loop."""
        story_request = self.story_request
        prompt_ids = story_request.prompt_ids
        if prompt_ids is None:
            prompt_ids = tuple(self.tokenizer.encode(check_prompt(story_request.prompt)))
        return Request(
            prompt_ids=prompt_ids,
            max_new_tokens=story_request.max_new_tokens,
            seed=story_request.seed,
            n_prompt=story_request.n_prompt,
            story=story_request.number,
            stop=lambda: self.stop.hit,
            cancel=story_request.cancel,
            window=self.window,
            vocabulary=self.tokenizer,
            choose=story_request.choose,
        )

    def _decoder(self) -> Decoder:
        """Return the decoder, with the healing of a cut word as its first processor."""
        decoder, heal = self.story_request.decoder, self.story_request.heal
        if not heal or not self.tokenizer.token_bytes:
            return decoder
        return replace(decoder, processors=(Healing(heal, self.tokenizer.token_bytes), *decoder.processors))

    def restart_clock(self) -> None:
        """Start the clock again if this story is written alone and has not begun."""
        alone = self.decoder.search is not None or not self.session.can_reorder
        if alone and self.first_token_at is None:
            self.started = time.perf_counter()

    def window(self, token_ids: Sequence[int], max_seq_len: int) -> Sequence[int]:
        """Return the tokens that stay in the context, and count those that leave it."""
        kept = whole_sentences(self.tokenizer, token_ids, max_seq_len)
        prompt_ids = self.request.prompt_ids
        # A stage with a second model also calls this; what leaves that model's context does not count.
        if max_seq_len == self.session.max_seq_len and tuple(token_ids[: len(prompt_ids)]) == prompt_ids:
            self.n_dropped = len(token_ids) - len(kept)
        return kept

    def add(self, tokens: Sequence[Token]) -> str:
        """Take picked tokens; return the text that is now certain."""
        if self.first_token_at is None:
            self.first_token_at = time.perf_counter()
        self.tokens.extend(tokens)
        text = self.stop.add("".join(self.detokenizer.add(token.id) for token in tokens))
        self.texts.append(text)
        return text

    def draft(self, tokens: Sequence[Token]) -> str:
        """Return the text of a draft; the story stays as it is."""
        return self.stop.peek(self.detokenizer.peek([token.id for token in tokens]))

    def finish(self) -> str:
        """Return the rest of the text. It may hold a stop text, if its last token waited for the token after it."""
        hit_before = self.stop.hit
        text = self.stop.add(self.detokenizer.finish()) + self.stop.finish()
        self.stopped_at_end = self.stop.hit and not hit_before
        self.texts.append(text)
        return text

    def story(self, finish: Finish) -> Story:
        """Return the finished story with its statistics."""
        now = time.perf_counter()
        seconds = now - self.started
        statistics = {
            "tokens": float(len(self.tokens)),
            "seconds": seconds,
            "first_token_seconds": (self.first_token_at or now) - self.started,
            "tokens_per_second": len(self.tokens) / seconds if seconds > 0 else 0.0,
            "bits_per_token": bits_per_token(self.tokens),
            **finish.statistics,
        }
        completion, tokens = "".join(self.texts), tuple(self.tokens)
        reason = "stop" if self.stopped_at_end else finish.reason
        return Story(self.story_request, completion, self.request.prompt_ids, tokens, reason, statistics)


def bits_per_token(tokens: Sequence[Token]) -> float:
    """Return the mean surprise of tokens under the model's own distribution, in bits; 0 if there are none."""
    return -sum(token.logprob for token in tokens) / math.log(2) / len(tokens) if tokens else 0.0
