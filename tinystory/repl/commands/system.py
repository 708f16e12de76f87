"""Commands about the chat itself: model, figures, settings, help, leaving."""

import inspect
import re

from tinystory.decoding.spec import shown_spec
from tinystory.docstrings import docstring
from tinystory.folders import config_file
from tinystory.repl.commands.base import COMMANDS, Reply, command, find, path_of
from tinystory.screen.blocks import Line, Printable, Table
from tinystory.studio.presets import SUGGESTED
from tinystory.studio.studio import Studio
from tinystory.writing.statistics import REASONS

__all__: list[str] = []


@command("model", "[DIR or hub id]", "show the model, or go on with another one", argument="folder")
def _model(studio: Studio, argument: str) -> Reply:
    """Let the story on the desk go on with the new model. `default` is the model that comes with tinystory."""
    if not argument:
        return Reply((Table(tuple(studio.backend.facts())),))
    backend = studio.open_model(path_of(argument, "/model"))
    backend.wait(lambda: False)
    studio.set_model(backend)
    return Reply((Table(tuple(backend.facts())),))


@command("stats", "", "show the figures of the latest turn")
def _stats(studio: Studio, argument: str) -> Reply:
    last = studio.results.get(studio.tree.current)
    if last is None:
        return Reply((Line("the model has written nothing here since the chat began", "dim"),))
    figures = last.statistics
    rows = [
        ("decoder", shown_spec(last.request.decoder)),
        ("seed", str(last.request.seed)),
        ("ended by", REASONS[last.finish_reason]),
        ("tokens", f"{len(last.tokens)} after {len(last.prompt_ids)}"),
        ("time", f"{figures['seconds']:.2f} s, the first token after {figures['first_token_seconds']:.3f} s"),
        ("speed", f"{figures['tokens_per_second']:.1f} tokens/s"),
        ("surprise", f"{figures['bits_per_token']:.3f} bits/token, perplexity {2 ** figures['bits_per_token']:.2f}"),
    ]
    rows += [(name.replace("_", " "), f"{value:g}") for name, value in figures.items() if name not in _SHOWN_FIGURES]
    return Reply((Table(tuple(rows)),))


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


@command("help", "[COMMAND]", "show this list, or more about one command", argument="command")
def _help(studio: Studio, argument: str) -> Reply:
    if argument:
        entry = find(argument.removeprefix("/"))
        blocks: list[Printable] = [Line(entry.synopsis, "bold"), Line(entry.help)]
        if text := docstring(inspect.unwrap(entry.run)):
            blocks.append(Line(_LINE_BREAK.sub(" ", text)))
        if entry.aliases:
            blocks.append(Line("also " + ", ".join(f"/{alias}" for alias in entry.aliases)))
        return Reply(tuple(blocks))
    rows = [(entry.synopsis, entry.help) for entry in COMMANDS.values()]
    suggested = f"/preset load suggested: {SUGGESTED}, nearest to real stories (docs/study.md)"
    return Reply((Table(_KEYS), Line(""), Table(tuple(rows)), Line(""), Line(suggested, "dim")))


@command("quit", "", "leave", aliases=("exit",))
def _quit(studio: Studio, argument: str) -> Reply:
    return Reply(leave=True)


_KEYS = (
    ("text", "begins a story, or goes on with an unfinished one; //text begins it with a slash"),
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

_LINE_BREAK = re.compile(r"(?<![.:!?·\n])\n(?=[a-z(])")
"""A line break within a sentence of a docstring. The screen breaks lines at its own width."""

_SHOWN_FIGURES = {"tokens", "seconds", "first_token_seconds", "tokens_per_second", "bits_per_token"}
