"""The command line: it runs one command, and turns errors into a message and an exit code.

It imports nothing heavy; each command imports what it needs. Exit codes: 0 done, 1 failed, 2 the command line or a
setting is wrong, 3 the model is missing or invalid, 130 interrupted, 143 terminated.
"""

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from tinystory.commands.flags import build_parser, parse_args
from tinystory.commands.shared.groups import options_from
from tinystory.commands.shared.streams import discard_output, sound_streams
from tinystory.errors import OUT_OF_MEMORY, TinystoryError, is_out_of_memory, one_line

__all__ = ["main"]


class Terminated(SystemExit):
    """The exit after SIGTERM. It is a SystemExit, so that event loops do not catch it."""


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated(143)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code. An error is shown as one or two lines; `-v` adds the traceback.

    Raises:
        SystemExit: for --help, --version, a wrong command line, and a question of a shell about completion.
    """
    signal.signal(signal.SIGTERM, _terminate)
    with sound_streams():
        return _run(sys.argv[1:] if argv is None else argv)


def _run(argv: Sequence[str]) -> int:
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
    except KeyboardInterrupt:
        return 130
    except Terminated:
        return 143
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


def _report(message: str, code: int, error: BaseException, args: argparse.Namespace | None) -> int:
    if getattr(args, "verbose", False):
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    from tinystory.safe.showing import shortened, visible

    print(f"tinystory: {shortened(visible(message))}", file=sys.stderr)
    return code
