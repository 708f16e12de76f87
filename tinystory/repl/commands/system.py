"""Commands about the chat itself: model, figures, help, leaving."""

import inspect
import os
import re

from tinystory.decoding.spec import format_spec
from tinystory.folders import config_file
from tinystory.repl.commands.base import COMMANDS, Reply, command, find
from tinystory.repl.stream import REASONS
from tinystory.screen.blocks import Line, Printable, Table
from tinystory.studio.presets import SUGGESTED
from tinystory.studio.studio import Studio

__all__: list[str] = []


@command("model", "[DIR or hub id]", "show the model, or write with another one", argument="folder")
def _model(studio: Studio, argument: str) -> Reply:
    """The story on the desk goes on with the new model. `default` is the model that comes with tinystory."""
    if not argument:
        return Reply((Table(tuple(studio.backend.facts())),))
    backend = studio.open_model(os.path.expanduser(argument))
    backend.wait(lambda: False)
    studio.set_model(backend)
    return Reply((Table(tuple(backend.facts())),))


@command("stats", "", "figures of the piece that was written last")
def _stats(studio: Studio, argument: str) -> Reply:
    last = studio.results.get(studio.tree.current)
    if last is None:
        return Reply((Line("the model has written nothing here since the studio was opened", "dim"),))
    figures = last.statistics
    rows = [
        ("decoder", format_spec(last.request.decoder)),
        ("seed", str(last.request.seed)),
        ("ended by", REASONS[last.finish_reason]),
        ("tokens", f"{len(last.tokens)} after {len(last.prompt_ids)}"),
        ("time", f"{figures['seconds']:.2f} s, the first token after {figures['first_token_seconds']:.3f} s"),
        ("speed", f"{figures['tokens_per_second']:.1f} tokens/s"),
        ("surprise", f"{figures['bits_per_token']:.3f} bits/token, perplexity {2 ** figures['bits_per_token']:.2f}"),
    ]
    rows += [(name.replace("_", " "), f"{value:g}") for name, value in figures.items() if name not in _SHOWN_FIGURES]
    return Reply((Table(tuple(rows)),))


@command("config", "", "the settings that the chat began with, and where each comes from")
def _config(studio: Studio, argument: str) -> Reply:
    """A flag wins over the environment, that over the configuration file, and that over what is built in.

    /model, /decoder, /seed and /len change theirs for this chat alone; the file is for all chats.
    """
    path = config_file()
    rows = [("setting", "value", "from"), *((one.name, one.shown, one.origin) for one in studio.settings)]
    missing = "" if path.exists() else " (not there yet)"
    return Reply((Table(tuple(rows)), Line(""), Line(f"configuration file: {path}{missing}", "dim")))


@command("help", "[COMMAND]", "this list, or more about one command", argument="command")
def _help(studio: Studio, argument: str) -> Reply:
    if argument:
        found = find(argument.removeprefix("/"))
        blocks: list[Printable] = [Line(found.synopsis, "bold"), Line(found.help)]
        if found.run.__doc__:
            blocks.append(Line(_JOINT.sub(" ", inspect.getdoc(found.run) or "")))
        if found.aliases:
            blocks.append(Line("also " + ", ".join(f"/{alias}" for alias in found.aliases)))
        return Reply(tuple(blocks))
    rows = [(one.synopsis, one.help) for one in COMMANDS.values()]
    suggested = f"/preset load suggested: {SUGGESTED}, nearest to real stories (docs/study.md)"
    return Reply((Table(_KEYS), Line(""), Table(tuple(rows)), Line(""), Line(suggested, "dim")))


@command("quit", "", "leave", aliases=("exit",))
def _quit(studio: Studio, argument: str) -> Reply:
    return Reply(leave=True)


_KEYS = (
    ("text", "begins a story, or goes on with an unfinished one; //text begins it with a slash"),
    ("Enter", "alone: the story goes on"),
    ("Tab", "completes commands, decoders, options and values"),
    ("Alt-Enter, Ctrl-J", "a new line in what you type; a paste is never sent by itself"),
    ("Ctrl-R, Up", "what you typed before"),
    ("Alt-Left, Alt-Right", "the branch before, the branch after"),
    ("Alt-Up", "walk through the story's tokens, see what else each could be, take one"),
    ("Ctrl-X Ctrl-E", "what you are typing, in $EDITOR"),
    ("Ctrl-C", "stops the story and keeps it; clears what is typed; twice leaves"),
    ("Ctrl-D", "leaves"),
)

_JOINT = re.compile(r"(?<![.:!?·\n])\n(?=[a-z(])")
"""Where a docstring breaks a line within a sentence; the screen has its own width."""

_SHOWN_FIGURES = {"tokens", "seconds", "first_token_seconds", "tokens_per_second", "bits_per_token"}
