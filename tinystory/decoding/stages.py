"""The decoder contract: what a decoding strategy is given, what it yields, and how its stages chain.

A decoder is a chain of stages: logits processors, then a sampler, or a search that owns the loop. Stages are
frozen dataclasses of options; whatever lives from token to token is an immutable value that `observe` replaces,
so a beam copies it by assignment and an undone token goes back to the older value.

Nothing here imports torch when it is loaded. What a decoder is asked for is in `request`, what it yields in `events`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from tinystory.decoding.events import Commit, Draft, Event, Finish, FinishReason, Token
from tinystory.decoding.options import check_options, is_neutral, option
from tinystory.decoding.request import Ids, Request, Session, Step, Vocabulary, Window, common_prefix, latest_half
from tinystory.errors import TinystoryError, one_line
from tinystory.noise import Noise

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Chain", "Commit", "Decoder", "Draft", "Event", "Finish", "FinishReason", "Ids", "LogitsProcessor", "Request",
    "Sampler", "Search", "Session", "Stage", "Step", "Token", "Vocabulary", "Window", "common_prefix", "draw",
    "latest_half", "option",
]  # fmt: skip


class Stage:
    """A piece of a decoder: a frozen dataclass whose fields are its options.

    Subclass `LogitsProcessor`, `Sampler` or `Search`, set `name`, and declare options with `option()`.
    `example` is how a user might write the stage; error messages show it where there is no default to show.
    `takes_arrays`: it works on a `numpy_session.Logits` as on a tensor, and so before torch is there.
    """

    name: ClassVar[str] = ""
    example: ClassVar[str] = ""
    kind: ClassVar[Literal["processor", "sampler", "search"]]
    takes_arrays: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the options; raises UsageError."""
        check_options(self, self.name)

    def start(self, request: Request) -> Any:
        """The stage's state before the first token; an immutable value."""
        return None

    def observe(self, state: Any, token_id: int, logits: "Tensor") -> Any:
        """The state after a token was picked; `logits` are those this stage received for it."""
        return state

    def models(self) -> tuple[str, ...]:
        """The checkpoints that this stage opens, by the names its options give; a file's spec opens no others."""
        return ()

    def statistics(self, state: Any) -> Mapping[str, float]:
        """What this stage tells of a finished story from its last state, for people to read; by name."""
        return {}


class LogitsProcessor(Stage):
    """Logits in, logits out."""

    kind = "processor"

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """(V,) -> (V,) float32, a new tensor; −inf removes a token, at least one must stay."""
        raise TypeError(f"{type(self).__name__} defines no __call__")


class Sampler(Stage):
    """Picks the token.

    `repeatable` is False where the pick follows from more than logits, step and state: a person's.
    """

    kind = "sampler"
    repeatable: ClassVar[bool] = True

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
    if scores.min() > -np.inf:  # all of them: nothing has to be picked out
        return int(np.argmax(scores / temperature + noise.gumbel_of_all(len(scores))))
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

    def statistics(self, state: ChainState) -> dict[str, float]:
        """What the stages tell of a finished story."""
        told: dict[str, float] = {}
        for stage, own in zip(self.stages, state, strict=True):
            with named(stage):
                told.update(stage.statistics(own))
        return told

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
        # Ctrl-C and a closed generator are not the stage's.
        if isinstance(error, Exception | SystemExit) and not isinstance(error, TinystoryError):
            raise TinystoryError(f"decoder stage {self.stage.name} failed: {one_line(error, kind=True)}") from error


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

    @property
    def models(self) -> tuple[str, ...]:
        """The checkpoints that its stages open, besides the model that writes."""
        return tuple(name for stage in self.stages for name in stage.models())
