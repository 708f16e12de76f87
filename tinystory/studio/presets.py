"""Decoders under names of the user's own: a TOML file of `name = "spec"` in the configuration folder."""

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from tinystory.errors import UsageError, nearest
from tinystory.folders import presets_file
from tinystory.safe.reading import shown
from tinystory.safe.writing import write_atomically

__all__ = [
    "SUGGESTED", "check_name", "preset_names", "read_presets", "unknown_preset", "write_presets",
]  # fmt: skip

SUGGESTED = "min-p 0.05 | xtc | sample"
"""The preset `suggested`, unless the user has one of that name: nearest to real stories in docs/study.md."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_MAX_BYTES = 2**20


def read_presets() -> tuple[dict[str, str], str]:
    """The specs by name, as they are written there, and a warning, mostly empty.

    A damaged file is set aside under another name, which the warning tells, and counts as an empty one.

    Raises:
        UsageError: the file cannot be read, or not be set aside.
    """
    path = presets_file()
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return {}, ""
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    found = _parsed(raw)
    return (found, "") if found is not None else ({}, _set_aside(path))


def preset_names() -> list[str]:
    """For completion: all names, none where there is trouble; the file stays as it is."""
    try:
        saved = _parsed(presets_file().read_bytes()[: _MAX_BYTES + 1]) or {}
    except OSError:
        saved = {}
    return sorted({"suggested", *saved})


def write_presets(presets: Mapping[str, str]) -> None:
    """Replace the file.

    Args:
        presets: canonical specs by name, each checked by `check_name`.

    Raises:
        UsageError: it cannot be written; the old one is still there.
    """
    path = presets_file()
    # Neither a name nor a spec has control characters, and of the rest JSON and TOML write strings alike.
    lines = [f"{name} = {json.dumps(spec, ensure_ascii=False)}\n" for name, spec in sorted(presets.items())]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(lines).encode())
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error


def check_name(name: str) -> str:
    """The name; raises UsageError where it cannot be one."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{shown(name)} cannot name a preset: take up to 40 letters, digits, - and _")
    return name


def unknown_preset(name: str, presets: Mapping[str, str]) -> UsageError:
    """What to raise for a name that is not there: it tells the nearest."""
    near = nearest(name, presets) if name else None
    there = f"there are {', '.join(sorted(presets))}" if presets else "none is saved; /preset save NAME saves one"
    return UsageError(f"no preset is called {shown(name)}: {f'did you mean {near}?' if near else there}")


def _parsed(raw: bytes) -> dict[str, str] | None:
    """The file's content; None where it is damaged."""
    if len(raw) > _MAX_BYTES:
        return None
    try:
        found = tomllib.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError):  # what TOML and UTF-8 are not is a ValueError
        return None
    proper = all(_NAME.fullmatch(name) and isinstance(spec, str) for name, spec in found.items())
    return found if proper else None


def _set_aside(path: Path) -> str:
    """Give a damaged file a name of its own; the warning."""
    n = 1
    while (aside := path.with_name(f"{path.name}.damaged-{n}")).exists():
        n += 1
    try:
        os.rename(path, aside)
    except OSError as error:
        raise UsageError(f"{path} is damaged, and cannot be set aside: {error.strerror}") from error
    return f"{path} is damaged: it is set aside as {aside.name}, and no preset is known"
