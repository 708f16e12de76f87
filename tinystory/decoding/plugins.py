"""Find decoder stages in installed packages, in the user's folder, and in files that the user names.

The built-in stages come through the same entry points as the stages of others. Nothing is searched for in the current
directory or in a checkpoint. A broken plug-in costs one warning line, and the program still starts. Names are read from
the metadata of packages; a class is imported when it is needed for the first time.
"""

import hashlib
import importlib.metadata
import os
import re
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from tinystory.decoding.registry import Entry, Registry, error_summary, name_problem, stage_problem
from tinystory.decoding.stages import Stage
from tinystory.errors import UsageError
from tinystory.folders import decoders_folder
from tinystory.safe.reading import read_bytes, shown
from tinystory.safe.running import CodeFailed, foreign_code

__all__ = ["Registry", "discover", "load_file", "name_problem", "source_text"]

GROUP = "tinystory.decoders"
"""The entry-point group of decoder stages."""

NO_PLUGINS = "TINYSTORY_NO_PLUGINS"
"""Environment variable. Any value except "" and "0" leaves out other packages and the user's folder."""

_MOST_SOURCE_BYTES = 2**22


def discover(decoder_files: Sequence[Path] = (), user_folder: Path | Literal["default"] | None = "default") -> Registry:
    """Find the decoder stages.

    Args:
        decoder_files: files that the user named.
        user_folder: the folder with the user's own files, by default `decoders_folder()`; None for no folder.

    Returns:
        A registry. Its `warnings` say what is wrong with a package or with a file of the folder.

    Raises:
        UsageError: one of `decoder_files` is missing or broken, or defines a name that is taken.
    """
    registry = Registry()
    only_built_in = os.environ.get(NO_PLUGINS, "0") not in ("", "0")
    for entry in _entry_points(registry.warnings):
        if not only_built_in or entry.source == "tinystory":
            registry.enter(entry)
    if user_folder == "default":
        user_folder = None if only_built_in else decoders_folder()
    named = {os.path.realpath(_existing(path)): path for path in decoder_files}  # a file named twice is loaded once
    for path in _files_of(user_folder, registry.warnings) if user_folder else ():
        if os.path.realpath(path) in named:
            continue
        try:
            classes = load_file(path)
        except UsageError as error:
            registry.warnings.append(str(error))
            continue
        for cls in classes:
            registry.enter_class(cls, source_text(path))
    for path in named.values():
        for cls in load_file(path):
            registry.add(cls, source_text(path))
    return registry


def _files_of(folder: Path, warnings: list[str]) -> list[Path]:
    """Return the decoder files of the user's folder, in order."""
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        warnings.append(f"the decoders in {source_text(folder)} cannot be read: {error.strerror}")
        return []
    return [folder / name for name in names if name.endswith(".py") and name[0] not in "._"]


def _entry_points(warnings: list[str]) -> Iterator[Entry]:
    """Yield the entry points of all distributions. If one is found twice, Python would import the first."""
    seen = set()
    for distribution in importlib.metadata.distributions(path=_search_path()):
        try:
            points = [point for point in distribution.entry_points if point.group == GROUP]
            source = str(distribution.metadata["Name"]) if points else ""
        except Exception as error:  # damaged metadata, perhaps of a package without decoders
            warnings.append(f"the metadata of an installed package cannot be read: {error_summary(error)}")
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
                yield Entry(point.name, source, point.value, point.load)


def _search_path() -> list[str]:
    """Return `sys.path` without the current directory, if `python -m` or `python -c` has put it at the front.

    Metadata in the current folder must not add decoders. (Such a folder can still hide any module from `python -m`;
    the `tinystory` command and `python -P` do not look there at all.) A current directory that is on the path for
    another reason stays, for example because of PYTHONPATH.
    """
    path = list(sys.path)
    try:
        if path and not sys.flags.safe_path and os.path.samefile(path[0] or ".", "."):
            del path[0]
    except OSError:  # one of the two folders does not exist
        pass
    return [entry for entry in path if entry]


def load_file(path: Path) -> list[type[Stage]]:
    """Run a decoder file and return the stages that it defines, without those that it only imports.

    No `__pycache__` is written beside it. A class without a `name` of its own counts as a base class.

    Args:
        path: a Python file. It is run, so it must be trusted like any program.

    Raises:
        UsageError: the file is missing, fails, or defines no stage or a wrong one. The message is one line with the
            line number.
    """
    identity = os.fsencode(os.path.realpath(_existing(path)))
    source = read_bytes(path, _MOST_SOURCE_BYTES, raises=UsageError)
    module = types.ModuleType(f"_decoder_file_{hashlib.sha256(identity).hexdigest()[:16]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # before it runs, because dataclasses look up their module by its name
    stages: list[Any] = []
    cause: BaseException | None = None
    problem, position = None, source_text(path)
    try:
        with foreign_code():
            exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
            classes = dict.fromkeys(value for value in vars(module).values() if isinstance(value, type))
            stages += [cls for cls in classes if issubclass(cls, Stage) and _is_defined_in(cls, module)]
            problem = next(filter(None, map(stage_problem, stages)), None)
        if not stages:
            problem = "it defines no decoder: subclass LogitsProcessor, Sampler or Search and set `name`"
    except CodeFailed as failure:
        cause = failure.error
        problem, position = error_summary(cause), _position(path, cause)
    if problem:
        del sys.modules[module.__name__]
        raise UsageError(f"decoder file {position}: {problem}") from cause
    return stages


def _is_defined_in(cls: type, module: types.ModuleType) -> bool:
    return cls.__module__ == module.__name__ and bool(cls.__dict__.get("name"))


def _existing(path: Path) -> Path:
    if not os.path.isfile(path):
        raise UsageError(f"there is no decoder file {source_text(path)}")
    return path


def source_text(path: Path) -> str:
    """Return a path as registries show it, with control characters escaped."""
    text = str(path)
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _position(path: Path, error: BaseException) -> str:
    """Return the path, with the number of the line that ran last."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        line = error.lineno
    else:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((frame.lineno for frame in reversed(frames) if frame.filename == str(path)), None)
    return f"{source_text(path)}:{line}" if line else source_text(path)
