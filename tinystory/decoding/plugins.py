"""Which decoder stages there are: found in installed packages, in the user's folder, in files named outright.

The built-in stages come through the same entry points as everybody else's. Nothing is looked for in the current
directory or in a checkpoint, and a broken plug-in costs one warning line, never the start-up. Names are read from
package metadata; a class is imported when it is first wanted.
"""

import dataclasses
import hashlib
import importlib.machinery
import importlib.metadata
import os
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tinystory.decoding.options import options_of
from tinystory.decoding.stages import LogitsProcessor, Sampler, Search, Stage
from tinystory.errors import UsageError, nearest
from tinystory.folders import decoders_folder
from tinystory.safe.reading import shown

__all__ = ["Registry", "discover", "load_file", "name_problem", "source_text"]

GROUP = "tinystory.decoders"
"""The entry-point group of decoder stages."""

NO_PLUGINS = "TINYSTORY_NO_PLUGINS"
"""Environment variable: anything but empty or 0 leaves other packages and the user's folder out."""

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_NAME_RULE = "a name has lower-case letters, digits and single hyphens, a letter first"
_TAKEN = ("check", "new")
"""What `tinystory decoders` does with the word after it, where that is not a name."""


@dataclass(frozen=True)
class _Entry:
    """A name and where its class comes from.

    Attributes:
        source: what users are shown: the name of a distribution, or a file.
        target: `module:attribute` or `file:class`; one name given twice for the same target is no conflict.
        load: gives the class; may raise anything.
    """

    name: str
    source: str
    target: str
    load: Callable[[], object]

    @property
    def place(self) -> str:
        return self.target if self.target.startswith(self.source + ":") else f"package {self.source} ({self.target})"


class Registry:
    """The stages by name.

    Attributes:
        aliases: other names of stages, as far as known: that an entry point is an alias shows when it is loaded.
        conflicts: names given twice, each with a message that tells both places; such a name gives no stage.
        warnings: one line for each plug-in that is broken and each conflict.
    """

    def __init__(self) -> None:
        self.aliases: dict[str, str] = {}
        self.conflicts: dict[str, str] = {}
        self.warnings: list[str] = []
        self._entries: dict[str, _Entry] = {}
        self._classes: dict[str, type[Stage]] = {}
        self._broken: dict[str, str] = {}

    def names(self) -> list[str]:
        """The names of all stages, sorted, without aliases; imports only what it takes to tell those apart."""
        targets = [entry.target for entry in self._entries.values()]
        for name, entry in list(self._entries.items()):
            if targets.count(entry.target) > 1:
                self._load(name)
        return sorted(self._entries.keys() - self.aliases.keys())

    def get(self, name: str) -> type[Stage]:
        """The stage class of a name or an alias.

        Raises:
            UsageError: there is none (the message tells the nearest name), it is given twice, or it is broken.
        """
        if name not in self._entries:
            self.classes()  # a class may have a name that its entry point does not tell
        cls = self._load(name) if name in self._entries else None
        if cls:
            return cls
        problem = self.conflicts.get(name) or self._broken.get(name)
        if problem:
            raise UsageError(problem)
        known = self.names()
        near = nearest(name, [*known, *self.aliases])
        hint = f"did you mean `{near}`?" if near else f"there are {', '.join(known) or 'none'}"
        raise UsageError(f"no decoder stage is called {shown(name)}: {hint}")

    def classes(self) -> list[tuple[str, type[Stage], str]]:
        """All stages as (name, class, source), sorted by name; a broken one is left out, with a warning."""
        for name in list(self._entries):
            if not self._load(name):
                self._drop(name, self._broken[name])
        return [(name, self._classes[name], self._entries[name].source) for name in self.names()]

    def source(self, name: str) -> str:
        """Where a stage comes from: the name of a distribution, or a file; raises UsageError as `get` does."""
        return self._entries[self.get(name).name].source

    def add(self, cls: type[Stage], source: str) -> None:
        """Enter a class under its own name.

        Raises:
            UsageError: it is not a proper stage, or its name is taken; the message names both places.
        """
        problem = _stage_problem(cls)
        if problem:
            raise UsageError(f"{source}: {problem}")
        self._add(cls, source)
        if cls.name in self.conflicts:
            raise UsageError(self.conflicts[cls.name])

    def _add(self, cls: type[Stage], source: str) -> None:
        self._enter(_Entry(cls.name, source, f"{source}:{cls.__qualname__}", lambda: cls))

    def _enter(self, entry: _Entry) -> None:
        """Note an entry; when its name is taken, the name becomes unusable rather than the program."""
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
        """The class of an entry; None when it is broken, with the reason in `_broken`."""
        if name in self._classes or name in self._broken:
            return self._classes.get(name)
        entry = self._entries[name]
        try:
            cls: Any = entry.load()
            problem = _stage_problem(cls)
        except (Exception, SystemExit) as error:  # importing somebody's module may raise anything at all
            problem = _summary(error)
        if not problem and cls.name != name:
            own = self._entries.get(cls.name, entry)
            if own.target != entry.target or cls.name in self.conflicts:
                problem = f"it calls itself {cls.name}, as does {own.place}"
            else:
                self._entries.setdefault(cls.name, dataclasses.replace(entry, name=cls.name))
                self.aliases[name] = cls.name
                self._classes[cls.name] = cls
        if problem:
            self._broken[name] = f"decoder {name} of {entry.place} is broken: {problem}"
        else:
            self._classes[name] = cls
        return self._classes.get(name)


