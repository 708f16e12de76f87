"""The prompts of a study: a file of them, or none, where stories start from scratch."""

from pathlib import Path
from typing import Any

from tinystory.errors import UsageError
from tinystory.records import SEPARATOR, reading
from tinystory.visible import visible

__all__ = ["FEWEST", "read_prompts"]

FEWEST = 2
"""Diversity is measured between the stories of different prompts."""

_MOST_BYTES = 2**24
_YAML = (".yaml", ".yml")


def read_prompts(path: Path, limit: int | None = None) -> tuple[str, ...]:
    """The prompts of a file, stripped: the white space at the end of one would be half of the next word's token.

    Args:
        path: a `.yaml` or `.yml` file with a list of texts; any other is text, its prompts between lines of
            `<|endoftext|>` where it has one, else a prompt on each line. Empty prompts are left out.
        limit: take only so many, the first ones.

    Raises:
        UsageError: the file cannot be read, is of another form, or has fewer than `FEWEST` prompts.
    """
    with reading(path), path.open("rb") as file:
        raw = file.read(_MOST_BYTES + 1)
    if len(raw) > _MOST_BYTES:
        raise UsageError(f"{visible(str(path))} has more than {_MOST_BYTES:,} bytes: it is no file of prompts")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{visible(str(path))} is not UTF-8 text") from error
    if path.suffix.lower() in _YAML:
        found = _yaml_texts(path, text)
    else:
        separator = SEPARATOR.decode()
        found = text.split(separator) if separator in text else text.splitlines()
    prompts = [prompt for one in found if (prompt := one.strip())][:limit]
    if len(prompts) < FEWEST:
        raise UsageError(f"{visible(str(path))} has {len(prompts)} prompts; a study needs at least {FEWEST}")
    return tuple(prompts)


def _yaml_texts(path: Path, text: str) -> list[str]:
    import yaml

    try:
        found: Any = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UsageError(f"{visible(str(path))} is not YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise UsageError(f"{visible(str(path))} is not a YAML list of texts")
    return found
