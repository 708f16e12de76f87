"""The decoder stages by name, and the rules that a stage class has to keep. It does not look for stages itself."""

import dataclasses
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tinystory.decoding.options import options_of
from tinystory.decoding.stages import LogitsProcessor, Sampler, Search, Stage
from tinystory.errors import UsageError, meant
from tinystory.safe.reading import shown
from tinystory.safe.running import CodeFailed, foreign_code

__all__ = ["Entry", "Registry", "error_summary", "name_problem", "stage_problem"]

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_NAME_RULE = "a name has lower-case letters, digits and single hyphens, and begins with a letter"
_RESERVED_NAMES = ("check", "new")
"""Words after `tinystory decoders` that are not names of stages."""


@dataclass(frozen=True)
class Entry:
    """One name and the place that its class comes from.

    Attributes:
        name: the name of the stage.
        source: what users see as its origin: the name of a distribution, or a file.
        target: `module:attribute` or `file:class`. One name may be given twice for the same target.
        load: returns the class. It may raise any error.
    """

    name: str
    source: str
    target: str
    load: Callable[[], object]

    @property
    def place(self) -> str:
        """The source and the target in words."""
        return self.target if self.target.startswith(self.source + ":") else f"package {self.source} ({self.target})"


class Registry:
    """The stages by name. A class is imported when it is needed for the first time.

    Attributes:
        aliases: the stage's own name by its other name. Only loading an entry point shows that it is an alias, so more
            may be found later.
        conflicts: names that were given twice, each with a message that names both places. Such a name has no stage.
        warnings: one line for each broken plug-in and for each conflict.
    """

    def __init__(self) -> None:
        self.aliases: dict[str, str] = {}
        self.conflicts: dict[str, str] = {}
        self.warnings: list[str] = []
        self._entries: dict[str, Entry] = {}
        self._classes: dict[str, type[Stage]] = {}
        self._broken: dict[str, str] = {}

    def names(self) -> list[str]:
        """Return the sorted names of all stages without aliases. Only entries that may be aliases are imported."""
        targets = [entry.target for entry in self._entries.values()]
        for name, entry in list(self._entries.items()):
            if targets.count(entry.target) > 1:
                self._load(name)
        return sorted(self._entries.keys() - self.aliases.keys())

    def get(self, name: str) -> type[Stage]:
        """Return the stage class of a name or an alias.

        Raises:
            UsageError: no stage has this name (the message has the nearest name), two have it, or it is broken.
        """
        if name not in self._entries:
            self.classes()  # a class may have another name than its entry point
        cls = self._load(name) if name in self._entries else None
        if cls:
            return cls
        problem = self.conflicts.get(name) or self._broken.get(name)
        if problem:
            raise UsageError(problem)
        names = self.names()
        near = meant(
            name, [*names, *(alias for alias, own in self.aliases.items() if not own.startswith(name))], "`{}`"
        )
        hint = near.question or ("/decoders and `tinystory decoders` list them" if names else "there are none")
        raise UsageError(f"no decoder stage is called {shown(name)}: {hint}").correcting(name, near.name)

    def classes(self) -> list[tuple[str, type[Stage], str]]:
        """Return all stages as (name, class, source), sorted by name. Broken ones are left out, with a warning."""
        for name in list(self._entries):
            if not self._load(name):
                self._drop(name, self._broken[name])
        return [(name, self._classes[name], self._entries[name].source) for name in self.names()]

    def source(self, name: str) -> str:
        """Return the origin of a stage: the name of a distribution, or a file. Raise UsageError as `get` does."""
        return self._entries[self.get(name).name].source

    def add(self, cls: type[Stage], source: str) -> None:
        """Enter a class under its own name.

        Raises:
            UsageError: it is not a valid stage, or its name is taken. The message names both places.
        """
        problem = stage_problem(cls)
        if problem:
            raise UsageError(f"{source}: {problem}")
        self.enter_class(cls, source)
        if cls.name in self.conflicts:
            raise UsageError(self.conflicts[cls.name])

    def replace(self, cls: type[Stage], source: str) -> None:
        """Enter a class under its own name, in the place of an earlier class of the same source and class name.

        Raises:
            UsageError: as `add`.
        """
        earlier = self._entries.get(getattr(cls, "name", ""))
        if earlier is not None and earlier.target == f"{source}:{cls.__qualname__}" and not stage_problem(cls):
            del self._entries[cls.name]
            self._classes.pop(cls.name, None)
        self.add(cls, source)

    def enter_class(self, cls: type[Stage], source: str) -> None:
        """Enter a valid class. If its name is taken, that becomes a conflict with a warning."""
        self.enter(Entry(cls.name, source, f"{source}:{cls.__qualname__}", lambda: cls))

    def enter(self, entry: Entry) -> None:
        """Enter a name. If it is taken, nobody can use the name, but the program still starts."""
        first = self._entries.get(entry.name)
        if first is None and entry.name not in self.conflicts:
            self._entries[entry.name] = entry
        elif first is not None and first.target != entry.target:
            self.conflicts[entry.name] = (
                f"two decoders are called {entry.name}: one in {first.place}, one in {entry.place};"
                " rename or remove one of them"
            )
            self._drop(entry.name, self.conflicts[entry.name])

    def _drop(self, name: str, warning: str) -> None:
        self.warnings.append(warning)
        self._entries.pop(name, None)
        self.aliases.pop(name, None)

    def _load(self, name: str) -> type[Stage] | None:
        """Return the class of an entry. If it is broken, return None; `_broken` then has the reason."""
        if name in self._classes or name in self._broken:
            return self._classes.get(name)
        entry = self._entries[name]
        try:
            with foreign_code():
                cls: Any = entry.load()
                problem = stage_problem(cls)
        except CodeFailed as failure:
            problem = error_summary(failure.error)
        if not problem and cls.name != name:
            problem = self._enter_alias(entry, cls)
        if problem:
            self._broken[name] = f"decoder {name} of {entry.place} is broken: {problem}"
        else:
            self._classes[name] = cls
        return self._classes.get(name)

    def _enter_alias(self, entry: Entry, cls: type[Stage]) -> str | None:
        """Note that an entry is an alias of its class's own name. Return a problem if another stage has that name."""
        entry_of_name = self._entries.get(cls.name, entry)
        if entry_of_name.target != entry.target or cls.name in self.conflicts:
            return f"it calls itself {cls.name}, and so does {entry_of_name.place}"
        self._entries.setdefault(cls.name, dataclasses.replace(entry, name=cls.name))
        self.aliases[entry.name] = cls.name
        self._classes[cls.name] = cls
        return None


