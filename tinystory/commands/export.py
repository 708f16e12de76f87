"""`tinystory export`: write a model as a GGUF file for llama.cpp, or in llama2.c's format."""

import sys
from dataclasses import dataclass
from pathlib import Path

from tinystory.checkpoint.shipped import find_model
from tinystory.commands.shared.groups import Options
from tinystory.errors import UsageError
from tinystory.safe.showing import visible
from tinystory.safe.writing import refuse_input

__all__ = ["ExportOptions", "run"]

_EXPORTED = (".gguf", ".bin")
"""The endings of older exports, which may stand in the folder of the model; its other files are the model."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Options):
    """The options of `tinystory export`.

    Attributes:
        model: the model to write: the name of a shipped one, a folder or a hub id.
        to: the format, `gguf` or `llama2c`.
        out: the file that is written; a file that is there is replaced.
        file_type: the storage type of the weights in a GGUF file: `F32`, `F16` or `Q8_0`; None is F32.
    """

    model: str
    to: str
    out: Path
    file_type: str | None


def run(options: ExportOptions) -> int:
    """Write the file, and print its name.

    Raises:
        UsageError: the file type does not fit the format, or the file is one of the model.
        CheckpointError: the model is missing, or the format cannot express it.
    """
    _, header = find_model(options.model)
    refuse_input(options.out, (path for path in header.directory.iterdir() if path.suffix not in _EXPORTED))
    files = [options.out]
    if options.to == "gguf":
        from tinystory.checkpoint.formats.gguf_export import export_gguf

        export_gguf(header.directory, options.out, options.file_type or "F32")
    elif options.file_type not in (None, "F32"):
        raise UsageError(f"--type {options.file_type} is for --to gguf; llama2.c's format has F32 only")
    else:
        from tinystory.checkpoint.formats.llama2c_export import export_llama2c

        files.append(export_llama2c(header.directory, options.out))
    if not options.quiet:
        names = " and ".join(visible(str(file)) for file in files)
        sys.stderr.write(f"{names} {'is' if len(files) == 1 else 'are'} ready\n")
    return 0
