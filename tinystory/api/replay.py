"""Write the turns of a session of the chat again, and see whether they come out the same."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinystory.decoding.plugins import discover
from tinystory.errors import SessionError, UsageError
from tinystory.folders import sessions_folder
from tinystory.safe.reading import shown
from tinystory.safe.showing import visible
from tinystory.story.replay import Difference
from tinystory.story.replay_session import ReplayedTurn, replay_session, written_turns
from tinystory.story.session_file import load_session

__all__ = ["Replay", "TurnAgain", "replay"]


@dataclass(frozen=True)
class TurnAgain:
    """A turn that was written again.

    Attributes:
        turn: its number in the session.
        spec: its decoder.
        seed: its seed.
        ok: True if the same model wrote the same turn, up to numerical ties.
        tokens: how many tokens were checked; the end of the story counts as one.
        ties: how many numerical ties went another way.
        difference: the first difference that is not a tie; None if there is none.
        unchecked: why the turn could not be checked; empty if it was.
    """

    turn: int
    spec: str
    seed: int
    ok: bool
    tokens: int
    ties: int
    difference: Difference | None
    unchecked: str


@dataclass(frozen=True)
class Replay:
    """The turns of a session that were written again, up to the first one that differs.

    Attributes:
        file: the file of the session.
        turns: the turns, in the order in which they were written.
        n_turns: how many turns of the session a model has written.
    """

    file: Path
    turns: tuple[TurnAgain, ...]
    n_turns: int

    @property
    def ok(self) -> bool:
        """True if every turn came out the same."""
        return all(turn.ok for turn in self.turns)

    def __repr__(self) -> str:
        """Say how many turns came out the same."""
        return f"<Replay of {self.file.stem}: {sum(turn.ok for turn in self.turns)} of {self.n_turns} turns the same>"


def replay(session: str | Path, *, model: str | None = None, device: str = "cpu") -> Replay:
    """Write every turn of a session again, and compare it with what was kept.

    Examples:
        >>> import tinystory as ts
        >>> ts.replay("no-such-session")
        Traceback (most recent call last):
        ...
        tinystory.errors.SessionError: there is no session 'no-such-session', and no file of this name

    Args:
        session: the name of a session of the chat, or a file.
        model: the model to write with; None is the model that each turn names, if it ships with tinystory.
        device: where the model runs, like "cpu" or "cuda".

    Raises:
        SessionError: there is no such session, or its file is damaged.
        CheckpointError: a turn names a model that does not ship with tinystory.
        UsageError: a stage is not installed.
        TinystoryError: a stage failed.
    """
    file = _file_of(session)
    chat = load_session(file)
    registry = discover()
    _warn(registry.warnings)
    turns = tuple(map(_again, replay_session(chat, registry, model=model, device=device, tell=_warn)))
    return Replay(file, turns, len(written_turns(chat)))


def _file_of(session: str | Path) -> Path:
    """Return the file of a session that is given by its name or as a file."""
    if not isinstance(session, str | Path):
        raise UsageError(f"the session is {shown(session)}; it must be the name or the file of a session")
    path = Path(session)
    named = sessions_folder() / f"{session}.json"
    if os.path.lexists(path):
        return path
    if path.name != str(session) or not named.is_file():
        raise SessionError(f"there is no session {shown(str(session))}, and no file of this name")
    return named


def _warn(lines: Sequence[str]) -> None:
    for line in lines:
        warnings.warn(visible(line), stacklevel=3)


def _again(replayed: ReplayedTurn) -> TurnAgain:
    result, written = replayed.result, replayed.written
    return TurnAgain(
        replayed.turn.id,
        written.spec,
        written.seed,
        replayed.ok,
        result.tokens,
        result.ties,
        result.difference,
        result.unchecked,
    )
