"""The slash commands: a function each, entered in a table by `@command`, from which `/help` and completion come.

A command gets the studio and its argument, changes the one, and says in a `Reply` what to show and to do next. It
raises TinystoryError for wrong input, and has then changed nothing.
"""

import inspect
import os
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass
from typing import Literal

from tinystory.decoding import Stage
from tinystory.errors import UsageError
from tinystory.options import Option, is_neutral, options_of
from tinystory.plugins import nearest
from tinystory.repl.render import REASONS, Block, Line, Table, show_value, summary
from tinystory.repl.studio import Studio, Turn
from tinystory.settings import parse
from tinystory.spec import format_spec, parse_spec
from tinystory.untrusted import shown

__all__ = ["COMMANDS", "Argument", "Command", "Reply", "command", "execute", "find", "split"]

Argument = Literal["", "command", "decoder", "folder", "seed", "spec"]
"""What a command's argument is, for completion."""


@dataclass(frozen=True)
class Reply:
    """What comes of a command.

    Attributes:
        blocks: to print.
        turn: to write after that.
        leave: whether the chat is over.
    """

    blocks: tuple[Block, ...] = ()
    turn: Turn | None = None
    leave: bool = False


@dataclass(frozen=True)
class Command:
    """A slash command.

    Attributes:
        name: without the slash.
        usage: its argument as shown in help, empty when it takes none.
        help: one line.
        run: does it; its docstring is the longer help.
        argument: for completion.
        aliases: other names.
    """

    name: str
    usage: str
    help: str
    run: Callable[[Studio, str], Reply]
    argument: Argument = ""
    aliases: tuple[str, ...] = ()

    @property
    def synopsis(self) -> str:
        """As it is typed."""
        return f"/{self.name} {self.usage}".rstrip()


COMMANDS: dict[str, Command] = {}
"""By name, in the order of /help; aliases are not in it."""

Run = Callable[[Studio, str], Reply]


def command(
    name: str, usage: str, help: str, argument: Argument = "", aliases: tuple[str, ...] = ()
) -> Callable[[Run], Run]:
    """Enter a function as the command `/name`."""

    def enter(run: Run) -> Run:
        COMMANDS[name] = Command(name, usage, help, run, argument, aliases)
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


def execute(studio: Studio, line: str) -> Reply:
    """Run a line that begins with a slash.

    Raises:
        TinystoryError: wrong input, or the command failed.
    """
    name, argument = split(line)
    found = find(name)
    if argument and not found.usage:
        raise UsageError(f"/{found.name} takes nothing after it")
    return found.run(studio, argument)


def split(line: str) -> tuple[str, str]:
    """Name and argument of a line that begins with a slash."""
    name, _, argument = re.sub(r"\s", " ", line[1:], count=1).partition(" ")
    return name, argument.strip()


@command("decoder", "[SPEC]", "show or change how each token is picked", argument="spec")
def _decoder(studio: Studio, argument: str) -> Reply:
    """A spec is stages joined by `|`: logits processors in the order they act, then a sampler, then a search.

    greedy · sample 0.8 · top-k 40 | sample 0.8 · temperature 0.8 | top-p 0.9 | sample
    Nothing is on unless it is written. /decoders lists the stages.
    """
    if argument:
        studio.decoder = parse_spec(argument, studio.registry)
        return Reply((Line(f"decoder: {studio.spec}"),))
    rows = [row for stage in studio.decoder.stages for row in _stage_rows(stage)]
    return Reply((Line(studio.spec, "bold"), Table(tuple(rows), indent=2)))


