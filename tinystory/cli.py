"""The command line: it runs one command, and turns errors into a message and an exit code.

It imports nothing heavy; each command imports what it needs. Exit codes: 0 done, 1 failed, 2 the command line or a
setting is wrong, 3 the model is missing or invalid, 130 interrupted, 128 + N ended by the signal N.
"""

import atexit
import gc
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tinystory.interrupts import Terminated, ending_signals

if TYPE_CHECKING:
    import argparse

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code. An error is shown as one or two lines; `-v` adds the traceback.

    Raises:
        SystemExit: for --help, --version, a wrong command line, and a question of a shell about completion.
    """
    atexit.register(gc.freeze)  # Python would look for garbage among all objects of torch, for more than a second
    try:
        with ending_signals():
            from tinystory.commands.shared.streams import sound_streams

            with sound_streams():
                return _run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        return 130
    except Terminated as ending:
        return int(str(ending.code))
    finally:
        # An impatient Ctrl-C while Python and torch end would show a traceback. What is registered last runs first.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def _run(argv: Sequence[str]) -> int:
    """Run one command; its imports are here, so that Ctrl-C during an import shows no traceback."""
    from tinystory.commands.flags import build_parser, parse_args
    from tinystory.commands.shared.groups import options_from
    from tinystory.commands.shared.streams import discard_output
    from tinystory.errors import OUT_OF_MEMORY, TinystoryError, is_out_of_memory, one_line

    args: argparse.Namespace | None = None
    try:
        if "_ARGCOMPLETE" in os.environ:  # the completion script of a shell asks how a line may go on
            importlib.import_module("tinystory.commands.completion").answer(build_parser())
        args = parse_args(argv)
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")
        command = importlib.import_module(args.module)
        code = int(command.run(options_from(args, getattr(command, args.options))))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        discard_output()  # nobody reads it any more
        return 0
    except TinystoryError as error:
        return _report(str(error), error.exit_code, error, args)
    except OSError as error:
        discard_output()
        return _report(f"cannot read or write: {error.strerror or error}", 1, error, args)
    except Exception as error:
        if is_out_of_memory(error):
            return _report(OUT_OF_MEMORY, 1, error, args)
        summary = one_line(error, kind=True)
        return _report(f"unexpected error ({summary}); please report it with the output of -v", 1, error, args)


def _report(message: str, code: int, error: BaseException, args: "argparse.Namespace | None") -> int:
    if getattr(args, "verbose", False):
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    from tinystory.safe.showing import shortened, visible

    print(f"tinystory: {shortened(visible(message))}", file=sys.stderr)
    return code
