"""The studio: the decoder, the model, the settings and the tree of stories of one chat. It knows no terminal."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import TYPE_CHECKING

from tinystory.decoding import Decoder, Step, common_prefix
from tinystory.decoding.plugins import Registry
from tinystory.decoding.spec import format_spec
from tinystory.errors import UsageError
from tinystory.settings import Setting, random_seed
from tinystory.story.tree import ROOT, StoryTree, Turn, Written
from tinystory.studio.backend import Backend
from tinystory.studio.seams import joint, lengthened, without_last_word
from tinystory.studio.turn_request import TurnRequest
from tinystory.studio.unfinished_turn import UnfinishedTurn
from tinystory.studio.views import Tint
from tinystory.text.prompt_text import check_prompt
from tinystory.text.sentences import end_of_sentences
from tinystory.writing.generate import Ended, Story, StoryRequest, TextEvent

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Studio", "TurnRequest"]


@dataclass
class Studio:
    """The desk of one writer: the state that the commands of a chat act on.

    Attributes:
        registry: the stages of decoders.
        decoder: picks the tokens of the next turn.
        backend: the model.
        open_model: opens another model by its name; raises TinystoryError if it cannot.
        seed: the seed of every story; None draws a seed for each story.
        max_tokens: the largest number of new tokens in a turn.
        stop: texts at which a turn ends.
        words: words that the writer wants in the story; they are only ticked off.
        tint: the measure that colours the tokens.
        plain: why this chat shows no colours, in words; empty if it does.
        settings: the settings at the start of the chat, each with its origin.
        tree: every story of the session.
        results: the finished story of each turn that was written in this chat, by the turn's number.
        draw_seed: draws a seed if none is set.
        fresh_noise: True if an unfinished story has to go on with a new seed.
        on_change: called after a turn was added, and after another turn was put on the desk.
        choose: asks the person for a token, as in `Request`.
        first_decoder: the decoder at the start of the chat, for /reset.
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
    fresh_noise: bool = False
    on_change: Callable[[], None] = lambda: None
    choose: "Callable[[Tensor, Step], int] | None" = field(default=None, repr=False, compare=False)
    first_decoder: Decoder = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Remember the decoder at the start of the chat."""
        self.first_decoder = self.decoder

    @property
    def spec(self) -> str:
        """The decoder, as canonical text."""
        return format_spec(self.decoder)

    @property
    def wanted(self) -> tuple[str, ...]:
        """The words to tick off: those that the writer wants, and those that the decoder puts into the story."""
        of_decoder: tuple[str, ...] = getattr(self.decoder.search, "words", ())
        return tuple(dict.fromkeys((*self.words, *of_decoder)))

    @property
    def text(self) -> str:
        """The text of the story on the desk."""
        return self.tree.text(self.tree.current)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens of the story on the desk, in the vocabulary of the present model."""
        turn = self.tree.turn
        if turn is None or turn.vocabulary == self.backend.vocabulary:
            return self.tree.token_ids(self.tree.current)
        return tuple(self.backend.encode(check_prompt(self.text, "the story"), bos=True))

    def set_seed(self, seed: int | None) -> None:
        """Set the seed, or None to draw one for each story; an unfinished story goes on with the new noise."""
        self.seed = seed
        self.fresh_noise = seed is None

    def set_model(self, backend: Backend) -> None:
        """Write with another model from now on; if its vocabulary differs, the story is tokenised again."""
        self.backend = backend

    def begin(self, prompt: str) -> TurnRequest:
        """Ask for the first turn of a new story; if the prompt is empty, the model begins the story."""
        typed_ids = tuple(self.backend.encode(check_prompt(prompt), bos=True))
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
        """Ask for the turn that follows the desk: it goes on with an unfinished story, or else begins a new one.

        Args:
            text: the text that the writer typed. If it is empty, an unfinished story goes on, past a stop text.

        Raises:
            UsageError: the text is too long.
        """
        check_prompt(text)
        turn = self.tree.turn
        if turn is None or turn.ended:
            return self.begin(text)
        if not text and turn.hidden and turn.vocabulary == self.backend.vocabulary:
            return self._past_stop(turn)
        return self._lengthened(self.text + joint(self.text, text) + text, text)

    def go(self, n_tokens: int) -> TurnRequest:
        """Ask for a turn in which the model goes on by at most `n_tokens` tokens."""
        return replace(self.next_turn(""), max_new_tokens=n_tokens)

    def retry(self, decoder: Decoder | None = None) -> TurnRequest:
        """Ask for a branch of the turn on the desk, with a new seed.

        Args:
            decoder: picks the tokens; None takes the decoder of the studio.

        Raises:
            UsageError: the model has not written in this turn, or it was written in another vocabulary.
        """
        turn = self.tree.turn
        if turn is None or turn.written is None:
            raise UsageError("there is nothing to try again: the model has not written here yet")
        if turn.vocabulary != self.backend.vocabulary:
            model = turn.written.model
            raise UsageError(f"{model} wrote this turn in another vocabulary: /model {model} first")
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
        """Ask for n more branches of the turn on the desk, with one new seed; raises UsageError as `retry`."""
        request = self.retry()
        return [replace(request, number=number) for number in range(n)]

    def compare(self, decoders: Sequence[Decoder]) -> list[TurnRequest]:
        """Ask for one branch by each decoder, all with the same noise.

        They are branches of the next turn, or of the turn on the desk if that ends its story.
        """
        turn = self.tree.turn
        ended = turn is not None and turn.ended
        request = replace(self.retry(), seed=self._seed(going_on=True)) if ended else self.next_turn("")
        return [replace(request, decoder=decoder) for decoder in decoders]

    def edit(self, text: str) -> TurnRequest | None:
        """Ask for a turn that goes on from another text; return None if the text is the same or empty.

        If the text ends within a word, the model spells that word again.

        Raises:
            UsageError: the new part of the text is too long.
        """
        if text == self.text or not text:
            return None
        added = check_prompt(text[common_prefix(self.text, text) :])
        request = self._lengthened(text, added)
        return self._healed(request, text) if self.backend.heals else request

    def pick(self, position: int, token_id: int) -> TurnRequest:
        """Ask for a turn with another token at an index of the story's tokens; the model goes on after it."""
        typed = self.backend.token_text(token_id)
        return self._request(position, typed, (token_id,))

    def trim(self) -> Turn | None:
        """Cut the story after its last whole sentence; return None if it ends with one or has none."""
        ids = self.token_ids
        text = self.backend.detokenize(ids).rstrip()
        end = end_of_sentences(text)
        if end in (0, len(text)):
            return None
        request = self._lengthened(text[:end], "")
        return self._add(request, text[:end], None)

    def keep(self, request: TurnRequest) -> None:
        """Add a turn with only what was typed, and put it on the desk, unless the desk has it already."""
        if self._is_on_desk(request):
            return
        typed_ids = (*request.typed_ids, *self.backend.encode(request.heal, bos=False))
        unhealed = replace(request, typed_ids=typed_ids, heal="")
        self._add(unhealed, self._typed_text(unhealed), None)

    def goto(self, number: int) -> None:
        """Put a turn on the desk; raises UsageError if there is no such turn."""
        self.tree.goto(number)
        self.on_change()

    def write(self, requests: Sequence[TurnRequest], cancel: Callable[[], bool]) -> Generator[TextEvent, None, None]:
        """Let the model write, and add a turn for each request; the last one is then on the desk.

        If the writing fails or is stopped, each turn has what was written until then.

        Args:
            requests: from the methods above; `backend.wait` must have returned True.
            cancel: called after each token; True stops the writing.

        Yields:
            The events of `backend.write`; their `story` is an index into `requests`.

        Raises:
            TinystoryError: a decoder failed.
        """
        unfinished_turns = [UnfinishedTurn(request, self.story_request(request, cancel)) for request in requests]
        first_number, finished = self.tree.next_number, set[int]()
        failed = False
        try:
            for event in self.backend.write([unfinished.story_request for unfinished in unfinished_turns]):
                unfinished_turns[event.story].take(event)
                if isinstance(event, Ended):
                    self._finish(unfinished_turns[event.story], first_number + event.story)
                    finished.add(event.story)
                yield event
        except Exception:
            failed = True
            raise
        finally:
            for index, unfinished in enumerate(unfinished_turns):
                # After a failure, a turn is not added only to keep a text that the tree has already.
                useless = failed and not unfinished.tokens and self._is_in_tree(unfinished.request)
                if index not in finished and not useless:
                    self._finish(unfinished, first_number + index)

    def story_request(self, request: TurnRequest, cancel: Callable[[], bool] = lambda: False) -> StoryRequest:
        """Return the request for the model from a turn's request."""
        n_prompt = len(request.typed_ids) if not request.kept else min(self.tree.n_prompt(request.parent), request.kept)
        prompt_ids = self._prompt_ids(request)
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
        """Return a request for the story on the desk from its prompt on; it has no tokens, so it fits any model."""
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

    def _finish(self, unfinished: UnfinishedTurn, number: int) -> None:
        """Add the turn to the tree under its number, if anything was written."""
        request = unfinished.request
        written_text = self.backend.detokenize(unfinished.token_ids)
        if request.heal and not written_text.startswith(self._typed_text(request)):
            self.keep(request)  # the model was stopped before it had spelled the cut word again
            return
        stopped_at_once = not unfinished.tokens and unfinished.finish_reason == "cancelled"
        if (stopped_at_once and self._is_on_desk(request)) or not (written_text or unfinished.tokens):
            return
        text, hidden, tail_ids = unfinished.ending(self.backend)
        turn = self._add(request, text, unfinished.written(self.backend), (hidden, tail_ids), number)
        if unfinished.story is not None:
            self.results[turn.id] = unfinished.story

    def _add(
        self,
        request: TurnRequest,
        text: str,
        written: Written | None,
        ending: tuple[int, tuple[int, ...]] = (0, ()),
        number: int | None = None,
    ) -> Turn:
        """Add a turn, after which the story has this text, and put it on the desk."""
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
            hidden=ending[0],
            tail_ids=ending[1],
        )
        added = self.tree.add(turn, number)
        self.on_change()
        return added

    def _healed(self, request: TurnRequest, text: str) -> TurnRequest:
        """Return the request with its last word taken back, which the model then spells again; kept tokens stay."""
        typed_ids, heal = without_last_word(self.backend, self.token_ids[: request.kept], request.typed_ids, text)
        return replace(request, typed_ids=typed_ids, heal=heal)

    def _request(self, kept: int, typed: str, typed_ids: Sequence[int]) -> TurnRequest:
        """Ask for a turn that keeps the first `kept` tokens of the story on the desk, in the model's vocabulary."""
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
        """Ask for a turn whose typed part makes the story exactly this text."""
        kept, typed_ids = lengthened(self.backend, self.token_ids, text)
        return self._request(kept, typed, typed_ids)

    def _past_stop(self, turn: Turn) -> TurnRequest:
        """Ask for a turn that goes on after the tokens that a stop text has hidden."""
        assert turn.written is not None
        ids = self.token_ids
        kept = len(ids) - len(turn.tail_ids)
        hidden_ids = [token.id for token in turn.written.tokens[len(turn.picked) :]]
        typed = self.backend.detokenize((*ids[:kept], *hidden_ids))[len(self.text) :]
        return self._request(kept, typed, hidden_ids)

    def _is_on_desk(self, request: TurnRequest) -> bool:
        """Return whether the story on the desk has what a turn begins with, as when a branch of it was asked for."""
        turn = self.tree.turn
        if turn is not None and (turn.parent, turn.kept, turn.typed) == (request.parent, request.kept, request.typed):
            return True
        return self._typed_text(request) == self.text

    def _is_in_tree(self, request: TurnRequest) -> bool:
        """Return whether nothing was typed for a turn, or a branch with the same typed text is in the tree."""
        if self._typed_text(request) == self.tree.text(request.parent):
            return True
        branches = self.tree.children(request.parent)
        return any((turn.kept, turn.typed) == (request.kept, request.typed) for turn in branches)

    def _prompt_ids(self, request: TurnRequest) -> tuple[int, ...]:
        """Return the tokens after which the model writes."""
        return (*self.tree.token_ids(request.parent)[: request.kept], *request.typed_ids)

    def _typed_text(self, request: TurnRequest) -> str:
        """Return the text of the story with what was typed."""
        return self.backend.detokenize(self._prompt_ids(request)) + request.heal

    def _seed(self, *, going_on: bool = False) -> int:
        """Return the seed that is set. Without one, return the story's seed if `going_on`, or else a new seed."""
        if self.seed is not None:
            return self.seed
        if going_on and not self.fresh_noise and (written := self.tree.last_written(self.tree.current)):
            return written.seed
        self.fresh_noise = False
        return self.draw_seed()
