"""Defaults of the flags: environment over configuration file over built-in. Imports nothing heavy."""

import os
import tomllib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import platformdirs

from tinystory.errors import UsageError

__all__ = ["BUILT_IN", "config_file", "defaults", "parse"]

BUILT_IN: Mapping[str, Any] = {
    "model": "default",
    "decoder": "sample 0.8",
    "seed": None,
    "max_tokens": 256,
    "device": "cpu",
    "dtype": "float32",
    "color": "auto",
}
"""What holds where nothing else is said; a seed of None is drawn and printed."""

COLORS = ("auto", "always", "never")
MAX_TOKENS = 10_000_000


def config_file() -> Path:
    """Where the user's defaults are read from."""
    return platformdirs.user_config_path("tinystory") / "config.toml"


def defaults(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The value of every setting, before flags.

    Raises:
        UsageError: the file or a variable holds something that is no setting or out of range.
    """
    values = dict(BUILT_IN)
    path = config_file()
    for name, value in _read(path).items():
        if name not in BUILT_IN:
            near = get_close_matches(str(name), BUILT_IN, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(BUILT_IN)}"
            raise UsageError(f"{path}: {name!r} is not a setting; {hint}")
        values[name] = parse(name, value, str(path))
    for name in BUILT_IN:
        variable = f"TINYSTORY_{name.upper()}"
        if environment.get(variable):
            values[name] = parse(name, environment[variable], variable)
    return values


def parse(name: str, value: object, origin: str = "") -> Any:
    """Check one setting, given as text or as a TOML value.

    Raises:
        UsageError: it is out of range; the message names the range, and the origin where there is one.
    """
    kind, described = _KINDS[name]
    try:
        return kind(value)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{origin and f'{origin}: '}{name} must be {described}, not {value!r}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value


def _one_of(*choices: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if value not in choices:
            raise ValueError
        return str(value)

    return check


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
    "dtype": (_one_of("float32", "bfloat16", "float16"), "float32, bfloat16 or float16"),
    "color": (_one_of(*COLORS), "auto, always or never"),
}
