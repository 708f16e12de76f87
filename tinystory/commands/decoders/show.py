"""`tinystory decoders`: list all decoders, or show one. It does not import torch."""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tinystory.commands.decoders import DecodersOptions
from tinystory.commands.shared.decoders import find_decoders
from tinystory.decoding import Stage
from tinystory.decoding.options import Option, options_of
from tinystory.decoding.spec import example_of, format_value
from tinystory.docstrings import docstring
from tinystory.errors import UsageError
from tinystory.safe.reading import shown
from tinystory.safe.showing import visible

__all__ = ["describe_decoder", "run"]


def run(options: DecodersOptions) -> int:
    """Print the list of decoders, or one decoder with the help of its options.

    Raises:
        UsageError: no decoder has the name, or a second one is given.
    """
    if options.subject:
        raise UsageError(f"nothing may follow {shown(options.name)}: one decoder is shown at a time")
    registry = find_decoders(options)
    if options.name:
        stages = [(registry.get(options.name), registry.source(options.name))]
    else:
        stages = [(cls, source) for _, cls, source in registry.classes()]
    if options.json:
        described = [describe_decoder(cls, source) for cls, source in stages]
        sys.stdout.write(json.dumps(described[0] if options.name else described) + "\n")
    else:
        _print(stages, alone=bool(options.name))
    return 0


def _print(stages: Sequence[tuple[type[Stage], str]], *, alone: bool) -> None:
    from rich.table import Table

    from tinystory.screen.console import table_console

    table = Table(box=None, pad_edge=False)
    for heading in ("name", "kind", "what it does", "options"):
        table.add_column(heading)
    for cls, _ in stages:
        lines = "\n".join(_option_line(option, with_help=alone) for option in options_of(cls))
        table.add_row(cls.name, cls.kind, visible(_summary(cls)), visible(lines))
    console = table_console()
    console.print(table)
    if alone:
        [(cls, source)] = stages
        about = f"{docstring(cls)}\n\ne.g. `{example_of(cls)}`\nfrom {source}"
        console.print(f"\n{visible(about)}")


def describe_decoder(cls: type[Stage], source: str) -> dict[str, Any]:
    """Return one decoder as plain data."""
    return {
        "name": cls.name,
        "kind": cls.kind,
        "summary": _summary(cls),
        "source": source,
        "options": [_describe_option(option) for option in options_of(cls)],
    }


def _describe_option(option: Option) -> dict[str, Any]:
    default = dict(option.default) if isinstance(option.default, Mapping) else option.default
    return {
        "name": option.name,
        "type": getattr(option.type, "__name__", str(option.type)),
        "default": None if option.required else default,
        "required": option.required,
        "neutral": None if option.neutral is dataclasses.MISSING else option.neutral,
        "range": option.range,
        "help": option.help,
    }


def _option_line(option: Option, *, with_help: bool) -> str:
    pairs = isinstance(option.default, Mapping)
    default = "" if option.required or pairs else f" [{format_value(option.default)}]"
    described = f"; {option.help}" if with_help and option.help else ""
    return f"{option.name}{default}: {option.range}{described}"


def _summary(cls: type[Stage]) -> str:
    return docstring(cls).split("\n\n")[0].replace("\n", " ")
