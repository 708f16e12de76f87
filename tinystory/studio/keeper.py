"""Keep the session of a chat in a file: give it a name, and save it after each change."""

import os
import re
import unicodedata
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from tinystory.errors import SessionError, TinystoryError, UsageError, meant
from tinystory.folders import sessions_folder
from tinystory.safe.leftovers import sweep
from tinystory.safe.name_lock import NameLock
from tinystory.safe.reading import shown
from tinystory.story.saved_chat import now
from tinystory.story.session_file import load_session, save_session
from tinystory.studio.saved_state import restore, saved_chat, settings_of
from tinystory.studio.studio import Studio

__all__ = ["Keeper", "session_names"]

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}")
_NAME_RULE = "a session's name has 1 to 80 letters, digits, dashes, underscores and dots, and does not begin with a dot"
_N_WORDS = 5
"""The largest number of words of the first story in an automatic name."""
_LONGEST_SLUG = 50
"""The largest number of characters of these words together."""


def session_names(folder: Path) -> list[str]:
    """Return the names of the sessions in a folder, the latest first."""
    try:
        files = [(path.stat().st_mtime_ns, path.stem) for path in folder.glob("*.json") if _NAME.fullmatch(path.stem)]
    except OSError:
        return []
    return [name for _, name in sorted(files, reverse=True)]


