"""What a chat knows and can do: decoder, seed, model and the story on the desk. Knows no terminal."""

import random
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

from tinystory.decoding import Decoder, FinishReason, Token
from tinystory.generate import Ended, Story, StoryRequest, Text, TextEvent
from tinystory.plugins import Registry
from tinystory.repl.backend import Backend
from tinystory.repl.manuscript import Manuscript, joint
from tinystory.spec import format_spec

__all__ = ["Studio", "Turn", "random_seed"]

_HALF_A_CHARACTER = "\ufffd"


def random_seed() -> int:
    """A fresh seed, short enough to be typed again."""
    return random.SystemRandom().randrange(1_000_000)


@dataclass(frozen=True)
class Turn:
    """A piece of writing that has been asked for and not begun.

    Attributes:
        story: the manuscript to go on from, with what the writer adds now.
        added: that addition alone, as it is to be shown.
    """

    story: Manuscript
    added: str


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
        story: the one on the desk.
        last: what the engine reported of the latest turn that it finished.
        draw_seed: gives a seed where none is set.
    """

    registry: Registry
    decoder: Decoder
    backend: Backend
    open_model: Callable[[str], Backend]
    seed: int | None = None
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    story: Manuscript | None = None
    last: Story | None = None
    draw_seed: Callable[[], int] = random_seed

    @property
    def spec(self) -> str:
        """The decoder, canonically."""
        return format_spec(self.decoder)

    def set_seed(self, seed: int | None) -> None:
        """Fix the seed, or draw one for each story; an unfinished story goes on with the new luck."""
        self.seed = seed
        if self.story is not None:
            self.story = replace(self.story, seed=self._seed())

    def set_model(self, backend: Backend) -> None:
        """Write with another model; the story goes on, in the other's tokens."""
        self.backend = backend
        if self.story is not None:
            self.story = replace(self.story, token_ids=None)

    def begin(self, prompt: str) -> Turn:
        """A turn that opens a new story; without a prompt the model begins it."""
        return Turn(Manuscript(prompt, prompt, self._seed()), prompt)

    def turn(self, text: str) -> Turn:
        """What the writer's text asks for: to open a story, or to go on with the one on the desk.

        Without text an unfinished story goes on by itself, past a stop text.
        """
        if self.story is None or self.story.ended:
            return self.begin(text)
        added = text or self._withheld(self.story)
        whole = self.story.text + joint(self.story.text, text) + added
        return Turn(replace(self.story, text=whole), added)

    def keep(self, turn: Turn) -> None:
        """Put a turn on the desk that the model has not added to."""
        self.story = replace(turn.story, finish_reason="cancelled")

    def write(self, turn: Turn, cancel: Callable[[], bool]) -> Generator[TextEvent, None, None]:
        """Let the model write; the story on the desk holds what came, however this ends.

        Args:
            turn: from `turn` or `begin`; its backend must be ready.
            cancel: polled after each token.

        Raises:
            TinystoryError: a decoder failed.
        """
        story = turn.story
        token_ids, n_prompt = story.tokens(self.backend)
        request = StoryRequest(
            story.text,
            self.decoder,
            story.seed,
            self.max_tokens,
            self.stop,
            cancel=cancel,
            prompt_ids=token_ids,
            n_prompt=n_prompt,
        )
        pieces: list[str] = []
        tokens: list[Token] = []
        reason: FinishReason = "cancelled"
        try:
            for event in self.backend.write(request):
                if isinstance(event, Text):
                    pieces.append(event.text)
                    tokens.extend(event.tokens)
                elif isinstance(event, Ended):
                    reason = event.result.finish_reason
                    self.last = event.result
                yield event
        finally:
            text = story.text + "".join(pieces)
            if text or tokens:
                ids = (*token_ids, *(token.id for token in tokens))
                known = self.backend.detokenize(ids)
                # The tokens say it best, where the last piece ended within a character. A stop text stays hidden.
                if reason != "stop" and known.startswith(story.text.removesuffix(_HALF_A_CHARACTER)):
                    text = known
                self.story = Manuscript(text, story.prompt, story.seed, reason, ids, n_prompt)

    def _seed(self) -> int:
        return self.draw_seed() if self.seed is None else self.seed

    def _withheld(self, story: Manuscript) -> str:
        """The stop text that ended the latest piece and what came with it: written, but not shown so far."""
        if story.finish_reason != "stop" or story.token_ids is None:
            return ""
        known = self.backend.detokenize(story.token_ids)
        return known[len(story.text) :] if known.startswith(story.text) else ""
