"""Commands that look into a story: colours, the tokens it could have been, the funnel, perplexity."""

import math
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tinystory.decoding import Sampler, Step
from tinystory.errors import UsageError, nearest
from tinystory.repl.commands.base import Reply, command, texts, whole_number
from tinystory.repl.pieces import legend
from tinystory.safe.reading import regular_file_size, shown
from tinystory.screen.blocks import Bars, DeskStory, Line, Spans, Style, Table
from tinystory.story.tracing import Pick, TurnLogits, alternatives, funnel, retrace
from tinystory.story.tree import Turn
from tinystory.studio.recall import (
    NEXT,
    check_same_model,
    eos_ids,
    index_of,
    logits_at,
    place,
    quoted,
    token_name,
    turn_logits,
    whole_story,
)
from tinystory.studio.studio import Studio
from tinystory.studio.views import TINTS, Tint

if TYPE_CHECKING:
    from torch import Tensor

__all__: list[str] = []

_MOST_BARS = 100
_N_REMOVED = 4
_MAX_FILE_BYTES = 2_000_000


@command("color", "[VIEW]", "tint each token by how expected it was", "view", ("colour",))
def _color(studio: Studio, argument: str) -> Reply:
    """VIEW is off, prob, surprise, rank or entropy.

    prob: how likely the model held it. surprise: the same in bits. rank: its place among all tokens. entropy: how open
    the model's choice was there, whatever it took. The colours say what the model thought before any stage of the
    decoder; what you typed has none.
    """
    if argument and argument not in TINTS:
        near = nearest(argument, TINTS)
        hint = f": did you mean {near}?" if near else f"; it has {', '.join(TINTS)}"
        raise UsageError(f"/color does not know {shown(argument)}{hint}")
    if studio.plain:
        raise UsageError(f"there are no colours here: {studio.plain}; /top and /trace show the figures")
    studio.tint = cast(Tint, argument) if argument else studio.tint
    key = Spans(legend(studio.tint))
    if not argument:
        return Reply((key, Line(f"/color takes {', '.join(TINTS)}", "dim")))
    return Reply((key, DeskStory()) if studio.tree.turn else (key,))


@command("top", "[POS] [K]", "the tokens that the model held likeliest at POS, as bars")
def _top(studio: Studio, argument: str) -> Reply:
    """POS counts the story's tokens from 1; -1 is the last. Without it: what would come next. K, 10 at first, of them.

    The shares are the model's own, before any stage of the decoder. An arrow marks the one that was taken.
    """
    position, k = _two(argument, "/top")
    index = index_of(studio, position or NEXT, "/top", beyond=True)
    n = whole_number(k, "/top: K", 1, _MOST_BARS) if k else 10
    logits = logits_at(studio, index)
    story = whole_story(studio)
    taken = story[index] if index < len(story) else None
    found = alternatives(logits, n)
    rows = [_bar(studio, rank, one, log_prob, taken) for rank, (one, log_prob) in enumerate(found, 1)]
    if taken is not None and taken not in [one for one, _ in found]:
        log_prob = float(logits.log_softmax(dim=-1)[taken])
        rows.append(_bar(studio, int((logits > logits[taken]).sum()) + 1, taken, log_prob, taken))
    return Reply((Line(place(studio, index), "dim"), Bars(tuple(rows))))


@command("pick", "POS TOKEN", "take another token at POS and let the model go on, as a branch of its own")
def _pick(studio: Studio, argument: str) -> Reply:
    """TOKEN is a text, in quotes where it has spaces, or #3: the third of /top POS. POS as in /top; `next` too.

    /pick 5 #2 · /pick -1 " cat" · /pick next dog
    """
    position, token = _two(argument, "/pick")
    if not token:
        raise UsageError('/pick takes a position and a token, like /pick 5 #2 or /pick -1 " cat"; /top shows them')
    index = index_of(studio, position, "/pick", beyond=True)
    token_id = _ranked(studio, index, token) if re.fullmatch(r"#\d+", token) else _token_id(studio, token)
    if token_id in eos_ids(studio):
        raise UsageError("that token ends the story, and nothing can come after it; take another one")
    return Reply(requests=(studio.pick(index, token_id),))


