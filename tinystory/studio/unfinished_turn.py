"""A turn while the model writes it. It knows the model, but no tree."""

from dataclasses import dataclass, field

from tinystory.decoding import FinishReason, Token
from tinystory.decoding.spec import format_spec
from tinystory.story.tree import Written
from tinystory.studio.backend import Backend
from tinystory.studio.seams import spelling, split_at
from tinystory.studio.turn_request import TurnRequest
from tinystory.writing.generate import Ended, Story, StoryRequest, Text, TextEvent

__all__ = ["UnfinishedTurn"]


@dataclass
class UnfinishedTurn:
    """A turn that is being written: its two requests, and what has come so far.

    Attributes:
        request: the request to the studio.
        story_request: the same, as the model gets it.
        texts: the parts of the text.
        tokens: the picked tokens.
        finish_reason: why the turn ended; "cancelled" until it has ended.
        story: the finished story with its statistics; None until then.
    """

    request: TurnRequest
    story_request: StoryRequest
    texts: list[str] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    finish_reason: FinishReason = "cancelled"
    story: Story | None = None

    @property
    def token_ids(self) -> list[int]:
        """The tokens of the story, the prompt and hidden tokens included."""
        return [*(self.story_request.prompt_ids or ()), *(token.id for token in self.tokens)]

    def take(self, event: TextEvent) -> None:
        """Add the text, tokens or result of an event."""
        if isinstance(event, Text):
            self.texts.append(event.text)
            self.tokens.extend(event.tokens)
        elif isinstance(event, Ended):
            self.finish_reason, self.story = event.result.finish_reason, event.result

    def ending(self, backend: Backend) -> tuple[str, int, tuple[int, ...]]:
        """Return the story's text, the number of hidden tokens, and the tail ids, as in `Turn`.

        A stop text and the tokens that spell it are not part of the story. If the first of these tokens also spells
        something before the stop text, other tokens spell that: the tail ids.
        """
        ids = self.token_ids
        if self.finish_reason != "stop":
            return backend.detokenize(ids), 0, ()
        text = self.story_request.prompt + "".join(self.texts)
        n_shown = max(split_at(backend, ids, text), len(ids) - len(self.tokens))
        rest = text[len(backend.detokenize(ids[:n_shown])) :]
        tail_ids = (spelling(backend, ids[:n_shown], rest, text) or ()) if rest else ()
        return text, len(ids) - n_shown, tuple(tail_ids)

    def written(self, backend: Backend) -> Written:
        """Return the record of what the model wrote."""
        request = self.request
        return Written(
            spec=format_spec(request.decoder),
            seed=request.seed,
            number=request.number,
            model=backend.name,
            model_hash=backend.model_hash(),
            dtype=backend.dtype,
            max_new_tokens=request.max_new_tokens,
            stop=self.story_request.stop,
            heal=request.heal,
            tokens=tuple(self.tokens),
            finish_reason=self.finish_reason,
        )
