"""Reading the fields of a JSON object that may come from a stranger, each checked for its type and range."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from tinystory.safe.reading import shown

__all__ = ["MAX_ID", "Fields", "WrongField", "is_id"]

MAX_ID = 2**31 - 1

_MAX_SEED = 10**40 - 1
_SURROGATE = re.compile("[\ud800-\udfff]")

T = TypeVar("T")


class WrongField(Exception):
    """A field is missing, or not what it has to be."""


@dataclass(frozen=True)
class Fields:
    """Gives an object's fields, checked; `where` names the object in errors."""

    values: Any
    where: str

    def __post_init__(self) -> None:
        if not isinstance(self.values, Mapping):
            raise WrongField(f"{self.where or 'the whole'} must be an object, not {shown(self.values)}")

    def get(self, name: str) -> Any:
        """A field, whatever it is."""
        if name not in self.values:
            raise WrongField(f"{self.where}{name} is missing")
        return self.values[name]

    def wrong(self, name: str, expected: str) -> WrongField:
        """The error for a field."""
        return WrongField(f"{self.where}{name} must be {expected}, not {shown(self.get(name))}")

    def whole(self, name: str, least: int = 0, most: int = MAX_ID) -> int:
        """A whole number from `least` to `most`."""
        value = self.get(name)
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(name, f"a whole number from {least} to {most}")
        return value

    def seed(self, name: str) -> int:
        """A seed."""
        return self.whole(name, -_MAX_SEED, _MAX_SEED)

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self.get(name)
        if type(value) is not bool:
            raise self.wrong(name, "true or false")
        return value

    def text(self, name: str) -> str:
        """A text that can be written as UTF-8."""
        value = self.get(name)
        if not _is_text(value):
            raise self.wrong(name, "text")
        return cast(str, value)

    def texts(self, name: str) -> tuple[str, ...]:
        """Texts, none of them empty."""
        value = self.get(name)
        if not isinstance(value, list) or not all(_is_text(one) and one for one in value):
            raise self.wrong(name, "a list of texts, none of them empty")
        return tuple(value)

    def ids(self, name: str) -> tuple[int, ...]:
        """Token ids."""
        value = self.get(name)
        if not isinstance(value, list) or not all(is_id(one) for one in value):
            raise self.wrong(name, "a list of token ids")
        return tuple(value)

    def items(self, name: str, read: Callable[[Any, str], T], most: int) -> list[T]:
        """A list, each item read by a function of it and its place."""
        value = self.get(name)
        if not isinstance(value, list) or len(value) > most:
            raise self.wrong(name, f"a list of at most {most:,}")
        return [read(one, f"{self.where}{name}[{n}]") for n, one in enumerate(value)]


def _is_text(value: object) -> bool:
    """Whether it is text that can be written as UTF-8 again: JSON can spell half characters."""
    return isinstance(value, str) and _SURROGATE.search(value) is None


def is_id(value: object) -> bool:
    """Whether it can be the number of a token or a node."""
    return type(value) is int and 0 <= value <= MAX_ID
