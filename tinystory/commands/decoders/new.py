"""`tinystory decoders new NAME`: write a decoder file that works, to begin with."""

import sys
from pathlib import Path

from tinystory.commands.decoders import DecodersOptions
from tinystory.decoding.plugins import discover, name_problem
from tinystory.errors import UsageError
from tinystory.safe.reading import shown
from tinystory.safe.showing import visible
from tinystory.testing.starter import starter

__all__ = ["run"]


def run(options: DecodersOptions) -> int:
    """Write the file and print its path. A file that exists is never changed.

    Raises:
        UsageError: the name is missing, wrong or taken, or the file cannot be written.
    """
    name = options.subject
    if not name:
        raise UsageError("say what the decoder is called, as in `tinystory decoders new quiet-words`")
    problem = name_problem(name)
    if problem:
        raise UsageError(f"a decoder cannot have the name {shown(name)}: {problem}")
    registry = discover(options.decoder_file)
    if name in {*registry.names(), *registry.aliases, *registry.conflicts}:
        raise UsageError(f"there is a decoder called {name} already: `tinystory decoders {name}` shows it")
    path = options.out or Path(f"{name.replace('-', '_')}.py")
    text = starter(name, options.kind or "processor", path.name)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{path} is there already and is not changed; -o FILE writes to another file") from None
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
    sys.stdout.write(f"{visible(str(path))}\n")
    if not options.quiet:
        sys.stderr.write(visible(f"tinystory: it works as it is; try `tinystory decoders check {path}`") + "\n")
    return 0