@command("decoders", "[NAME]", "list the stages a decoder is made of, or explain one", argument="decoder")
def _decoders(studio: Studio, argument: str) -> Reply:
    """Stages come with tinystory, from installed packages, from the decoders folder and from --decoder-file."""
    if not argument:
        rows: list[tuple[str, ...]] = []
        for name, cls, _ in studio.registry.classes():
            rows.append((name, cls.kind, summary(cls)))
            rows += [("", "", _option_text(option)) for option in options_of(cls)]
        return Reply((Table(tuple(rows)), *(Line(warning, "note") for warning in studio.registry.warnings)))
    cls = studio.registry.get(argument)
    facts = [("kind", cls.kind), *(("option", _option_text(option)) for option in options_of(cls))]
    if cls.example:
        facts.append(("e.g.", cls.example))
    facts.append(("from", studio.registry.source(argument)))
    return Reply((Line(cls.name, "bold"), Line(inspect.getdoc(cls) or ""), Table(tuple(facts), indent=2)))


@command("new", "[PROMPT]", "put the story away; begin another one with PROMPT, or with what you type next")
def _new(studio: Studio, argument: str) -> Reply:
    if argument:
        return Reply(turn=studio.begin(argument))
    studio.story = None
    return Reply((Line("a blank page: type a beginning, or press Enter and the model finds one", "dim"),))


@command("seed", "[N|random]", "the luck of the draw: the same seed writes the same story", argument="seed")
def _seed(studio: Studio, argument: str) -> Reply:
    if argument:
        studio.set_seed(parse("seed", argument, "/seed"))
    fixed = "random, a fresh one for each story" if studio.seed is None else str(studio.seed)
    return Reply((Line(f"seed: {fixed}"),))


@command("len", "[N]", "write at most N tokens at a time")
def _len(studio: Studio, argument: str) -> Reply:
    if argument:
        studio.max_tokens = parse("max_tokens", argument, "/len")
    return Reply((Line(f"at most {studio.max_tokens} tokens at a time"),))


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
    last = studio.last
    if last is None:
        return Reply((Line("nothing has been written yet", "dim"),))
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


@command("help", "[COMMAND]", "this list, or more about one command", argument="command")
def _help(studio: Studio, argument: str) -> Reply:
    if argument:
        found = find(argument.removeprefix("/"))
        blocks: list[Block] = [Line(found.synopsis, "bold"), Line(found.help)]
        if found.run.__doc__:
            blocks.append(Line(inspect.getdoc(found.run) or ""))
        if found.aliases:
            blocks.append(Line("also " + ", ".join(f"/{alias}" for alias in found.aliases)))
        return Reply(tuple(blocks))
    rows = [(one.synopsis, one.help) for one in COMMANDS.values()]
    return Reply((Table(_KEYS), Line(""), Table(tuple(rows))))


@command("quit", "", "leave", aliases=("exit",))
def _quit(studio: Studio, argument: str) -> Reply:
    return Reply(leave=True)


_KEYS = (
    ("text", "begins a story, or goes on with an unfinished one; //text begins it with a slash"),
    ("Enter", "alone: the story goes on"),
    ("Tab", "completes commands, decoders, options and values"),
    ("Alt-Enter, Ctrl-J", "a new line in what you type; a paste is never sent by itself"),
    ("Ctrl-R, Up", "what you typed before"),
    ("Ctrl-C", "stops the story and keeps it; clears what is typed; twice leaves"),
    ("Ctrl-D", "leaves"),
)

_SHOWN_FIGURES = {"tokens", "seconds", "first_token_seconds", "tokens_per_second", "bits_per_token"}


def _stage_rows(stage: Stage) -> list[tuple[str, ...]]:
    """A stage of the chain: its values and what they mean."""
    off = is_neutral(stage)
    rows = [
        (f"{option.name} = {show_value(getattr(stage, option.field))}", f"{option.help} ({option.range})")
        for option in options_of(type(stage))
    ] or [("", summary(type(stage)))]
    if off:
        rows[0] = (f"off: {rows[0][0]}", rows[0][1])
    return [(stage.name if index == 0 else "", *row) for index, row in enumerate(rows)]


def _option_text(option: Option) -> str:
    default = "" if option.required else f" [{show_value(option.default)}]"
    neutral = "" if option.neutral is MISSING else f"; off at {show_value(option.neutral)}"
    return f"{option.name}{default}: {option.range}; {option.help}{neutral}"
