"""The table of slash commands, and how a line that begins with a slash is run.

A command gets the studio and its argument. It changes the studio and gives a `Reply`: what to show and to do next. For
wrong input it raises TinystoryError and changes nothing.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from typing import Literal

from tinystory.errors import SessionError, UsageError, meant
from tinystory.safe.reading import shown
from tinystory.screen.blocks import Line, Printable
from tinystory.studio.backend import Backend
from tinystory.studio.keeper import Keeper
from tinystory.studio.studio import Studio
from tinystory.studio.turn_request import TurnRequest

__all__ = [
    "COMMANDS", "GROUPS", "Argument", "Command", "DeskStory", "Group", "Reply", "by_name", "command", "execute",
    "find", "group_called", "keeping_command", "meaning", "names_like", "path_of", "split_line", "texts",
    "whole_number",
]  # fmt: skip

Argument = Literal[
    "", "command", "decoder", "export", "file", "folder", "folders", "preset", "seed", "session", "sessions", "spec",
    "specs", "stage", "turn", "view",
]  # fmt: skip
"""The kind of a command's argument, for completion."""


@dataclass(frozen=True)
class DeskStory:
    """A block that stands for the story on the desk; the chat knows how to print it."""


@dataclass(frozen=True)
class Reply:
    """The result of a command.

    Attributes:
        blocks: the blocks to print first.
        requests: the turns to write next. With titles, they are written at once, side by side.
        titles: the titles of the columns, one for each request or model; a request with an empty title has its turn's
            number alone.
        versus: the models that write the story on the desk again, side by side. Their stories are only shown.
        edit: a text to open in the user's editor. The story goes on from the edited text.
        fix: whether the edited text is only kept, and the model does not go on.
        clipboard: a text to put on the clipboard.
        leave: whether the chat ends.
        walk: the place of the story at which the token browser opens.
        tour: whether the tour begins.
    """

    blocks: tuple[Printable | DeskStory, ...] = ()
    requests: tuple[TurnRequest, ...] = ()
    titles: tuple[str, ...] = ()
    versus: tuple[Backend, ...] = ()
    edit: str | None = None
    fix: bool = False
    clipboard: str | None = None
    leave: bool = False
    walk: str | None = None
    tour: bool = False


@dataclass(frozen=True)
class Command:
    """A slash command.

    Attributes:
        name: its name, without the slash.
        usage: its argument as /help shows it; empty if it takes none.
        help: one line of help.
        run: the function that gets the studio, the argument and the keeper. Its docstring is the longer help.
        argument: the kind of its argument.
        aliases: its other names.
    """

    name: str
    usage: str
    help: str
    run: Callable[[Studio, str, Keeper | None], Reply]
    argument: Argument = ""
    aliases: tuple[str, ...] = ()

    @property
    def synopsis(self) -> str:
        """The command as it is typed."""
        return f"/{self.name} {self.usage}".rstrip()


COMMANDS: dict[str, Command] = {}
"""The commands by name, in the order of /help, without aliases."""

_OLD_NAMES = ("words",)
"""Aliases that are names of earlier versions. `words` was taken for the stage `words`, which forces its words."""


@dataclass(frozen=True)
class Group:
    """A group of /help.

    Attributes:
        name: its name, which no command has.
        help: what its commands are for.
        modules: the modules whose commands it has, in their order.
    """

    name: str
    help: str
    modules: tuple[str, ...]

    @property
    def commands(self) -> list[Command]:
        """Its commands, in the order of /help."""
        return [entry for entry in COMMANDS.values() if entry.run.__module__.rpartition(".")[2] in self.modules]


GROUPS = (
    Group("write", "begin, go on, try again", ("writing",)),
    Group("move", "go through the tree of turns", ("tree",)),
    Group("decode", "change how tokens are picked", ("decoding",)),
    Group("see", "what the model saw", ("seeing", "funnel", "inside", "surprise")),
    Group("differ", "decoders and models side by side", ("comparing",)),
    Group("keep", "sessions and files", ("keeping",)),
    Group("chat", "the chat itself", ("system",)),
    Group("keys", "Enter, Tab, Ctrl-C, Alt-Up and the others", ()),
)
"""The groups of /help in their order, and with them the order of the modules."""


def group_called(name: str) -> Group | None:
    """Return the group of a name, if there is one."""
    return next((group for group in GROUPS if group.name == name), None)


StudioCommand = Callable[[Studio, str], Reply]
KeeperCommand = Callable[[Keeper, str], Reply]


def command(
    name: str, usage: str, help: str, argument: Argument = "", aliases: tuple[str, ...] = ()
) -> Callable[[StudioCommand], StudioCommand]:
    """Return a decorator that enters a function of studio and argument as the command `/name`."""

    def enter(run: StudioCommand) -> StudioCommand:
        @wraps(run)
        def with_studio(studio: Studio, text: str, _keeper: Keeper | None) -> Reply:
            return run(studio, text)

        COMMANDS[name] = Command(name, usage, help, with_studio, argument, aliases)
        return run

    return enter


