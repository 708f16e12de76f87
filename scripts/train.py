"""Train a story model from stories. The result is a checkpoint that `tinystory chat -m RUN` opens.

  python scripts/train.py --preset tiny --data stories.txt --out runs/mine
  torchrun --nproc-per-node=2 scripts/train.py --preset small --data roneneldan/TinyStories --out runs/two

A field comes from its flag, else from --config FILE (TOML), else from --preset, else from its default. Ctrl-C saves the
run and stops it; --resume RUN continues a run that was stopped in any way.
"""

import argparse
import sys
import typing
from pathlib import Path
from typing import Any

import torch

from tinystory.errors import TinystoryError, UsageError
from tinystory.training.config import PRESETS, field_help, fields_of, resolve_run
from tinystory.training.distributed import joined
from tinystory.training.loop import LoopOptions, train
from tinystory.training.opening import begin_run, resume_run

METAVARS: dict[Any, str] = {int: "N", float: "X", str: "TEXT"}


def main() -> int:
    """Parse, train, and print a mistake as a line or two; return the exit code."""
    args, options, fields = parse_args()
    try:
        with joined(args.device) as ranks:
            if args.resume:
                opened = resume_run(args.resume, fields, ranks)
            else:
                opened = begin_run(args.out, resolve_run(args.preset, args.config, fields), ranks)
            return train(opened, options, ranks)
    except TinystoryError as error:
        print(f"train: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # from a log, a link or a plot; a checkpoint raises TinystoryError
        print(f"train: cannot write {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the first step; after that, the loop itself handles signals
        return 130


def parse_args() -> tuple[argparse.Namespace, LoopOptions, dict[str, Any]]:
    """Return the command line, the options of the loop, and the fields that were given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, metavar="RUN", help="begin a new run in this folder")
    add("--resume", type=Path, metavar="RUN", help="continue the run in this folder; fields of training may be changed")
    add("--preset", choices=PRESETS, help="take the fields from a preset")
    add("--config", type=Path, metavar="FILE", help="read fields from a TOML file")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda (default %(default)s)")
    add("--every", type=int, default=0, metavar="STEPS", help="validate and save after this many steps, too")
    add("--log-every", type=int, default=10, metavar="STEPS", help="steps between log lines (default %(default)s)")
    add("--keep", type=int, default=2, metavar="K", help="keep K checkpoints besides the best (default %(default)s)")
    add("--tensorboard", action="store_true", help="log to RUN/tensorboard, too")
    add_fields(parser)
    args = parser.parse_args()
    if (args.out is None) == (args.resume is None):
        parser.error("give either --out RUN for a new run or --resume RUN")
    try:
        options = LoopOptions(args.every, args.log_every, args.keep, args.tensorboard)
    except UsageError as error:
        parser.error(str(error))
    return args, options, {name: getattr(args, name) for name in fields_of() if hasattr(args, name)}


def add_fields(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each field of a run; a field that is not given is not in the result."""
    groups = {
        "data": parser.add_argument_group("the stories"),
        "model": parser.add_argument_group("the shape of the model"),
        "training": parser.add_argument_group("the training"),
    }
    texts = field_help()
    for name, (section, field, kind) in fields_of().items():
        text = texts[name].replace("%", "%%")
        default = f" (default {field.default})" if field.default not in ("", ()) else ""
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text + default}
        if kind is bool:
            options |= {"action": argparse.BooleanOptionalAction}
        elif kind in METAVARS:
            options |= {"type": kind, "metavar": METAVARS[kind]}
        elif typing.get_origin(kind) is typing.Literal:
            options |= {"choices": typing.get_args(kind)}
        else:
            options |= {"nargs": "+", "metavar": "SOURCE"}
        groups[section].add_argument("--" + name.replace("_", "-"), **options)


if __name__ == "__main__":
    sys.exit(main())
