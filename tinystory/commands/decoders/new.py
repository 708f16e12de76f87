"""`tinystory decoders new NAME`: a working decoder file to begin with."""

import argparse
import sys
from pathlib import Path

from tinystory.decoding.plugins import discover, name_problem
from tinystory.errors import UsageError
from tinystory.safe.reading import shown
from tinystory.safe.showing import visible
from tinystory.testing.starter import starter

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Write the file, never over another one, and print its path."""
    name = args.subject
    if not name:
        raise UsageError("say what the decoder is called, as in `tinystory decoders new quiet-words`")
    problem = name_problem(name)
    if problem:
        raise UsageError(f"a decoder cannot be called {shown(name)}: {problem}")
    registry = discover(args.decoder_file)
    if name in {*registry.names(), *registry.aliases, *registry.conflicts}:
        raise UsageError(f"there is a decoder called {name} already: `tinystory decoders {name}` shows it")
    path = args.out or Path(f"{name.replace('-', '_')}.py")
    text = starter(name, args.kind or "processor", path.name)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{path} is there already and stays as it is; -o FILE writes to another file") from None
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
    sys.stdout.write(f"{visible(str(path))}\n")
    if not args.quiet:
        sys.stderr.write(visible(f"tinystory: it works as it is; try `tinystory decoders check {path}`") + "\n")
    return 0
