"""A finished story in Python: its text, its tokens, and the questions that can be asked about each token."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from tinystory.decoding import FinishReason, Request, Token
from tinystory.decoding.spec import format_spec, shown_spec
from tinystory.errors import UsageError
from tinystory.text.sentences import whole_sentences
from tinystory.text.tokenizer import Detokenizer, Tokenizer
from tinystory.writing import generate

if TYPE_CHECKING:
    from tinystory.api.inside import Inside
    from tinystory.api.model import Model
    from tinystory.api.trace import Trace, WhatIf
    from tinystory.story.tracing import TurnLogits

__all__ = ["Story", "StoryToken", "tokens_with_text"]


@dataclass(frozen=True)
class StoryToken:
    """A token of a story.

    Attributes:
        text: the text that it adds, empty while a character of several tokens is incomplete. Joined, the texts of all
            tokens are the text after the prompt; a stop text that ended the story stands in the tokens only.
        id: the token id.
        logprob: its log-probability in nats under the model's own softmax, before any stage of the decoder.
        rank: its place in that distribution; 0 is the likeliest token, −1 is unknown.
        entropy: the entropy of that distribution in bits; NaN if unknown.
    """

    text: str
    id: int
    logprob: float
    rank: int
    entropy: float


def tokens_with_text(tokenizer: Tokenizer, before: Sequence[int], tokens: Sequence[Token]) -> tuple[StoryToken, ...]:
    """Return tokens with the text that each adds after the ids that stand before them."""
    detokenizer = Detokenizer(tokenizer, before)
    texts = [detokenizer.add(token.id) for token in tokens]
    if texts:
        texts[-1] += detokenizer.finish()
    return tuple(
        StoryToken(text, token.id, token.logprob, token.rank, token.entropy)
        for text, token in zip(texts, tokens, strict=True)
    )


class Story:
    """A finished story. `Model.write` makes it.

    A position in `trace` and `inside` is an index of `tokens`, so it counts from 0, and -1 is the last token.

    Attributes:
        model: the model that wrote it.
    """

    def __init__(self, model: "Model", written: generate.Story) -> None:
        self.model = model
        self._written = written

    def __repr__(self) -> str:
        """Show the text, shortened."""
        text = self.text if len(self.text) <= 60 else self.text[:59] + "…"
        return f"<Story {text!r}, {len(self.tokens)} tokens, {self.shown_spec}, seed {self.seed}>"

    def __str__(self) -> str:
        """Return the text."""
        return self.text

    @property
    def prompt(self) -> str:
        """The text that the story began with."""
        return self._written.request.prompt

    @property
    def text(self) -> str:
        """The prompt and what the model wrote."""
        return self._written.text

    @property
    def completion(self) -> str:
        """What the model wrote."""
        return self._written.completion

    @property
    def spec(self) -> str:
        """The decoder, as a spec."""
        return format_spec(self._written.request.decoder)

    @property
    def shown_spec(self) -> str:
        """The decoder, as a spec with the first option of each stage, for people."""
        return shown_spec(self._written.request.decoder)

    @property
    def seed(self) -> int:
        """The seed of the noise; `model.write(story.prompt, story.spec, seed=story.seed)` gives the story again."""
        return self._written.request.seed

    @property
    def finish_reason(self) -> FinishReason:
        """Why the story ended: "eos", "length", "stop" or another reason of `tinystory.decoding.FinishReason`."""
        return self._written.finish_reason

    @property
    def statistics(self) -> dict[str, float]:
        """The figures of the story, like tokens, seconds and bits_per_token."""
        return dict(self._written.statistics)

    @cached_property
    def tokens(self) -> tuple[StoryToken, ...]:
        """The tokens that the model wrote, without those of the prompt and without EOS."""
        return tokens_with_text(self.model.loaded.tokenizer, self._written.prompt_ids, self._written.tokens)

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The token ids of the prompt, BOS included."""
        return self._written.prompt_ids

    def trace(self, position: int) -> "Trace":
        """Show what each stage of the decoder left of the vocabulary at one token, and what was picked.

        Examples:
            >>> import tinystory as ts
            >>> story = ts.load().write("Once", "top-k 5 | sample", seed=1, max_new_tokens=3)
            >>> [effect.left for effect in story.trace(0).effects]
            [2048, 5, 1]

        Raises:
            UsageError: the decoder is a search, which does not pick token by token.
            IndexError: there is no such token.
        """
        from tinystory.api.trace import trace

        return trace(self, self._index(position))

    def whatif(self, decoder: str) -> "WhatIf":
        """Judge the story by another decoder: which of its tokens could this decoder not have picked?

        Examples:
            >>> import tinystory as ts
            >>> story = ts.load().write("Once", "greedy", max_new_tokens=3)
            >>> story.whatif("top-k 1 | sample").forbidden
            ()

        Raises:
            UsageError: the spec is wrong, or is a search.
        """
        from tinystory.api.trace import whatif

        return whatif(self, decoder)

    def inside(self, position: int) -> "Inside":
        """Look inside the model at one token: what it would have said after each layer, and where its heads looked.

        Examples:
            >>> import tinystory as ts
            >>> story = ts.load().write("Once", "greedy", max_new_tokens=3)
            >>> len(story.inside(0).layers)
            7

        Raises:
            UsageError: the architecture does not show its layers.
            IndexError: there is no such token.
        """
        from tinystory.api.inside import Inside

        return Inside(self, self._index(position))

    def traced(self) -> "TurnLogits":
        """Return the decoder, the request, the ids and the logits, as `tinystory.story.tracing` takes them."""
        return (self._written.request.decoder, self._request(), self.token_ids, self._logits)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The ids of the whole story: BOS, prompt and what the model wrote; EOS if the model ended the story."""
        eos_ids = self.model.loaded.tokenizer.eos_ids
        end = (min(eos_ids),) if self.finish_reason == "eos" and eos_ids else ()
        return (*self.prompt_ids, *self._written.token_ids, *end)

    def fields(self) -> dict[str, Any]:
        """Return the story as plain data for JSON, with the keys of `tinystory generate --json`."""
        return {
            "prompt": self.prompt,
            "completion": self.completion,
            "text": self.text,
            "token_ids": list(self._written.token_ids),
            "finish_reason": self.finish_reason,
            "spec": self.spec,
            "seed": self.seed,
            "model": self.model.name,
            "model_hash": self.model.loaded.hash,
        }

    def _repr_html_(self) -> str:
        from tinystory.api.html import story_html

        return story_html(self)

    @cached_property
    def _logits(self) -> Any:
        if not self.prompt_ids:
            raise UsageError("the story has no prompt and no BOS, so the model saw nothing before its first token")
        return self.model.logits(self.token_ids, len(self.prompt_ids))

    def _request(self) -> Request:
        tokenizer = self.model.loaded.tokenizer
        return Request(
            self.prompt_ids,
            self._written.request.max_new_tokens,
            self.seed,
            story=self._written.request.number,
            window=partial(whole_sentences, tokenizer),
            vocabulary=tokenizer,
            opener=self.model.loaded.session.open,
        )

    def _index(self, position: int) -> int:
        """Return a position as an index of `tokens`, from 0."""
        return range(len(self._written.tokens))[position]