@command("trace", "[POS]", "what each stage left of the vocabulary at POS, and what was picked")
def _trace(studio: Studio, argument: str) -> Reply:
    """POS as in /top, by default the last token.

    A row a stage: how many tokens are left, which share of the model's probability they have, and some that it
    removed, the likeliest first.
    """
    index = index_of(studio, argument or "-1", "/trace")
    turn = _written_at(studio, index)
    story = turn_logits(studio, turn)
    picks = list(islice(retrace(*story, eos_ids=eos_ids(studio)), index - len(story[1].prompt_ids) + 1))
    effects = funnel(story[0], picks[-1])
    # A stage that only weighs anew leaves as many as it was given.
    counts = " → ".join(dict.fromkeys(f"{effect.left:,}" for effect in effects[:-1]))
    rows = [
        (
            effect.stage,
            f"{effect.left:,} left",
            f"{effect.mass:.1%}",
            _removed(studio, effect.removed, effect.n_removed),
        )
        for effect in effects[:-1]
    ]
    took = (effects[-1].stage, "took", token_name(studio, picks[-1].token_id), _chances(story, picks))
    blocks = [Line(place(studio, index), "dim"), Line(f"{counts} → {token_name(studio, picks[-1].token_id)}", "bold")]
    return Reply((*blocks, Table((*rows, took)), *_differs(studio, picks[-1])))


@command("ppl", "[FILE]", "how surprised the model is by the story, or by the stories of a text file", "file")
def _ppl(studio: Studio, argument: str) -> Reply:
    """Perplexity compares models of one vocabulary only; bits per byte compares any.

    A file has at most 2 MB; in a .txt `<|endoftext|>` stands between stories. Ctrl-C stops.
    """
    if argument:
        return Reply((Table(tuple(_file_figures(studio, Path(os.path.expanduser(argument))))),))
    ids = whole_story(studio)
    start = max(1, len(studio.backend.encode("", bos=True)))
    if len(ids) <= start:
        raise UsageError("the page is blank; write something first, or give a FILE")
    studio.backend.wait(lambda: False)
    bits = _bits(studio.backend.logits(ids, start), ids[start:])
    rows = [("tokens", f"{len(bits):,}"), *_figures(sum(bits) / len(bits))]
    rows.append(("bits per byte", f"{sum(bits) / max(1, len(studio.text.encode())):.3f}"))
    path = studio.tree.path(studio.tree.current)
    own = [cost for cost, token in zip(bits, path[start:], strict=False) if token.token is not None]
    if len(path) == len(studio.token_ids) and 0 < len(own) < len(bits):
        rows.append(("of what was written", f"{sum(own) / len(own):.3f} bits per token, of {len(own):,}"))
    return Reply((Table(tuple(rows)),))


def _two(argument: str, origin: str) -> tuple[str, str]:
    """A position and what comes after it."""
    position, _, rest = argument.partition(" ")
    return position, rest.strip()


def _bar(studio: Studio, rank: int, token_id: int, log_prob: float, taken: int | None) -> tuple[str, float, str, Style]:
    here = token_id == taken
    return f"{'→' if here else ' '} {rank:,}", math.exp(log_prob), token_name(studio, token_id), "bold" if here else ""


def _ranked(studio: Studio, index: int, token: str) -> int:
    """The token of a rank in /top's list."""
    logits = logits_at(studio, index)
    rank = whole_number(token[1:], "/pick: #RANK", 1, len(logits))
    return alternatives(logits, rank)[-1][0]


def _token_id(studio: Studio, argument: str) -> int:
    """The token that is a text, or is it after a space.

    Raises:
        UsageError: none is; the message tells those that spell it.
    """
    given = texts(argument, "/pick") if argument.startswith('"') else (argument,)
    if len(given) > 1:
        raise UsageError(f"/pick takes one token, not {len(given)} texts; /edit writes more")
    text = given[0]
    backend = studio.backend
    for wanted in (text, " " + text, "▁" + text):
        spelled = backend.encode(wanted, bos=False)
        if len(spelled) == 1 and backend.token_text(spelled[0]) == wanted:
            return spelled[0]
        tokenizer = backend.tokenizer
        found = next((i for i in range(tokenizer.vocab_size) if tokenizer.token_text(i) == wanted), None)
        if found is not None:
            return found
    pieces = [quoted(backend.token_text(i)) for i in backend.encode(" " + text.lstrip(), bos=False)]
    raise UsageError(
        f"no token of this vocabulary is {quoted(text)[:60]}: it takes {len(pieces)}, {' '.join(pieces)[:80]};"
        " pick the first, or /edit the story"
    )


