"""What a decoder is asked for, the doors it may use, and what a stage may know at one step.

Nothing here imports torch when it is loaded.
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
"""What stays in sight of a story that has outgrown the model: its ids and max_seq_len -> the context to go on with."""


Ids = Union["Tensor", Sequence[int], Sequence[Sequence[int]]]
"""Integers for a session: a tensor, or lists of the same shape."""


class Session(Protocol):
    """B rows of one model, each with its own length: the only door from a decoder to a model.

    Logits are float32, (B, V), for the token after each row's last one.
    """

    vocab_size: int
    bos_id: int | None
    eos_ids: frozenset[int]
    max_seq_len: int
    can_rewind: bool
    can_reorder: bool

    def prefill(self, prompts: "Sequence[Sequence[int]]") -> "Tensor":
        """Make the rows hold these prompts, reusing cached prefixes; (B, V). A prompt has 1..max_seq_len ids."""
        ...

    def decode(self, token_ids: Ids) -> "Tensor":
        """Append (B,) ids, giving (B, V), or (B, T) ids, giving (B, T, V)."""
        ...

    def reorder(self, rows: Ids) -> None:
        """Row i becomes a copy of row rows[i]: keep, drop or duplicate."""
        ...

    def rewind(self, n_tokens: Sequence[int]) -> None:
        """Forget the last n_tokens[i] tokens of row i."""
        ...

    def hidden(self) -> "Tensor":
        """The normed last hidden state of each row's last token; (B, d_model)."""
        ...

    def open(self, model: str | None = None) -> "Session":
        """A second, empty session: of the same model, or of another checkpoint (draft, amateur)."""
        ...


class Vocabulary(Protocol):
    """The tokens as text, for stages that think in words."""

    @property
    def pieces(self) -> Sequence[str]:
        """What each token adds to a text that has begun, by id; empty for one that is not text."""
        ...

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """Token ids of a text, with BOS first where asked and the vocabulary has one."""
        ...

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text of a sequence of ids."""
        ...


def _never() -> bool:
    return False


def common_prefix(a: Sequence[object], b: Sequence[object]) -> int:
    """How many leading items two sequences share."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def latest_half(token_ids: Sequence[int], max_seq_len: int) -> Sequence[int]:
    """The context kept when it is full: the first token (BOS) and the latest half."""
    return [*token_ids[:1], *token_ids[len(token_ids) - max(1, max_seq_len // 2) :]]


@dataclass(frozen=True)
class Request:
    """One story to write.

    Attributes:
        prompt_ids: the story so far, BOS included; at least one id.
        max_new_tokens: at most so many tokens are committed.
        seed: of the coupled noise.
        n_prompt: how many of `prompt_ids` are the writer's; the rest was generated earlier. None: all.
        story: number among siblings; enters the noise.
        stop: polled after every event; True finishes with reason "stop".
        cancel: polled after every event; True finishes with reason "cancelled".
        window: given the story's ids, which have outgrown the model's context, and its max_seq_len: the ids to go
            on with, at most max_seq_len of them, the latest last. The same story must give the same ids.
        vocabulary: the tokens as text; None where they have none.
        opener: opens a second session, of the same model or of a checkpoint by name; None where nothing may be opened.
            The loop sets it.
        choose: shows a person (V,) logits and gives the id that is taken; None where nobody can be asked.
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
        """The tokens as text; raises UsageError where they have none."""
        if self.vocabulary is None:
            raise UsageError("this stage thinks in words, and nobody has said what the tokens are in text")
        return self.vocabulary

    def open(self, model: str | None = None) -> Session:
        """A second, empty session: of the model that writes, or of another checkpoint.

        Raises:
            UsageError: nothing may be opened here.
            CheckpointError: the other checkpoint is missing or invalid.
        """
        if self.opener is None:
            raise UsageError("this stage needs a second model, and here none can be opened")
        return self.opener(model)

    def interrupted(self) -> FinishReason | None:
        """Whether the story has to end now, and why."""
        return "cancelled" if self.cancel() else "stop" if self.stop() else None


class Step:
    """What a stage may know about the token being picked; read-only.

    Attributes:
        token_ids: the story so far, prompt included.
        n_prompt: how many of them are the writer's.
        eos_ids: the tokens that end a story.
        state: what this stage's `start` and `observe` have returned.
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
        """Absolute index in the story of the token being picked."""
        return len(self.token_ids)

    def noise(self, stream: str = "token") -> Noise:
        """The luck at this position; a stage that does not pick the token uses a stream of its own."""
        return Noise(self._request.seed, stream, self._request.story, self.position)

    def for_stage(self, state: Any) -> "Step":
        """The same step as another stage sees it."""
        return Step(self._request, self.token_ids, self.eos_ids, state)
