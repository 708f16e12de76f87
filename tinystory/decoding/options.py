"""Options of decoder stages. One declaration gives the range, the neutral value, the help and the error messages."""

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinystory.docstrings import docstring
from tinystory.errors import UsageError
from tinystory.safe.reading import shown

__all__ = ["Option", "check_options", "is_neutral", "option", "options_of", "summary"]


@dataclass(frozen=True)
class Option:
    """The declaration of one option.

    Attributes:
        name: the name that users write, with hyphens.
        field: the name of the dataclass field, with underscores.
        type: int, float, bool, str, `tuple[str, ...]`, `tuple[float, ...]` or `Mapping[str, float]`.
        default: the value if the user writes none; `dataclasses.MISSING` if the user must write one.
        help: its meaning in one line.
        ge, gt, le, lt: the bounds of a number: ≥, >, ≤ and <. None is no bound.
        neutral: the value at which the stage does nothing; `dataclasses.MISSING` if no value does that.
        choices: the allowed strings; empty if every string is allowed.
        instead: what to do instead of writing a number that switches the method off in other programs.
    """

    name: str
    field: str
    type: Any
    default: Any
    help: str
    neutral: Any
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    choices: tuple[str, ...] = ()
    instead: str = ""

    @property
    def required(self) -> bool:
        """True if the option has no default."""
        return self.default is dataclasses.MISSING

    @property
    def range(self) -> str:
        """The allowed values in words: "an integer ≥ 1", "a number > 0 and ≤ 1", "greedy or sample"."""
        if self.choices:
            return " or ".join(self.choices)
        if self.type is bool:
            return "yes or no"
        if typing.get_origin(self.type) is Mapping:
            return "pairs word=number"
        bounds = [(self.ge, "≥"), (self.gt, ">"), (self.le, "≤"), (self.lt, "<")]
        limits = " and ".join(f"{sign} {bound:g}" for bound, sign in bounds if bound is not None)
        kinds = {int: "an integer", float: "a number", str: "a text"}
        return " ".join(filter(None, (kinds.get(self.type, "a list separated by commas"), limits)))

    def problem(self, value: object) -> str | None:
        """Return why a value is not allowed; None if it is allowed."""
        container, item_type = typing.get_origin(self.type), self.type
        items: list[Any] = [value]
        if container in (tuple, Mapping):
            item_type = typing.get_args(self.type)[0 if container is tuple else 1]
            if not isinstance(value, container):
                return f"{self.name} must be {self.range}, not {shown(value)}"
            items = list(value.values() if isinstance(value, Mapping) else value)
        for item in items:
            number = isinstance(item, int | float) and not isinstance(item, bool)
            if item_type in (int, float):
                fits = number and (item_type is float or isinstance(item, int)) and self._in_bounds(item)
            else:
                fits = isinstance(item, item_type) and (not self.choices or item in self.choices)
            if not fits:
                return f"{self.name} must be {self.range}, not {shown(item)}"
        return None

    def advice(self, value: object) -> str:
        """Return what to do instead of writing a number out of range; empty if there is no advice.

        In other programs, a number that switches a method off is at most 1, such as −1, 0 or 1.
        """
        number = isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value <= 1
        return self.instead if number and not self._in_bounds(value) else ""

    def _in_bounds(self, value: Any) -> bool:
        if isinstance(value, float) and not math.isfinite(value):
            return False
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    neutral: Any = dataclasses.MISSING,
    choices: tuple[str, ...] = (),
    instead: str = "",
) -> Any:
    """Declare a dataclass field as a decoder option.

    Args:
        default: the value if the user writes none. Leave it out to make the option required.
        help: one line for `--help`, completion and error messages.
        ge: the smallest allowed value.
        gt: the value must be greater than this.
        le: the largest allowed value.
        lt: the value must be less than this.
        neutral: the value at which the stage changes nothing. A chain skips a stage that has this value.
        choices: the allowed strings.
        instead: what to do instead of writing a number that switches the method off in other programs, such as
            "leave the stage out". The message about a number out of range ends with it.
    """
    declared = {"help": help, "ge": ge, "gt": gt, "le": le, "lt": lt, "neutral": neutral, "choices": choices}
    return dataclasses.field(default=default, metadata={"option": declared | {"instead": instead}})


def options_of(cls: type) -> tuple[Option, ...]:
    """Return the options that a stage class declares, in the order of their declaration."""
    cached: tuple[Option, ...] | None = cls.__dict__.get("_options")
    if cached is None:
        hints = typing.get_type_hints(cls)
        cached = tuple(
            Option(f.name.replace("_", "-"), f.name, hints[f.name], f.default, **f.metadata["option"])
            for f in dataclasses.fields(cls)
            if "option" in f.metadata
        )
        cls._options = cached  # type: ignore[attr-defined]
    return cached


def check_options(stage: Any, name: str) -> None:
    """Check every option of a stage against its declaration.

    Raises:
        UsageError: a value has the wrong type or is out of range. The message names the range.
    """
    for declared in options_of(type(stage)):
        value = getattr(stage, declared.field)
        problem, advice = declared.problem(value), declared.advice(value)
        if problem:
            raise UsageError(f"{name}: {problem} ({declared.help})" + (f", or {advice}" if advice else ""))


def is_neutral(stage: Any) -> bool:
    """Return True if a stage has options with a neutral value and all of them have that value."""
    neutral = [o for o in options_of(type(stage)) if o.neutral is not dataclasses.MISSING]
    return bool(neutral) and all(getattr(stage, o.field) == o.neutral for o in neutral)


def summary(cls: type) -> str:
    """Return the first paragraph of a class's docstring as one line."""
    return " ".join(docstring(cls).split("\n\n")[0].split())