def discover(decoder_files: Sequence[Path] = (), user_folder: Path | Literal["default"] | None = "default") -> Registry:
    """Find the decoder stages.

    Args:
        decoder_files: files that the user named.
        user_folder: of the user's own files, by default `decoders_folder()`; None for no such folder.

    Returns:
        A registry; what is wrong with a package or a file of the folder stands in its `warnings`.

    Raises:
        UsageError: one of `decoder_files` is missing or broken, or gives a name that is taken.
    """
    registry = Registry()
    bare = os.environ.get(NO_PLUGINS, "0") not in ("", "0")
    for entry in _entry_points(registry.warnings):
        if not bare or entry.source == "tinystory":
            registry._enter(entry)
    if user_folder == "default":
        user_folder = None if bare else decoders_folder()
    named = {os.path.realpath(_existing(path)): path for path in decoder_files}  # a file named twice is loaded once
    for path in sorted(user_folder.glob("[!._]*.py")) if user_folder else ():
        if os.path.realpath(path) in named:
            continue
        try:
            classes = load_file(path)
        except UsageError as error:
            registry.warnings.append(str(error))
            continue
        for cls in classes:
            registry._add(cls, source_text(path))
    for path in named.values():
        for cls in load_file(path):
            registry.add(cls, source_text(path))
    return registry


class _QuietLoader(importlib.machinery.SourceFileLoader):
    """Runs a Python file as an import would, without reading or writing `__pycache__` beside it."""

    def get_code(self, fullname: str) -> types.CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def load_file(path: Path) -> list[type[Stage]]:
    """Run a decoder file and take the stages it defines, not those it merely imports.

    No `__pycache__` is written beside it. A class without a `name` of its own is taken for a base of others.

    Args:
        path: a Python file. It is run, so it has to be trusted like any program.

    Raises:
        UsageError: it is missing, fails, or defines no stage or a wrong one; one line, with the line number.
    """
    identity = os.fsencode(os.path.realpath(_existing(path)))
    name = f"_decoder_file_{hashlib.sha256(identity).hexdigest()[:16]}"
    loader = _QuietLoader(name, str(path))
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # before it runs: dataclasses and type hints look their module up by name
    stages: list[Any] = []
    cause: BaseException | None = None
    problem, position = None, source_text(path)
    try:
        loader.exec_module(module)
        classes = dict.fromkeys(value for value in vars(module).values() if isinstance(value, type))
        stages += [cls for cls in classes if issubclass(cls, Stage) and _is_own(cls, module)]
        problem = next(filter(None, map(_stage_problem, stages)), None)
        if not stages:
            problem = "it defines no decoder: subclass LogitsProcessor, Sampler or Search and set `name`"
    except (Exception, SystemExit) as error:  # running somebody's module may raise anything at all
        problem, position, cause = _summary(error), _position(path, error), error
    if problem:
        del sys.modules[module.__name__]
        raise UsageError(f"decoder file {position}: {problem}") from cause
    return stages


