"""What Tab offers: a pure function of the text before the cursor, and prompt_toolkit's shell over it.

Everything comes from the tables of commands and options; torch is not needed.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from tinystory.decoding import Stage
from tinystory.errors import UsageError
from tinystory.options import Option, options_of
from tinystory.plugins import Registry
from tinystory.repl.commands import COMMANDS, find
from tinystory.repl.render import show_value, summary

__all__ = ["StudioCompleter", "Suggestion", "complete"]

_MOST_FOLDERS = 200
_LAST_STAGE = re.compile(r'(?:"(?:[^"\\]|\\.)*"?|[^"|])*$', re.DOTALL)


@dataclass(frozen=True)
class Suggestion:
    """One way to go on.

    Attributes:
        text: to insert.
        typed: how many characters before the cursor it replaces.
        help: shown beside it.
    """

    text: str
    typed: int
    help: str = ""


def complete(text: str, registry: Registry) -> list[Suggestion]:
    """What may stand at the end of a line that begins with a slash; nothing for other text."""
    if not text.startswith("/") or text.startswith("//"):
        return []
    head = re.match(r"/(\S*)(\s+)?", text)
    if head is None:
        return []
    if not head[2]:
        names = (f"{name} " if one.usage else name for name, one in COMMANDS.items())
        return _matching(head[1], zip(names, (one.help for one in COMMANDS.values()), strict=True))
    try:
        kind = find(head[1]).argument
    except UsageError:
        return []
    argument = text[head.end() :]
    if kind == "spec":
        return list(_spec(argument, registry))
    if kind == "folder":
        return _folders(argument)
    if kind == "decoder":
        return _matching(argument, ((name, summary(cls)) for name, cls, _ in registry.classes()))
    if kind == "command":
        return _matching(argument, ((name, one.help) for name, one in COMMANDS.items()))
    if kind == "seed":
        return _matching(argument, [("random", "a fresh one for each story")])
    return []


class StudioCompleter(Completer):
    """`complete` for prompt_toolkit."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        """The suggestions at the cursor."""
        for suggestion in complete(document.text_before_cursor, self._registry):
            yield Completion(suggestion.text, -suggestion.typed, display_meta=suggestion.help)


def _matching(typed: str, candidates: Iterable[tuple[str, str]]) -> list[Suggestion]:
    return [Suggestion(text, len(typed), help) for text, help in candidates if text.startswith(typed)]


def _spec(argument: str, registry: Registry) -> Iterator[Suggestion]:
    """Stage names, then the names and values of the stage's options."""
    *earlier, last = _stages(argument)
    name, space, rest = _partition(last.lstrip())
    if not space:
        yield from _matching(name, _stages_after(earlier, registry))
        return
    try:
        cls = registry.get(name)
    except UsageError:
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
    if not word and cls.kind == "processor" and (before.strip() or not options):
        yield Suggestion("| ", 0, "then")


def _stages(argument: str) -> list[str]:
    """The text between the bars that stand outside quotes."""
    stages: list[str] = []
    while True:
        last = _LAST_STAGE.search(argument)
        start = last.start() if last else 0
        stages.insert(0, argument[start:])
        if start == 0:
            return stages
        argument = argument[: start - 1]


def _stages_after(earlier: Iterable[str], registry: Registry) -> Iterator[tuple[str, str]]:
    """The stages that may follow: after a sampler only a search, after a search nothing."""
    classes = registry.classes()
    kinds = {name: cls.kind for name, cls, _ in classes}
    kinds |= {alias: kinds[name] for alias, name in registry.aliases.items() if name in kinds}
    before = {kinds.get(_partition(stage.strip())[0]) for stage in earlier}
    for name, cls, _ in classes:
        if "search" not in before and ("sampler" not in before or cls.kind == "search"):
            yield name + (" " if options_of(cls) else ""), f"{cls.kind}: {summary(cls)}"


def _values(option: Option, cls: type[Stage]) -> Iterator[tuple[str, str]]:
    """Values worth offering: all of a choice; of a number the default, the example's and the one that is off."""
    if option.choices or option.type is bool:
        yield from ((value, option.help) for value in option.choices or ("yes", "no"))
        return
    values = {}
    if option is options_of(cls)[0] and re.fullmatch(r"\S+ [^\s=]+", cls.example):
        values[cls.example.split()[1]] = option.range
    if not option.required:
        values[show_value(option.default)] = f"default; {option.range}"
    if option.neutral is not MISSING:
        values[show_value(option.neutral)] = "off"
    yield from values.items()


def _partition(text: str) -> tuple[str, str, str]:
    match = re.match(r"(\S*)(\s*)(.*)", text, re.DOTALL)
    return (match[1], match[2], match[3]) if match else (text, "", "")


def _last_word(text: str) -> tuple[str, str]:
    word = text.split(" ")[-1]
    return text[: len(text) - len(word)], word


def _folders(typed: str) -> list[Suggestion]:
    """Folders that go on from a path, `~` included, and the shipped model's name."""
    parent, name = os.path.split(typed)
    found = _matching(typed, [("default", "the model that comes with tinystory")])
    try:
        with os.scandir(os.path.expanduser(parent) or ".") as entries:
            names = sorted(entry.name for entry in entries if entry.name.startswith(name) and entry.is_dir())
    except OSError:
        return found
    shown = [folder for folder in names if name.startswith(".") or not folder.startswith(".")]
    return found + [Suggestion(folder + os.sep, len(name)) for folder in shown[:_MOST_FOLDERS]]
