"""The stages of a decoder and how they work together.

A decoder is a chain of stages: logits processors, then a sampler. A search may come after them and controls the whole
loop. A stage is a frozen dataclass of options. What it has to remember from token to token is an immutable state, which
`observe` replaces. So a beam copies a state by assignment, and an undone token goes back to the older state.

This module knows no model and no text. Importing it does not import torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from tinystory.decoding.events import Event
from tinystory.decoding.options import check_options, is_neutral
from tinystory.decoding.request import Request, Session, Step
from tinystory.errors import TinystoryError, one_line
from tinystory.noise import Noise

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Chain", "ChainState", "Decoder", "LogitsProcessor", "Sampler", "Search", "Stage", "draw", "named"]


class Stage:
    """One part of a decoder: a frozen dataclass whose fields are its options.

    Subclass `LogitsProcessor`, `Sampler` or `Search`, set `name`, and declare options with `option()`.

    Attributes:
        name: the name in a spec.
        example: the stage as a user may write it. Error messages show it if an option has no default.
        kind: the role of the stage; its base class sets it.
        takes_arrays: True if the stage also works on a `numpy_session.Logits`, so it can run before torch is loaded.
    """

    name: ClassVar[str] = ""
    example: ClassVar[str] = ""
    kind: ClassVar[Literal["processor", "sampler", "search"]]
    takes_arrays: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the options. Raise UsageError if one has a wrong type or is out of range."""
        check_options(self, self.name)

    def start(self, request: Request) -> Any:
        """Return the stage's state before the first new token, an immutable value."""
        return None

    def observe(self, state: Any, token_id: int, logits: "Tensor") -> Any:
        """Return the state after a token was picked. `logits` are the (V,) logits that this stage received for it."""
        return state

    def models(self) -> tuple[str, ...]:
        """Return the names of the checkpoints that this stage opens.

        The loop lets it open no others. So a spec from a file shows which models it opens.
        """
        return ()

    def statistics(self, state: Any) -> Mapping[str, float]:
        """Return figures of a finished story, by name, from the stage's last state. They are shown to users."""
        return {}


class LogitsProcessor(Stage):
    """A stage that changes the logits."""

    kind = "processor"

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """Return new (V,) float32 logits for (V,) logits.

        −inf removes a token. At least one token must stay, and a removed token must not come back.
        """
        raise TypeError(f"{type(self).__name__} defines no __call__")


class Sampler(Stage):
    """A stage that picks one token from the logits.

    Attributes:
        repeatable: False if the pick depends on more than logits, step and state, such as the choice of a person.
    """

    kind = "sampler"
    repeatable: ClassVar[bool] = True

    def __call__(self, logits: "Tensor", step: Step) -> int:
        """Return the id of the picked token. At least one of the (V,) logits is finite."""
        raise TypeError(f"{type(self).__name__} defines no __call__")

    def log_probs(self, logits: "Tensor", step: Step) -> "Tensor | None":
        """Return (V,) natural log-probabilities with which the tokens are picked; None if they are unknown."""
        return None


class Search(Stage):
    """A stage that controls the whole loop and may follow several stories at once.

    Attributes:
        takes_sampler: True if the search runs a sampler that stands before it.
        needs_rewind: True if it calls `session.rewind`.
        needs_reorder: True if it calls `session.reorder`.
    """

    kind = "search"
    takes_sampler: ClassVar[bool] = False
    needs_rewind: ClassVar[bool] = False
    needs_reorder: ClassVar[bool] = False

    def search(self, session: Session, request: Request, chain: "Chain") -> Iterator[Event]:
        """Yield Commits and Drafts, then one Finish. Ask `request.interrupted()` after each event.

        It is called only if the story may have at least one token.
        """
        raise TypeError(f"{type(self).__name__} defines no search")


def draw(logits: "Tensor", noise: Noise, temperature: float = 1.0) -> int:
    """Draw from softmax(logits / temperature) by Gumbel-max with coupled noise, in float64 on the CPU.

    Args:
        logits: (V,). A token with −inf is never drawn.
        noise: the noise of the step, stream "token".
        temperature: greater than 0.

    Returns:
        The id of the drawn token.
    """
    scores = logits.numpy(force=True).astype(np.float64)
    if scores.min() > -np.inf:  # no token was removed: the faster way is possible
        return int(np.argmax(scores / temperature + noise.gumbel_of_all(len(scores))))
    kept = np.flatnonzero(scores > -np.inf)
    return int(kept[np.argmax(scores[kept] / temperature + noise.gumbel(kept))])


