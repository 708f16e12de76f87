"""The table of slash commands, and how a line that begins with a slash is carried out.

A command gets the studio and its argument, changes the one, and says in a `Reply` what to show and to do next. It
raises TinystoryError for wrong input, and has then changed nothing.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Literal

from tinystory.errors import SessionError, UsageError, nearest
from tinystory.safe.reading import shown
from tinystory.screen.blocks import DeskStory, Printable
from tinystory.studio.backend import Backend
from tinystory.studio.keeper import Keeper
from tinystory.studio.studio import Studio
from tinystory.studio.turn_request import TurnRequest

__all__ = [
    "COMMANDS", "Argument", "Command", "Reply", "command", "execute", "find", "keeping_command", "split_line", "texts",
    "whole_number",
]  # fmt: skip

Argument = Literal[
    "", "command", "decoder", "file", "folder", "folders", "preset", "seed", "session", "spec", "specs", "stage", "view"
]
"""What a command's argument is, for completion."""


@dataclass(frozen=True)
class Reply:
    """What comes of a command.

    Attributes:
        blocks: to print.
        requests: what to write after that; several are written at once, side by side.
        titles: over several turns.
        versus: models that write the desk's story once more, side by side, for the eye alone.
        edit: a text to open in the user's editor; what comes back is what the story goes on from.
        clipboard: a text for it.
        leave: whether the chat is over.
    """

    blocks: tuple[Printable | DeskStory, ...] = ()
    requests: tuple[TurnRequest, ...] = ()
    titles: tuple[str, ...] = ()
    versus: tuple[Backend, ...] = ()
    edit: str | None = None
    clipboard: str | None = None
    leave: bool = False


@dataclass(frozen=True)
class Command:
    """A slash command.

    Attributes:
        name: without the slash.
        usage: its argument as shown in help, empty when it takes none.
        help: one line.
        run: does it, with the studio, the argument, and who keeps the session; its docstring is the longer help.
        argument: for completion.
        aliases: other names.
    """

    name: str
    usage: str
    help: str
    run: Callable[[Studio, str, Keeper | None], Reply]
    argument: Argument = ""
    aliases: tuple[str, ...] = ()

    @property
    def synopsis(self) -> str:
        """As it is typed."""
        return f"/{self.name} {self.usage}".rstrip()


COMMANDS: dict[str, Command] = {}
"""By name, in the order of /help; aliases are not in it."""

StudioCommand = Callable[[Studio, str], Reply]
KeeperCommand = Callable[[Keeper, str], Reply]


def command(
    name: str, usage: str, help: str, argument: Argument = "", aliases: tuple[str, ...] = ()
) -> Callable[[StudioCommand], StudioCommand]:
    """Enter a function of studio and argument as the command `/name`."""

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
    """Enter a function of keeper and argument as the command `/name`; a chat that keeps nothing refuses it."""

    def enter(run: KeeperCommand) -> KeeperCommand:
        @wraps(run)
        def with_keeper(_studio: Studio, text: str, keeper: Keeper | None) -> Reply:
            if keeper is None:
                raise SessionError("this chat keeps no session")
            return run(keeper, text)

        COMMANDS[name] = Command(name, usage, help, with_keeper, argument)
        return run

    return enter


def find(name: str) -> Command:
    """A command by name or alias.

    Raises:
        UsageError: there is none; the message tells the nearest.
    """
    names = {alias: one for one in COMMANDS.values() for alias in (one.name, *one.aliases)}
    if name in names:
        return names[name]
    near = nearest(name, names) if name else None
    hint = f"did you mean /{near}?" if near else "/help lists them"
    raise UsageError(f"{shown('/' + name)[1:-1]} is no command: {hint} (a story begins with a slash after `//`)")


def execute(studio: Studio, line: str, keeper: Keeper | None = None) -> Reply:
    """Run a line that begins with a slash.

    Args:
        studio: to act on.
        line: as typed.
        keeper: of the studio's session; None where it is not kept.

    Raises:
        TinystoryError: wrong input, or the command failed.
    """
    name, argument = split_line(line)
    found = find(name)
    if argument and not found.usage:
        raise UsageError(f"/{found.name} takes nothing after it")
    return found.run(studio, argument, keeper)


def split_line(line: str) -> tuple[str, str]:
    """Name and argument of a line that begins with a slash."""
    name, _, argument = re.sub(r"\s", " ", line[1:], count=1).partition(" ")
    return name, argument.strip()


_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')


_ESCAPES = {"n": "\n", "t": "\t"}


def texts(argument: str, origin: str) -> tuple[str, ...]:
    r"""Words, or texts in double quotes with \n, \t and \"; raises UsageError for an empty text or a lone quote."""
    found = [
        re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[1]), match[1]) if match[1] is not None else match[2]
        for match in _QUOTED.finditer(argument)
    ]
    if not all(found) or any(text.startswith('"') for text in found):
        raise UsageError(f'{origin}: a text with spaces stands in double quotes, and none is empty: {origin} "The end"')
    return tuple(found)


def whole_number(argument: str, origin: str, least: int, most: int | None = None) -> int:
    """A number in a command's argument; raises UsageError that names the range."""
    limits = f"from {least} to {most:,}" if most is not None else f"of at least {least}"
    try:
        number = int(argument)
    except ValueError:
        number = least - 1
    if number < least or (most is not None and number > most):
        raise UsageError(f"{origin} takes a whole number {limits}, not {argument!r}")
    return number
