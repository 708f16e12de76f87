"""The input of a decoder: the request for one story, the session of a model, and the step of a single token.

This module knows no stage. Importing it does not import torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Union

from tinystory.decoding.events import FinishReason
from tinystory.errors import UsageError
from tinystory.noise import Noise

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Ids", "Request", "Session", "Step", "Vocabulary", "Window", "common_prefix", "latest_half"]

Window = Callable[[Sequence[int], int], Sequence[int]]
"""A function that cuts a story that is longer than the context: (its ids, max_seq_len) -> the ids to continue with."""


Ids = Union["Tensor", Sequence[int], Sequence[Sequence[int]]]
"""Integers for a session, as a tensor or as lists of the same shape."""


class Session(Protocol):
    """B rows of one model, each with its own length. A decoder reaches a model only through a session.

    Logits are float32 of shape (B, V), for the token after the last one of each row.

    Attributes:
        vocab_size: V, the number of tokens.
        bos_id: the BOS token; None if the model has none.
        eos_ids: the tokens that end a story.
        max_seq_len: the most tokens that a row can hold.
        can_rewind: True if `rewind` works.
        can_reorder: True if `reorder` works.
    """

    vocab_size: int
    bos_id: int | None
    eos_ids: frozenset[int]
    max_seq_len: int
    can_rewind: bool
    can_reorder: bool

    def prefill(self, prompts: "Sequence[Sequence[int]]") -> "Tensor":
        """Replace the rows by these prompts and return (B, V) logits.

        A prompt has 1 to max_seq_len ids. Cached prefixes are used again.
        """
        ...

    def decode(self, token_ids: Ids) -> "Tensor":
        """Append ids to the rows. Return (B, V) logits for (B,) ids, and (B, T, V) logits for (B, T) ids."""
        ...

    def reorder(self, rows: Ids) -> None:
        """Make row i a copy of row rows[i]. So rows are kept, dropped or copied."""
        ...

    def rewind(self, n_tokens: Sequence[int]) -> None:
        """Remove the last n_tokens[i] tokens of row i."""
        ...

    def hidden(self) -> "Tensor":
        """Return the last hidden state of each row's last token, after the final norm; (B, C)."""
        ...

    def open(self, model: str | None = None) -> "Session":
        """Open a second, empty session of the same model, or of another checkpoint."""
        ...


class Vocabulary(Protocol):
    """The tokens as text, for stages that work with words."""

    @property
    def pieces(self) -> Sequence[str]:
        """The text that each token adds to a text that has begun, by id. It is empty for a token that is not text."""
        ...

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """Return the token ids of a text. BOS comes first if `bos` is True and the vocabulary has one."""
        ...

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        ...


def _never() -> bool:
    return False


def common_prefix(a: Sequence[object], b: Sequence[object]) -> int:
    """Return the number of leading items that two sequences share."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def latest_half(token_ids: Sequence[int], max_seq_len: int) -> Sequence[int]:
    """Return the context to continue with when it is full: the first token (BOS) and the latest half."""
    return [*token_ids[:1], *token_ids[len(token_ids) - max(1, max_seq_len // 2) :]]


@dataclass(frozen=True)
class Request:
    """One story to write.

    Attributes:
        prompt_ids: the story so far, BOS included; at least one id.
        max_new_tokens: the largest number of tokens that may be committed.
        seed: the seed of the coupled noise.
        n_prompt: the number of `prompt_ids` that the user wrote; the rest was generated earlier. None means all.
        story: the number of the branch; it enters the noise.
        stop: asked after every event. If it returns True, the story finishes with the reason "stop".
        cancel: asked after every event. If it returns True, the story finishes with the reason "cancelled".
        window: cuts a story that is longer than the model's context. It gets the ids of the whole story and
            max_seq_len, and returns at most max_seq_len ids to continue with, the latest last. The same story must
            give the same ids.
        vocabulary: the tokens as text; None if the tokens have no text.
        opener: opens a second session, of the same model (None) or of a checkpoint by its name. The loop sets it. None
            means that nothing can be opened.
        choose: shows (V,) logits to a person and returns the id that they pick; None if nobody can be asked.
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    seed: int
    n_prompt: int | None = None
    story: int = 0
    stop: Callable[[], bool] = _never
    cancel: Callable[[], bool] = _never
    window: Window = latest_half
    vocabulary: Vocabulary | None = None
    opener: "Callable[[str | None], Session] | None" = None
    choose: "Callable[[Tensor, Step], int] | None" = None

    def __post_init__(self) -> None:
        """Check the request.

        Raises:
            UsageError: the prompt has no token, or max_new_tokens is negative.
        """
        if not self.prompt_ids:
            raise UsageError("the prompt is empty and this model has no BOS token: give a first word")
        if self.max_new_tokens < 0:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 0")

    def require_vocabulary(self) -> Vocabulary:
        """Return the tokens as text. Raise UsageError if they have no text."""
        if self.vocabulary is None:
            raise UsageError("this stage works with words, but it was not told the text of the tokens")
        return self.vocabulary

    def open(self, model: str | None = None) -> Session:
        """Open a second, empty session of the model that writes, or of another checkpoint.

        Raises:
            UsageError: this request may not open a model.
            CheckpointError: the other checkpoint is missing or invalid.
        """
        if self.opener is None:
            raise UsageError("this stage needs a second model, but no model can be opened here")
        return self.opener(model)

    def interrupted(self) -> FinishReason | None:
        """Return the reason if the story has to end now; None if it goes on."""
        return "cancelled" if self.cancel() else "stop" if self.stop() else None

    def reason_to_end(self, n_new: int) -> FinishReason | None:
        """Return the reason if a story of n_new new tokens has to end now; None if it goes on."""
        return self.interrupted() or ("length" if n_new >= self.max_new_tokens else None)


class Step:
    """Everything that a stage may know about the token that is picked now. It is read-only.

    Attributes:
        token_ids: the story so far, prompt included.
        n_prompt: the number of these ids that the user wrote.
        eos_ids: the tokens that end a story.
        state: the state of this stage, which its `start` and `observe` have returned.
    """

    __slots__ = ("_request", "eos_ids", "n_prompt", "state", "token_ids")

    def __init__(self, request: Request, token_ids: Sequence[int], eos_ids: frozenset[int], state: Any = None) -> None:
        self._request = request
        self.token_ids = token_ids
        self.n_prompt = len(request.prompt_ids) if request.n_prompt is None else request.n_prompt
        self.eos_ids = eos_ids
        self.state = state

    @property
    def position(self) -> int:
        """The index of this token in the story, prompt included."""
        return len(self.token_ids)

    def noise(self, stream: str = "token") -> Noise:
        """Return the noise at this position. A stage that does not pick the token needs a stream of its own."""
        return Noise(self._request.seed, stream, self._request.story, self.position)

    def for_stage(self, state: Any) -> "Step":
        """Return the same step with the state of another stage."""
        return Step(self._request, self.token_ids, self.eos_ids, state)
