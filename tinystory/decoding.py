"""The decoder contract: what a decoding strategy is given, what it yields, and how its stages chain.

A decoder is a chain of stages: logits processors, then a sampler, or a search that owns the loop. Stages are
frozen dataclasses of options; whatever lives from token to token is an immutable value that `observe` replaces,
so a beam copies it by assignment and an undone token goes back to the older value.

Nothing here imports torch when it is loaded, and nothing here knows text.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np

from tinystory.errors import TinystoryError, UsageError
from tinystory.noise import Noise
from tinystory.options import check_options, is_neutral, option

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Chain", "Commit", "Decoder", "Draft", "Event", "Finish", "FinishReason", "LogitsProcessor", "Request",
    "Sampler", "Search", "Session", "Stage", "Step", "Token", "Window", "draw", "option",
]  # fmt: skip

FinishReason = Literal["eos", "length", "stop", "cancelled"]

Window = Callable[[Sequence[int], int], Sequence[int]]
"""What stays in sight of a story that has outgrown the model: its ids and max_seq_len -> the context to go on with."""


@dataclass(frozen=True, slots=True)
class Token:
    """A picked token.

    Attributes:
        id: the token id.
        logprob: its natural-log probability under the model's own softmax, before any processor; in nats.
        rank: its place under that distribution: 0 is the likeliest, equals share a place; -1 is unknown.
        entropy: of that distribution, in bits, 0 to log2(V); NaN is unknown.
    """

    id: int
    logprob: float
    rank: int = -1
    entropy: float = math.nan

    @classmethod
    def of(cls, logits: "Tensor", token_id: int) -> "Token":
        """A token with what the model's own (V,) float32 logits tell of it; NumPy is the quicker for one row."""
        scores = logits.numpy(force=True)
        with np.errstate(invalid="ignore"):
            above = scores - scores.max()
            exps = np.exp(above)
            total, weighted = float(exps.sum()), float(exps.dot(above))
            if math.isnan(weighted):  # 0 · −inf; a removed token adds nothing
                weighted = float(exps.dot(np.maximum(above, -200)))
            log_total = math.log(total)
            rank = int(np.count_nonzero(scores > scores[token_id]))
            return cls(token_id, float(above[token_id]) - log_total, rank, (log_total - weighted / total) / math.log(2))


@dataclass(frozen=True, slots=True)
class Commit:
    """Tokens that are final."""

    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Draft:
    """A best guess at what follows the committed tokens; the next Draft or Commit replaces it."""

    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    """The last event of a story. An EOS token is never committed: the reason tells of it."""

    reason: FinishReason
    statistics: Mapping[str, float] = field(default_factory=dict)


Event = Commit | Draft | Finish


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

    def decode(self, token_ids: "Tensor") -> "Tensor":
        """Append (B,) ids, giving (B, V), or (B, T) ids, giving (B, T, V)."""
        ...

    def reorder(self, rows: "Tensor") -> None:
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
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    seed: int
    n_prompt: int | None = None
    story: int = 0
    stop: Callable[[], bool] = _never
    cancel: Callable[[], bool] = _never
    window: Window = latest_half

    def __post_init__(self) -> None:
        """Check the request.

        Raises:
            UsageError: the prompt has no token, or max_new_tokens is negative.
        """
        if not self.prompt_ids:
            raise UsageError("the prompt is empty and this model has no BOS token: give a first word")
        if self.max_new_tokens < 0:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 0")

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


class Stage:
    """A piece of a decoder: a frozen dataclass whose fields are its options.

    Subclass `LogitsProcessor`, `Sampler` or `Search`, set `name`, and declare options with `option()`.
    `example` is how a user might write the stage; error messages show it where there is no default to show.
    """

    name: ClassVar[str] = ""
    example: ClassVar[str] = ""
    kind: ClassVar[Literal["processor", "sampler", "search"]]

    def __post_init__(self) -> None:
        """Check the options; raises UsageError."""
        check_options(self, self.name)

    def start(self, request: Request) -> Any:
        """The stage's state before the first token; an immutable value."""
        return None

    def observe(self, state: Any, token_id: int, logits: "Tensor") -> Any:
        """The state after a token was picked; `logits` are those this stage received for it."""
        return state


class LogitsProcessor(Stage):
    """Logits in, logits out."""

    kind = "processor"

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """(V,) -> (V,) float32, a new tensor; −inf removes a token, at least one must stay."""
        raise TypeError(f"{type(self).__name__} defines no __call__")


class Sampler(Stage):
    """Picks the token."""

    kind = "sampler"

    def __call__(self, logits: "Tensor", step: Step) -> int:
        """(V,) logits, at least one finite -> a token id."""
        raise TypeError(f"{type(self).__name__} defines no __call__")

    def log_probs(self, logits: "Tensor", step: Step) -> "Tensor | None":
        """With which probability each token would be picked: (V,) natural logs; None where that is unknown."""
        return None


