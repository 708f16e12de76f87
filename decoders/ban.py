"""Banned words: a rule on the text, not on tokens.

The text so far and each token together must not make one of the words: tokens that would are removed. So a word is
caught however it is spelled in tokens, in any case, and across tokens. It is stricter than `bad_words_ids` of Hugging
Face transformers, whose id sequences miss other spellings and cases, and catch a word inside of longer ones.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tinystory.decoding import LogitsProcessor, Request, Step, option
from tinystory.text.words import Watch, Watched, check_words

if TYPE_CHECKING:
    from torch import Tensor


class _Seen(NamedTuple):
    """The state: what the story's end may still become. The watch is shared by all states, and remembers tokens."""

    watch: Watch
    end: Watched


@dataclass(frozen=True)
class Ban(LogitsProcessor):
    """Keep words out of the story: whole ones, in any case, however they are spelled in tokens.

    Removed is every token after which a banned word stands whole, at the end of the text too, so that the story may
    end anywhere. The price: with "cat" banned, a "caterpillar" whose first token is "cat" cannot be written. Where
    nothing else is left, the story ends; where it cannot end either, the likeliest token stays.
    """

    name = "ban"
    example = 'ban wolf,"bad witch"'
    words: tuple[str, ...] = option(neutral=(), help="words, or several with spaces between, with commas in a list")

    def __post_init__(self) -> None:
        """Check the options; raises UsageError."""
        super().__post_init__()
        check_words(self.words, self.name)

    def start(self, request: Request) -> _Seen:
        """What the prompt ends with; words that it has itself are the writer's."""
        vocabulary = request.require_vocabulary()
        watch = Watch(self.words, vocabulary.pieces, vocabulary.detokenize)
        return _Seen(watch, watch.begin(request.prompt_ids))

    def observe(self, state: _Seen, token_id: int, logits: "Tensor") -> _Seen:
        """After one more token."""
        return _Seen(state.watch, state.watch.add(state.end, token_id))

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """(V,) logits -> −inf for every token that would complete a banned word."""
        completing = step.state.watch.completing(step.state.end)
        if not len(completing):
            return logits
        kept = logits.clone()
        kept[completing] = -math.inf
        if kept.max() > -math.inf:
            return kept
        # An end is no word: it was removed before.
        return logits.masked_fill(logits < logits.max(), -math.inf)
