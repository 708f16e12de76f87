"""Presets: decoders that the user has named, in a TOML file of `name = "spec"` in the configuration folder."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from tinystory.errors import UnreadableFile, UsageError, meant
from tinystory.folders import presets_file
from tinystory.safe.reading import is_absent, read_toml, regular_file_size, shown
from tinystory.safe.writing import write_atomically

__all__ = [
    "SUGGESTED", "check_name", "preset_names", "read_presets", "unknown_preset", "write_presets",
]  # fmt: skip

SUGGESTED = "min-p 0.05 | xtc | sample"
"""The preset `suggested`, unless the user has saved one of that name: the meant to real stories in docs/study.md."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")


def read_presets() -> tuple[dict[str, str], str]:
    """Return the specs by name, and a warning that is empty if all is well.

    A damaged file is renamed and counts as empty; the warning gives its new name.

    Raises:
        UsageError: the file cannot be read, or a damaged file cannot be renamed.
    """
    path = presets_file()
    if is_absent(path):
        return {}, ""
    presets = _parsed(path)
    return (presets, "") if presets is not None else ({}, _set_aside(path))


def preset_names() -> list[str]:
    """Return all names for completion; a file that cannot be read gives none, and stays as it is."""
    try:
        saved = _parsed(presets_file()) or {}
    except UsageError:
        saved = {}
    return sorted({"suggested", *saved})


def write_presets(presets: Mapping[str, str]) -> None:
    """Replace the file of presets.

    Args:
        presets: canonical specs by name, each checked by `check_name`.

    Raises:
        UsageError: the file cannot be written; the old one stays.
    """
    path = presets_file()
    # Names and specs have no control characters, and JSON and TOML write all other strings in the same way.
    lines = [f"{name} = {json.dumps(spec, ensure_ascii=False)}\n" for name, spec in sorted(presets.items())]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(lines).encode())
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error


def check_name(name: str) -> str:
    """Return the name; raises UsageError if it cannot name a preset."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{shown(name)} cannot name a preset: use 1 to 40 letters, digits, - and _")
    return name


def unknown_preset(name: str, presets: Mapping[str, str]) -> UsageError:
    """Return the error for an unknown name; it gives the nearest name, or all of them."""
    near = meant(name, presets)
    names = f"there are {', '.join(sorted(presets))}" if presets else "none is saved; /preset save NAME saves one"
    return UsageError(f"no preset is called {shown(name)}: {near.question or names}").correcting(name, near.name)


def _parsed(path: Path) -> dict[str, str] | None:
    """Return the specs by name; None if the file is damaged.

    Raises:
        UsageError: it is no regular file, or the system does not let it be read.
    """
    regular_file_size(path, raises=UsageError)
    try:
        presets = read_toml(path)
    except UnreadableFile as error:
        if isinstance(error.__cause__, OSError):
            raise UsageError(str(error)) from error
        return None
    valid = all(_NAME.fullmatch(name) and isinstance(spec, str) for name, spec in presets.items())
    return presets if valid else None


def _set_aside(path: Path) -> str:
    """Rename a damaged file to a free name, and return the warning."""
    n = 1
    while (aside := path.with_name(f"{path.name}.damaged-{n}")).exists():
        n += 1
    try:
        os.rename(path, aside)
    except OSError as error:
        raise UsageError(f"{path} is damaged, and cannot be set aside: {error.strerror}") from error
    return f"{path} is damaged: it is set aside as {aside.name}, and there are no saved presets now"