class Search(Stage):
    """Owns the loop."""

    kind = "search"
    takes_sampler: ClassVar[bool] = False
    needs_rewind: ClassVar[bool] = False
    needs_reorder: ClassVar[bool] = False

    def search(self, session: Session, request: Request, chain: "Chain") -> Iterator[Event]:
        """Yield Commits and Drafts, then one Finish; poll `request.interrupted()` after each."""
        raise TypeError(f"{type(self).__name__} defines no search")


def draw(logits: "Tensor", noise: Noise, temperature: float = 1.0) -> int:
    """Draw from softmax(logits / temperature) by Gumbel-max with coupled noise, in float64 on the CPU.

    Args:
        logits: (V,); −inf tokens are never drawn and no noise is made for them.
        noise: of the step, stream "token".
        temperature: greater than 0.
    """
    scores = logits.numpy(force=True).astype(np.float64)
    kept = np.flatnonzero(scores > -np.inf)
    return int(kept[np.argmax(scores[kept] / temperature + noise.gumbel(kept))])


ChainState = tuple[Any, ...]
"""One state per stage of a chain, processors first."""


@dataclass(frozen=True)
class Chain:
    """Processors in order and, but for some searches, a sampler. Stages at their neutral value are left out."""

    processors: tuple[LogitsProcessor, ...]
    sampler: Sampler | None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Processors and sampler."""
        return (*self.processors, *([self.sampler] if self.sampler else []))

    def start(self, request: Request) -> ChainState:
        """The state before the first new token."""
        state = []
        for stage in self.stages:
            with named(stage):
                state.append(stage.start(request))
        return tuple(state)

    def process(self, logits: "Tensor", step: Step, state: ChainState) -> "tuple[Tensor, list[Tensor]]":
        """Run the processors.

        Returns:
            The processed (V,) logits, and what each stage received, for `observe`.

        Raises:
            TinystoryError: a processor failed, or removed every token.
        """
        received = self.receive(logits, step, state)
        logits = received[-1]
        if not -np.inf < logits.numpy(force=True).max() < np.inf:
            names = " | ".join(stage.name for stage in self.processors) or "the model"
            raise TinystoryError(
                f"no token is left: {names} removed them all, or gave NaN or +inf, at position {step.position}"
            )
        return logits, received

    def receive(self, logits: "Tensor", step: Step, state: ChainState) -> "list[Tensor]":
        """What each processor receives, and what comes out of the last one: maybe no token at all."""
        received = [logits]
        for stage, own in zip(self.processors, state, strict=False):
            with named(stage):
                logits = stage(logits, step.for_stage(own))
                if type(logits) is not type(received[-1]):
                    raise TypeError(f"gave a {type(logits).__name__}, not a tensor")
                if logits.shape != received[-1].shape:
                    raise ValueError(f"gave logits of shape {tuple(logits.shape)}, not {tuple(received[-1].shape)}")
            received.append(logits)
        return received

    def pick(self, logits: "Tensor", step: Step, state: ChainState) -> tuple[int, ChainState]:
        """Process, sample, and move the state on: the token id and the next state."""
        if self.sampler is None:
            raise TypeError("this chain has no sampler")
        logits, received = self.process(logits, step, state)
        with named(self.sampler):
            token_id = int(self.sampler(logits, step.for_stage(state[-1])))
            if not 0 <= token_id < len(logits):
                raise ValueError(f"picked token {token_id}; the vocabulary has {len(logits)} tokens")
        return token_id, self.observe(state, token_id, received)

    def observe(self, state: ChainState, token_id: int, received: "Sequence[Tensor]") -> ChainState:
        """The state after a token, from what each stage received for it."""
        following = []
        for stage, own, logits in zip(self.stages, state, received, strict=False):
            with named(stage):
                following.append(stage.observe(own, token_id, logits))
        return tuple(following)


class named:  # a context manager in lower case, like contextlib's
    """Turn whatever a stage raises into one line that names it."""

    __slots__ = ("stage",)

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, TinystoryError):
            summary = f"{type(error).__name__}: {error}".splitlines()[0]
            raise TinystoryError(f"decoder stage {self.stage.name} failed: {summary}") from error


@dataclass(frozen=True)
class Decoder:
    """What a spec describes: processors, a sampler, a search. Equal specs give equal decoders."""

    processors: tuple[LogitsProcessor, ...] = ()
    sampler: Sampler | None = None
    search: Search | None = None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages as written, those at a neutral value included."""
        return (*self.processors, *(s for s in (self.sampler, self.search) if s is not None))

    @property
    def chain(self) -> Chain:
        """The stages that pick single tokens, without those at a neutral value."""
        return Chain(tuple(p for p in self.processors if not is_neutral(p)), self.sampler)
