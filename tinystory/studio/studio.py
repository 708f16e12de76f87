"""What a chat knows and can do: decoder, seed, model and the tree of stories. Knows no terminal."""

import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tinystory.decoding import Decoder, FinishReason, Step, Token, common_prefix
from tinystory.decoding.plugins import Registry
from tinystory.decoding.spec import format_spec
from tinystory.errors import UsageError
from tinystory.settings import Setting
from tinystory.story.tree import ROOT, Node, StoryTree, Written
from tinystory.studio.backend import Backend
from tinystory.studio.seams import joint, lengthened, spelling, split_at
from tinystory.studio.turn import Turn
from tinystory.studio.views import Tint
from tinystory.text.sentences import ends_sentence
from tinystory.writing.generate import Ended, Story, StoryRequest, Text, TextEvent

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Studio", "Turn", "random_seed"]


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
        results: what the engine reported of nodes written here, by their number.
        draw_seed: gives a seed where none is set.
        fresh_luck: an unfinished story is to go on with a new seed.
        on_change: called whenever a node has been added or the desk has changed.
        choose: asks the person for a token, as in `Request`.
    """

    registry: Registry
    decoder: Decoder
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
        node = self.tree.node
        if node is None or node.vocabulary == self.backend.vocabulary:
            return self.tree.token_ids(self.tree.current)
        return tuple(self.backend.encode(self.text, bos=True))

    def set_seed(self, seed: int | None) -> None:
        """Fix the seed, or draw one for each story; an unfinished story goes on with the new luck."""
        self.seed = seed
        self.fresh_luck = seed is None

    def set_model(self, backend: Backend) -> None:
        """Write with another model; the story goes on, in the other's tokens where they differ."""
        self.backend = backend

    def begin(self, prompt: str) -> Turn:
        """A turn that opens a new story; without a prompt the model begins it."""
        typed_ids = tuple(self.backend.encode(prompt, bos=True))
        return Turn(ROOT, 0, prompt, typed_ids, self.decoder, self._seed(), self.max_tokens)

    def turn(self, text: str) -> Turn:
        """What the writer's text asks for: to open a story, or to go on with the one on the desk.

        Without text an unfinished story goes on by itself, past a stop text.
        """
        node = self.tree.node
        if node is None or node.ended:
            return self.begin(text)
        if not text and node.hidden and node.vocabulary == self.backend.vocabulary:
            return self._past_stop(node)
        return self._lengthened(self.text + joint(self.text, text) + text, text)

    def go(self, n_tokens: int) -> Turn:
        """Let the model go on by at most so many tokens."""
        return replace(self.turn(""), max_new_tokens=n_tokens)

    def retry(self, decoder: Decoder | None = None) -> Turn:
        """The latest turn once more, with fresh luck; raises UsageError where the model has written nothing."""
        node = self.tree.node
        if node is None or node.written is None:
            raise UsageError("there is nothing to try again: the model has not written here yet")
        if node.vocabulary != self.backend.vocabulary:
            raise UsageError(
                f"this piece was written in other tokens, by {node.written.model}: /model {node.written.model} first"
            )
        return Turn(
            node.parent,
            node.kept,
            node.typed,
            node.typed_ids,
            decoder or self.decoder,
            self.draw_seed(),
            self.max_tokens,
            node.written.heal,
        )

    def more(self, n: int) -> list[Turn]:
        """The latest turn n times more, at once, siblings of one fresh seed; raises UsageError as `retry`."""
        turn = self.retry()
        return [replace(turn, number=number) for number in range(n)]

    def compare(self, decoders: Sequence[Decoder]) -> list[Turn]:
        """The next turn by several decoders, with the same luck; of a story that is over, the latest once more."""
        node = self.tree.node
        over = node is not None and node.ended
        turn = replace(self.retry(), seed=self._seed(going_on=True)) if over else self.turn("")
        return [replace(turn, decoder=decoder) for decoder in decoders]

    def edit(self, text: str) -> Turn | None:
        """Go on from another text; a word cut at its end is healed. None where nothing was changed or left."""
        if text == self.text or not text:
            return None
        added = text[common_prefix(self.text, text) :]
        turn = self._lengthened(text, added)
        return self._healed(turn, text) if self.backend.heals else turn

    def pick(self, position: int, token_id: int) -> Turn:
        """Take another token at an index of the story's tokens, and go on from there."""
        typed = self.backend.token_text(token_id)
        return self._turn(position, typed, (token_id,))

    def trim(self) -> Node | None:
        """Cut the story after its last whole sentence; None where it ends with one, or has none."""
        ids = self.token_ids
        text = self.backend.detokenize(ids).rstrip()
        end = next((n for n in range(len(text), 0, -1) if ends_sentence(text[:n]) and text[:n].rstrip() == text[:n]), 0)
        if end in (0, len(text)):
            return None
        turn = self._lengthened(text[:end], "")
        return self._add(turn, text[:end], None)

    def keep(self, turn: Turn) -> Node:
        """Put a turn on the desk that the model has not added to."""
        whole = replace(turn, typed_ids=self._unhealed(turn), heal="")
        return self._add(whole, self._typed_text(whole), None)

    def goto(self, number: int) -> None:
        """Put a node on the desk; raises UsageError where there is none."""
        self.tree.goto(number)
        self.on_change()

    def write(self, turns: Sequence[Turn], cancel: Callable[[], bool]) -> Generator[TextEvent, None, None]:
        """Let the model write; each turn becomes a node with what came, however this ends, and the last is on the desk.

        Args:
            turns: from the methods above; the backend must be ready.
            cancel: polled after each token.

        Raises:
            TinystoryError: a decoder failed.
        """
        works = [_Work(turn, self.request(turn, cancel)) for turn in turns]
        finished: set[int] = set()
        failed = False
        try:
            for event in self.backend.write([work.request for work in works]):
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
                if index not in finished and not (failed and not work.tokens and self._is_there(work.turn)):
                    self._finish(work)

    def request(self, turn: Turn, cancel: Callable[[], bool] = lambda: False) -> StoryRequest:
        """What the engine is asked for."""
        prompt_ids = (*self._ids(turn.parent)[: turn.kept], *turn.typed_ids)
        n_prompt = len(turn.typed_ids) if turn.kept == 0 else min(self.tree.n_prompt(turn.parent), turn.kept)
        return StoryRequest(
            self.backend.detokenize(prompt_ids),
            turn.decoder,
            turn.seed,
            turn.max_new_tokens,
            self.stop,
            turn.number,
            cancel,
            prompt_ids,
            n_prompt,
            turn.heal,
            self.choose,
        )

    def opening(self, cancel: Callable[[], bool] = lambda: False) -> StoryRequest:
        """The story on the desk from its first words on, for any model: text, no tokens."""
        lineage = self.tree.lineage(self.tree.current)
        prompt = lineage[0].typed if lineage else ""
        return StoryRequest(prompt, self.decoder, self._seed(going_on=True), self.max_tokens, self.stop, cancel=cancel)

    def _finish(self, work: "_Work") -> None:
        """Make a node of what was written; nothing of nothing."""
        turn, base = work.turn, self._typed_text(work.turn)
        ids = [*(work.request.prompt_ids or ()), *(token.id for token in work.tokens)]
        text = self.backend.detokenize(ids)
        if turn.heal and not text.startswith(base):  # stopped before the word was whole again
            self.keep(turn)
            return
        if not text and not work.tokens:
            return
        hidden, tail_ids = 0, tuple[int, ...]()
        if work.reason == "stop":
            text = work.request.prompt + "".join(work.pieces)
            n_shown = max(split_at(self.backend, ids, text), len(ids) - len(work.tokens))
            hidden = len(ids) - n_shown
            rest = text[len(self.backend.detokenize(ids[:n_shown])) :]
            tail_ids = tuple(spelling(self.backend, ids[:n_shown], rest, text) or ()) if rest else ()
        written = Written(
            format_spec(turn.decoder),
            turn.seed,
            turn.number,
            self.backend.name,
            self.backend.model_hash(),
            self.backend.dtype,
            turn.max_new_tokens,
            self.stop,
            turn.heal,
            tuple(work.tokens),
            work.reason,
        )
        node = self._add(turn, text, written, hidden, tail_ids)
        if work.result is not None:
            self.results[node.id] = work.result

    def _add(
        self, turn: Turn, text: str, written: Written | None, hidden: int = 0, tail_ids: tuple[int, ...] = ()
    ) -> Node:
        parent_text = self.tree.text(turn.parent)
        shared = common_prefix(parent_text, text)
        node = Node(
            0,
            turn.parent,
            turn.kept,
            turn.typed,
            turn.typed_ids,
            written,
            self.backend.vocabulary,
            shared,
            text[shared:],
            hidden,
            tail_ids,
        )
        node = self.tree.add(node)
        self.on_change()
        return node

    def _healed(self, turn: Turn, text: str) -> Turn:
        """The turn with its last word taken back, for the model to spell again; never a token that was there before."""
        typed_ids, heal = list(turn.typed_ids), ""
        before = self.token_ids[: turn.kept]
        while len(before) + len(typed_ids) > 1 and typed_ids and not heal[:1].isspace():
            typed_ids.pop()
            heal = text[len(self.backend.detokenize((*before, *typed_ids))) :]
        return replace(turn, typed_ids=tuple(typed_ids), heal=heal)

    def _turn(self, kept: int, typed: str, typed_ids: Sequence[int]) -> Turn:
        """A turn that goes on from the desk's first `kept` tokens, in the vocabulary of the model in use."""
        turn = Turn(
            self.tree.current, kept, typed, tuple(typed_ids), self.decoder, self._seed(going_on=True), self.max_tokens
        )
        node = self.tree.node
        if kept and node is not None and node.vocabulary != self.backend.vocabulary:
            return replace(turn, kept=0, typed_ids=(*self.token_ids[:kept], *typed_ids))
        return turn

    def _lengthened(self, text: str, typed: str) -> Turn:
        """A turn after which the story is just this text."""
        kept, typed_ids = lengthened(self.backend, self.token_ids, text)
        return self._turn(kept, typed, typed_ids)

    def _past_stop(self, node: Node) -> Turn:
        """Go on with the very tokens that a stop text has hidden."""
        assert node.written is not None
        ids = self.token_ids
        kept = len(ids) - len(node.tail_ids)
        hidden_ids = [token.id for token in node.written.tokens[len(node.picked) :]]
        typed = self.backend.detokenize((*ids[:kept], *hidden_ids))[len(self.text) :]
        return self._turn(kept, typed, hidden_ids)

    def _ids(self, number: int) -> tuple[int, ...]:
        return self.tree.token_ids(number)

    def _is_there(self, turn: Turn) -> bool:
        """Whether what was typed for a turn is in the tree already, or nothing was."""
        if self._typed_text(turn) == self.tree.text(turn.parent):
            return True
        siblings = self.tree.children(turn.parent)
        return any((node.kept, node.typed) == (turn.kept, turn.typed) for node in siblings)

    def _typed_text(self, turn: Turn) -> str:
        """The story with what was typed."""
        return self.backend.detokenize((*self._ids(turn.parent)[: turn.kept], *turn.typed_ids)) + turn.heal

    def _unhealed(self, turn: Turn) -> tuple[int, ...]:
        return (*turn.typed_ids, *self.backend.encode(turn.heal, bos=False))

    def _seed(self, *, going_on: bool = False) -> int:
        """The seed that is set; else that of the story on the desk, which goes on with its luck; else a fresh one."""
        if self.seed is not None:
            return self.seed
        node = self.tree.node
        if going_on and node is not None and not self.fresh_luck:
            for earlier in reversed(self.tree.lineage(node.id)):
                if earlier.written is not None:
                    return earlier.written.seed
        self.fresh_luck = False
        return self.draw_seed()


@dataclass
class _Work:
    """A turn being written."""

    turn: Turn
    request: StoryRequest
    pieces: list[str] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    reason: FinishReason = "cancelled"
    result: Story | None = None