def _written_at(studio: Studio, index: int) -> Turn:
    """The turn whose model picked the token at an index; raises UsageError where it was typed."""
    tree = studio.tree
    desk = tree.turns[tree.current]
    if desk.vocabulary != studio.backend.vocabulary:
        check_same_model(studio, desk)
        raise UsageError("the story is in the tokens of another model; /tree and /model bring that one back")
    found = tree.path(tree.current)[index]
    turn = tree.turns[found.turn]
    if found.token is None:
        in_tail = index >= len(tree.token_ids(turn.id)) - len(turn.tail_ids)
        how = "came with a stop text" if in_tail else "was typed or taken by you"
        raise UsageError(f"{place(studio, index)}: {token_name(studio, found.id)} {how}, no decoder has picked it")
    return turn


def _removed(studio: Studio, likeliest: tuple[int, ...], n_removed: int) -> str:
    """Some of what a stage made impossible."""
    if not n_removed:
        return ""
    some = " ".join(token_name(studio, token_id) for token_id in likeliest[:_N_REMOVED])
    return f"without {some}{' …' if n_removed > _N_REMOVED else ''}"


def _chances(story: TurnLogits, picks: list[Pick]) -> str:
    """How probable the last of the picks was, for the model and for the decoder."""
    own = float(picks[-1].received[0].log_softmax(dim=-1)[picks[-1].token_id])
    decoders = _sampler_log_prob(story, picks)
    theirs = "" if decoders is None else f", {math.exp(decoders):.1%} by this decoder"
    return f"{math.exp(own):.1%} by the model{theirs}"


def _sampler_log_prob(story: TurnLogits, picks: list[Pick]) -> float | None:
    """Of the last of the picks; in nats, None where the sampler does not know."""
    decoder, request, ids, _ = story
    sampler = cast(Sampler, decoder.sampler)
    state = sampler.start(request)
    for pick in picks[:-1]:
        state = sampler.observe(state, pick.token_id, pick.received[-1])
    last = picks[-1]
    log_probs = sampler.log_probs(last.received[-1], Step(request, ids[: last.position], frozenset(), state))
    return None if log_probs is None else float(log_probs[last.token_id])


def _differs(studio: Studio, pick: Pick) -> Iterator[Line]:
    """What to say where the decoder picks another token here and now than the one in the story."""
    if pick.tie:
        yield Line(f"as close as can be: {token_name(studio, pick.picked)} scores the same within rounding", "dim")
    elif pick.picked != pick.token_id:
        now = token_name(studio, pick.picked) if pick.picked >= 0 else "nothing"
        yield Line(f"computed once more, this decoder picks {now} here: the story was written in another way", "note")


def _bits(logits: "Tensor", token_ids: tuple[int, ...]) -> list[float]:
    """The model's surprise at each token."""
    rows = logits.log_softmax(dim=-1)
    return [-float(row[token_id]) / math.log(2) for row, token_id in zip(rows, token_ids, strict=True)]


def _figures(bits_per_token: float) -> tuple[tuple[str, str], ...]:
    perplexity = 2**bits_per_token if bits_per_token < 1000 else math.inf
    return (("perplexity", f"{perplexity:,.2f}"), ("bits per token", f"{bits_per_token:.3f}"))


def _file_figures(studio: Studio, path: Path) -> Iterator[tuple[str, str]]:
    """Of the stories of a file; Ctrl-C stops the model between two batches."""
    size = regular_file_size(path)
    if size > _MAX_FILE_BYTES:
        raise UsageError(f"{path} has {size:,} bytes; /ppl takes at most 2 MB, `tinystory eval` takes any file")
    studio.backend.wait(lambda: False)
    from tinystory.data.sources import read_stories

    found = studio.backend.evaluate(read_stories([path]))
    yield "stories", f"{found.stories:,}"
    yield "tokens", f"{found.tokens:,}, the ends included"
    yield from _figures(found.nats_per_token / math.log(2))
    yield "bits per byte", f"{found.bits_per_byte:.3f}"
    yield "likeliest token right", f"{found.accuracy:.1%}"