@dataclass
class Keeper:
    """The keeper of one studio's session. Only the chat that holds the lock on a name writes its file.

    Attributes:
        studio: the studio whose stories are kept; each of its changes is saved.
        folder: the folder of the session files.
        name: the name of the present session; empty until there is something to keep.
        automatic: True if the keeper chose the name.
    """

    studio: Studio
    folder: Path = field(default_factory=sessions_folder)
    name: str = ""
    automatic: bool = True
    _created: str = ""
    _lock: NameLock | None = None
    _cache: dict[int, str] = field(default_factory=dict)
    _saved_settings: tuple[object, ...] = ()
    _problem: str = ""
    _problem_shown: bool = False

    def __post_init__(self) -> None:
        """Ask the studio to report its changes, and remove the locks of chats that were killed."""
        sweep(self.folder, rf"\.{_NAME.pattern}\.lock")
        self.studio.on_change = self.autosave

    @property
    def path(self) -> Path:
        """The session's file."""
        return self._file(self.name)

    def autosave(self) -> None:
        """Save the session. A failure is kept for `problem`, because a story may be on its way to the screen now."""
        try:
            self.save()
        except (TinystoryError, OSError, ValueError) as error:
            self._problem = f"{error}\nthe chat goes on without being saved; /export FILE keeps a story elsewhere"

    def problem(self) -> str:
        """Return why an autosave failed, once in a chat; empty after that, or if none failed."""
        if self._problem_shown or not self._problem:
            return ""
        self._problem_shown = True
        return self._problem

    def save(self) -> None:
        """Write the session to its file; give it an automatic name if it has none. A blank session is not written.

        Raises:
            SessionError: the file cannot be written.
        """
        studio = self.studio
        if not studio.tree.turns:
            return
        if not self.name:
            self._take(self._automatic_name())
        self._created = self._created or now()
        save_session(self.path, saved_chat(studio, automatic=self.automatic, created=self._created), self._cache)
        self._saved_settings = settings_of(studio)

    def close(self) -> None:
        """Save settings that have changed since the last save, and give the session's name back."""
        if self._saved_settings != settings_of(self.studio):
            self.autosave()
        self._release()

    def rename(self, name: str) -> None:
        """Keep the session under another name from now on; a file with an automatic name is removed.

        Raises:
            UsageError: the text is not a name, or another session has it.
            SessionError: the file cannot be written.
        """
        if name == self.name:
            self.automatic = False
            self.save()
            return
        if self._file(checked_name(name)).exists():
            raise UsageError(f"there is a session {name} already: choose another name, or /load {name}")
        lock = self._locked(name)
        if lock is None:
            raise UsageError(f"another chat has just taken the name {name}: choose another one")
        old_name, was_automatic, old_lock = self.name, self.automatic, self._lock
        self.name, self.automatic, self._lock = name, False, lock
        try:
            self.save()
        except TinystoryError:
            lock.release()
            self.name, self.automatic, self._lock = old_name, was_automatic, old_lock
            raise
        if old_name and was_automatic:
            with suppress(OSError):
                self._file(old_name).unlink()
        if old_lock is not None:
            old_lock.release()

    def load(self, name: str, given: Collection[str] = ()) -> list[str]:
        """Save the present session, and put another one on the desk.

        Args:
            name: the name of the other session.
            given: names of settings that stay as they are in the studio.

        Returns:
            Notices about what differs from the saved session.

        Raises:
            UsageError: there is no such session; the error names the nearest.
            SessionError: the file cannot be read, or the present session cannot be saved.
        """
        self._check_exists(name)
        self.save()
        if name == self.name:
            return []
        chat = load_session(self._file(name))
        lock, notices = None, []
        try:
            lock = self._locked(name)
            if lock is None:
                notices.append(f"{name} is open in another chat; what you add here is kept in another session")
        except SessionError as error:
            notices.append(str(error))
        self._release()
        # Without the lock, the next save takes a new name.
        self.name, self._lock = (name, lock) if lock is not None else ("", None)
        self.automatic = chat.automatic or lock is None
        self._created = chat.created
        self._cache.clear()
        notices += restore(self.studio, chat, given)
        self._saved_settings = settings_of(self.studio)
        return notices

    def resume(self, name: str, given: Collection[str] = ()) -> list[str]:
        """Load a session at the beginning of a chat: the latest one if `name` is empty. Set a damaged file aside.

        Args and return value are those of `load`.

        Raises:
            UsageError: there is no such session.
            SessionError: the file cannot be read, or is from a newer tinystory.
        """
        if not name:
            names = session_names(self.folder)
            if not names:
                raise UsageError("no session has been kept yet: start one with `tinystory chat`")
            name = names[0]
        try:
            return self.load(name, given)
        except SessionError as error:
            if not error.damaged:
                raise
            return [f"{error}\nit was set aside as {self._set_aside(name)}; this is a blank page"]

    def _check_exists(self, name: str) -> None:
        """Refuse a name that no session has; raises UsageError."""
        names = session_names(self.folder)
        if name in names or self._file(checked_name(name)).exists():
            return
        near = meant(name, names)
        hint = near.question or ("/sessions lists them" if names else "none has been kept yet")
        raise UsageError(f"there is no session {name}: {hint}").correcting(name, near.name)

    def _set_aside(self, name: str) -> Path:
        """Rename a damaged file to a free name."""
        path = self._file(name)
        aside = next(new for new in _numbered(f"{path}.damaged") if not os.path.lexists(new))
        try:
            os.rename(path, aside)
        except OSError as error:
            raise SessionError(f"{path} is damaged and cannot be set aside: {error.strerror}") from error
        return Path(aside)

    def _automatic_name(self) -> str:
        """Return the day and the first words of the first story, as in 2026-11-23-once-upon-a-time."""
        text = next((turn.own for turn in self.studio.tree.turns.values() if turn.own.strip()), "")[:1000]
        ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
        words = re.findall(r"[a-z0-9]+", ascii_text.replace("'", ""))[:_N_WORDS]
        today = datetime.now()
        return f"{today:%Y-%m-%d}-{'-'.join(words)[:_LONGEST_SLUG].strip('-') or f'{today:%H%M}'}"

    def _take(self, name: str) -> None:
        """Lock a name that no session has: this one, or this one with a number."""
        for candidate in _numbered(name, "-"):
            if self._file(candidate).exists():
                continue
            lock = self._locked(candidate)
            if lock is None:
                continue
            if not self._file(candidate).exists():
                self.name, self.automatic, self._lock = candidate, True, lock
                return
            lock.release()

    def _locked(self, name: str) -> NameLock | None:
        """Lock a name; return None if another chat has it.

        Raises:
            SessionError: the folder cannot be written.
        """
        try:
            return NameLock.take(self.folder, name)
        except OSError as error:
            raise SessionError(f"cannot keep a session in {self.folder}: {error.strerror or error}") from error

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def checked_name(name: str) -> str:
    """Return the name of a session.

    Raises:
        UsageError: a session cannot have this name.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{shown(name)} cannot name a session: {_NAME_RULE}")
    return name


def _numbered(name: str, joint: str = ".") -> Iterator[str]:
    """Yield the name, then the name with 2, 3 and so on."""
    yield name
    number = 2
    while True:
        yield f"{name}{joint}{number}"
        number += 1
