"""Find the value of each setting and its origin: a flag, else the environment, the configuration file, or the default.

It imports nothing heavy, and must not know who uses a setting.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinystory.dtypes import COMPUTED_DTYPES
from tinystory.errors import UsageError, nearest
from tinystory.folders import config_file
from tinystory.safe.reading import is_absent, read_toml, shown

__all__ = [
    "BUILT_IN",
    "CHOICES",
    "MAX_TOKENS",
    "RETIRED",
    "Setting",
    "allowed",
    "parse",
    "random_seed",
    "resolve_settings",
    "variable",
]

BUILT_IN: Mapping[str, Any] = {
    "model": "default",
    "decoder": "sample 0.8",
    "seed": None,
    "max_tokens": 256,
    "device": "cpu",
    "dtype": "float32",
    "engine": "compiled",
    "color": "auto",
    "theme": "auto",
    "keys": "emacs",
}
"""The default of each setting. A seed of None means that a seed is drawn at random and printed."""

CHOICES: Mapping[str, tuple[str, ...]] = {
    "dtype": COMPUTED_DTYPES,
    "engine": ("compiled", "numpy"),
    "color": ("auto", "always", "never"),
    "theme": ("auto", "dark", "light"),
    "keys": ("emacs", "vi"),
}
"""All values of each setting that has only a few."""

RETIRED: Mapping[str, str] = {
    "compile": "does nothing any more: compiled code is the default, and the setting engine has the other choice, numpy"
}
"""Settings of earlier versions that are still accepted, and what is said of them."""

MAX_TOKENS = 10_000_000
"""The largest value of the setting max_tokens."""


@dataclass(frozen=True)
class Setting:
    """One setting with its value and its origin.

    Attributes:
        name: a key of `BUILT_IN`.
        value: the checked value; None for a seed that is still to be drawn.
        origin: `built-in`, the path of the configuration file, the name of the environment variable, or `flag --name`.
    """

    name: str
    value: Any
    origin: str = "built-in"

    @property
    def shown(self) -> str:
        """The value, as a user would write it."""
        return "random" if self.value is None else str(self.value)


def variable(name: str) -> str:
    """Return the name of the environment variable of a setting."""
    return f"TINYSTORY_{name.upper()}"


def random_seed() -> int:
    """Return a random seed of six digits, which is short enough to type again."""
    import random

    return random.SystemRandom().randrange(100_000, 1_000_000)


def resolve_settings(
    given: Iterable[Setting] = (), environment: Mapping[str, str] = os.environ, warnings: list[str] | None = None
) -> tuple[Setting, ...]:
    """Return all settings, in the order of `BUILT_IN`.

    Args:
        given: settings from flags, which override all others. If two have one name, the last one counts.
        environment: the environment variables.
        warnings: gets a line if the system does not let the configuration file be read, where the defaults hold, and
            a line for each setting of `RETIRED`.

    Raises:
        UsageError: the file is damaged, it has an unknown setting, or the file or a variable has a wrong value.
    """
    settings = {name: Setting(name, value) for name, value in BUILT_IN.items()}
    warnings = [] if warnings is None else warnings
    for setting in (*_from_file(config_file(), warnings), *_from_environment(environment, warnings), *given):
        settings[setting.name] = setting
    return tuple(settings.values())


def parse(name: str, value: object, origin: str = "") -> Any:
    """Check the value of a setting, and return it in the type of the setting.

    Args:
        name: the name of the setting.
        value: a text, or a value from TOML.
        origin: the place of the value, for the error message.

    Raises:
        UsageError: the value is wrong; the message says which values are allowed.
    """
    kind, described = _KINDS[name]
    try:
        return kind(value)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{origin and f'{origin}: '}{name} must be {described}, not {shown(value)}") from error


def allowed(name: str) -> str:
    """Return in words which values a setting may have."""
    return _KINDS[name][1]


def _from_file(path: Path, warnings: list[str]) -> Iterator[Setting]:
    for name, value in _read(path, warnings).items():
        if name in RETIRED:
            warnings.append(f"{path}: {name} {RETIRED[name]}")
            continue
        if name not in BUILT_IN:
            near = nearest(name, BUILT_IN)
            hint = f"did you mean {near}?" if near else f"there are {', '.join(BUILT_IN)}"
            raise UsageError(f"{path}: {shown(name)} is not a setting; {hint}")
        yield Setting(name, parse(name, value, str(path)), str(path))


def _from_environment(environment: Mapping[str, str], warnings: list[str]) -> Iterator[Setting]:
    warnings += [f"{variable(name)} {said}" for name, said in RETIRED.items() if environment.get(variable(name))]
    for name in BUILT_IN:
        text = environment.get(variable(name))
        if text:
            yield Setting(name, parse(name, text, variable(name)), variable(name))


def _read(path: Path, warnings: list[str]) -> dict[str, Any]:
    """Return the content of the configuration file; empty if there can be no such file, or if it may not be read."""
    if is_absent(path):
        return {}
    try:
        return read_toml(path, raises=UsageError)
    except UsageError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        warnings.append(f"{error}; the settings have their defaults")
        return {}


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value


def _choice(name: str) -> tuple[Callable[[object], str], str]:
    """Return the check of a setting with few values, and these values in words."""
    choices = CHOICES[name]

    def check(value: object) -> str:
        if value not in choices:
            raise ValueError
        return str(value)

    return check, f"{', '.join(choices[:-1])} or {choices[-1]}"


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str) or len(str(value)) > 40:
        raise ValueError
    return int(value)


def _seed(value: object) -> int | None:
    return None if value == "random" else _whole(value)


def _token_count(value: object) -> int:
    number = _whole(value)
    if not 1 <= number <= MAX_TOKENS:
        raise ValueError
    return number


_KINDS: Mapping[str, tuple[Callable[[object], Any], str]] = {
    "model": (_text, "a folder or a hub id"),
    "decoder": (_text, "a decoder, like `top-k 40 | sample 0.8`"),
    "seed": (_seed, "a whole number or random"),
    "max_tokens": (_token_count, f"a whole number from 1 to {MAX_TOKENS:,}"),
    "device": (_text, "a device, like cpu or cuda"),
} | {name: _choice(name) for name in CHOICES}