def name_problem(name: object) -> str | None:
    """Return why a decoder cannot have this name; None if it can."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return _NAME_RULE
    return f"`tinystory decoders {name}` means something else" if name in _RESERVED_NAMES else None


def stage_problem(cls: Any) -> str | None:
    """Return why a class cannot be a stage; None if it can."""
    methods = {LogitsProcessor: "__call__", Sampler: "__call__", Search: "search"}
    role = next((role for role in methods if isinstance(cls, type) and issubclass(cls, role)), None)
    if role is None:
        return f"{shown(cls)} is not a LogitsProcessor, Sampler or Search"
    if problem := name_problem(cls.name):
        return f"class {cls.__name__} has the name {shown(cls.name)}: {problem}"
    if getattr(cls, methods[role]) is getattr(role, methods[role]):
        return f"class {cls.__name__} does not define {methods[role]}"
    parameters = cls.__dict__.get("__dataclass_params__")
    if parameters is None or not parameters.frozen:
        return f"class {cls.__name__} is not a frozen dataclass: write @dataclass(frozen=True) above it"
    return _options_problem(cls)


def _options_problem(cls: type) -> str | None:
    for field in dataclasses.fields(cls):
        if "option" not in field.metadata:
            return f"{cls.__name__}.{field.name} is not declared with option()"
    for index, declared in enumerate(options_of(cls)):
        if not _is_option_type(declared.type):
            return f"option {declared.name} has the type {shown(declared.type)}, which a spec cannot hold"
        if index and typing.get_origin(declared.type) is Mapping:
            return f"option {declared.name} holds pairs: it must be the first option"
    return None


def _is_option_type(kind: Any) -> bool:
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        return len(arguments) == 2 and arguments[0] in (int, float, str) and arguments[1] is Ellipsis
    return kind in (int, float, bool, str) or (typing.get_origin(kind) is Mapping and arguments == (str, float))


def error_summary(error: BaseException) -> str:
    """Return an error as one short line that is safe to print."""
    text = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= 160 and text.isprintable() else shown(text)
