"""The prompts of a study."""

from itertools import islice
from pathlib import Path

from tinystory.data.prompts import PromptFile
from tinystory.errors import UsageError

__all__ = ["FEWEST", "read_prompts"]

FEWEST = 2
"""Diversity is measured between the stories of different prompts."""


def read_prompts(path: Path, limit: int | None = None) -> tuple[str, ...]:
    """The prompts of a file.

    Args:
        path: as for `PromptFile`.
        limit: take only so many, the first ones.

    Raises:
        UsageError: the file cannot be read, is of another form, or has fewer than `FEWEST` prompts.
    """
    with PromptFile(path) as file:
        prompts = tuple(islice(file, limit))
    if len(prompts) < FEWEST:
        raise UsageError(f"{file.name} has {len(prompts)} prompts; a study needs at least {FEWEST}")
    return prompts
