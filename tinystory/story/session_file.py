"""Read and write session files: a saved chat as one JSON object in a file. It never opens what a file names."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from tinystory.errors import SessionError, UnreadableFile
from tinystory.safe.fields import Fields, WrongField
from tinystory.safe.reading import open_regular, parse_json_object, read_bytes, without_mark
from tinystory.safe.writing import write_atomically
from tinystory.story.saved_chat import LONGEST_BEGINNING, SavedChat, Summary, summary_of
from tinystory.story.session_json import MAX_TURNS, chat_from, compact, session_fields, turn_fields

__all__ = ["encode", "load_session", "read_summary", "save_session"]

MAX_BYTES = 64 * 2**20
"""The largest session file, in bytes; it holds about two million tokens."""

_MAX_FIRST_LINE_BYTES = 2**18


def encode(chat: SavedChat, cache: dict[int, str] | None = None) -> bytes:
    """Return the content of a session file: the settings on the first line, then one turn on each line.

    Args:
        chat: the chat to write.
        cache: the lines of turns that were encoded before, by number; new lines are added. This is safe because
            a turn never changes.

    Raises:
        SessionError: the file would be too large to be read again.
    """
    cache = {} if cache is None else cache
    for turn in chat.tree.turns.values():
        if turn.id not in cache:
            cache[turn.id] = compact(turn_fields(turn))
    lines = ",\n".join(cache[number] for number in chat.tree.turns)
    content = f'{compact(session_fields(chat))[:-1]},\n"nodes":[\n{lines}\n]}}\n'.encode(errors="replace")
    if len(content) > MAX_BYTES or len(chat.tree.turns) > MAX_TURNS:
        raise SessionError(
            f"the session is too large for a file (at most {MAX_BYTES // 2**20} MB and {MAX_TURNS:,} turns): "
            "/export the stories you want to keep, and begin another chat"
        )
    return content


def save_session(path: Path, chat: SavedChat, cache: dict[int, str] | None = None) -> None:
    """Write a session file whole or not at all, readable by its owner alone.

    Args:
        path: the path of the file; missing folders are made.
        chat: the chat to write.
        cache: as for `encode`.

    Raises:
        SessionError: the file cannot be written; an older file stays as it was.
    """
    content = encode(chat, cache)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, content, 0o600)
    except OSError as error:
        raise SessionError(f"cannot keep the session in {path}: {error.strerror or error}") from error


def load_session(path: Path) -> SavedChat:
    """Read a session file and check every field.

    Raises:
        SessionError: the file is missing, unreadable, damaged, or from a newer tinystory.
    """
    raw = read_bytes(path, MAX_BYTES, raises=SessionError)
    fields = parse_json_object(without_mark(raw), str(path), raises=partial(SessionError, damaged=True))
    return decode(fields, str(path))


def read_summary(path: Path) -> Summary:
    """Return a file's row in the list of sessions.

    The first line of a file that was written here is enough; the rest is then not read. Any other file is read
    and checked as a whole.

    Raises:
        SessionError: as `load_session`.
    """
    try:
        with open_regular(path) as file:
            line = file.readline(_MAX_FIRST_LINE_BYTES)
        fields = parse_json_object(line.rstrip().removesuffix(b",") + b"}", str(path))
        reader = Fields(fields, "")
        return Summary(reader.whole("stories"), reader.whole("turns"), reader.text("begins")[:LONGEST_BEGINNING])
    except (UnreadableFile, WrongField, OSError):
        return summary_of(load_session(path).tree)


def decode(fields: Mapping[str, object], where: str) -> SavedChat:
    """Return the saved chat in the JSON object of a session file; `where` names the file in errors.

    Raises:
        SessionError: a field is missing or wrong, or the file is from a newer tinystory.
    """
    try:
        return chat_from(fields, where)
    except WrongField as error:
        raise SessionError(f"{where} is not a session that can be read: {error}", damaged=True) from error