def keeping_command(
    name: str, usage: str, help: str, argument: Argument = ""
) -> Callable[[KeeperCommand], KeeperCommand]:
    """Return a decorator that enters a function of keeper and argument as the command `/name`.

    A chat that keeps no session refuses the command with a SessionError.
    """

    def enter(run: KeeperCommand) -> KeeperCommand:
        @wraps(run)
        def with_keeper(_studio: Studio, text: str, keeper: Keeper | None) -> Reply:
            if keeper is None:
                raise SessionError("this chat keeps no session")
            return run(keeper, text)

        COMMANDS[name] = Command(name, usage, help, with_keeper, argument)
        return run

    return enter


def by_name() -> dict[str, Command]:
    """Return the commands by their names and aliases."""
    return {name: entry for entry in COMMANDS.values() for name in (entry.name, *entry.aliases)}


def find(name: str) -> Command:
    """Return the command of a name or an alias.

    Raises:
        UsageError: there is none; the message has the nearest name, or the names that begin so.
    """
    names = by_name()
    if name in names:
        return names[name]
    near = meant(name, names_like(name, names), "/{}")
    hint = near.question or "/help lists them"
    error = UsageError(f"{shown('/' + name)[1:-1]} is no command: {hint} (`//` begins a story with a slash)")
    raise error.correcting(f"/{name}", near.name and f"/{near.name}")


def names_like(typed: str, names: Mapping[str, Command]) -> list[str]:
    """Return the names that may have been meant, without the aliases of commands that already begin as typed."""
    return [name for name, entry in names.items() if name == entry.name or not entry.name.startswith(typed)]


def execute(studio: Studio, line: str, keeper: Keeper | None = None) -> Reply:
    """Run a line that begins with a slash.

    Args:
        studio: the studio that the command changes.
        line: the typed line.
        keeper: the keeper of the session; None if the chat keeps none.

    Raises:
        TinystoryError: the input is wrong, or the command failed.
    """
    name, argument = split_line(line)
    entry = find(name)
    if argument and not entry.usage:
        raise UsageError(f"/{entry.name} takes nothing after it")
    reply = entry.run(studio, argument, keeper)
    if name in _OLD_NAMES:
        reply = replace(reply, blocks=(Line(f"/{name} is called /{entry.name} now", "note"), *reply.blocks))
    return reply


_WORDS = {"help": "/help", "exit": "/quit", "quit": "/quit", "bye": "/quit"}
"""Words that are commands if they stand alone, because hands expect it."""


def meaning(typed: str) -> str:
    """Return what a typed text means: a command for a word such as `help` alone, the word itself after a space."""
    word = typed.strip(" \t")
    if word not in _WORDS:
        return typed
    return word if typed.startswith(" ") else _WORDS[word]


def split_line(line: str) -> tuple[str, str]:
    """Return the name and the argument of a line that begins with a slash."""
    name, _, argument = re.sub(r"\s", " ", line[1:], count=1).partition(" ")
    return name, argument.strip()


_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')
_ESCAPES = {"n": "\n", "t": "\t"}


def texts(argument: str, origin: str) -> tuple[str, ...]:
    r"""Return the words of an argument, and its texts in double quotes, in which \n, \t and \" are escapes.

    Raises:
        UsageError: a text is empty, or a quote is not closed.
    """
    parts = [
        re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[1]), match[1]) if match[1] is not None else match[2]
        for match in _QUOTED.finditer(argument)
    ]
    if not all(parts) or any(text.startswith('"') for text in parts):
        raise UsageError(f'{origin}: put a text with spaces in double quotes; no text may be empty: {origin} "The end"')
    return tuple(parts)


def path_of(argument: str, origin: str) -> str:
    """Return the path in an argument; it may stand in quotes, and ~ is the home folder.

    Raises:
        UsageError: a quote is not closed.
    """
    quote = argument[:1]
    if quote and quote in "\"'":
        if len(argument) < 3 or not argument.endswith(quote):
            raise UsageError(f"{origin}: the quote {quote} is not closed after a path: {origin} {quote}my file{quote}")
        argument = argument[1:-1]
    return os.path.expanduser(argument)


def whole_number(argument: str, origin: str, least: int, most: int | None = None) -> int:
    """Return the number in a command's argument, from `least` to `most`.

    Raises:
        UsageError: it is no such number; the message has the range.
    """
    limits = f"from {least} to {most:,}" if most is not None else f"of at least {least}"
    try:
        number = int(argument)
    except ValueError:
        number = least - 1
    if number < least or (most is not None and number > most):
        raise UsageError(f"{origin} takes a whole number {limits}, not {shown(argument)}")
    return number
