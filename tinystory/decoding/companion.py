"""A second model that reads the same story, for guidance, for an amateur and for drafts. It knows no stage."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tinystory.decoding.request import Request, common_prefix
from tinystory.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Companion"]

_MOST_DECODED = 16
"""Up to this number of new tokens are decoded after the cached ones. More are prefilled with the whole context."""


class Companion:
    """A second session that works as a pure function of token ids, so beams and undone tokens can share it.

    Cached tokens make it faster and never change the result. If a story continues, only its new tokens are computed.
    If it goes back or takes another branch, the tokens after the common prefix are computed. If the ids are longer
    than the model's context, the request's window cuts them.

    Attributes:
        calls: how often the model was run.
        seconds: the time of these calls, by the wall clock.
        bos_id: the model's BOS; None if it has none.
        vocab_size: the number of tokens of the model.
    """

    def __init__(self, request: Request, model: str | None = None) -> None:
        """Open a session of the model that writes, or of another checkpoint.

        Raises:
            UsageError: this request may not open a model.
            CheckpointError: the checkpoint is missing or invalid.
        """
        self._session = request.open(model)
        self._window = request.window
        self._name = model or "the second model"
        self._cached: list[int] = []
        self.bos_id = self._session.bos_id
        self.vocab_size = self._session.vocab_size
        self.calls = 0
        self.seconds = 0.0

    def logits(self, token_ids: Sequence[int]) -> "Tensor":
        """Return the model's (V,) float32 logits for the token after these ids. At least one id is needed."""
        started = time.perf_counter()
        context, limit = list(token_ids), self._session.max_seq_len
        if len(context) > limit:
            context = (list(self._window(context, limit)) or context[-1:])[-limit:]
        logits = self._run(context)
        self._cached = context
        self.calls += 1
        self.seconds += time.perf_counter() - started
        return logits

    def log_probs(self, token_ids: Sequence[int], like: "Tensor") -> "Tensor":
        """Return the model's (V,) natural log-probabilities, on the device of another model's logits `like`.

        Raises:
            UsageError: `like` has another number of tokens.
        """
        self.check_size(len(like))
        return self.logits(token_ids).to(like.device).log_softmax(dim=-1)

    def check_size(self, vocab_size: int) -> None:
        """Raise UsageError if the model that writes has another number of tokens."""
        if self.vocab_size != vocab_size:
            raise UsageError(
                f"{self._name} has {self.vocab_size} tokens, but the model that writes has {vocab_size}: "
                "two models work together only if they have the same tokens"
            )

    def statistics(self, name: str) -> dict[str, float]:
        """Return the number of calls and their seconds, under names that begin with `name`."""
        return {f"{name}_calls": float(self.calls), f"{name}_seconds": self.seconds}

    def _run(self, context: list[int]) -> "Tensor":
        import torch

        cached, session = self._cached, self._session
        # Usually the story has only grown. A comparison of lists finds that faster than the loop does.
        shared = len(cached) if cached == context[: len(cached)] else common_prefix(cached, context)
        shared = min(shared, len(context) - 1)
        n_obsolete, new = len(cached) - shared, context[shared:]
        self._cached = []  # if the model fails, the content of its rows is unknown
        if shared and len(new) <= _MOST_DECODED and (not n_obsolete or session.can_rewind):
            if n_obsolete:
                session.rewind([n_obsolete])
            return session.decode(torch.tensor(new if len(new) == 1 else [new])).view(len(new), -1)[-1]
        return session.prefill([context])[0]
