"""The subject of a measurement: a model, the settings, and a place for notes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinystory.errors import one_line
from tinystory.model.config import ModelConfig

__all__ = ["Settings", "Subject"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of every measurement.

    Attributes:
        pairs: the number of pairs of each measurement.
        tokens: the number of new tokens of a story.
        threads: the number of threads of both sides.
        rows: the number of rows of a training step.
        steps: the number of training steps that are timed.
        variants: names of `ours.VARIANTS`.
        data: sources of stories to train on; without any, tokens are random.
    """

    pairs: int
    tokens: int
    threads: int
    rows: int
    steps: int
    variants: tuple[str, ...]
    data: tuple[str, ...] = ()


@dataclass
class Subject:
    """A model to measure, with the settings and the notes of the parts that measure it.

    Attributes:
        name: the name of the model.
        directory: the folder of its checkpoint.
        config: its shape.
        settings: the settings of the call.
        checks: results that show that both sides did the same work; parts add to it.
        notes: a line for each thing that was left out; parts add to them.
    """

    name: str
    directory: Path
    config: ModelConfig
    settings: Settings
    checks: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def leave_out(self, what: str, reason: str | Exception) -> None:
        """Add a note that something is left out, unless the same note is there."""
        if isinstance(reason, Exception):
            reason = one_line(reason)
        if (note := f"{what} is left out: {reason}") not in self.notes:
            self.notes.append(note)
