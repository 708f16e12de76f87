"""Read the fields of a JSON object that may come from a stranger, and check the type and range of each."""

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
    """A field is missing, or has a wrong type or value."""


@dataclass(frozen=True)
class Fields:
    """A JSON object whose fields are checked when they are read. Every method raises `WrongField` for a wrong field.

    Attributes:
        values: the parsed object.
        where: the place of the object in error messages, put before the name of a field; like "nodes[3]." or "".
    """

    values: Any
    where: str

    def __post_init__(self) -> None:
        if not isinstance(self.values, Mapping):
            raise WrongField(f"{self.where or 'the whole'} must be an object, not {shown(self.values)}")

    def get(self, name: str) -> Any:
        """Return a field of any type."""
        if name not in self.values:
            raise WrongField(f"{self.where}{name} is missing")
        return self.values[name]

    def wrong(self, name: str, expected: str) -> WrongField:
        """Return the error for a field that is not as expected."""
        return WrongField(f"{self.where}{name} must be {expected}, not {shown(self.get(name))}")

    def whole(self, name: str, least: int = 0, most: int = MAX_ID) -> int:
        """Return a field that is a whole number from `least` to `most`."""
        value = self.get(name)
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(name, f"a whole number from {least} to {most}")
        return value

    def seed(self, name: str) -> int:
        """Return a field that is a seed: a whole number of at most 40 digits."""
        return self.whole(name, -_MAX_SEED, _MAX_SEED)

    def flag(self, name: str) -> bool:
        """Return a field that is true or false."""
        value = self.get(name)
        if type(value) is not bool:
            raise self.wrong(name, "true or false")
        return value

    def text(self, name: str, most: int | None = None) -> str:
        """Return a field that is a text of at most `most` characters and can be written as UTF-8."""
        value = self.get(name)
        if not _is_text(value):
            raise self.wrong(name, "text")
        if most is not None and len(value) > most:
            raise self.wrong(name, f"text of at most {most:,} characters")
        return cast(str, value)

    def texts(self, name: str, most: int, most_characters: int) -> tuple[str, ...]:
        """Return a field that is a list of at most `most` texts with `most_characters` together, none of them empty."""
        value = self.get(name)
        if not isinstance(value, list) or not all(_is_text(text) and text for text in value):
            raise self.wrong(name, "a list of texts, none of them empty")
        if len(value) > most or sum(map(len, value)) > most_characters:
            raise self.wrong(name, f"at most {most:,} texts with {most_characters:,} characters together")
        return tuple(value)

    def ids(self, name: str) -> tuple[int, ...]:
        """Return a field that is a list of token ids."""
        value = self.get(name)
        if not isinstance(value, list) or not all(is_id(token_id) for token_id in value):
            raise self.wrong(name, "a list of token ids")
        return tuple(value)

    def items(self, name: str, read: Callable[[Any, str], T], most: int) -> list[T]:
        """Return a field that is a list of at most `most` items.

        Args:
            name: the name of the field.
            read: converts one item, given the item and its place for error messages.
            most: the largest number of items.
        """
        value = self.get(name)
        if not isinstance(value, list) or len(value) > most:
            raise self.wrong(name, f"a list of at most {most:,}")
        return [read(item, f"{self.where}{name}[{n}]") for n, item in enumerate(value)]


def _is_text(value: object) -> bool:
    """Return whether a value is a text without lone surrogates: JSON can have them, but UTF-8 cannot."""
    return isinstance(value, str) and _SURROGATE.search(value) is None


def is_id(value: object) -> bool:
    """Return whether a value can be the id of a token or of a turn."""
    return type(value) is int and 0 <= value <= MAX_ID
