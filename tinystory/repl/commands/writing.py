"""Commands that write: begin, go on, try again, go back, cut, edit."""

from tinystory.decoding.spec import parse_spec
from tinystory.errors import UsageError
from tinystory.repl.commands.base import Reply, command, texts, whole_number
from tinystory.screen.blocks import DeskStory, Line
from tinystory.settings import parse
from tinystory.studio.studio import Studio
from tinystory.text.words import checklist

__all__: list[str] = []

MAX_SIBLINGS = 64


@command("new", "[PROMPT]", "put the story away; begin another one with PROMPT, or with what you type next")
def _new(studio: Studio, argument: str) -> Reply:
    if argument:
        return Reply(requests=(studio.begin(argument),))
    studio.goto(0)
    return Reply((Line("a blank page: type a beginning, or press Enter and the model finds one", "dim"),))


@command("go", "[N]", "let the model go on, by at most N tokens")
def _go(studio: Studio, argument: str) -> Reply:
    n_tokens = parse("max_tokens", argument, "/go") if argument else studio.max_tokens
    return Reply(requests=(studio.go(n_tokens),))


@command("retry", "[SPEC]", "write the latest piece again with fresh luck, as a branch of its own", argument="spec")
def _retry(studio: Studio, argument: str) -> Reply:
    """With SPEC by another decoder, for this once. What was there stays: Alt-Left and Alt-Right go between the two."""
    return Reply(requests=(studio.retry(parse_spec(argument, studio.registry) if argument else None),))


@command("more", "N", "write the latest piece N more times at once, side by side, each a branch")
def _more(studio: Studio, argument: str) -> Reply:
    """/goto takes one of them; Alt-Left and Alt-Right go from one to the next."""
    turns = studio.more(whole_number(argument, "/more", 1, MAX_SIBLINGS))
    return Reply(requests=tuple(turns), titles=tuple(f"{n + 1} of {len(turns)}" for n in range(len(turns))))


@command("undo", "[N]", "go back by a turn, or N; nothing is lost")
def _undo(studio: Studio, argument: str) -> Reply:
    n = whole_number(argument, "/undo", 1) if argument else 1
    if not studio.tree.undo(n):
        raise UsageError("this is the blank page; there is nothing before it")
    studio.on_change()
    return Reply((DeskStory(),))


@command("redo", "[N]", "go forward again by a turn, or N, where you were before /undo")
def _redo(studio: Studio, argument: str) -> Reply:
    n = whole_number(argument, "/redo", 1) if argument else 1
    if not studio.tree.redo(n):
        raise UsageError("nothing comes after this; /tree shows the other branches")
    studio.on_change()
    return Reply((DeskStory(),))


@command("edit", "", "open the story in $EDITOR; the model goes on from what you leave there")
def _edit(studio: Studio, argument: str) -> Reply:
    """A word that you cut short is made whole again: after "a ti" the model may write " time".

    The story as it was stays in the tree. Ctrl-X Ctrl-E does the same with what you are typing.
    """
    return Reply(edit=studio.text)


@command("trim", "", "cut the story after its last whole sentence")
def _trim(studio: Studio, argument: str) -> Reply:
    if studio.trim() is None:
        raise UsageError("there is nothing to cut: the story ends with a sentence, or has none yet")
    return Reply((DeskStory(),))


@command("stop", "[TEXT… | off]", "end a piece before one of these texts")
def _stop(studio: Studio, argument: str) -> Reply:
    r"""Words, or texts in double quotes: /stop "The end" "\n\n". Enter goes on past a stop text."""
    if argument == "off":
        studio.stop = ()
    elif argument:
        studio.stop = texts(argument, "/stop")
    shown = ", ".join(f'"{text}"' for text in studio.stop).replace("\n", "\\n")
    return Reply((Line(f"a piece ends before {shown}" if studio.stop else "no stop text is set"),))


@command("len", "[N]", "write at most N tokens at a time")
def _len(studio: Studio, argument: str) -> Reply:
    if argument:
        studio.max_tokens = parse("max_tokens", argument, "/len")
    return Reply((Line(f"at most {studio.max_tokens} tokens at a time"),))


@command("seed", "[N|random]", "the luck of the draw: the same seed writes the same story", argument="seed")
def _seed(studio: Studio, argument: str) -> Reply:
    if argument:
        studio.set_seed(parse("seed", argument, "/seed"))
    fixed = "random, a fresh one for each story" if studio.seed is None else str(studio.seed)
    return Reply((Line(f"seed: {fixed}"),))


@command("words", "[A,B,C | off]", "words that you want in the story: a list that ticks them off")
def _words(studio: Studio, argument: str) -> Reply:
    """It only watches; whether a word comes is up to the model, and to you.

    The decoder `words` makes the model write them, as in /decoder sample 0.8 | words owl,kite; its words are on the
    list too.
    """
    if argument:
        given = () if argument == "off" else tuple(filter(None, map(str.strip, argument.split(","))))
        if argument != "off" and not given:
            raise UsageError("/words takes words with commas between, like /words owl,kite")
        studio.words = given
    if not studio.wanted:
        return Reply((Line("no words are wanted"),))
    return Reply((Line(checklist(studio.wanted, studio.text)),))
