"""A parser of the command line with short errors, and flags that note where a setting comes from.

It knows no command and no flag by name.
"""

import argparse
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from tinystory.safe.reading import shown
from tinystory.safe.showing import shortened, visible
from tinystory.settings import Setting

__all__ = ["Parser", "SettingFlag", "whole_number"]


class Parser(argparse.ArgumentParser):
    """A parser whose errors have one short line and name the nearest command, flag or choice."""

    def error(self, message: str) -> NoReturn:
        """Print the message as one line of limited length, and exit with 2."""
        line = shortened(" ".join(visible(message).split()))
        print(f"{self.prog}: {line}", file=sys.stderr)
        raise SystemExit(2)

    def unknown(self, words: Sequence[str]) -> NoReturn:
        """Refuse words of the command line that belong to nothing."""
        flag = next((word.partition("=")[0] for word in words if word.startswith("-")), None)
        if flag is None:
            hint = 'put a text with spaces in quotes, as in generate "Once upon a time"'
            self.error(f"{shown(words[0])} does not belong here; {hint}")
        near = [other for other in get_close_matches(flag[:60], _flags(self), n=2) if other != flag]
        self.error(f"{shown(flag)[1:-1]} is not a flag here; " + (f"did you mean {near[0]}?" if near else "see --help"))

    # argparse makes sentences of these two places and gives only the sentences to `error`.
    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        near = get_close_matches(str(value)[:60], [str(choice) for choice in action.choices], n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(map(str, action.choices))}"
        if not isinstance(action, argparse._SubParsersAction):
            raise argparse.ArgumentError(action, f"{shown(value)} is not possible; {hint}")
        begin = "" if near else "; a story begins with `tinystory chat TEXT` or `tinystory generate TEXT`"
        self.error(f"{shown(value)} is not a command; {hint}{begin}")

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)
        (file or sys.stderr).flush()  # a full disk is an error, which argparse would hide


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    """Return every flag of a parser and of its commands."""
    flags: list[str] = []
    for action in parser._actions:
        flags += action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            flags += [flag for command in action.choices.values() for flag in _flags(command)]
    return flags


class SettingFlag(argparse.Action):
    """Stores a value. It also notes in the `settings` of the namespace that the value comes from this flag."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Store a value that is given."""
        if values is None and not self.option_strings:
            return  # the argument is not given
        setattr(namespace, self.dest, values)
        origin = f"flag {self.option_strings[-1]}" if self.option_strings else f"argument {self.metavar}"
        namespace.settings = (*getattr(namespace, "settings", ()), Setting(self.dest, values, origin))


def whole_number(text: str) -> int:
    """Return the whole number that a flag has; an argparse type."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"it must be a whole number, not {shown(text)}") from None