def _is_own(cls: type, module: types.ModuleType) -> bool:
    return cls.__module__ == module.__name__ and bool(cls.__dict__.get("name"))


def name_problem(name: object) -> str | None:
    """Why a decoder cannot be called that; None when it can."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return _NAME_RULE
    return f"`tinystory decoders {name}` means something else" if name in _TAKEN else None


def _entry_points(warnings: list[str]) -> Iterator[_Entry]:
    """The entry points of all distributions; of one found twice, the first, as Python would import it."""
    seen = set()
    for distribution in importlib.metadata.distributions(path=_search_path()):
        try:
            points = [point for point in distribution.entry_points if point.group == GROUP]
            source = str(distribution.metadata["Name"]) if points else ""
        except Exception as error:  # the damaged metadata of a package that need not be for us
            warnings.append(f"the metadata of an installed package cannot be read: {_summary(error)}")
            continue
        identity = re.sub(r"[-_.]+", "-", source).lower()
        if not points or identity in seen:
            continue
        seen.add(identity)
        for point in points:
            problem = name_problem(point.name)
            if problem:
                warnings.append(f"package {source} calls a decoder {shown(point.name)}: {problem}")
            else:
                yield _Entry(point.name, source, point.value, point.load)


def _search_path() -> list[str]:
    """`sys.path` without the current directory where `python -m` and `python -c` put it, at the front.

    Metadata lying in the folder a person happens to stand in must not add decoders. (Such a folder can still hide
    any module from `python -m`; the `tinystory` command and `python -P` do not look there at all.) A current
    directory that is on the path for another reason, PYTHONPATH or being site-packages, stays.
    """
    path = list(sys.path)
    try:
        if path and not sys.flags.safe_path and os.path.samefile(path[0] or ".", "."):
            del path[0]
    except OSError:  # one of the two does not exist
        pass
    return [entry for entry in path if entry]


def _stage_problem(cls: Any) -> str | None:
    """Why a class cannot be a stage; None when it can."""
    roles = {LogitsProcessor: "__call__", Sampler: "__call__", Search: "search"}
    role = next((role for role in roles if isinstance(cls, type) and issubclass(cls, role)), None)
    if role is None:
        return f"{shown(cls)} is no LogitsProcessor, Sampler or Search"
    if problem := name_problem(cls.name):
        return f"class {cls.__name__} has the name {shown(cls.name)}: {problem}"
    if getattr(cls, roles[role]) is getattr(role, roles[role]):
        return f"class {cls.__name__} defines no {roles[role]}"
    parameters = cls.__dict__.get("__dataclass_params__")
    if parameters is None or not parameters.frozen:
        return f"class {cls.__name__} is not a frozen dataclass: write @dataclass(frozen=True) above it"
    for field in dataclasses.fields(cls):
        if "option" not in field.metadata:
            return f"{cls.__name__}.{field.name} is not declared with option()"
    for index, declared in enumerate(options_of(cls)):
        if not _is_option_type(declared.type):
            return f"option {declared.name} has the type {shown(declared.type)}, which no spec can hold"
        if index and typing.get_origin(declared.type) is Mapping:
            return f"option {declared.name} holds pairs: it must be the first option"
    return None


def _is_option_type(kind: Any) -> bool:
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        return len(arguments) == 2 and arguments[0] in (int, float, str) and arguments[1] is Ellipsis
    return kind in (int, float, bool, str) or (typing.get_origin(kind) is Mapping and arguments == (str, float))


def _existing(path: Path) -> Path:
    if not os.path.isfile(path):
        raise UsageError(f"there is no decoder file {source_text(path)}")
    return path


def source_text(path: Path) -> str:
    """What a registry calls a file: its path, fit for a terminal, with control characters escaped."""
    text = str(path)
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _position(path: Path, error: BaseException) -> str:
    """The path, and the last of its lines that was running."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        line = error.lineno
    else:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((frame.lineno for frame in reversed(frames) if frame.filename == str(path)), None)
    return f"{source_text(path)}:{line}" if line else source_text(path)


def _summary(error: BaseException) -> str:
    """An exception on one short line."""
    text = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    text = f"{type(error).__name__}: {text}"
    return text if len(text) <= 160 and text.isprintable() else shown(text)
