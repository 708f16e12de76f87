"""`tinystory generate`: `one` writes stories from one prompt, and `many` from each prompt of a file."""

from dataclasses import dataclass, replace
from pathlib import Path

from tinystory.commands.shared.groups import JsonOptions, PromptOptions
from tinystory.commands.shared.prompt import stops_of
from tinystory.errors import UsageError

__all__ = ["GenerateOptions", "run"]

MAX_BRANCHES = 10_000


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(PromptOptions, JsonOptions):
    """The options of `tinystory generate`.

    Attributes:
        decoder: the spec.
        num: the number of stories from each prompt.
        prompts: a file of prompts; `-` is standard input.
        out: with `prompts`, the file to write to.
        batch_size: with `prompts`, the number of stories that are written at a time.
    """

    decoder: str
    num: int = 1
    prompts: Path | None = None
    out: Path | None = None
    batch_size: int | None = None


def run(options: GenerateOptions) -> int:
    """Write stories and return the exit code.

    Raises:
        UsageError: an option is out of range, or belongs to another one that is not given.
    """
    if not 1 <= options.num <= MAX_BRANCHES:
        raise UsageError(f"--num is {options.num}; it must be from 1 to {MAX_BRANCHES:,}")
    options = replace(options, stop=stops_of(options.stop))
    if options.prompts is not None:
        from tinystory.commands.generate import many

        return many.run(options, options.prompts)
    for flag, value in (("-o", options.out), ("--batch-size", options.batch_size)):
        if value is not None:
            raise UsageError(f"{flag} belongs to --prompts FILE; stories from one prompt go to standard output")
    from tinystory.commands.generate import one

    return one.run(options)
