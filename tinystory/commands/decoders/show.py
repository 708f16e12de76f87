"""`tinystory decoders`: what strategies there are, from the decoders themselves. torch is not imported."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from typing import Any

from tinystory.commands.decoders import check as decoders_check
from tinystory.commands.decoders import new as decoders_new
from tinystory.decoding import Stage
from tinystory.decoding.options import Option, options_of
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import example_of, format_value
from tinystory.errors import UsageError
from tinystory.safe.reading import shown
from tinystory.safe.showing import visible

__all__ = ["describe_decoder", "run"]


def run(args: argparse.Namespace) -> int:
    """Print the list, or one decoder; `new` and `check` have modules of their own."""
    if args.name == "new":
        return decoders_new.run(args)
    if args.out or args.kind:
        raise UsageError("-o and --kind go with `tinystory decoders new NAME`")
    if args.name == "check":
        return decoders_check.run(args)
    if args.subject:
        raise UsageError(f"nothing may follow {shown(args.name)}: one decoder is shown at a time")
    registry = discover(args.decoder_file)
    found = [(registry.get(args.name), registry.source(args.name))] if args.name else [
        (cls, source) for _, cls, source in registry.classes()
    ]  # fmt: skip
    if not args.quiet:
        for line in registry.warnings:
            sys.stderr.write(f"tinystory: {visible(line)}\n")
    if args.json:
        described = [describe_decoder(cls, source) for cls, source in found]
        sys.stdout.write(json.dumps(described[0] if args.name else described) + "\n")
        return 0
    from rich.table import Table

    from tinystory.screen.console import PipeConsole

    table = Table(box=None, pad_edge=False)
    for heading in ("name", "kind", "what it does", "options"):
        table.add_column(heading)
    for cls, _ in found:
        options = "\n".join(_option_line(o, with_help=bool(args.name)) for o in options_of(cls))
        table.add_row(cls.name, cls.kind, visible(_summary(cls)), visible(options))
    # Without a terminal there is no width to fit: rows stay whole for grep.
    console = PipeConsole(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False)
    console.print(table)
    if args.name:
        [(cls, source)] = found
        told = f"{_doc(cls)}\n\ne.g. `{example_of(cls)}`\nfrom {source}"
        console.print(f"\n{visible(told)}")
    return 0


def describe_decoder(cls: type[Stage], source: str) -> dict[str, Any]:
    """One decoder as plain data."""
    return {
        "name": cls.name,
        "kind": cls.kind,
        "summary": _summary(cls),
        "source": source,
        "options": [
            {
                "name": o.name,
                "type": getattr(o.type, "__name__", str(o.type)),
                "default": None if o.required else dict(o.default) if isinstance(o.default, Mapping) else o.default,
                "required": o.required,
                "neutral": None if o.neutral is dataclasses.MISSING else o.neutral,
                "range": o.range,
                "help": o.help,
            }
            for o in options_of(cls)
        ],
    }


def _option_line(option: Option, *, with_help: bool) -> str:
    pairs = isinstance(option.default, Mapping)
    default = "" if option.required or pairs else f" [{format_value(option.default)}]"
    told = f"; {option.help}" if with_help and option.help else ""
    return f"{option.name}{default}: {option.range}{told}"


def _doc(cls: type[Stage]) -> str:
    import inspect

    return inspect.getdoc(cls) or ""


def _summary(cls: type[Stage]) -> str:
    return _doc(cls).split("\n\n")[0].replace("\n", " ")
