"""What a chat knows and can do: decoder, seed, model and the tree of stories. Knows no terminal."""

import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import TYPE_CHECKING

from tinystory.decoding import Decoder, FinishReason, Step, Token, common_prefix
from tinystory.decoding.plugins import Registry
from tinystory.decoding.spec import format_spec
from tinystory.errors import UsageError
from tinystory.settings import Setting
from tinystory.story.tree import ROOT, StoryTree, Turn, Written
from tinystory.studio.backend import Backend
from tinystory.studio.seams import joint, lengthened, spelling, split_at
from tinystory.studio.turn_request import TurnRequest
from tinystory.studio.views import Tint
from tinystory.text.sentences import ends_sentence
from tinystory.writing.generate import Ended, Story, StoryRequest, Text, TextEvent

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Studio", "TurnRequest", "random_seed"]


def random_seed() -> int:
    """A fresh seed, short enough to be typed again."""
    return random.SystemRandom().randrange(1_000_000)


@dataclass
class Studio:
    """The state that commands act on.

    Attributes:
        registry: of the decoder stages.
        decoder: picks the tokens of the next turn.
        backend: the model.
        open_model: gives another one by name; raises TinystoryError, the model in use stays.
        seed: of every story; None draws one for each.
        max_tokens: at most so many new tokens a turn.
        stop: texts at which a turn ends.
        words: those that the story is to have, for the writer's own check.
        tint: what the colours of tokens say.
        plain: why nothing is coloured here, in words; empty where it is.
        settings: what the chat was started with, each with its origin.
        tree: every story of the session.
        results: what the engine reported of turns written here, by their number.
        draw_seed: gives a seed where none is set.
        fresh_luck: an unfinished story is to go on with a new seed.
        on_change: called whenever a turn has been added or the desk has changed.
        choose: asks the person for a token, as in `Request`.
    """

    registry: Registry
    decoder: Decoder
    _: KW_ONLY
    backend: Backend
    open_model: Callable[[str], Backend]
    seed: int | None = None
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    tint: Tint = "off"
    plain: str = ""
    settings: tuple[Setting, ...] = ()
    tree: StoryTree = field(default_factory=StoryTree)
    results: dict[int, Story] = field(default_factory=dict)
    draw_seed: Callable[[], int] = random_seed
    fresh_luck: bool = False
    on_change: Callable[[], None] = lambda: None
    choose: "Callable[[Tensor, Step], int] | None" = field(default=None, repr=False, compare=False)
    first_decoder: Decoder = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Remember what the chat was started with, for /reset."""
        self.first_decoder = self.decoder

    @property
    def spec(self) -> str:
        """The decoder, canonically."""
        return format_spec(self.decoder)

    @property
    def wanted(self) -> tuple[str, ...]:
        """The words to be ticked off: the writer's own, and those that the decoder makes the model write."""
        demanded: tuple[str, ...] = getattr(self.decoder.search, "words", ())
        return tuple(dict.fromkeys((*self.words, *demanded)))

    @property
    def text(self) -> str:
        """The story on the desk."""
        return self.tree.text(self.tree.current)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Its tokens, in the vocabulary of the model in use."""
        turn = self.tree.turn
        if turn is None or turn.vocabulary == self.backend.vocabulary:
            return self.tree.token_ids(self.tree.current)
        return tuple(self.backend.encode(self.text, bos=True))

    def set_seed(self, seed: int | None) -> None:
        """Fix the seed, or draw one for each story; an unfinished story goes on with the new luck."""
        self.seed = seed
        self.fresh_luck = seed is None

    def set_model(self, backend: Backend) -> None:
        """Write with another model; the story goes on, in the other's tokens where they differ."""
        self.backend = backend

    def begin(self, prompt: str) -> TurnRequest:
        """A turn that opens a new story; without a prompt the model begins it."""
        typed_ids = tuple(self.backend.encode(prompt, bos=True))
        return TurnRequest(
            parent=ROOT,
            kept=0,
            typed=prompt,
            typed_ids=typed_ids,
            decoder=self.decoder,
            seed=self._seed(),
            max_new_tokens=self.max_tokens,
        )

    def next_turn(self, text: str) -> TurnRequest:
        """What the writer's text asks for: to open a story, or to go on with the one on the desk.

        Without text an unfinished story goes on by itself, past a stop text.
        """
        turn = self.tree.turn
        if turn is None or turn.ended:
            return self.begin(text)
        if not text and turn.hidden and turn.vocabulary == self.backend.vocabulary:
            return self._past_stop(turn)
        return self._lengthened(self.text + joint(self.text, text) + text, text)

    def go(self, n_tokens: int) -> TurnRequest:
        """Let the model go on by at most so many tokens."""
        return replace(self.next_turn(""), max_new_tokens=n_tokens)

    def retry(self, decoder: Decoder | None = None) -> TurnRequest:
        """The latest turn once more, with fresh luck; raises UsageError where the model has written nothing."""
        turn = self.tree.turn
        if turn is None or turn.written is None:
            raise UsageError("there is nothing to try again: the model has not written here yet")
        if turn.vocabulary != self.backend.vocabulary:
            raise UsageError(
                f"this piece was written in other tokens, by {turn.written.model}: /model {turn.written.model} first"
            )
        return TurnRequest(
            parent=turn.parent,
            kept=turn.kept,
            typed=turn.typed,
            typed_ids=turn.typed_ids,
            decoder=decoder or self.decoder,
            seed=self.draw_seed(),
            max_new_tokens=self.max_tokens,
            heal=turn.written.heal,
        )

    def more(self, n: int) -> list[TurnRequest]:
        """The latest turn n times more, at once, siblings of one fresh seed; raises UsageError as `retry`."""
        request = self.retry()
        return [replace(request, number=number) for number in range(n)]

    def compare(self, decoders: Sequence[Decoder]) -> list[TurnRequest]:
        """The next turn by several decoders, with the same luck; of a story that is over, the latest once more."""
        turn = self.tree.turn
        over = turn is not None and turn.ended
        request = replace(self.retry(), seed=self._seed(going_on=True)) if over else self.next_turn("")
        return [replace(request, decoder=decoder) for decoder in decoders]

    def edit(self, text: str) -> TurnRequest | None:
        """Go on from another text; a word cut at its end is healed. None where nothing was changed or left."""
        if text == self.text or not text:
            return None
        added = text[common_prefix(self.text, text) :]
        request = self._lengthened(text, added)
        return self._healed(request, text) if self.backend.heals else request

    def pick(self, position: int, token_id: int) -> TurnRequest:
        """Take another token at an index of the story's tokens, and go on from there."""
        typed = self.backend.token_text(token_id)
        return self._turn(position, typed, (token_id,))

    def trim(self) -> Turn | None:
        """Cut the story after its last whole sentence; None where it ends with one, or has none."""
        ids = self.token_ids
        text = self.backend.detokenize(ids).rstrip()
        end = next((n for n in range(len(text), 0, -1) if ends_sentence(text[:n]) and text[:n].rstrip() == text[:n]), 0)
        if end in (0, len(text)):
            return None
        request = self._lengthened(text[:end], "")
        return self._add(request, text[:end], None)

    def keep(self, request: TurnRequest) -> Turn:
        """Put a turn on the desk that the model has not added to."""
        whole = replace(request, typed_ids=self._unhealed(request), heal="")
        return self._add(whole, self._typed_text(whole), None)

    def goto(self, number: int) -> None:
        """Put a turn on the desk; raises UsageError where there is none."""
        self.tree.goto(number)
        self.on_change()

    def write(self, requests: Sequence[TurnRequest], cancel: Callable[[], bool]) -> Generator[TextEvent, None, None]:
        """Let the model write; each request becomes a turn with what came, however this ends; the last is on the desk.

        Args:
            requests: from the methods above; the backend must be ready.
            cancel: polled after each token.

        Raises:
            TinystoryError: a decoder failed.
        """
        works = [_Work(request, self.story_request(request, cancel)) for request in requests]
        finished: set[int] = set()
        failed = False
        try:
            for event in self.backend.write([work.story_request for work in works]):
                work = works[event.story]
                if isinstance(event, Text):
                    work.pieces.append(event.text)
                    work.tokens.extend(event.tokens)
                elif isinstance(event, Ended):
                    work.reason, work.result = event.result.finish_reason, event.result
                    self._finish(work)
                    finished.add(event.story)
                yield event
        except Exception:
            failed = True
            raise
        finally:
            for index, work in enumerate(works):
                if index not in finished and not (failed and not work.tokens and self._is_there(work.request)):
                    self._finish(work)

    def story_request(self, request: TurnRequest, cancel: Callable[[], bool] = lambda: False) -> StoryRequest:
        """What the engine is asked for."""
        prompt_ids = (*self._ids(request.parent)[: request.kept], *request.typed_ids)
        n_prompt = (
            len(request.typed_ids) if request.kept == 0 else min(self.tree.n_prompt(request.parent), request.kept)
        )
        return StoryRequest(
            self.backend.detokenize(prompt_ids),
            request.decoder,
            seed=request.seed,
            max_new_tokens=request.max_new_tokens,
            stop=self.stop,
            number=request.number,
            cancel=cancel,
            prompt_ids=prompt_ids,
            n_prompt=n_prompt,
            heal=request.heal,
            choose=self.choose,
        )

    def opening(self, cancel: Callable[[], bool] = lambda: False) -> StoryRequest:
        """The story on the desk from its first words on, for any model: text, no tokens."""
        lineage = self.tree.lineage(self.tree.current)
        prompt = lineage[0].typed if lineage else ""
        return StoryRequest(
            prompt,
            self.decoder,
            seed=self._seed(going_on=True),
            max_new_tokens=self.max_tokens,
            stop=self.stop,
            cancel=cancel,
        )

    def _finish(self, work: "_Work") -> None:
        """Make a turn of what was written; nothing of nothing."""
        request, base = work.request, self._typed_text(work.request)
        ids = [*(work.story_request.prompt_ids or ()), *(token.id for token in work.tokens)]
        text = self.backend.detokenize(ids)
        if request.heal and not text.startswith(base):  # stopped before the word was whole again
            self.keep(request)
            return
        if not text and not work.tokens:
            return
        hidden, tail_ids = 0, tuple[int, ...]()
        if work.reason == "stop":
            text = work.story_request.prompt + "".join(work.pieces)
            n_shown = max(split_at(self.backend, ids, text), len(ids) - len(work.tokens))
            hidden = len(ids) - n_shown
            rest = text[len(self.backend.detokenize(ids[:n_shown])) :]
            tail_ids = tuple(spelling(self.backend, ids[:n_shown], rest, text) or ()) if rest else ()
        written = Written(
            spec=format_spec(request.decoder),
            seed=request.seed,
            number=request.number,
            model=self.backend.name,
            model_hash=self.backend.model_hash(),
            dtype=self.backend.dtype,
            max_new_tokens=request.max_new_tokens,
            stop=self.stop,
            heal=request.heal,
            tokens=tuple(work.tokens),
            finish_reason=work.reason,
        )
        turn = self._add(request, text, written, hidden, tail_ids)
        if work.result is not None:
            self.results[turn.id] = work.result

    def _add(
        self, request: TurnRequest, text: str, written: Written | None, hidden: int = 0, tail_ids: tuple[int, ...] = ()
    ) -> Turn:
        parent_text = self.tree.text(request.parent)
        shared = common_prefix(parent_text, text)
        turn = Turn(
            id=0,
            parent=request.parent,
            kept=request.kept,
            typed=request.typed,
            typed_ids=request.typed_ids,
            written=written,
            vocabulary=self.backend.vocabulary,
            shared=shared,
            own=text[shared:],
            hidden=hidden,
            tail_ids=tail_ids,
        )
        turn = self.tree.add(turn)
        self.on_change()
        return turn

    def _healed(self, request: TurnRequest, text: str) -> TurnRequest:
        """The turn with its last word taken back, for the model to spell again; never a token that was there before."""
        typed_ids, heal = list(request.typed_ids), ""
        before = self.token_ids[: request.kept]
        while len(before) + len(typed_ids) > 1 and typed_ids and not heal[:1].isspace():
            typed_ids.pop()
            heal = text[len(self.backend.detokenize((*before, *typed_ids))) :]
        return replace(request, typed_ids=tuple(typed_ids), heal=heal)

    def _turn(self, kept: int, typed: str, typed_ids: Sequence[int]) -> TurnRequest:
        """A turn that goes on from the desk's first `kept` tokens, in the vocabulary of the model in use."""
        request = TurnRequest(
            parent=self.tree.current,
            kept=kept,
            typed=typed,
            typed_ids=tuple(typed_ids),
            decoder=self.decoder,
            seed=self._seed(going_on=True),
            max_new_tokens=self.max_tokens,
        )
        turn = self.tree.turn
        if kept and turn is not None and turn.vocabulary != self.backend.vocabulary:
            return replace(request, kept=0, typed_ids=(*self.token_ids[:kept], *typed_ids))
        return request

    def _lengthened(self, text: str, typed: str) -> TurnRequest:
        """A turn after which the story is just this text."""
        kept, typed_ids = lengthened(self.backend, self.token_ids, text)
        return self._turn(kept, typed, typed_ids)

    def _past_stop(self, turn: Turn) -> TurnRequest:
        """Go on with the very tokens that a stop text has hidden."""
        assert turn.written is not None
        ids = self.token_ids
        kept = len(ids) - len(turn.tail_ids)
        hidden_ids = [token.id for token in turn.written.tokens[len(turn.picked) :]]
        typed = self.backend.detokenize((*ids[:kept], *hidden_ids))[len(self.text) :]
        return self._turn(kept, typed, hidden_ids)

    def _ids(self, number: int) -> tuple[int, ...]:
        return self.tree.token_ids(number)

    def _is_there(self, request: TurnRequest) -> bool:
        """Whether what was typed for a turn is in the tree already, or nothing was."""
        if self._typed_text(request) == self.tree.text(request.parent):
            return True
        siblings = self.tree.children(request.parent)
        return any((turn.kept, turn.typed) == (request.kept, request.typed) for turn in siblings)

    def _typed_text(self, request: TurnRequest) -> str:
        """The story with what was typed."""
        return self.backend.detokenize((*self._ids(request.parent)[: request.kept], *request.typed_ids)) + request.heal

    def _unhealed(self, request: TurnRequest) -> tuple[int, ...]:
        return (*request.typed_ids, *self.backend.encode(request.heal, bos=False))

    def _seed(self, *, going_on: bool = False) -> int:
        """The seed that is set; else that of the story on the desk, which goes on with its luck; else a fresh one."""
        if self.seed is not None:
            return self.seed
        turn = self.tree.turn
        if going_on and turn is not None and not self.fresh_luck:
            for earlier in reversed(self.tree.lineage(turn.id)):
                if earlier.written is not None:
                    return earlier.written.seed
        self.fresh_luck = False
        return self.draw_seed()


@dataclass
class _Work:
    """A turn being written."""

    request: TurnRequest
    story_request: StoryRequest
    pieces: list[str] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    reason: FinishReason = "cancelled"
    result: Story | None = None
