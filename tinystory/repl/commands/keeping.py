"""Commands that keep stories: sessions, exports, the clipboard."""

from datetime import datetime
from pathlib import Path

from tinystory.errors import SessionError, UsageError
from tinystory.repl.commands.base import DeskStory, Reply, command, keeping_command, path_of
from tinystory.screen.blocks import Line, Table
from tinystory.story.session_file import read_summary
from tinystory.studio.keeper import Keeper, session_names
from tinystory.studio.kept_sessions import describe, remove_session, rename_session
from tinystory.studio.studio import Studio

__all__: list[str] = []

_MOST_SESSIONS = 50


@keeping_command("save", "[NAME]", "give this session a name; each turn is saved in any case", argument="session")
def _save(keeper: Keeper, argument: str) -> Reply:
    """Keep the session in a file that only you can read; `tinystory chat --resume NAME` or /load NAME opens it again.

    A name has letters, digits, dashes, underscores and dots.
    """
    if not keeper.studio.tree.turns:
        raise UsageError("nothing has been written yet, so there is nothing to save")
    if argument:
        keeper.rename(argument)
    else:
        keeper.save()
    return Reply((Line(f"{keeper.name} is saved as {keeper.path}", "note"),))


@keeping_command("load", "NAME", "open another session; this one is saved first", "session")
def _load(keeper: Keeper, argument: str) -> Reply:
    if not argument:
        raise UsageError("/load takes the name of a session; /sessions lists them")
    notices = keeper.load(argument)
    return Reply((*(Line(notice, "note") for notice in notices), DeskStory()))


@keeping_command("sessions", "[rm NAME | rename NAME NEW]", "list the saved sessions; remove or rename one", "sessions")
def _sessions(keeper: Keeper, argument: str) -> Reply:
    """List the sessions, the latest first.

    /sessions rename NAME NEW gives a session another name. /sessions rm NAME says what a session has, and with a `!`
    after the name it removes it for good. The session of this chat, or of another chat, is never removed.
    """
    action, *given = argument.split() or [""]
    if action == "rm" and len(given) in (1, 2) and given[1:] in ([], ["!"]):
        return _remove(keeper, given[0], sure=len(given) == 2)
    if action == "rename" and len(given) == 2:
        name, new_name = given
        rename_session(keeper.folder, name, new_name, keeper.name)
        return Reply((Line(f"{name} is now {new_name}", "note"),))
    if action:
        raise UsageError("/sessions takes nothing, or rm NAME, or rename NAME NEW: /sessions rename monday owl")
    names = session_names(keeper.folder)
    if not names:
        return Reply((Line("no session has been kept yet", "dim"),))
    head = ("name", "when", "stories", "turns", "begins with")
    rows = [_row(keeper, name) for name in names[:_MOST_SESSIONS]]
    count = f"{len(names):,} session{'' if len(names) == 1 else 's'}" + (
        f", the latest {_MOST_SESSIONS} of them" if len(names) > len(rows) else ""
    )
    return Reply((Table((head, *rows)), Line(f"{count}; /load NAME opens one", "dim")))


def _remove(keeper: Keeper, name: str, *, sure: bool) -> Reply:
    """Remove a session if the user is sure; else say what would be lost."""
    what = describe(keeper.folder, name)
    if not sure and name != keeper.name:
        return Reply((Line(f"{name}: {what}\n/sessions rm {name} ! removes it for good", "note"),))
    remove_session(keeper.folder, name, keeper.name)
    return Reply((Line(f"{name} is removed: {what}", "note"),))


@command("export", "FILE", "write the story to a file: .txt .md .json .html .svg", argument="export")
def _export(studio: Studio, argument: str) -> Reply:
    """Choose the format by the ending of FILE.

    .txt has the story, .md also a table of its turns, and .json everything that `tinystory replay` needs. .html and
    .svg show the colours of its tokens: those of /color, or surprise if /color is off.
    An existing file is replaced only if a ! stands after its name: /export story.md !
    """
    # It imports rich; the input line does not wait for that.
    from tinystory.repl.export import FORMATS, export

    name = argument.removesuffix("!").rstrip()
    if not name:
        raise UsageError(f"/export takes a file that ends with {', '.join(FORMATS)}")
    path = Path(path_of(name, "/export"))
    export(studio, path, overwrite=argument.endswith("!"))
    return Reply((Line(f"the story is in {path}", "note"),))


@command("copy", "", "put the story on the clipboard")
def _copy(studio: Studio, argument: str) -> Reply:
    """Send the story to the clipboard of your terminal (OSC 52), also over ssh. Some terminals must allow it first."""
    if not studio.text:
        raise UsageError("there is no story on the desk to copy")
    return Reply(clipboard=studio.text)


def _row(keeper: Keeper, name: str) -> tuple[str, ...]:
    """Return the row of a session in the list; a dot marks the session of this chat."""
    path = keeper.folder / f"{name}.json"
    try:
        when = f"{datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d %H:%M}"
        summary = read_summary(path)
    except (OSError, SessionError):
        return name, "", "", "", "(cannot be read)"
    mark = "● " if name == keeper.name else ""
    return f"{mark}{name}", when, str(summary.stories), str(summary.turns), summary.begins
