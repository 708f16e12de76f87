"""What the stages of a decoder did at a token of a story, and what another decoder would have done."""

import math
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from tinystory.decoding.spec import parse_spec
from tinystory.story import tracing
from tinystory.story.tracing import StageEffect, funnel, retrace

if TYPE_CHECKING:
    from tinystory.api.story import Story, StoryToken

__all__ = ["Trace", "WhatIf", "trace", "whatif"]

_N_ALTERNATIVES = 10


@dataclass(frozen=True, eq=False)
class Trace:
    """The funnel at one token of a story.

    Attributes:
        story: the story.
        position: the index of the token in `story.tokens`.
        token: the token.
        alternatives: the ten likeliest tokens of the model, as (text, probability), the likeliest first.
        effects: what each stage left: first the model, then the processors, last the sampler.
        tie: True if the decoder picks another token when it is run again, by rounding.
    """

    story: "Story"
    position: int
    token: "StoryToken"
    alternatives: tuple[tuple[str, float], ...]
    effects: tuple[StageEffect, ...]
    tie: bool

    def name(self, token_id: int) -> str:
        """Return a token as readers see it."""
        return self.story.model.loaded.tokenizer.token_text(token_id)

    def _repr_html_(self) -> str:
        from tinystory.api.html import trace_html

        return trace_html(self)


@dataclass(frozen=True, eq=False)
class WhatIf:
    """The verdict of a decoder on a story that it may not have written.

    Attributes:
        story: the story.
        spec: the decoder.
        forbidden: the tokens that it could not have picked, as (index in `story.tokens`, stage that removes it). An
            index behind the last token is the end of the story.
        log_prob: the log-probability in nats with which it writes the story after the prompt; −inf if a token is
            forbidden, None if its sampler does not know its probabilities.
        bits_per_token: the mean surprise of the tokens that are not forbidden; None as for `log_prob`.
    """

    story: "Story"
    spec: str
    forbidden: tuple[tuple[int, str], ...]
    log_prob: float | None
    bits_per_token: float | None

    def _repr_html_(self) -> str:
        from tinystory.api.html import whatif_html

        return whatif_html(self)


def trace(story: "Story", position: int) -> Trace:
    """Return what each stage did at one token; see `Story.trace`."""
    traced = story.traced()
    eos_ids = story.model.loaded.tokenizer.eos_ids
    pick = next(islice(retrace(*traced, eos_ids=eos_ids), position, None))
    tokenizer = story.model.loaded.tokenizer
    likeliest = tuple(
        (tokenizer.token_text(token_id), math.exp(logprob))
        for token_id, logprob in tracing.alternatives(pick.received[0], _N_ALTERNATIVES)
    )
    return Trace(story, position, story.tokens[position], likeliest, funnel(traced[0], pick), pick.tie)


def whatif(story: "Story", spec: str) -> WhatIf:
    """Judge a story by another decoder; see `Story.whatif`."""
    _, request, token_ids, logits = story.traced()
    decoder = parse_spec(spec, story.model.registry)
    verdict = tracing.whatif(decoder, request, token_ids, logits, eos_ids=story.model.loaded.tokenizer.eos_ids)
    n_before = len(story.prompt_ids)
    forbidden = tuple((position - n_before, stage) for position, stage in verdict.forbidden)
    return WhatIf(story, spec, forbidden, verdict.log_prob, verdict.bits_per_token)
