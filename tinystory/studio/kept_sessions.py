"""The sessions in a folder: find one by its name, rename it, remove it. One that a chat has open is never touched."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tinystory.errors import SessionError, UsageError, meant, nearest
from tinystory.folders import sessions_folder
from tinystory.safe.name_lock import NameLock
from tinystory.story.session_file import load_session, read_summary, save_session
from tinystory.studio.keeper import checked_name, session_names

__all__ = ["describe", "find_session", "remove_session", "rename_session"]

_LONGEST_NAME = 80
"""Characters of the longest name that a session can have."""


def find_session(given: Path) -> Path:
    """Return the file that a user means: a file, or the session of this name. A path with folders is always a file.

    Raises:
        SessionError: there is no such file, and no session has this name.
    """
    if os.path.lexists(given) or given.name != str(given) or len(given.name) > _LONGEST_NAME:
        return given
    names = session_names(sessions_folder())
    if str(given) in names:
        return sessions_folder() / f"{given}.json"
    near = nearest(str(given), names)
    hint = f"did you mean {near}?" if near else "/sessions in a chat lists them"
    raise SessionError(f"there is no file {given}, and no session has this name: {hint}")


def describe(folder: Path, name: str) -> str:
    """Return in words what a session has; raises UsageError if there is none of this name."""
    path = _existing(folder, name)
    try:
        summary = read_summary(path)
    except SessionError:
        return "it cannot be read"
    counts = ((summary.stories, "story", "stories"), (summary.turns, "turn", "turns"))
    n_stories, n_turns = (f"{n:,} {one if n == 1 else many}" for n, one, many in counts)
    return f"{n_stories}, {n_turns}" + (f", begins with “{summary.begins}”" if summary.begins else "")


def remove_session(folder: Path, name: str, present: str) -> None:
    """Remove the file of a session.

    Args:
        folder: the folder of the sessions.
        name: the name of the session.
        present: the name of the session that this chat has open.

    Raises:
        UsageError: there is no such session, or a chat has it open.
        SessionError: the file cannot be removed.
    """
    path = _existing(folder, name)
    with _closed(folder, name, present, f"/load another one first, then /sessions rm {name}"), _told(path):
        path.unlink()


def rename_session(folder: Path, name: str, new_name: str, present: str) -> None:
    """Give a session another name; it keeps its place among the latest ones.

    Args and errors are those of `remove_session`. Also raises UsageError if another session has the new name.
    """
    path, new_path = _existing(folder, name), folder / f"{checked_name(new_name)}.json"
    with (
        _closed(folder, name, present, f"/save {new_name} names it"),
        _closed(folder, new_name, present, "choose another name"),
    ):
        if new_path.exists():
            raise UsageError(f"there is a session {new_name} already: choose another name")
        chat = load_session(path)
        with _told(path):
            times = path.stat()
            save_session(new_path, replace(chat, automatic=False))
            os.utime(new_path, ns=(times.st_atime_ns, times.st_mtime_ns))
            path.unlink()


def _existing(folder: Path, name: str) -> Path:
    path = folder / f"{checked_name(name)}.json"
    if not path.exists():
        near = meant(name, session_names(folder))
        raise UsageError(f"there is no session {name}: {near.question or '/sessions lists them'}").correcting(
            name, near.name
        )
    return path


@contextmanager
def _closed(folder: Path, name: str, present: str, advice: str) -> Iterator[None]:
    """Hold the lock of a session; raises UsageError if a chat has it open."""
    if name == present:
        raise UsageError(f"{name} is the session of this chat: {advice}")
    with _told(folder):
        lock = NameLock.take(folder, name)
    if lock is None:
        raise UsageError(f"{name} is open in another chat: close that chat first")
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn an error of the system into a SessionError that names the path."""
    try:
        yield
    except OSError as error:
        raise SessionError(f"{path} cannot be changed: {error.strerror or error}") from error
