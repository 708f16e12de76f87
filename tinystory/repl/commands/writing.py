"""Commands that write: begin a story, go on, write a turn again, go back, cut, edit."""

from tinystory.decoding.spec import parse_spec
from tinystory.errors import UsageError
from tinystory.repl.commands.base import DeskStory, Reply, command, texts, whole_number
from tinystory.safe.reading import shown
from tinystory.screen.blocks import Line
from tinystory.settings import parse
from tinystory.studio.studio import Studio
from tinystory.text.words import checklist
from tinystory.writing.stops import check_stops

__all__: list[str] = []

MAX_BRANCHES = 64
_BRANCHES = 3
"""The branches of /more without a number."""


@command(
    "new", "[PROMPT]", "put the story away; begin another one with PROMPT, or with what you type next", "", ("clear",)
)
def _new(studio: Studio, argument: str) -> Reply:
    if argument:
        return Reply(requests=(studio.begin(argument),))
    studio.goto(0)
    return Reply((Line("a blank page: type a beginning, or press Enter to let the model begin", "dim"),))


@command("go", "[N]", "let the model go on, by at most N tokens")
def _go(studio: Studio, argument: str) -> Reply:
    n_tokens = parse("max_tokens", argument, "/go") if argument else studio.max_tokens
    return Reply(requests=(studio.go(n_tokens),))


@command("retry", "[SPEC]", "write the latest turn again with a fresh seed, as a new branch", argument="spec")
def _retry(studio: Studio, argument: str) -> Reply:
    """Use the decoder SPEC, if it is given, for this turn only.

    The old branch stays: Alt-Left and Alt-Right go from one branch to the other.
    """
    return Reply(requests=(studio.retry(parse_spec(argument, studio.registry) if argument else None),))


@command("more", "[N]", "write the latest turn N more times at once, side by side, each as a branch")
def _more(studio: Studio, argument: str) -> Reply:
    """Give N from 1 to 64; without N, it is 3. /goto, Alt-Left and Alt-Right go to the other branches."""
    requests = studio.more(whole_number(argument, "/more", 1, MAX_BRANCHES) if argument else _BRANCHES)
    return Reply(requests=tuple(requests), titles=("",) * len(requests))


@command("undo", "[N]", "go back by one turn, or by N; nothing is lost")
def _undo(studio: Studio, argument: str) -> Reply:
    n = whole_number(argument, "/undo", 1) if argument else 1
    if not studio.tree.undo(n):
        raise UsageError("this is the blank page; no turn comes before it")
    studio.on_change()
    return Reply((DeskStory(),))


@command("redo", "[N]", "go forward again by one turn, or by N, to where you were before /undo")
def _redo(studio: Studio, argument: str) -> Reply:
    n = whole_number(argument, "/redo", 1) if argument else 1
    if not studio.tree.redo(n):
        raise UsageError("no turn comes after this one; /tree shows the other branches")
    studio.on_change()
    return Reply((DeskStory(),))


@command("edit", "[fix]", "open the story in $EDITOR and go on from the edited text; `fix` only keeps it")
def _edit(studio: Studio, argument: str) -> Reply:
    """Let the model finish a word that you cut short: after "a ti" it may write " time".

    /edit fix only keeps the corrected text; Enter then goes on from it. The old story stays in the tree.
    Ctrl-X Ctrl-E opens the text that you are typing instead.
    """
    if argument not in ("", "fix"):
        raise UsageError(f"/edit takes nothing, or `fix` to correct the text without going on, not {shown(argument)}")
    return Reply(edit=studio.text, fix=bool(argument))


@command("trim", "", "cut the story after its last whole sentence")
def _trim(studio: Studio, argument: str) -> Reply:
    if studio.trim() is None:
        raise UsageError("there is nothing to cut: the story ends with a sentence, or has none yet")
    return Reply((DeskStory(),))


@command("stop", "[TEXT… | off]", "end a turn before one of these texts")
def _stop(studio: Studio, argument: str) -> Reply:
    r"""Put a text with spaces in double quotes: /stop "The end" "\n\n". Enter goes on past a stop text."""
    if argument == "off":
        studio.stop = ()
    elif argument:
        stops = texts(argument, "/stop")
        check_stops(stops)
        studio.stop = stops
    listed = ", ".join(f'"{text}"' for text in studio.stop).replace("\n", "\\n")
    return Reply((Line(f"a turn ends before {listed}" if studio.stop else "no stop text is set"),))


@command("len", "[N]", "set max-tokens: write at most N tokens in one turn")
def _len(studio: Studio, argument: str) -> Reply:
    if argument:
        studio.max_tokens = parse("max_tokens", argument, "/len")
    return Reply((Line(f"at most {studio.max_tokens} tokens in one turn"),))


@command("seed", "[N|random]", "set the seed of the noise: the same seed gives the same story", argument="seed")
def _seed(studio: Studio, argument: str) -> Reply:
    if argument:
        studio.set_seed(parse("seed", argument, "/seed"))
    seed = "random, a fresh seed for each story" if studio.seed is None else str(studio.seed)
    return Reply((Line(f"seed: {seed}"),))


@command("wish", "[A,B,C | off]", "tick these words off when they come in the story", aliases=("words",))
def _wish(studio: Studio, argument: str) -> Reply:
    """Watch for these words only; this does not make the model write them.

    The decoder `words` makes the model write its words, as in /decoder sample 0.8 | words owl,kite. They are on the
    list, too.
    """
    if argument:
        given = () if argument == "off" else tuple(filter(None, map(str.strip, argument.split(","))))
        if argument != "off" and not given:
            raise UsageError("/wish takes words with commas between them, like /wish owl,kite")
        studio.words = given
    if not studio.wanted:
        return Reply((Line("no words are wanted"),))
    return Reply((Line(checklist(studio.wanted, studio.text)),))
