"""Commands about the chat itself: model, settings, help, leaving."""

import inspect
import re
from collections.abc import Iterator

from tinystory.decoding.spec import shown_spec
from tinystory.docstrings import docstring
from tinystory.errors import UsageError, meant
from tinystory.folders import config_file
from tinystory.repl.commands.base import (
    GROUPS,
    Command,
    Group,
    Reply,
    by_name,
    command,
    group_called,
    names_like,
    path_of,
)
from tinystory.safe.reading import shown
from tinystory.screen.blocks import Line, Outline, Printable, Table
from tinystory.studio.presets import SUGGESTED
from tinystory.studio.recall import quoted
from tinystory.studio.studio import Studio

__all__: list[str] = []


@command("tour", "", "see what can be done with your story, in ten steps; Enter does each one")
def _tour(studio: Studio, argument: str) -> Reply:
    """Begin with the first step, on the story on the desk. Anything but Enter leaves the tour."""
    return Reply(tour=True)


@command("model", "[DIR or hub id]", "show the model, or go on with another one", argument="folder")
def _model(studio: Studio, argument: str) -> Reply:
    """Let the story on the desk go on with the new model. `default` is the model that comes with tinystory."""
    if not argument:
        return Reply((Table(tuple(studio.backend.facts())),))
    backend = studio.open_model(path_of(argument, "/model"))
    backend.wait(lambda: False)
    studio.set_model(backend)
    return Reply((Table(tuple(backend.facts())),))


@command("show", "", "show what is loaded: the model, the decoder and the settings of now")
def _show(studio: Studio, argument: str) -> Reply:
    """Show the settings as they are now. /config shows those with which the chat began, and where they come from."""
    rows = [
        *studio.backend.facts(),
        ("decoder", shown_spec(studio.decoder)),
        ("seed", "random" if studio.seed is None else str(studio.seed)),
        ("max-tokens", f"{studio.max_tokens:,}"),
        ("stop texts", " ".join(map(quoted, studio.stop)) or "none"),
        ("words", ", ".join(studio.words) or "none"),
        ("tint", studio.tint),
    ]
    return Reply((Table(tuple(rows)), Line("/model, /decoder, /seed, /len, /stop, /color change them", "dim")))


@command("config", "", "show the settings with which the chat began, and where each one comes from")
def _config(studio: Studio, argument: str) -> Reply:
    """Take each setting from a flag first, then from the environment, then from the configuration file.

    /model, /decoder, /seed and /len change a setting for this chat only; the file holds for all chats.
    """
    path = config_file()
    settings = [(setting.name, setting.shown, setting.origin) for setting in studio.settings]
    missing = "" if path.exists() else " (not there yet)"
    table = Table((("setting", "value", "from"), *settings))
    return Reply((table, Line(""), Line(f"configuration file: {path}{missing}", "dim")))


@command("help", "[GROUP or COMMAND]", "show the groups of commands, one group, or one command", "command", ("?",))
def _help(studio: Studio, argument: str) -> Reply:
    """Show one group, as in /help see, or one command, as in /help top; /help all shows everything."""
    name = argument.removeprefix("/")
    group = group_called(name)
    if not name:
        return Reply(tuple(_overview()))
    if name == _ALL:
        return Reply(tuple(block for one in GROUPS for block in (*_group(one), Line(""))))
    return Reply(tuple(_group(group) if group else _one(_command_called(name))))


def _command_called(name: str) -> Command:
    names = by_name()
    if name in names:
        return names[name]
    near = meant(name, (*_group_names(), *names_like(name, names)))
    hint = near.question or "/help lists the groups"
    raise UsageError(f"/help does not know {shown(name[:40])}: {hint}").correcting(name, near.name)


def _overview() -> Iterator[Printable]:
    """Yield a line for each group, and what to type for more."""
    names = list(_group_names())
    width = max(map(len, names))
    texts = (": ".join(filter(None, (group.help, _names(group)))) for group in GROUPS)
    yield Outline(tuple((name.ljust(width), text, "", "") for name, text in zip(names, texts, strict=True)))
    yield Line("")
    yield Line("/help see: a group · /help top: a command · /help all", "dim")


def _group_names() -> tuple[str, ...]:
    return tuple(group.name for group in GROUPS)


def _names(group: Group) -> str:
    return " ".join(f"/{entry.name}" for entry in group.commands)


def _group(group: Group) -> Iterator[Printable]:
    """Yield the commands of a group, or the keys."""
    yield Line(f"{group.name}: {group.help}", "bold")
    yield Table(tuple((entry.synopsis, entry.help) for entry in group.commands) or _KEYS)
    if "decoding" in group.modules:
        yield Line(f"/preset load suggested: {SUGGESTED}, nearest to real stories (docs/study.md)", "dim")


def _one(entry: Command) -> Iterator[Printable]:
    """Yield what there is to say about one command."""
    yield Line(entry.synopsis, "bold")
    yield Line(entry.help)
    if text := docstring(inspect.unwrap(entry.run)):
        yield Line(_LINE_BREAK.sub(" ", text))
    if entry.aliases:
        yield Line("also " + ", ".join(f"/{alias}" for alias in entry.aliases))


@command("quit", "", "leave", aliases=("exit", "bye"))
def _quit(studio: Studio, argument: str) -> Reply:
    return Reply(leave=True)


_KEYS = (
    ("text", "begins a story, or goes on with an unfinished one; //text begins it with a slash"),
    ("a space first", "makes a story of a word that alone is a command: help, exit, quit, bye"),
    ("Enter", "alone: the story goes on"),
    ("Tab", "completes commands, decoders, options and values"),
    ("Alt-Enter, Ctrl-J", "begins a new line in what you type; a pasted text is never sent by itself"),
    ("Ctrl-R, Up", "brings back what you typed before"),
    ("Alt-Left, Alt-Right", "goes to the branch before, or to the branch after"),
    ("Alt-Up", "opens the token browser: walk through the tokens, see the alternatives, take one"),
    ("Ctrl-X Ctrl-E", "opens what you are typing in $EDITOR"),
    ("Ctrl-C", "stops the story and keeps it; clears what you typed; pressed twice, it leaves"),
    ("Ctrl-D", "leaves"),
)

_ALL = "all"
"""The argument of /help for all groups."""

_LINE_BREAK = re.compile(r"(?<![.:!?·\n])\n(?=[a-z(])")
"""A line break within a sentence of a docstring. The screen breaks lines at its own width."""
