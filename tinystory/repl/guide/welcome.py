"""The first lines of a chat: what there is to do, and what there is to see."""

from prompt_toolkit.utils import get_cwidth

from tinystory.screen.facts import is_dumb
from tinystory.studio.studio import Studio

__all__ = ["welcome"]

_JOINT = " · "
_FIRST_TIME = (
    "Type how a story begins and press Enter. Enter alone goes on, Ctrl-C stops.\n"
    "/decoder changes how tokens are picked, /help lists the rest, Tab completes.\n"
    "Ctrl-D leaves."
)
_BACK = "/help lists the commands, /tour shows what there is to see"


def welcome(studio: Studio, width: int, *, first_time: bool) -> str:
    """Return the first lines for a terminal of `width` cells."""
    if not first_time:
        return _BACK
    seen = ["try /compare greedy ; sample 0.8 ; sample 1.5"]
    seen += [] if studio.plain else ["/color surprise"]
    seen += [] if is_dumb() else ["/walk"]
    return "\n".join((_FIRST_TIME, *_folded([*seen, "/tour"], width)))


def _folded(items: list[str], width: int) -> list[str]:
    """Return the items in lines; a line breaks between two items only."""
    lines = [items[0]]
    for item in items[1:]:
        if get_cwidth(lines[-1] + _JOINT + item) <= width:
            lines[-1] += _JOINT + item
        else:
            lines.append(item)
    return lines
