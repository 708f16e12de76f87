"""The inside of the model at one token of a story: layers, attention, and what happens without a part."""

from functools import cached_property
from typing import TYPE_CHECKING

from tinystory.decoding import shrunk
from tinystory.text.sentences import whole_sentences

if TYPE_CHECKING:
    from torch import Tensor

    from tinystory.api.story import Story
    from tinystory.inside.forward_pass import ForwardPass, Replacement
    from tinystory.inside.heads import Gaze
    from tinystory.inside.layers import LayerGuess
    from tinystory.inside.removal import Effect

__all__ = ["Inside"]


class Inside:
    """What was inside the model when it chose one token. `Story.inside` makes it.

    Attributes:
        story: the story.
        position: the index of the token in `story.tokens`.
        token: the token.
        before: the ids that the model saw; of a story that outgrew the context, what the context kept.
    """

    def __init__(self, story: "Story", position: int) -> None:
        self.story = story
        self.position = position
        self.token = story.tokens[position]
        before = story.token_ids[: len(story.prompt_ids) + position]
        most = story.model.loaded.session.max_seq_len - 1
        tokenizer = story.model.loaded.tokenizer
        if len(before) > most:
            before = tuple(shrunk(before, lambda ids, n: whole_sentences(tokenizer, ids, n), most))
        self.before = before

    def __repr__(self) -> str:
        """Name the token."""
        return f"<Inside {self.story.model.name} at token {self.position}, {self.token.text!r}>"

    @cached_property
    def run(self) -> "ForwardPass":
        """The pass over the story up to the token: residual stream (L + 1, T, C), attention (L, H, T, T), logits."""
        return self.story.model.inspector.run((*self.before, self.token.id))

    @cached_property
    def layers(self) -> "list[LayerGuess]":
        """What the model would have said after each layer: first the embeddings alone, last the model itself."""
        from tinystory.inside.layers import guesses

        return guesses(self.run, len(self.before))

    @property
    def decided_at(self) -> int:
        """The first layer from which on the model's likeliest token stays the likeliest; 0 is the embeddings."""
        from tinystory.inside.layers import decided_at

        return decided_at(self.layers)

    @cached_property
    def gaze(self) -> "Gaze":
        """Where the heads looked: weights (L, H, N) over the N tokens before.

        Raises:
            UsageError: the architecture does not give its attention.
        """
        from tinystory.inside.heads import gaze

        return gaze(self.run, len(self.before), self.story.model.loaded.tokenizer.bos_id)

    def attention(self, layer: int | None = None, head: int | None = None) -> "Tensor":
        """Return how the weight is shared among the words before, (N,); see `Gaze.words`. Indices count from 0."""
        return self.gaze.words(layer, head)

    def without_parts(self, replacement: "Replacement" = "zero", *, of: int | None = None) -> "list[Effect]":
        """Leave out each head, attention and feed-forward in turn: by how many bits is the token less likely?

        A part that speaks for the token of the story may speak for another one as well. To see why the model wrote this
        token and not another, take the difference of the bits of both.

        Args:
            replacement: "zero", or "mean" for the mean of the part's output over the story.
            of: the id of another token to ask about; None for the token of the story.

        Raises:
            UsageError: the vocabulary has no such token, or the model is of another family than Llama and GPT-2.
        """
        return list(self.story.model.inspector.effects(self.before, self.token.id if of is None else of, replacement))

    def _repr_html_(self) -> str:
        from tinystory.api.html import inside_html

        return inside_html(self)
