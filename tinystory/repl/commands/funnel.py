"""The command /trace: the funnel at one token, from the model's whole vocabulary to the pick."""

import math
from collections.abc import Iterator
from itertools import islice
from typing import cast

from tinystory.decoding import Sampler, Step
from tinystory.errors import UsageError
from tinystory.repl.commands.base import Reply, command
from tinystory.screen.blocks import Line, Table
from tinystory.story.tracing import Pick, TurnLogits, funnel, retrace
from tinystory.story.tree import Turn
from tinystory.studio.recall import check_same_model, eos_ids, index_of, place, token_name, turn_logits
from tinystory.studio.studio import Studio

__all__: list[str] = []

_N_REMOVED = 4
"""The largest number of removed tokens that a row of /trace shows."""


@command("trace", "[POS]", "show what each stage left of the vocabulary at POS, and what was picked")
def _trace(studio: Studio, argument: str) -> Reply:
    """Count POS as in /top; without POS, see the last token.

    Each row is a stage: how many tokens it left, which share of the model's probability these have, and some of the
    tokens that it removed, the likeliest first.
    """
    index = index_of(studio, argument or "-1", "/trace")
    turn = _turn_that_wrote(studio, index)
    story = turn_logits(studio, turn)
    picks = list(islice(retrace(*story, eos_ids=eos_ids(studio)), index - len(story[1].prompt_ids) + 1))
    effects = funnel(story[0], picks[-1])
    # A stage that removes no token leaves the same number; the number is shown once.
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
    picked = token_name(studio, picks[-1].token_id)
    rows.append((effects[-1].stage, "took", picked, _chances(story, picks)))
    heading = (Line(place(studio, index), "dim"), Line(f"{counts} → {picked}", "bold"))
    return Reply((*heading, Table(tuple(rows)), *_difference(studio, picks[-1])))


def _turn_that_wrote(studio: Studio, index: int) -> Turn:
    """Return the turn whose decoder picked the token at an index of the story.

    Raises:
        UsageError: no decoder picked it, or another model wrote the story.
    """
    tree = studio.tree
    desk = tree.turns[tree.current]
    if desk.vocabulary != studio.backend.vocabulary:
        check_same_model(studio, desk)
        raise UsageError(
            "the story has the vocabulary of another model; /tree shows the story, /model opens that model"
        )
    token = tree.path(tree.current)[index]
    turn = tree.turns[token.turn]
    if token.token is None:
        in_tail = index >= len(tree.token_ids(turn.id)) - len(turn.tail_ids)
        how = "came with a stop text" if in_tail else "was typed or taken by you"
        raise UsageError(f"{place(studio, index)}: {token_name(studio, token.id)} {how}, no decoder has picked it")
    return turn


def _removed(studio: Studio, likeliest: tuple[int, ...], n_removed: int) -> str:
    """Return some of the tokens that a stage removed, as text; empty if it removed none."""
    if not n_removed:
        return ""
    names = " ".join(token_name(studio, token_id) for token_id in likeliest[:_N_REMOVED])
    return f"without {names}{' …' if n_removed > _N_REMOVED else ''}"


def _chances(turn_logits: TurnLogits, picks: list[Pick]) -> str:
    """Return the probability of the last pick, as text: by the model, and by the decoder if its sampler knows it."""
    by_model = float(picks[-1].received[0].log_softmax(dim=-1)[picks[-1].token_id])
    by_decoder = _sampler_logprob(turn_logits, picks)
    decoder = "" if by_decoder is None else f", {math.exp(by_decoder):.1%} by this decoder"
    return f"{math.exp(by_model):.1%} by the model{decoder}"


def _sampler_logprob(turn_logits: TurnLogits, picks: list[Pick]) -> float | None:
    """Return the sampler's log-probability of the last pick, in nats; None if the sampler does not know it."""
    decoder, request, ids, _ = turn_logits
    sampler = cast(Sampler, decoder.sampler)
    state = sampler.start(request)
    for pick in picks[:-1]:
        state = sampler.observe(state, pick.token_id, pick.received[-1])
    last = picks[-1]
    logprobs = sampler.log_probs(last.received[-1], Step(request, ids[: last.position], frozenset(), state))
    return None if logprobs is None else float(logprobs[last.token_id])


def _difference(studio: Studio, pick: Pick) -> Iterator[Line]:
    """Yield a line if the decoder, computed again, picks another token than the one in the story."""
    if pick.tie:
        yield Line(f"a numerical tie: {token_name(studio, pick.picked)} has the same logit within rounding", "dim")
    elif pick.picked != pick.token_id:
        now = token_name(studio, pick.picked) if pick.picked >= 0 else "no token"
        yield Line(f"computed once more, this decoder picks {now} here: the story was written in another way", "note")
