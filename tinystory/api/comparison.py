"""Several stories of one prompt and one noise, side by side."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tinystory.story.tracing import Parting, parting

if TYPE_CHECKING:
    from tinystory.api.model import Model
    from tinystory.api.story import Story

__all__ = ["Comparison", "compare"]


class Comparison:
    """The stories of several decoders, with the same prompt, seed and noise.

    Attributes:
        stories: one story for each decoder, in order.
    """

    def __init__(self, stories: "tuple[Story, ...]") -> None:
        self.stories = stories

    def __repr__(self) -> str:
        """Name the decoders."""
        return f"<Comparison of {', '.join(story.shown_spec for story in self.stories)}>"

    def __len__(self) -> int:
        """Return the number of stories."""
        return len(self.stories)

    def __getitem__(self, index: int) -> "Story":
        """Return the story of a decoder."""
        return self.stories[index]

    def __iter__(self) -> "Iterator[Story]":
        """Iterate over the stories."""
        return iter(self.stories)

    def parting(self, first: int = 0, second: int = 1) -> Parting | None:
        """Return where two stories part and which stage is the cause; None if one is the beginning of the other.

        The position counts from the beginning of the prompt, BOS included.

        Raises:
            UsageError: one of the decoders is a search.
        """
        a, b = self.stories[first], self.stories[second]
        return parting(a.traced(), b.traced(), eos_ids=a.model.loaded.tokenizer.eos_ids)

    def _repr_html_(self) -> str:
        from tinystory.api.html import comparison_html

        return comparison_html(self)


def compare(
    model: "Model",
    prompt: str,
    decoders: Sequence[str],
    *,
    seed: int | None = None,
    max_new_tokens: int = 256,
    stop: Sequence[str] = (),
) -> Comparison:
    """Write one story with each decoder, all with the same noise: two stories are equal until their decoders differ.

    Examples:
        >>> import tinystory as ts
        >>> both = ts.compare(ts.load(), "Once", ["greedy", "top-k 1 | sample"], seed=7, max_new_tokens=5)
        >>> both[0].text == both[1].text
        True

    Args:
        model: as from `load`.
        prompt: the text to begin with.
        decoders: 2 to 8 specs.
        seed: of the noise; None for a random one.
        max_new_tokens: the largest number of new tokens, from 1.
        stop: texts at which a story ends.

    Raises:
        UsageError: there are too few or too many decoders, or as `Model.write`.
    """
    return model.compare(prompt, decoders, seed=seed, max_new_tokens=max_new_tokens, stop=stop)
