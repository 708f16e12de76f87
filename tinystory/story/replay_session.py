"""Write every turn of a session again with the models that wrote them. It knows no terminal.

A replay opens only models that ship with tinystory, or the one that the caller names: a file may name any model.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tinystory.decoding.plugins import Registry
from tinystory.dtypes import COMPUTED_DTYPES
from tinystory.errors import CheckpointError, UsageError
from tinystory.safe.reading import shown
from tinystory.session.loading import LoadedModel, load
from tinystory.story.replay import Replayed, is_local, replay_turn
from tinystory.story.saved_chat import SavedChat
from tinystory.story.tree import Turn, Written

__all__ = ["SHOWN_HASH", "ReplayedTurn", "replay_session", "written_turns"]

SHOWN_HASH = 12
"""The first characters of the hash of a model, which tell it from others."""


@dataclass(frozen=True)
class ReplayedTurn:
    """A turn, and what came of writing it again.

    Attributes:
        turn: the turn.
        written: how it was written.
        model: the model that wrote it again.
        result: the number of checked tokens, and the first difference.
    """

    turn: Turn
    written: Written
    model: LoadedModel
    result: Replayed

    @property
    def ok(self) -> bool:
        """True if the same model wrote the same turn, up to numerical ties."""
        return self.model.hash == self.written.model_hash and self.result.difference is None


def written_turns(chat: SavedChat) -> list[Turn]:
    """Return the turns that a model has written."""
    return [turn for turn in chat.tree.turns.values() if turn.written is not None]


def replay_session(
    chat: SavedChat,
    registry: Registry,
    *,
    model: str | None = None,
    device: str = "cpu",
    tell: Callable[[Sequence[str]], object] = lambda warnings: None,
) -> Iterator[ReplayedTurn]:
    """Yield the turns as they are written again, up to the first one that differs.

    Args:
        chat: the session.
        registry: has the stages of its specs.
        model: the model to write with; None is the model that each turn names.
        device: where the model runs, as torch names it.
        tell: gets the warnings about each model that is loaded.

    Raises:
        CheckpointError: a turn names a model that does not ship with tinystory, or the model is damaged.
        UsageError: a stage is not installed, or the file names an unknown dtype.
        TinystoryError: a stage failed, or a story is too long to be computed again.
    """
    opened: dict[tuple[str, str], LoadedModel] = {}
    for turn in written_turns(chat):
        written = turn.written
        assert written is not None
        key = _model_of(turn, written, model), written.dtype
        if key not in opened:
            opened.clear()  # only the last model stays loaded
            opened[key] = load(*key, device)
            tell(opened[key].warnings)
        try:
            replayed = ReplayedTurn(turn, written, opened[key], replay_turn(chat.tree, turn, opened[key], registry))
        except UsageError as error:
            raise UsageError(f"turn {turn.id}: {error}") from error
        yield replayed
        if not replayed.ok:
            return


def _model_of(turn: Turn, written: Written, given: str | None) -> str:
    """Return the name of the model that a turn is written again with."""
    name = given or written.model
    if given is None and not is_local(name):
        raise CheckpointError(
            f"turn {turn.id} was written with the model {name} ({written.model_hash[:SHOWN_HASH]}), which does not "
            "ship with tinystory\ngive its directory with -m: a replay opens no other model that a file names"
        )
    if written.dtype not in COMPUTED_DTYPES:
        raise UsageError(
            f"turn {turn.id} was computed in {shown(written.dtype)}; dtype must be one of {', '.join(COMPUTED_DTYPES)}"
        )
    return name
