"""Completion: a pure function of the text before the cursor, and its adapter for prompt_toolkit.

All suggestions come from the tables of commands and options. torch is not needed.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, dataclass

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from tinystory.checkpoint.shipped import SHIPPED_MODELS
from tinystory.decoding import Stage
from tinystory.decoding.options import Option, options_of, summary
from tinystory.decoding.plugins import Registry
from tinystory.decoding.spec import format_value
from tinystory.errors import UsageError
from tinystory.repl.commands import COMMANDS, GROUPS, Argument, find
from tinystory.studio.views import TINT_HELP

__all__ = ["Names", "StudioCompleter", "Suggestion", "complete"]

_MOST_FILES = 200
_LAST_PART = {sign: re.compile(rf'(?:"(?:[^"\\]|\\.)*"?|[^"{sign}])*$', re.DOTALL) for sign in "|;"}
_PRESET_ACTIONS = {
    "save ": "keep a decoder under a name",
    "load ": "use a preset",
    "list": "show all presets",
    "rm ": "remove a preset",
}

_SESSION_ACTIONS = {"rename ": "give a session another name", "rm ": "remove a session"}
_EXPORTS = {
    ".txt": "the story",
    ".md": "the story, with a table of its turns",
    ".json": "for `tinystory replay`",
    ".html": "a page that shows what else was possible",
    ".svg": "a picture with the colours of the tokens",
}
"""What each format of /export is for. Its module imports rich, for which Tab does not wait."""


@dataclass(frozen=True)
class Suggestion:
    """One way to complete a text.

    Attributes:
        text: the text to insert.
        typed: how many characters before the cursor it replaces.
        help: the explanation beside it.
    """

    text: str
    typed: int
    help: str = ""


@dataclass(frozen=True)
class Names:
    """The functions that look up names when Tab is pressed.

    Attributes:
        presets: gives the names of presets.
        sessions: gives the names of saved sessions.
        turns: gives the numbers of turns, each with its first words.
        stages: gives the stages of the decoder in use, as /set names them, each with its spec.
    """

    presets: Callable[[], Iterable[str]] = tuple
    sessions: Callable[[], Iterable[str]] = tuple
    stages: Callable[[], Iterable[tuple[str, str]]] = tuple
    turns: Callable[[], Iterable[tuple[str, str]]] = tuple


def complete(text: str, registry: Registry, names: Names | None = None) -> list[Suggestion]:
    """Return the suggestions for the end of a line that begins with one slash; none for other text."""
    if not text.startswith("/") or text.startswith("//"):
        return []
    head = re.match(r"/(\S*)(\s+)?", text)
    if head is None:
        return []
    if not head[2]:
        return _matching(head[1], _commands(with_space=True))
    try:
        kind = find(head[1]).argument
    except UsageError:
        return []
    return list(_of_kind(kind, text[head.end() :], registry, names or Names()))


def _of_kind(kind: Argument, argument: str, registry: Registry, names: Names) -> Iterable[Suggestion]:
    """Return the suggestions for an argument of one kind."""
    if kind == "spec":
        return _spec(argument, registry)
    if kind == "specs":
        return _spec(_last(argument, ";"), registry)
    if kind == "stage":
        return _stage(argument, registry, names)
    if kind == "preset":
        return _preset(argument, registry, names)
    if kind in ("folder", "folders"):
        return _models(argument if kind == "folder" else _last_word(argument)[1])
    if kind == "file":
        return _paths(argument, files=True)
    if kind == "export":
        return _exports(argument)
    if kind == "sessions":
        return _sessions(argument, names)
    if kind == "turn":
        return _matching(_last_word(argument)[1], names.turns())
    if kind == "decoder":
        return _matching(argument, ((name, summary(cls)) for name, cls, _ in registry.classes()))
    if kind == "command":
        return _matching(argument, (*((group.name, group.help) for group in GROUPS), *_commands()))
    if kind == "view":
        return _matching(argument, TINT_HELP.items())
    return _matching(argument, _names(kind, names))


def _commands(*, with_space: bool = False) -> Iterator[tuple[str, str]]:
    """Yield each command with its help. With `with_space`, a command that takes an argument ends in a space."""
    for name, command in COMMANDS.items():
        yield name + " " * (with_space and bool(command.usage)), command.help


def _names(kind: Argument, names: Names) -> Iterator[tuple[str, str]]:
    if kind == "seed":
        yield "random", "a fresh seed for each story"
    elif kind == "session":
        yield from ((name, "") for name in names.sessions())


class StudioCompleter(Completer):
    """A completer for prompt_toolkit that calls `complete`."""

    def __init__(self, registry: Registry, names: Names | None = None) -> None:
        self._registry = registry
        self._names = names

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        """Yield the suggestions at the cursor."""
        for suggestion in complete(document.text_before_cursor, self._registry, self._names):
            yield Completion(suggestion.text, -suggestion.typed, display_meta=suggestion.help)


def _matching(typed: str, candidates: Iterable[tuple[str, str]]) -> list[Suggestion]:
    return [Suggestion(text, len(typed), help) for text, help in candidates if text.startswith(typed)]


def _spec(argument: str, registry: Registry) -> Iterator[Suggestion]:
    """Yield stage names; after a name, the names and values of its options."""
    *earlier, last = _parts(argument, "|")
    name, space, rest = _partition(last.lstrip())
    if not space:
        yield from _matching(name, _stages_after(earlier, registry))
        return
    yield from _options(name, rest, registry)
    cls = _class(name, registry)
    before, word = _last_word(rest)
    if cls and not word and cls.kind == "processor" and (before.strip() or not options_of(cls)):
        yield Suggestion("| ", 0, "add a stage")


def _stage(argument: str, registry: Registry, names: Names) -> Iterator[Suggestion]:
    """Yield the names of stages that have options, those of the decoder in use first; after a name, its options."""
    name, space, rest = _partition(argument)
    if space:
        yield from _options(name.partition("#")[0], rest, registry)
    else:
        in_use = {f"{stage} ": f"now {spec}" for stage, spec in names.stages()}
        all_stages = {
            f"{stage} ": f"{cls.kind}: {summary(cls)}" for stage, cls, _ in registry.classes() if options_of(cls)
        }
        yield from _matching(
            name, (in_use | {stage: all_stages[stage] for stage in all_stages if stage not in in_use}).items()
        )


def _preset(argument: str, registry: Registry, names: Names) -> Iterable[Suggestion]:
    """Return the actions of /preset; after an action, names; after `save NAME`, a spec."""
    action, space, rest = _partition(argument)
    if not space:
        return _matching(action, _PRESET_ACTIONS.items())
    if action == "save" and " " in rest:
        return _spec(rest.partition(" ")[2].lstrip(), registry)
    saved = names.presets() if action in ("save", "load", "rm") else ()
    return _matching(rest, ((name, "") for name in saved))


def _sessions(argument: str, names: Names) -> list[Suggestion]:
    """Return the actions of /sessions; after an action, the names of sessions."""
    action, space, rest = _partition(argument)
    if not space:
        return _matching(action, _SESSION_ACTIONS.items())
    return _matching(rest, ((name, "") for name in names.sessions())) if f"{action} " in _SESSION_ACTIONS else []


def _exports(argument: str) -> list[Suggestion]:
    """Return names of files to write, one for each format, and the files that are there."""
    name = os.path.basename(argument)
    stem = name.rpartition(".")[0] or name or "story"
    return _matching(name, ((stem + ending, help) for ending, help in _EXPORTS.items())) + _paths(argument, files=True)


def _class(name: str, registry: Registry) -> type[Stage] | None:
    try:
        return registry.get(name)
    except UsageError:
        return None


def _options(name: str, rest: str, registry: Registry) -> Iterator[Suggestion]:
    """Yield the names and values of a stage's options that are not given yet."""
    cls = _class(name, registry)
    if cls is None:
        return
    options = options_of(cls)
    before, word = _last_word(rest)
    given = {option.name for option in options if re.search(rf"(^|\s){option.name}\s*=", before)}
    positional = any("=" not in written for written in before.split())
    if "=" in word:
        key, _, value = word.partition("=")
        for option in options:
            if option.name == key:
                yield from _matching(value, _values(option, cls))
        return
    if options and not positional and options[0].name not in given:
        yield from _matching(word, _values(options[0], cls))
    for option in options[1 if positional else 0 :]:
        if option.name not in given:
            yield from _matching(word, [(f"{option.name}=", f"{option.range}: {option.help}")])


