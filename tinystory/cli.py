"""The command line: it runs one command, and turns errors into a message and an exit code.

It imports nothing heavy; each command imports what it needs. Exit codes: 0 done, 1 failed, 2 the command line or a
setting is wrong, 3 the model is missing or invalid, 130 interrupted, 128 + N ended by the signal N.
"""

import atexit
import contextlib
import errno
import gc
import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tinystory.interrupts import HANG_UP, Terminated, ending_signals

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
            return _run(argv)
    except KeyboardInterrupt:
        return 130
    except Terminated as ending:
        try:
            sys.stdout.flush()
        except OSError:
            _discard_output()
        return int(str(ending.code))


def _run(argv: Sequence[str] | None) -> int:
    """Run one command; its imports are here, so that Ctrl-C during an import shows no traceback."""
    from tinystory.commands.flags import build_parser, parse_args
    from tinystory.commands.shared.groups import options_from
    from tinystory.errors import TinystoryError, one_line

    args: argparse.Namespace | None = None
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the caller has closed it; print would write to the other stream instead
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    try:
        if "_ARGCOMPLETE" in os.environ:  # the completion script of a shell asks how a line may go on
            importlib.import_module("tinystory.commands.completion").answer(build_parser())
        args = parse_args(sys.argv[1:] if argv is None else argv)
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")
        command = importlib.import_module(args.module)
        code = int(command.run(options_from(args, getattr(command, args.options))))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _discard_output()  # nobody reads it any more
        return 0
    except TinystoryError as error:
        return _report(str(error), error.exit_code, error, args)
    except OSError as error:
        _discard_output()
        return _report(f"cannot read or write: {error.strerror or error}", 1, error, args)
    except MemoryError as error:
        return _report("out of memory; try a smaller model or fewer stories at once", 1, error, args)
    except Exception as error:
        summary = one_line(error, kind=True)
        return _report(f"unexpected error ({summary}); please report it with the output of -v", 1, error, args)


def _discard_output() -> None:
    """Discard the rest of standard output. Python would otherwise report the error again when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(message: str, code: int, error: BaseException, args: "argparse.Namespace | None") -> int:
    """Print a message and return the exit code; without a terminal to print on, the code of a hang-up."""
    from tinystory.safe.showing import visible

    try:
        if getattr(args, "verbose", False):
            import traceback

            traceback.print_exception(error, file=sys.stderr)
        print(f"tinystory: {visible(message)}", file=sys.stderr)
        sys.stderr.flush()
    except OSError as lost:
        return HANG_UP if lost.errno == errno.EIO else code
    return code
