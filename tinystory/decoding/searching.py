"""Help for searches: rows that follow several stories, and the events that show a story while it may still change."""

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from tinystory.decoding.events import Commit, Draft, Event, FinishReason, Token
from tinystory.decoding.loop import shrunk
from tinystory.decoding.request import Request, Session, common_prefix

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Rows", "Telling", "shared_length"]


class Rows:
    """The rows of a session. Each row has the part of one story that the model sees.

    If a story grows longer than the context, the request's window cuts it, as it does for a plain chain.

    Attributes:
        contexts: the ids that each row holds.
    """

    def __init__(self, session: Session, request: Request) -> None:
        self._session = session
        self._window = request.window
        self.contexts: list[list[int]] = [list(request.prompt_ids)]

    def begin(self) -> "Tensor":
        """Read the prompt into a single row. Return the (1, V) logits of the next token."""
        return self._hold([self.contexts[0]])

    def advance(self, parents: Sequence[int], stories: Sequence[Sequence[int]]) -> "Tensor":
        """Continue with new rows, each one token longer than the row that it comes from.

        Args:
            parents: for each new row, the index of the old row that it continues; at least one. Indices may repeat.
            stories: for each new row, its whole story, prompt included.

        Returns:
            The (B, V) logits of the next token.
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
    """The part of a search's story that was shown: committed tokens, and a draft of the tokens after them.

    Attributes:
        n_told: the number of committed tokens.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._has_draft = False
        self.n_told = 0

    def tell(self, tokens: Sequence[Token], n_settled: int) -> Generator[Event, None, FinishReason | None]:
        """Yield the events that show the story as it is now: `reason = yield from telling.tell(...)`.

        Tokens are committed one by one. So a stop text ends the story at the same token as in a plain chain. If the
        user cancels, the draft is committed too, so they keep what they have seen.

        Args:
            tokens: all new tokens of the likeliest story. The tokens that were committed before come first.
            n_settled: how many of these tokens are the same in every possible story.

        Returns:
            The reason if the story has to end now; then `tell` must not be called again. None if it goes on.
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
    """Return the number of tokens with which all of these stories begin."""
    ids = [[token.id for token in story] for story in stories]
    return common_prefix(min(ids), max(ids))  # in sorted order, all others lie between these and share their prefix