def _parts(argument: str, sign: str) -> list[str]:
    """Return the parts of a text, split at each sign that stands outside quotes."""
    parts: list[str] = []
    while True:
        part = _last(argument, sign)
        parts.insert(0, part)
        if part == argument:
            return parts
        argument = argument[: len(argument) - len(part) - 1]


def _last(argument: str, sign: str) -> str:
    """Return the text after the last sign that stands outside quotes."""
    last = _LAST_PART[sign].search(argument)
    return last[0] if last else argument


def _stages_after(earlier: Iterable[str], registry: Registry) -> Iterator[tuple[str, str]]:
    """Yield the stages that may follow. Only a search may follow a sampler; nothing may follow a search."""
    classes = registry.classes()
    kinds = {name: cls.kind for name, cls, _ in classes}
    kinds |= {alias: kinds[name] for alias, name in registry.aliases.items() if name in kinds}
    before = {kinds.get(_partition(stage.strip())[0]) for stage in earlier}
    for name, cls, _ in classes:
        if "search" not in before and ("sampler" not in before or cls.kind == "search"):
            yield name + (" " if options_of(cls) else ""), f"{cls.kind}: {summary(cls)}"


def _values(option: Option, cls: type[Stage]) -> Iterator[tuple[str, str]]:
    """Yield the values of an option: all choices, or the example, the default and the value that turns it off."""
    if option.choices or option.type is bool:
        yield from ((value, option.help) for value in option.choices or ("yes", "no"))
        return
    values = {}
    if option is options_of(cls)[0] and re.fullmatch(r"\S+ [^\s=]+", cls.example):
        values[cls.example.split()[1]] = option.range
    if not option.required:
        values[format_value(option.default)] = f"default; {option.range}"
    if option.neutral is not MISSING:
        values[format_value(option.neutral)] = "off"
    yield from values.items()


def _partition(text: str) -> tuple[str, str, str]:
    match = re.match(r"(\S*)(\s*)(.*)", text, re.DOTALL)
    return (match[1], match[2], match[3]) if match else (text, "", "")


def _last_word(text: str) -> tuple[str, str]:
    word = text.split(" ")[-1]
    return text[: len(text) - len(word)], word


def _models(typed: str) -> list[Suggestion]:
    """Return folders, and the names of the models that come with tinystory."""
    return _matching(typed, ((name, "comes with tinystory") for name in SHIPPED_MODELS)) + _paths(typed, files=False)


def _paths(typed: str, *, files: bool) -> list[Suggestion]:
    """Return the folders, and the files if wanted, that begin with a path; `~` is the home folder."""
    parent, name = os.path.split(typed)
    try:
        with os.scandir(os.path.expanduser(parent) or ".") as entries:
            matches = [(entry.name, entry.is_dir()) for entry in entries if entry.name.startswith(name)]
    except OSError:
        return []
    shown = [
        entry + (os.sep if is_folder else "")
        for entry, is_folder in sorted(matches)
        if (files or is_folder) and (name.startswith(".") or not entry.startswith("."))
    ]
    return [Suggestion(entry, len(name)) for entry in shown[:_MOST_FILES]]
