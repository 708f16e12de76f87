"""Commands that keep stories: sessions, exports, the clipboard."""

from datetime import datetime
from pathlib import Path

from tinystory.errors import SessionError, UsageError
from tinystory.repl.commands.base import DeskStory, Reply, command, keeping_command, path_of
from tinystory.screen.blocks import Line, Table
from tinystory.story.session_file import read_summary
from tinystory.studio.keeper import Keeper, session_names
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


@keeping_command("sessions", "", "list the saved sessions, the latest first")
def _sessions(keeper: Keeper, argument: str) -> Reply:
    names = session_names(keeper.folder)
    if not names:
        return Reply((Line("no session has been kept yet", "dim"),))
    head = ("name", "when", "stories", "turns", "begins with")
    rows = [_row(keeper, name) for name in names[:_MOST_SESSIONS]]
    count = f"{len(names):,} session{'' if len(names) == 1 else 's'}" + (
        f", the latest {_MOST_SESSIONS} of them" if len(names) > len(rows) else ""
    )
    return Reply((Table((head, *rows)), Line(f"{count}; /load NAME opens one", "dim")))


@command("export", "FILE", "write the story to a file: .txt .md .json .html .svg", argument="file")
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
