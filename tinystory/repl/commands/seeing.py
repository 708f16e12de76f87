"""Commands that show what the model saw: the tints of tokens, and the other tokens that could stand at a place."""

import math
import re
from typing import cast

from tinystory.errors import UsageError, meant
from tinystory.repl.commands.base import DeskStory, Reply, command, texts, whole_number
from tinystory.repl.pieces import legend
from tinystory.safe.reading import shown
from tinystory.screen.blocks import Bars, Line, Spans
from tinystory.screen.colours import Style
from tinystory.screen.facts import is_dumb
from tinystory.story.tracing import alternatives
from tinystory.studio.recall import NEXT, eos_ids, index_of, logits_at, place, quoted, token_name, whole_story
from tinystory.studio.studio import Studio
from tinystory.studio.views import TINTS, Tint

__all__: list[str] = []

_MOST_BARS = 100


@command("color", "[VIEW]", "tint each token by how expected it was", "view", ("colour",))
def _color(studio: Studio, argument: str) -> Reply:
    """Choose VIEW from off, prob, surprise, rank and entropy.

    prob: the probability of the token in the model. surprise: the same in bits. rank: its place among all tokens.
    entropy: how open the model's choice was there, for any token. The colours show what the model thought before any
    stage of the decoder. Typed text has no colour.
    """
    if argument and argument not in TINTS:
        near = meant(argument, TINTS)
        hint = f": {near.question}" if near.question else f"; it has {', '.join(TINTS)}"
        raise UsageError(f"/color does not know {shown(argument)}{hint}").correcting(argument, near.name)
    if studio.plain:
        raise UsageError(f"there are no colours here: {studio.plain}; /top and /trace show the figures")
    studio.tint = cast(Tint, argument) if argument else studio.tint
    key = Spans(legend(studio.tint))
    if not argument:
        return Reply((key, Line(f"/color takes {', '.join(TINTS)}", "dim")))
    return Reply((key, DeskStory()) if studio.tree.turn else (key,))


@command("walk", "[POS]", "open the token browser: walk through the tokens, see the alternatives, take one")
def _walk(studio: Studio, argument: str) -> Reply:
    """Begin at POS, counted as in /top; without POS, at the last token. Alt-Up opens the browser, too.

    Left and right go from token to token, up and down through the alternatives. Enter takes one, Escape leaves.
    """
    position = argument or "-1"
    index_of(studio, position, "/walk")
    if is_dumb():
        raise UsageError("a dumb terminal has no token browser: /top POS shows the alternatives, and /pick takes one")
    return Reply(walk=position)


@command("top", "[POS] [K]", "show the K likeliest tokens of the model at POS, as bars")
def _top(studio: Studio, argument: str) -> Reply:
    """Count POS from 1, the first token; -1 is the last one. Without POS, see what would come next. Without K, see 10.

    /top 12 · /top -1 5 · /top next 5 (the five likeliest tokens that could come next)
    The shares are those of the model, before any stage of the decoder. An arrow marks the token of the story.
    """
    position, k = _position_and_rest(argument)
    # One number alone is a place, as in /trace 5 and /pick 5, but it may have been meant as a count.
    count = f"for the {position} likeliest next tokens: /top next {position}"
    is_count = not k and re.fullmatch(r"[1-9]|1\d|20", position) is not None
    try:
        index = index_of(studio, position or NEXT, "/top", beyond=True)
    except UsageError as error:
        raise UsageError(f"{error}; {count}" if is_count else str(error)) from error
    n = whole_number(k, "/top: K", 1, _MOST_BARS) if k else 10
    logits = logits_at(studio, index)
    story = whole_story(studio)
    taken = story[index] if index < len(story) else None
    likeliest = alternatives(logits, n)
    rows = [_bar(studio, rank, token_id, logprob, taken) for rank, (token_id, logprob) in enumerate(likeliest, 1)]
    if taken is not None and taken not in [token_id for token_id, _ in likeliest]:
        logprob = float(logits.log_softmax(dim=-1)[taken])
        rows.append(_bar(studio, int((logits > logits[taken]).sum()) + 1, taken, logprob, taken))
    hint = (Line(f"{position} is the place; {count}", "dim"),) if is_count else ()
    return Reply((Line(place(studio, index), "dim"), Bars(tuple(rows)), *hint))


@command("pick", "POS TOKEN", "take another token at POS and let the model go on, as a new branch")
def _pick(studio: Studio, argument: str) -> Reply:
    """Give TOKEN as a text, in quotes if it has spaces, or as #3, the third token of /top POS. Count POS as in /top.

    /pick 5 #2 · /pick -1 " cat" · /pick next dog
    """
    position, token = _position_and_rest(argument)
    if not token:
        raise UsageError('/pick takes a position and a token, like /pick 5 #2 or /pick -1 " cat"; /top shows them')
    index = index_of(studio, position, "/pick", beyond=True)
    token_id = _token_of_rank(studio, index, token) if re.fullmatch(r"#\d+", token) else _token_of_text(studio, token)
    if token_id in eos_ids(studio):
        raise UsageError("that token ends the story, and nothing can come after it; take another one")
    return Reply(requests=(studio.pick(index, token_id),))


def _position_and_rest(argument: str) -> tuple[str, str]:
    position, _, rest = argument.partition(" ")
    return position, rest.strip()


def _bar(studio: Studio, rank: int, token_id: int, logprob: float, taken: int | None) -> tuple[str, float, str, Style]:
    """Return the row of a token for `Bars`; the token that was taken is bold and has an arrow."""
    is_taken = token_id == taken
    label = f"{'→' if is_taken else ' '} {rank:,}"
    return label, math.exp(logprob), token_name(studio, token_id), "bold" if is_taken else ""


def _token_of_rank(studio: Studio, index: int, token: str) -> int:
    """Return the token of a rank, such as #3, in the list of /top."""
    logits = logits_at(studio, index)
    rank = whole_number(token[1:], "/pick: #RANK", 1, len(logits))
    return alternatives(logits, rank)[-1][0]


def _token_of_text(studio: Studio, argument: str) -> int:
    """Return the token that has this text, or has it after a space.

    Raises:
        UsageError: there is none; the message has the tokens that spell the text.
    """
    given = texts(argument, "/pick") if argument.startswith('"') else (argument,)
    if len(given) > 1:
        raise UsageError(f"/pick takes one token, not {len(given)} texts; /edit writes more")
    text = given[0]
    backend = studio.backend
    tokenizer = backend.tokenizer
    for wanted in (text, " " + text, "▁" + text):
        spelled = backend.encode(wanted, bos=False)
        if len(spelled) == 1 and backend.token_text(spelled[0]) == wanted:
            return spelled[0]
        match = next((i for i in range(tokenizer.vocab_size) if tokenizer.token_text(i) == wanted), None)
        if match is not None:
            return match
    spelling = [quoted(backend.token_text(i)) for i in backend.encode(" " + text.lstrip(), bos=False)]
    raise UsageError(
        f"no token of this vocabulary is {quoted(text)[:60]}: it takes {len(spelling)}, {' '.join(spelling)[:80]};"
        " pick the first, or /edit the story"
    )
