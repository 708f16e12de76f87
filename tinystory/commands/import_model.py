"""`tinystory import`: a checkpoint from a GGUF file, or from weights in llama2.c's format."""

import sys
from dataclasses import dataclass
from pathlib import Path

from tinystory.commands.shared.groups import Options
from tinystory.errors import CheckpointError, UsageError
from tinystory.safe.reading import regular_file_size
from tinystory.safe.showing import visible

__all__ = ["ImportOptions", "run"]


@dataclass(frozen=True, kw_only=True)
class ImportOptions(Options):
    """The options of `tinystory import`.

    Attributes:
        file: a GGUF file, or weights in llama2.c's format.
        tokenizer: the tokenizer of weights in llama2.c's format; a GGUF file contains its own.
        out: the folder that is written.
    """

    file: Path
    tokenizer: Path | None
    out: Path


def run(options: ImportOptions) -> int:
    """Write the checkpoint, and print the command that uses it.

    Raises:
        UsageError: a tokenizer is missing, or a GGUF file gets a second one.
        CheckpointError: the file is no model in one of the formats.
    """
    from tinystory.checkpoint.formats.gguf_header import is_gguf

    regular_file_size(options.file, raises=CheckpointError)
    if is_gguf(options.file):
        if options.tokenizer is not None:
            raise UsageError(f"{options.file} is a GGUF file with a tokenizer of its own: leave out --tokenizer")
        from tinystory.checkpoint.formats.gguf import import_gguf

        import_gguf(options.file, options.out)
    elif options.tokenizer is None:
        raise UsageError("weights in llama2.c's format need --tokenizer FILE; a GGUF file needs none")
    else:
        from tinystory.checkpoint.formats.llama2c import import_llama2c

        import_llama2c(options.file, options.tokenizer, options.out)
    if not options.quiet:
        folder = visible(str(options.out))
        sys.stderr.write(f"{folder} is ready: tinystory chat -m {folder}\n")
    return 0
