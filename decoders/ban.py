"""Banned words, as a rule about the text and not about tokens.

A token is removed if the text so far and the token together would have a banned word. So a word is found in any
spelling in tokens, in upper or lower case, and across tokens. This is stricter than `bad_words_ids` of Hugging Face
transformers: its sequences of ids miss other spellings and cases, and they also match a word inside longer words.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tinystory.decoding import LogitsProcessor, Request, Step, option
from tinystory.words import Watch, Watched, check_words

if TYPE_CHECKING:
    from torch import Tensor


class _State(NamedTuple):
    """The end of the story, which may become a banned word. All states share the watch, which caches its answers."""

    watch: Watch
    end: Watched


@dataclass(frozen=True)
class Ban(LogitsProcessor):
    """Remove tokens that would complete a banned word, in upper or lower case and in any spelling in tokens.

    A token is removed if a whole banned word would stand in the text after it, also at the very end, because the story
    may end there. This has a price: with "cat" banned, a "caterpillar" whose first token is "cat" cannot be written.
    If no token is left, the story ends. If it cannot end either, the likeliest token stays.
    """

    name = "ban"
    example = 'ban Tim,"big book"'
    words: tuple[str, ...] = option(neutral=(), help="words or phrases, with commas between them")

    def __post_init__(self) -> None:
        """Check the options. Raise UsageError if one is wrong."""
        super().__post_init__()
        check_words(self.words, self.name)

    def start(self, request: Request) -> _State:
        """Return the end of the prompt. Banned words inside the prompt stay, because the user wrote them."""
        vocabulary = request.require_vocabulary()
        watch = Watch(self.words, vocabulary.pieces, vocabulary.detokenize)
        return _State(watch, watch.begin(request.prompt_ids))

    def observe(self, state: _State, token_id: int, logits: "Tensor") -> _State:
        """Return the end of the story after one more token."""
        return _State(state.watch, state.watch.add(state.end, token_id))

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """Set the (V,) logits of all tokens that would complete a banned word to −inf."""
        completing = step.state.watch.completing(step.state.end)
        if not len(completing):
            return logits
        kept = logits.clone()
        kept[completing] = -math.inf
        if kept.max() > -math.inf:
            return kept
        # An EOS token has no text, so an earlier stage must have removed it.
        return logits.masked_fill(logits < logits.max(), -math.inf)
