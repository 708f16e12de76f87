"""A second model that looks at the same story: for guidance, an amateur, a draft. Knows no stage."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tinystory.decoding.request import Request, common_prefix
from tinystory.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Companion"]

_SHORT = 16
"""So many new tokens are decoded after what is cached; more are a prompt."""


class Companion:
    """A session of its own as a pure function of token ids, so that beams and undone tokens may share it.

    What is cached makes it quick and changes nothing: a story that goes on costs its new tokens, one that goes back or
    aside those after the common prefix. Where the ids outgrow the model they are cut by the request's window.

    Attributes:
        calls: how often the model was run.
        seconds: the time that took, by the wall clock.
        bos_id: of the model; None where it has none.
        vocab_size: its number of tokens.
    """

    def __init__(self, request: Request, model: str | None = None) -> None:
        """Open a session: of the model that writes, or of another checkpoint.

        Raises:
            UsageError: none can be opened here.
            CheckpointError: the checkpoint is missing or invalid.
        """
        self._session = request.open(model)
        self._window = request.window
        self._name = model or "the second model"
        self._held: list[int] = []
        self.bos_id = self._session.bos_id
        self.vocab_size = self._session.vocab_size
        self.calls = 0
        self.seconds = 0.0

    def logits(self, token_ids: Sequence[int]) -> "Tensor":
        """The model's (V,) float32 logits for the token after these; at least one id."""
        started = time.perf_counter()
        context, limit = list(token_ids), self._session.max_seq_len
        if len(context) > limit:
            context = (list(self._window(context, limit)) or context[-1:])[-limit:]
        logits = self._run(context)
        self._held = context
        self.calls += 1
        self.seconds += time.perf_counter() - started
        return logits

    def log_probs(self, token_ids: Sequence[int], like: "Tensor") -> "Tensor":
        """The model's (V,) natural log-probabilities, where and as long as another model's logits are.

        Raises:
            UsageError: that one has another number of tokens.
        """
        self.check_size(len(like))
        return self.logits(token_ids).to(like.device).log_softmax(dim=-1)

    def check_size(self, vocab_size: int) -> None:
        """Refuse a model that writes in another number of tokens; raises UsageError."""
        if self.vocab_size != vocab_size:
            raise UsageError(
                f"{self._name} has {self.vocab_size} tokens, the model that writes {vocab_size}: "
                "only models that share their tokens work together"
            )

    def statistics(self, name: str) -> dict[str, float]:
        """What it took, under names that begin with `name`."""
        return {f"{name}_calls": float(self.calls), f"{name}_seconds": self.seconds}

    def _run(self, context: list[int]) -> "Tensor":
        import torch

        held, session = self._held, self._session
        # The usual case is told apart without a loop: the story has gone on.
        shared = len(held) if held == context[: len(held)] else common_prefix(held, context)
        shared = min(shared, len(context) - 1)
        too_many, new = len(held) - shared, context[shared:]
        self._held = []  # should the model fail, nothing is known of its rows
        if shared and len(new) <= _SHORT and (not too_many or session.can_rewind):
            if too_many:
                session.rewind([too_many])
            return session.decode(torch.tensor(new if len(new) == 1 else [new])).view(len(new), -1)[-1]
        return session.prefill([context])[0]