ChainState = tuple[Any, ...]
"""One state for each stage of a chain, processors first."""


@dataclass(frozen=True)
class Chain:
    """Processors in their order, and a sampler unless a search needs none. Stages at a neutral value are left out."""

    processors: tuple[LogitsProcessor, ...]
    sampler: Sampler | None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The processors, then the sampler."""
        return (*self.processors, *([self.sampler] if self.sampler else []))

    def start(self, request: Request) -> ChainState:
        """Return the state before the first new token."""
        state = []
        for stage in self.stages:
            with named(stage):
                state.append(stage.start(request))
        return tuple(state)

    def process(self, logits: "Tensor", step: Step, state: ChainState) -> "tuple[Tensor, list[Tensor]]":
        """Run the processors.

        Returns:
            The processed (V,) logits, and the logits that each stage received, for `observe`.

        Raises:
            TinystoryError: a processor failed or removed every token.
        """
        received = self.receive(logits, step, state)
        logits = received[-1]
        if not -np.inf < logits.numpy(force=True).max() < np.inf:
            names = " | ".join(stage.name for stage in self.processors) or "the model"
            raise TinystoryError(
                f"no token is left: {names} removed all of them, or gave NaN or +inf, at position {step.position}"
            )
        return logits, received

    def receive(self, logits: "Tensor", step: Step, state: ChainState) -> "list[Tensor]":
        """Return the logits that each processor receives, then those that the last one gives. All may be −inf."""
        received = [logits]
        for stage, stage_state in zip(self.processors, state, strict=False):
            with named(stage):
                logits = stage(logits, step.for_stage(stage_state))
                if type(logits) is not type(received[-1]):
                    raise TypeError(f"gave a {type(logits).__name__}, not a tensor")
                if logits.shape != received[-1].shape:
                    raise ValueError(f"gave logits of shape {tuple(logits.shape)}, not {tuple(received[-1].shape)}")
            received.append(logits)
        return received

    def pick(self, logits: "Tensor", step: Step, state: ChainState) -> tuple[int, ChainState]:
        """Process the logits and sample. Return the token id and the state after it."""
        if self.sampler is None:
            raise TypeError("this chain has no sampler")
        logits, received = self.process(logits, step, state)
        with named(self.sampler):
            token_id = int(self.sampler(logits, step.for_stage(state[-1])))
            if not 0 <= token_id < len(logits):
                raise ValueError(f"picked token {token_id}; the vocabulary has {len(logits)} tokens")
        return token_id, self.observe(state, token_id, received)

    def statistics(self, state: ChainState) -> dict[str, float]:
        """Return the figures of all stages for a finished story."""
        figures: dict[str, float] = {}
        for stage, stage_state in zip(self.stages, state, strict=True):
            with named(stage):
                figures.update(stage.statistics(stage_state))
        return figures

    def observe(self, state: ChainState, token_id: int, received: "Sequence[Tensor]") -> ChainState:
        """Return the state after a token, from the logits that each stage received for it."""
        next_state = []
        for stage, stage_state, logits in zip(self.stages, state, received, strict=False):
            with named(stage):
                next_state.append(stage.observe(stage_state, token_id, logits))
        return tuple(next_state)


class named:  # a context manager in lower case, like contextlib's
    """A context that turns an error of a stage into a TinystoryError of one line with the stage's name."""

    __slots__ = ("stage",)

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        # Ctrl-C and the closing of a generator are not errors of the stage.
        if isinstance(error, Exception | SystemExit) and not isinstance(error, TinystoryError):
            raise TinystoryError(f"decoder stage {self.stage.name} failed: {one_line(error, kind=True)}") from error


@dataclass(frozen=True)
class Decoder:
    """The method that a spec describes: processors, a sampler and a search. Equal specs give equal decoders."""

    processors: tuple[LogitsProcessor, ...] = ()
    sampler: Sampler | None = None
    search: Search | None = None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages in their written order, also those at a neutral value."""
        return (*self.processors, *(s for s in (self.sampler, self.search) if s is not None))

    @property
    def chain(self) -> Chain:
        """The processors and the sampler, without stages at a neutral value."""
        return Chain(tuple(p for p in self.processors if not is_neutral(p)), self.sampler)

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the checkpoints that its stages open, besides the model that writes."""
        return tuple(name for stage in self.stages for name in stage.models())
