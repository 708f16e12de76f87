"""For authors of searches: rows of a session that follow several stories, and what a reader is told meanwhile."""

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from tinystory.decoding.loop import shrunk
from tinystory.decoding.stages import Commit, Draft, Event, FinishReason, Request, Session, Token, common_prefix

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Rows", "Telling", "shared_length"]


class Rows:
    """A session's rows, each with what the model sees of one story.

    A story that outgrows the context goes on with what the request's window leaves of it, like a plain chain's.

    Attributes:
        contexts: the ids that each row holds.
    """

    def __init__(self, session: Session, request: Request) -> None:
        self._session = session
        self._window = request.window
        self.contexts: list[list[int]] = [list(request.prompt_ids)]

    def begin(self) -> "Tensor":
        """Hold the prompt, in a single row; the next token's logits, (1, V)."""
        return self._hold([self.contexts[0]])

    def advance(self, parents: Sequence[int], stories: Sequence[Sequence[int]]) -> "Tensor":
        """Go on with other rows, each one token longer than the row it comes from.

        Args:
            parents: for each new row the old one that it continues; at least one, in any order, some maybe twice.
            stories: each new row's whole story, prompt included.

        Returns:
            The next token's logits, (B, V).
        """
        import torch

        self.contexts = [[*self.contexts[row], story[-1]] for row, story in zip(parents, stories, strict=True)]
        if max(map(len, self.contexts)) > self._session.max_seq_len:
            return self._hold(stories)
        self._session.reorder(torch.tensor(parents))
        return self._session.decode(torch.tensor([context[-1] for context in self.contexts]))

    def _hold(self, stories: Sequence[Sequence[int]]) -> "Tensor":
        limit = self._session.max_seq_len
        self.contexts = [
            shrunk(story, self._window, limit) if len(context) > limit else context
            for story, context in zip(stories, self.contexts, strict=True)
        ]
        return self._session.prefill(self.contexts)


class Telling:
    """What a reader has been told of one story: a beginning that stands, and a draft of how it may go on.

    Attributes:
        n_told: how many tokens stand.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._has_draft = False
        self.n_told = 0

    def tell(self, tokens: Sequence[Token], n_settled: int) -> Generator[Event, None, FinishReason | None]:
        """Tell the story as it now looks; `reason = yield from telling.tell(...)`.

        Tokens are committed one by one, so that a stop text ends the story at the token where it ends a plain chain's.
        A reader who cancels keeps what was in sight: then the draft is committed as well.

        Args:
            tokens: all new tokens of the likeliest outcome; those told before come first.
            n_settled: how many of them no outcome will change.

        Returns:
            Why the story has to end now; None when it has not. After a reason nothing more is to be told.
        """
        reason = None
        while self.n_told < n_settled and not reason:
            self.n_told += 1
            self._has_draft = False
            yield Commit((tokens[self.n_told - 1],))
            reason = self._request.interrupted()
        rest = tuple(tokens[self.n_told :])
        if not reason and (rest or self._has_draft):
            self._has_draft = bool(rest)
            yield Draft(rest)
        reason = reason or self._request.interrupted()
        if reason == "cancelled" and rest:
            self.n_told += len(rest)
            yield Commit(rest)
        return reason


def shared_length(stories: Sequence[Sequence[Token]]) -> int:
    """How many tokens at the beginning all of several stories share."""
    ids = [[token.id for token in story] for story in stories]
    return common_prefix(min(ids), max(ids))  # whatever lies between the extremes in order shares what they share
