"""`tinystory import`: a checkpoint from weights in llama2.c's format."""

import sys
from dataclasses import dataclass
from pathlib import Path

from tinystory.commands.shared.groups import Options
from tinystory.safe.showing import visible

__all__ = ["ImportOptions", "run"]


@dataclass(frozen=True, kw_only=True)
class ImportOptions(Options):
    """The options of `tinystory import`.

    Attributes:
        file: the weights in llama2.c's format.
        tokenizer: their tokenizer in llama2.c's format.
        out: the folder that is written.
    """

    file: Path
    tokenizer: Path
    out: Path


def run(options: ImportOptions) -> int:
    """Write the checkpoint, and print the command that uses it."""
    from tinystory.checkpoint.formats.llama2c import import_llama2c

    import_llama2c(options.file, options.tokenizer, options.out)
    if not options.quiet:
        folder = visible(str(options.out))
        sys.stderr.write(f"{folder} is ready: tinystory chat -m {folder}\n")
    return 0
