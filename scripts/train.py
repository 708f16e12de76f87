"""Train a story model from stories. The result is a checkpoint that `tinystory chat -m RUN` opens.

  python scripts/train.py --preset tiny --data stories.txt --out runs/mine
  torchrun --nproc-per-node=2 scripts/train.py --preset small --data roneneldan/TinyStories --out runs/two

A field comes from its flag, else from --config FILE (TOML), else from --preset, else from its default. Ctrl-C saves the
run and stops it; --resume RUN continues a run that was stopped in any way, with the fields that were in force.
"""

import argparse
import contextlib
import sys
import typing
from pathlib import Path
from typing import Any

METAVARS: dict[Any, str] = {int: "N", float: "X", str: "TEXT"}
_LIST_METAVARS = {"data": "SOURCE", "training": "CHECKPOINT", "loop": "TEXT"}


def main() -> int:
    """Parse, train, and print a mistake as a line or two; return the exit code."""
    try:  # torch is imported within, so that Ctrl-C shows no traceback meanwhile
        from tinystory.errors import TinystoryError

        return run(*parse_args())
    except KeyboardInterrupt:  # before the first step; after that, the loop itself handles signals
        return 130
    except TinystoryError as error:
        return failed(str(error), error.exit_code)
    except OSError as error:  # from a log, a link or a plot; a checkpoint raises TinystoryError
        return failed(f"cannot write {error.filename or 'a file'}: {error.strerror or error}", 1)


def failed(message: str, exit_code: int) -> int:
    """Print why the run has ended, if the terminal is still there; return the exit code."""
    with contextlib.suppress(OSError):
        print(f"train: {message}", file=sys.stderr)
    return exit_code


def run(args: argparse.Namespace, fields: dict[str, Any]) -> int:
    """Begin or resume a run, and train; return the exit code.

    Raises:
        TinystoryError: a field is wrong, or the run ends before its time.
    """
    from tinystory.training import fit

    given = {name: value for name, value in (("preset", args.preset), ("config", args.config)) if value is not None}
    return fit(given | fields, args.resume or args.out, resume=bool(args.resume), quiet=False).exit_code


def parse_args() -> tuple[argparse.Namespace, dict[str, Any]]:
    """Return the command line, and the fields that it has."""
    from tinystory.commands.shared.dashes import with_joined_separator
    from tinystory.training.config import PRESETS, fields_of

    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s (--out RUN | --resume RUN) [--preset NAME] [--config FILE] [--FIELD VALUE ...]",
    )
    add = parser.add_argument
    add("--out", type=Path, metavar="RUN", help="begin a new run in this folder, which is new or empty")
    add(
        "--resume",
        type=Path,
        metavar="RUN",
        help="continue the run in this folder; fields of the training and the loop may be changed",
    )
    add("--preset", choices=PRESETS, help="take the fields from a preset")
    add("--config", type=Path, metavar="FILE", help="read fields from a TOML file")
    add_fields(parser)
    args = parser.parse_args(with_joined_separator(sys.argv[1:]))
    if (args.out is None) == (args.resume is None):
        parser.error("give either --out RUN for a new run or --resume RUN")
    return args, {name: getattr(args, name) for name in fields_of() if hasattr(args, name)}


def add_fields(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each field of a run; a field that is not given is not in the result."""
    from tinystory.training.config import field_help, fields_of

    groups = {
        "data": parser.add_argument_group("the stories"),
        "model": parser.add_argument_group("the shape of the model"),
        "training": parser.add_argument_group("the training"),
        "loop": parser.add_argument_group("the loop"),
    }
    texts = field_help()
    for name, (section, field, kind) in fields_of().items():
        text = texts[name].replace("%", "%%")
        shown = " ".join(map(repr, field.default)) if isinstance(field.default, tuple) else field.default
        default = f" (default {shown})" if field.default not in ("", ()) else ""
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text + default}
        if kind is bool:
            options |= {"action": argparse.BooleanOptionalAction}
        elif kind in METAVARS:
            options |= {"type": kind, "metavar": METAVARS[kind]}
        elif typing.get_origin(kind) is typing.Literal:
            options |= {"choices": typing.get_args(kind)}
        else:
            options |= {"nargs": "+", "action": "extend", "metavar": _LIST_METAVARS[section]}
        groups[section].add_argument("--" + name.replace("_", "-"), **options)


if __name__ == "__main__":
    sys.exit(main())
