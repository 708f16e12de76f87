"""Keeps the session of a chat in a file: a name of its own, saved after each change, never lost to a full disk."""

import errno
import os
import re
import sys
import unicodedata
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from time import time
from typing import cast

from tinystory.checkpoint.shipped import SHIPPED_MODELS
from tinystory.decoding.spec import parse_spec
from tinystory.errors import SessionError, TinystoryError, UsageError, nearest
from tinystory.folders import sessions_folder
from tinystory.safe.reading import shown
from tinystory.story.saved_chat import SavedChat, now
from tinystory.story.session_file import load_session, save_session
from tinystory.studio.studio import Studio
from tinystory.studio.views import TINTS, Tint

if sys.platform != "win32":
    import fcntl

__all__ = ["Keeper", "saved_session", "session_names"]

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}")
_NAME_RULE = "a session's name has letters, digits, dashes, underscores and dots (not first), at most 80 of them"
_N_WORDS = 5
_LONGEST_SLUG = 50
_STALE_SECONDS = 3600
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""How file systems say that they have none; two chats at once are rare enough there."""


def session_names(folder: Path) -> list[str]:
    """The sessions in a folder, the latest first."""
    try:
        found = [(path.stat().st_mtime_ns, path.stem) for path in folder.glob("*.json") if _NAME.fullmatch(path.stem)]
    except OSError:
        return []
    return [name for _, name in sorted(found, reverse=True)]


def saved_session(studio: Studio, *, automatic: bool = True, created: str = "") -> SavedChat:
    """What a studio would keep of itself."""
    tree = studio.tree
    hashes = [turn.written.model_hash for turn in tree.turns.values() if turn.written is not None]
    return SavedChat(
        tree=tree,
        spec=studio.spec,
        seed=studio.seed,
        max_tokens=studio.max_tokens,
        stop=studio.stop,
        words=studio.words,
        tint=studio.tint,
        model=studio.backend.name,
        model_hash=hashes[-1] if hashes else "",
        dtype=studio.backend.dtype,
        automatic=automatic,
        created=created,
        changed=now(),
    )


@dataclass
class Keeper:
    """What keeps one studio's session.

    Attributes:
        studio: whose stories these are.
        folder: of the session files.
        name: of the present session; empty until there is something to keep.
        automatic: whether that name was made here.
    """

    studio: Studio
    folder: Path = field(default_factory=sessions_folder)
    name: str = ""
    automatic: bool = True
    _created: str = ""
    _claim: int | None = None
    _cache: dict[int, str] = field(default_factory=dict)
    _kept: tuple[object, ...] = ()
    _problem: str = ""
    _told: bool = False

    def __post_init__(self) -> None:
        """Take the studio into care."""
        self.studio.on_change = self.autosave

    @property
    def path(self) -> Path:
        """The session's file."""
        return self._file(self.name)

    def autosave(self) -> None:
        """Save; what goes wrong is for `problem` to tell, since a story may be streaming now."""
        try:
            self.save()
        except (TinystoryError, OSError, ValueError) as error:
            self._problem = f"{error}\nthe chat goes on without being saved; /export FILE keeps a story elsewhere"

    def problem(self) -> str:
        """Why the last autosave failed: once, and to be shown; else empty."""
        if self._told or not self._problem:
            return ""
        self._told = True
        return self._problem

    def save(self) -> None:
        """Write the session where it is kept, under an automatic name if it has none; nothing of a blank one.

        Raises:
            SessionError: it cannot be written.
        """
        studio = self.studio
        if not studio.tree.turns:
            return
        if not self.name:
            self._take(self._automatic_name())
        self._created = self._created or now()
        session = saved_session(studio, automatic=self.automatic, created=self._created)
        save_session(self.path, session, self._cache)
        self._kept = self._settings()

    def close(self) -> None:
        """Save what settings have changed since, and let others have the session."""
        if self._kept != self._settings():
            self.autosave()
        self._release()

    def _settings(self) -> tuple[object, ...]:
        """What may change without a change of the tree."""
        studio = self.studio
        return studio.spec, studio.seed, studio.max_tokens, studio.stop, studio.words, studio.tint, studio.backend.name

    def rename(self, name: str) -> None:
        """Keep the session under this name from now on; one that had an automatic name has it no longer.

        Raises:
            UsageError: it is no name, or there is a session of that name.
            SessionError: it cannot be written there.
        """
        if name == self.name:
            self.automatic = False
            self.save()
            return
        if self._file(checked(name)).exists():
            raise UsageError(f"there is a session {name} already: choose another name, or /load {name}")
        claim = self._claimed(name)
        if claim is None:
            raise UsageError(f"another chat has just taken the name {name}: choose another one")
        before = self.name, self.automatic, self._claim
        self.name, self.automatic, self._claim = name, False, claim
        try:
            self.save()
        except TinystoryError:
            self._release()
            self.name, self.automatic, self._claim = before
            raise
        old, was_automatic, old_claim = before
        if old and was_automatic:
            with suppress(OSError):
                self._file(old).unlink()
        if old_claim is not None:
            _unlock(old_claim, self._lock_file(old))

    def load(self, name: str, given: Collection[str] = ()) -> list[str]:
        """Take a session of the folder onto the desk; the present one is saved first.

        Args:
            name: of the session.
            given: settings, by name, that stay as they are in the studio.

        Returns:
            Notices: what is different from how it was.

        Raises:
            UsageError: there is no such session; the nearest is named.
            SessionError: the file cannot be read, or the present session not be saved.
        """
        self._find(name)
        self.save()
        if name == self.name:
            return []
        session = load_session(self._file(name))
        claim, notices = None, []
        try:
            claim = self._claimed(name)
            if claim is None:
                notices.append(f"{name} is open in another chat; what you add here is kept apart")
        except SessionError as error:
            notices.append(str(error))
        self._release()
        self.name, self._claim = (name, claim) if claim is not None else ("", None)
        self.automatic = session.automatic or claim is None
        self._created = session.created
        self._cache.clear()
        notices += self._apply(session, given)
        self._kept = self._settings()
        return notices

    def resume(self, name: str, given: Collection[str] = ()) -> list[str]:
        """As `load`, for the beginning of a chat: without a name the latest, and a damaged file is set aside.

        Raises:
            UsageError: there is no such session.
            SessionError: it is unreadable, or of a newer tinystory.
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

    def _apply(self, session: SavedChat, given: Collection[str]) -> list[str]:
        """Put a session into the studio; what does not fit stays as it is there."""
        studio, notices = self.studio, []
        studio.tree, studio.words, studio.results = session.tree, session.words, {}
        if session.tint in TINTS:
            studio.tint = cast(Tint, session.tint)
        if "seed" not in given:
            studio.seed = session.seed
        if "max_tokens" not in given:
            studio.max_tokens = session.max_tokens
        if "stop" not in given:
            studio.stop = session.stop
        if "decoder" not in given:
            try:
                decoder = parse_spec(session.spec, studio.registry)
                strangers = [name for name in decoder.models if name not in SHIPPED_MODELS]
                if strangers:  # a file opens nothing
                    raise UsageError(f"it opens {shown(strangers[0])}; such a one is taken from the keyboard only")
                studio.decoder = decoder
            except UsageError as error:
                notices.append(f"its decoder is not to be had here ({error}); it is {studio.spec} now")
        if session.model_hash and session.model_hash != studio.backend.model_hash():
            notices.append(
                f"it was written with the model {shown(session.model)[1:-1]} ({session.model_hash[:12]}), "
                f"not with {studio.backend.name}; /model {shown(session.model)[1:-1]} takes that one"
            )
        return notices

    def _find(self, name: str) -> None:
        """Refuse a name that no session has."""
        names = session_names(self.folder)
        if name in names or self._file(checked(name)).exists():
            return
        near = nearest(name, names)
        hint = f"did you mean {near}?" if near else "/sessions lists them" if names else "none has been kept yet"
        raise UsageError(f"there is no session {name}: {hint}")

    def _set_aside(self, name: str) -> Path:
        """Rename a damaged file to a name that nothing has."""
        path = self._file(name)
        aside = next(new for new in _numbered(f"{path}.damaged") if not os.path.lexists(new))
        try:
            os.rename(path, aside)
        except OSError as error:
            raise SessionError(f"{path} is damaged and cannot be set aside: {error.strerror}") from error
        return Path(aside)

    def _automatic_name(self) -> str:
        """The day and how the first story begins, as in 2026-11-23-once-upon-a-time."""
        text = next((turn.own for turn in self.studio.tree.turns.values() if turn.own.strip()), "")[:1000]
        plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
        words = re.findall(r"[a-z0-9]+", plain.replace("'", ""))[:_N_WORDS]
        today = datetime.now()
        return f"{today:%Y-%m-%d}-{'-'.join(words)[:_LONGEST_SLUG].strip('-') or f'{today:%H%M}'}"

    def _take(self, name: str) -> None:
        """Claim a name that no session has: this one, or this one with a number."""
        for one in _numbered(name, "-"):
            if self._file(one).exists():
                continue
            claim = self._claimed(one)
            if claim is not None and not self._file(one).exists():
                self.name, self.automatic, self._claim = one, True, claim
                self._sweep()
                return
            if claim is not None:
                _unlock(claim, self._lock_file(one))

    def _claimed(self, name: str) -> int | None:
        """A lock on a name, which lasts as long as this process; None where another chat has it.

        Raises:
            SessionError: the folder cannot be written.
        """
        path = self._lock_file(name)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return _locked(path)
        except OSError as error:
            raise SessionError(f"cannot keep a session in {self.folder}: {error.strerror or error}") from error

    def _release(self) -> None:
        if self._claim is not None:
            _unlock(self._claim, self._lock_file(self.name))
            self._claim = None

    def _sweep(self) -> None:
        """Remove what killed chats have left half-written."""
        for path in self.folder.glob(".*.partial"):
            with suppress(OSError):
                if time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _lock_file(self, name: str) -> Path:
        return self.folder / f".{name}.lock"


def checked(name: str) -> str:
    """A session's name.

    Raises:
        UsageError: it cannot be one.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{shown(name)} is no name for a session: {_NAME_RULE}")
    return name


def _numbered(name: str, joint: str = ".") -> Iterator[str]:
    """The name, then the name with 2, 3 ..."""
    yield name
    number = 2
    while True:
        yield f"{name}{joint}{number}"
        number += 1


def _locked(path: Path) -> int | None:
    """Lock a file, made if need be; None where another process has it locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
        if sys.platform == "win32":
            return descriptor
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had it may have removed it in between: then it is another file that counts.
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return descriptor
            os.close(descriptor)
            raise
        os.close(descriptor)


def _unlock(descriptor: int, path: Path) -> None:
    with suppress(OSError):
        path.unlink()
    with suppress(OSError):
        os.close(descriptor)
